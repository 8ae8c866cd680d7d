"""Blocks of rows of NumPy arrays: views in which any class axis is the last, cut to fit the cache, on the threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...libraries.quiet import quietly
from ...libraries.strides import runs
from ...threads import each

Array = Any
Block = tuple[slice, slice]
ELEMENTS = 1 << 16  # of a block: its float64 copies stay in a cache of 1 MiB


def views(arrays: Sequence[Array | None], axes: tuple[int, ...]) -> list[list[Array | None]] | None:
    """Views (outer, inner, C) of arrays of one shape, several where one can't be had; None: C is no single axis.

    Rows come in the order of the other axes, whatever the memory.
    """
    (first, *_) = given = [a for a in arrays if a is not None]
    others = [axis for axis in range(-first.ndim, 0) if axis not in axes]
    if axes != (-1,):
        arrays = [None if a is None else a.transpose(*others, *axes) for a in arrays]
        (first, *_) = given = [a for a in arrays if a is not None]
    if len(axes) > 1 and len(_runs(given, range(len(others), first.ndim))) > 1:
        return None
    return list(_split(arrays, len(others)))


def _split(arrays: Sequence[Array | None], others: int) -> Iterator[list[Array | None]]:
    (first, *_) = given = [a for a in arrays if a is not None]
    found = _runs(given, range(others))
    if len(found) <= 2:
        sizes = [math.prod(first.shape[axis] for axis in run) for run in found]
        shape = (*(1,) * (2 - len(sizes)), *sizes, math.prod(first.shape[others:]))
        yield [None if a is None else a.reshape(shape) for a in arrays]
        return
    for i in range(first.shape[0]):
        yield from _split([None if a is None else a[i] for a in arrays], others - 1)


def _runs(arrays: Sequence[Array], axes: Sequence[int]) -> list[list[int]]:
    return runs(arrays[0].shape, [a.strides for a in arrays], axes)


def cut(outer: int, inner: int, classes: int, elements: int = ELEMENTS) -> list[Block]:
    """Slices of the first two axes of a view, each of at most about so many elements."""
    rows = max(1, elements // classes)
    if outer > 1 and inner < rows:
        step = max(1, rows // inner)
        return [(slice(o, o + step), slice(0, inner)) for o in range(0, outer, step)]
    return [(slice(o, o + 1), slice(i, i + rows)) for o in range(outer) for i in range(0, inner, rows)]


def on_blocks(work: Callable[..., None], *arrays: Array | None, elements: int = ELEMENTS) -> None:
    """Call `work` on the same block of each view, on the threads."""
    outer, inner, classes = next(a for a in arrays if a is not None).shape
    if outer * inner * classes <= elements:
        work(*arrays)
        return
    blocks = cut(outer, inner, classes, elements)
    each(quietly(lambda i: work(*(None if a is None else a[blocks[i]] for a in arrays))), len(blocks))
