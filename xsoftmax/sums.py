"""Sums and maxima along axes, of whole arrays and of such as lie in parts: on devices, in processes, in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from array_api_compat import array_namespace

from .arrays import completed, device_of, is_symbolic, library_of, may_be_cut

Array = Any
Axes = tuple[int, ...]

_PARTS = (32, 8)  # of an axis that devices may hold parts of; the sum of the last ones costs up to 3 ulp
_FAN_IN = 8  # sums of blocks that are added at a time


def total(x: Array, axes: Axes, *, xp: Any) -> Array:
    """Σ x by halving, so that the error grows with log C along any axis of any library.

    Parts of an axis that may lie on devices of their own are halved each by itself, so that only their sums move.
    """
    for axis in reversed(axes):
        if may_be_cut(x, xp):
            for parts in _PARTS:
                x = _halved_within(x, axis, math.gcd(x.shape[axis], parts), xp=xp)
            x = completed(xp.sum(x, axis=axis, keepdims=True))
        elif library_of(xp) == "dask":
            x = _of_blocks(_halved, x, axis)
        elif is_symbolic(x.shape[axis]):  # halving would ask for the number
            x = xp.sum(x, axis=axis, keepdims=True)
        else:
            x = _halved(x, axis, xp=xp)
    return x


def maximum(x: Array, axes: Axes, *, xp: Any) -> Array:
    if library_of(xp) == "dask":
        for axis in axes:
            x = _of_blocks(_max_of_block, x, axis)
        return x
    return completed(xp.max(x, axis=axes, keepdims=True))


def count(x: Array, axes: Axes, dtype: Any, *, xp: Any) -> Array:
    """How many of the flags `x` are set."""
    return completed(xp.sum(xp.astype(x, dtype), axis=axes, keepdims=True))


def _halved_within(x: Array, axis: int, parts: int, *, xp: Any) -> Array:
    """The sums of equal parts of an axis."""
    before, after = x.shape[:axis], x.shape[x.ndim + axis + 1 :]
    x = xp.reshape(x, (*before, parts, x.shape[axis] // parts, *after))
    return xp.squeeze(_halved(x, axis, xp=xp), axis=axis)


def _halved(x: Array, axis: int, *, xp: Any) -> Array:
    def part(start: int, stop: int) -> Array:
        return x[(..., slice(start, stop), *(slice(None),) * (-axis - 1))]

    parts = []
    while (n := x.shape[axis]) is not None and n > 2:
        half = n // 2
        if n % 2:
            parts.append(part(n - 1, n))
        x = part(0, half) + part(half, 2 * half)
    parts.append(xp.sum(x, axis=axis, keepdims=True))
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [a + b for a, b in pairs] + parts[len(parts) // 2 * 2 :]
    return parts[0]


def _max_of_block(x: Array, axis: int, *, xp: Any) -> Array:
    """−∞ of nothing: blocks may be empty, where arrays are not."""
    if x.shape[axis]:
        return xp.max(x, axis=axis, keepdims=True)
    shape = list(x.shape)
    shape[axis] = 1
    return xp.full(tuple(shape), -math.inf, dtype=x.dtype, device=device_of(x))


def _of_blocks(reduced: Callable[..., Array], x: Array, axis: int) -> Array:
    """Of a Dask array: within each block, then by a tree."""
    import dask.array as da

    step = partial(_of_block, reduced=reduced, last=axis)
    return da.reduction(
        x, chunk=step, aggregate=step, axis=x.ndim + axis, keepdims=True, dtype=x.dtype, meta=x._meta,
        split_every=_FAN_IN,
    )  # fmt: skip


def _of_block(x: Array, axis: Any, keepdims: bool, reduced: Callable[..., Array], last: int) -> Array:
    return reduced(x, last, xp=array_namespace(x))
