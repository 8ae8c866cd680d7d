"""One group of contenders after the other, each verified, timed and forgotten before the next, while time is left."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import xsoftmax as xs

from ...verify.inputs import numpy_dtype
from ..choice import check_names, made
from ..contenders import JAX, Contender
from ..group import GIGABYTE, Group, summed_up
from ..inputs import Inputs
from ..machine import describe
from ..options import SMALL
from ..rows import Row, skipped
from .contenders import CONTENDERS
from .device import FLUSHED, Device
from .shapes import Shape, shapes
from .timing import on_device, on_host

LATE = "no time was left"
USABLE = 0.8  # of the memory; the rest is what pools keep, and what verifying takes
READ_ONLY = ("logsumexp", "cross_entropy")
Found = dict[str, Contender | str]


@dataclass(frozen=True)
class Plan:
    """What is timed; no `shape`: those of each dtype, no `contender`: all."""

    verb: Sequence[str]
    shape: Sequence[Shape] | None
    dtype: Sequence[str]
    contender: Sequence[str] | None
    repeats: int
    minutes: float

    @classmethod
    def of(cls, options: Namespace) -> Plan:
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})

    def __post_init__(self) -> None:
        check_names(self.contender or (), CONTENDERS)

    def shapes(self) -> Iterator[tuple[Shape, str]]:
        for dtype in self.dtype:
            for shape in self.shape or shapes(dtype):
                yield shape, dtype


def measure(plan: Plan, device: Device, name: str, before: Sequence[Row] = ()) -> Iterator[dict[str, Any]]:
    """The document of this device, called `name`: after every group, more rows in it.

    Rows of a run `before` come first, and what they hold is not measured again.
    """
    deadline = time.monotonic() + 60 * plan.minutes
    rows = list(before)
    document: dict[str, Any] = {
        "machine": describe(name, xs.get_num_threads()) | device.describe(),
        "repeats": plan.repeats,
        "flushed": FLUSHED,
        "rows": rows,
    }
    done = {_key(row) for row in rows}
    found = made(plan.contender or CONTENDERS, CONTENDERS)
    for shape, dtype in plan.shapes():
        wanted = {
            verb: missing
            for verb in plan.verb
            if (missing := {name: one for name, one in found.items() if (verb, dtype, shape, name) not in done})
        }
        for measured in _at_shape(shape, dtype, wanted, device, plan.repeats, deadline):
            rows += measured
            yield document
        device.release()


def _key(row: Row) -> tuple:
    return row["verb"], row["dtype"], tuple(row["shape"]), row["contender"]


def _at_shape(
    shape: Shape, dtype: str, wanted: dict[str, Found], device: Device, repeats: int, deadline: float
) -> Iterator[list[Row]]:
    """The rows of each verb."""
    nbytes = math.prod(shape) * numpy_dtype(dtype).itemsize
    memory = USABLE * device.memory
    held = 3 if any(isinstance(one, JAX) for found in wanted.values() for one in found.values()) else 2
    inputs = None
    for verb, found in wanted.items():
        if held * nbytes > memory:
            reason = f"logits and copies need {held * nbytes / GIGABYTE:.1f} GB, allowed are {memory / GIGABYTE:.1f}"
            yield skipped(verb, shape, dtype, found, reason)
        elif time.monotonic() > deadline:
            yield skipped(verb, shape, dtype, found, LATE)
        else:
            inputs = inputs or Inputs.random(shape, dtype, xs.get_num_threads(), device.xp)
            group = Group(verb, inputs, memory, held, spoil=partial(device.spoil, nbytes))
            yield list(_timed(group, found, device, repeats, deadline))


def _timed(group: Group, found: Found, device: Device, repeats: int, deadline: float) -> Iterator[Row]:
    shape, dtype = group.inputs.x.shape, group.inputs.x.dtype.name
    clock = on_host if shape == SMALL else on_device
    for name, contender in found.items():
        if time.monotonic() > deadline:
            yield from skipped(group.verb, shape, dtype, [name], LATE)
            continue
        group.admit(name, contender, out=False)
        row = group.rows[name, False]
        if row["status"] == "timed":
            try:
                group.time(partial(clock, device=device, repeats=repeats))
                row |= _figures(row, group.inputs.x.nbytes, on_host=clock is on_host)
            except Exception as error:  # such as no memory for calls in a queue; the others go on
                group.forget()
                row.update(status="skipped", reason=f"when timed: {summed_up(error)}")
        device.release()
        yield row


def _figures(row: Row, nbytes: int, *, on_host: bool) -> Row:
    """Who timed it, and how fast it went through the bytes that have to be moved, those of the logits."""
    if on_host:
        return {"clock": "host"}
    moved = nbytes * (1 if row["verb"] in READ_ONLY else 2)
    speed, copied = moved / row["seconds"], 2 * nbytes / row["copy_seconds"]
    return {
        "clock": "device" if row["batch"] == 1 else "host",
        "gigabytes_per_second": speed / GIGABYTE,
        "of_copy": speed / copied,
    }
