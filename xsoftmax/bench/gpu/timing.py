"""Clocks: events around each call on the device's stream, or the host's time of many calls."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TypeVar

from ..contenders import Call
from .device import Device

Name = TypeVar("Name")
WARM_UP = 2  # turns that are not counted
QUEUED = 20  # calls that wait in a queue behind each other
ENQUEUED = 200  # calls whose launches are timed


def on_device(
    calls: Mapping[Name, Call], device: Device, repeats: int
) -> tuple[dict[Name, list[float]], dict[Name, int]]:
    """Seconds of a call on the device, and the calls in a run. A call with a stream of its own is timed in a queue."""
    batches = {name: QUEUED if call.finish else 1 for name, call in calls.items()}
    runs: dict[Name, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UP + repeats):
        for name, call in calls.items():
            if call.finish:
                seconds = queued(call, device, QUEUED, wait=True)
            else:
                with call.context():
                    seconds = device.seconds(call.run)
            if turn >= WARM_UP:
                runs[name].append(seconds)
    return runs, batches


def on_host(
    calls: Mapping[Name, Call], device: Device, repeats: int
) -> tuple[dict[Name, list[float]], dict[Name, int]]:
    """Seconds that a call takes the host, which does not wait for the result, and the calls in a run."""
    runs: dict[Name, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UP + repeats):
        for name, call in calls.items():
            seconds = queued(call, device, ENQUEUED, wait=False)
            if turn >= WARM_UP:
                runs[name].append(seconds)
    return runs, dict.fromkeys(calls, ENQUEUED)


def queued(call: Call, device: Device, number: int, *, wait: bool) -> float:
    """Seconds of one of so many calls, by the host's clock."""
    with call.context():
        device.synchronize()
        start = time.perf_counter()
        for _ in range(number):
            result = call.run()
        if wait and call.finish:
            call.finish(result)
        seconds = time.perf_counter() - start
    device.synchronize()
    return seconds / number
