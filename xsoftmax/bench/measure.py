"""One group of contenders after the other: what is planned, the threads of all, and the document."""

from __future__ import annotations

import math
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import xsoftmax as xs

from .choice import check_names, made
from .contenders import CONTENDERS, JAX, Contender
from .group import GIGABYTE, Group
from .inputs import Inputs
from .machine import describe
from .options import WITH_OUT
from .rows import Row, dimensions, skipped
from .timing import interleaved

BUSY = 0.5  # load, before anything is run


@dataclass(frozen=True)
class Plan:
    """What is timed; `memory` in gigabytes, `pause` in milliseconds, no `threads`: as xsoftmax has them."""

    verb: Sequence[str]
    shape: Sequence[tuple[int, ...]]
    dtype: Sequence[str]
    contender: Sequence[str] | None
    repeats: int
    threads: int | None
    memory: float
    pause: float

    @classmethod
    def of(cls, options: Namespace) -> Plan:
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})

    def __post_init__(self) -> None:
        check_names(self.contender or (), CONTENDERS)

    def __len__(self) -> int:
        """Groups."""
        return len(self.dtype) * len(self.shape) * len(self.verb)


def measure(plan: Plan, name: str) -> Iterator[dict[str, Any]]:
    """The document of this machine, called `name`: after every group, more rows in it. Shows progress on stderr."""
    with ExitStack() as stack:
        if plan.threads is not None:
            limit_threads(stack, plan.threads)
        threads = xs.get_num_threads()
        rows: list[Row] = []
        document: dict[str, Any] = {"machine": describe(name, threads), "repeats": plan.repeats, "rows": rows}
        warn_of_others(document["machine"])
        found = made(plan.contender or CONTENDERS, CONTENDERS)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        # drawn between the groups only: a thread that draws would disturb what is timed
        progress = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
        stack.enter_context(progress)
        task = progress.add_task("", total=len(plan))
        for title, measured in groups(plan, threads, found):
            progress.update(task, description=title, refresh=True)
            rows += measured()
            progress.update(task, advance=1, refresh=True)
            yield document


def groups(
    plan: Plan, threads: int, found: dict[str, Contender | str]
) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """The title of each group, and what measures it."""
    with_jax = any(isinstance(contender, JAX) for contender in found.values())
    held = 2 + with_jax  # logits, what copies write to, JAX's own logits
    for dtype in plan.dtype:
        for shape in plan.shape:
            needed = held * math.prod(shape) * (8 if dtype == "float64" else 4) / GIGABYTE
            inputs = Inputs.random(shape, dtype, threads) if needed <= plan.memory else None
            for verb in plan.verb:
                title = f"{verb} {dtype} {dimensions(shape)}"
                if inputs is not None:
                    yield title, partial(_measured, verb, inputs, found, held, plan)
                else:
                    reason = f"logits and copies need {needed:.1f} GB, allowed are {plan.memory:.1f}"
                    yield title, partial(skipped, verb, shape, dtype, found, reason)


def _measured(verb: str, inputs: Inputs, found: dict[str, Contender | str], held: int, plan: Plan) -> list[Row]:
    group = Group(verb, inputs, plan.memory * GIGABYTE, held, spoil=partial(inputs.buffer.fill, math.nan))
    for name, contender in found.items():
        for out in (False, True) if verb in WITH_OUT else (False,):
            group.admit(name, contender, out=out)
    group.time(partial(interleaved, repeats=plan.repeats, pause=plan.pause / 1e3))
    return list(group.rows.values())


def limit_threads(stack: ExitStack, threads: int) -> None:
    """For XLA, which counts the processors it may use, and for pools of OpenMP and BLAS."""
    stack.callback(xs.set_num_threads, xs.get_num_threads())
    xs.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(allowed)[:threads])
        stack.callback(os.sched_setaffinity, 0, allowed)
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return
    stack.enter_context(threadpool_limits(threads))


def warn_of_others(machine: dict[str, Any]) -> None:
    """PyTorch's 1.2 µs for 4 × 10 on one thread became 8 ms on two, both processors being in use."""
    if machine["load"] is not None and machine["load"] > BUSY:
        print(
            f"the load of this machine is {machine['load']:.1f}: threads that wait for each other will be slow",
            file=sys.stderr,
        )
