"""Contenders timed in turns: run 1 of each, run 2 of each, … so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from timeit import Timer
from typing import TypeVar

from .contenders import Call

Name = TypeVar("Name")
SHORTEST = 1e-3  # seconds of a run


def interleaved(
    calls: Mapping[Name, Call], repeats: int, pause: float
) -> tuple[dict[Name, list[float]], dict[Name, int]]:
    """Seconds of a call in each run, and the calls in a run."""
    batches = {name: batch(call) for name, call in calls.items()}
    runs: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            # Threads of OpenMP go on spinning after a call: measured, they were busy 2 ms later and idle 5 ms later.
            time.sleep(pause)
            # The steady state is timed; after a pause threads sleep, and the cache holds other arrays.
            seconds(call, 1)
            runs[name].append(seconds(call, batches[name]))
    return runs, batches


def batch(call: Call) -> int:
    """Calls that make a run; the best of three tells, lest one disturbed call makes a batch of one."""
    number = 1
    while min(seconds(call, number) for _ in range(3)) * number < SHORTEST:
        number *= 2
    return number


def seconds(call: Call, number: int) -> float:
    """Seconds of one call, of `number` in a row; `timeit` keeps the garbage collector out."""
    with call.context():
        return Timer(call.run).timeit(number) / number
