"""Runs of axes: how arrays of one shape walk through their memory, from shapes and strides alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any


def runs(shape: Sequence[int], strides: Sequence[Sequence[int]], axes: Sequence[int]) -> list[list[int]]:
    """Runs of these axes, in their order, each of which every array walks with one stride."""
    found: list[list[int]] = []
    walked = None  # the last axis that takes a step
    for axis in axes:
        if shape[axis] == 1 and found:
            found[-1].append(axis)
            continue
        if found and (walked is None or all(s[walked] == s[axis] * shape[axis] for s in strides)):
            found[-1].append(axis)
        else:
            found.append([axis])
        walked = axis if shape[axis] > 1 else None
    return found


def overlaps_itself(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Whether two elements share memory; `itemsize` in the unit of the strides, which may be negative."""
    walked = sorted((abs(step), n) for n, step in zip(shape, strides, strict=True) if n != 1)
    if any(n == 0 for _, n in walked):
        return False
    reach = itemsize  # of all axes with smaller steps
    for step, n in walked:
        if step < reach:
            return _meet(walked, itemsize)
        reach += (n - 1) * step
    return False


def _meet(walked: list[tuple[int, int]], itemsize: int) -> bool:
    """By looking at every element: axes that reach across each other need not meet."""
    import numpy as np

    if any(step < itemsize for step, _ in walked):
        return True
    places: Any = reduce(lambda found, axis: np.add.outer(found, np.arange(axis[1]) * axis[0]), walked, np.zeros(()))
    return bool(np.any(np.diff(np.sort(places, axis=None)) < itemsize))
