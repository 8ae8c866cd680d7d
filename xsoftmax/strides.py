"""Runs of axes: how arrays of one shape walk through their memory, from shapes and strides alone."""

from __future__ import annotations

from collections.abc import Sequence


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
