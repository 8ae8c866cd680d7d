"""Sums and maxima along axes, of whole arrays and of such as lie in parts: on devices, in processes, in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from . import facts
from .arrays import array_namespace, completed, constant, device_of, dtype_name, is_symbolic, library_of, may_be_cut

Array = Any
Axes = tuple[int, ...]

_PARTS = (32, 8)  # of an axis that devices may hold parts of; the sum of the last ones costs up to 3 ulp
_FAN_IN = 8  # sums of blocks that are added at a time
_SPLIT = {"float32": 2.0**12, "float64": 2.0**27}  # half of the digits, and one


def total(x: Array, axes: Axes, largest: Array | None = None, *, xp: Any) -> Array:
    """Σ x by halving, so that the error grows with log C along any axis of any library.

    Parts of an axis that may lie on devices of their own are halved each by itself, so that only their sums move; these
    add up exactly where the largest |x| is known.
    """
    terms = 1
    for axis in reversed(axes):
        if may_be_cut(x, xp):
            terms *= x.shape[axis]
            for parts in _PARTS:
                x = _halved_within(x, axis, math.gcd(x.shape[axis], parts), xp=xp)
            x = _of_parts(x, axis, None if largest is None else _room(terms) * largest, xp=xp)
        elif _has_blocks(xp):
            x = _of_blocks(_halved, x, axis)
        elif is_symbolic(x.shape[axis]):  # halving would ask for the number
            x = xp.sum(x, axis=axis, keepdims=True)
        else:
            x = _halved(x, axis, xp=xp)
    return x


def apart(x: Array, axes: Axes, *, xp: Any) -> tuple[Array, Array | float]:
    """Σ x in two parts that are to be added, the smaller one last; its error does not grow with the last axis."""
    *others, axis = axes
    x = total(x, tuple(others), xp=xp) if others else x
    if _has_blocks(xp) or is_symbolic(x.shape[axis]) or x.shape[axis] is None or x.shape[axis] <= 1:
        return total(x, (axis,), xp=xp), 0.0
    if may_be_cut(x, xp):  # XLA may compute a product twice, once rounded and once fused with a sum; not so a choice
        x = xp.where(xp.abs(x) < math.inf, x, x + x)
    return _cut_at_largest(x, axis, xp=xp)


def _of_parts(x: Array, axis: int, room: Array | None, *, xp: Any) -> Array:
    if room is None or x.shape[axis] == 1:
        return completed(xp.sum(x, axis=axis, keepdims=True))
    sums = completed(xp.sum(xp.stack(_cut(x, room)), axis=axis, keepdims=True))
    return sums[0, ...] + sums[1, ...]


def _cut_at_largest(x: Array, axis: int, *, xp: Any) -> tuple[Array, Array]:
    room = _room(x.shape[axis]) * constant(completed(xp.max(xp.abs(x), axis=axis, keepdims=True)), xp)
    sums = (completed(xp.sum(a, axis=axis, keepdims=True)) for a in _cut(x, room))
    plain = completed(xp.sum(x, axis=axis, keepdims=True))
    high, low = (xp.where(xp.isfinite(room), a, b) for a, b in zip(sums, (plain, xp.zeros_like(plain)), strict=True))
    return high, low


def _cut(x: Array, room: Array) -> tuple[Array, Array]:
    """Terms cut at an ulp of 2 n max |x| or more add up exactly, in any order, and so little is left of them."""
    high = (x + room) - room
    return high, x - high


def _room(terms: int) -> float:
    """A power of two: no compiler that fuses the product with the sum rounds another way."""
    return 2.0 ** (2 * terms - 1).bit_length()


def maximum(x: Array, axes: Axes, *, xp: Any) -> Array:
    if _has_blocks(xp):
        for axis in axes:
            x = _of_blocks(_max_of_block, x, axis)
        return x
    return completed(xp.max(x, axis=axes, keepdims=True))


def count(x: Array, axes: Axes, dtype: Any, *, xp: Any) -> Array:
    """How many of the flags `x` are set."""
    return completed(xp.sum(xp.astype(x, dtype), axis=axes, keepdims=True))


def _has_blocks(xp: Any) -> bool:
    return facts.of(library_of(xp)).adds == "by a tree"


def _halved_within(x: Array, axis: int, parts: int, *, xp: Any) -> Array:
    """The sums of equal parts of an axis."""
    before, after = x.shape[:axis], x.shape[x.ndim + axis + 1 :]
    x = xp.reshape(x, (*before, parts, x.shape[axis] // parts, *after))
    return xp.squeeze(_halved(x, axis, xp=xp), axis=axis)


def _halved(x: Array, axis: int, *, xp: Any) -> Array:
    parts = []
    while x.shape[axis] is not None and x.shape[axis] > 2:
        x, odd = _half(x, axis, xp=xp)
        parts += odd
    parts.append(xp.sum(x, axis=axis, keepdims=True))
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [a + b for a, b in pairs] + parts[len(parts) // 2 * 2 :]
    return parts[0]


def _half(x: Array, axis: int, *, xp: Any) -> tuple[Array, list[Array]]:
    """The sums of two halves, and the last term of an odd number; two terms stay."""

    def part(start: int, stop: int) -> Array:
        return x[(..., slice(start, stop), *(slice(None),) * (-axis - 1))]

    n = x.shape[axis]
    if n <= 2:
        return x, []
    half = n // 2
    return part(0, half) + part(half, 2 * half), [part(n - 1, n)] if n % 2 else []


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


# ---------------------------------------------------------------------------------------------------------------------
# numbers of rows in two parts, high + low: what a sum, a product or a quotient was rounded by is kept


class Pair(NamedTuple):
    """No derivative is taken of what is low: it is that of a rounding."""

    high: Array
    low: Array | float = 0.0

    def value(self) -> Array:
        return self.high + self.low


def plus(a: Pair, b: Pair, *, xp: Any) -> Pair:
    s = a.high + b.high
    part = s - a.high
    return Pair(s, _rounded_by((a.high - (s - part)) + (b.high - part) + (a.low + b.low), xp=xp))


def times(a: Pair, b: Pair, *, xp: Any) -> Pair:
    p = a.high * b.high
    (a1, a2), (b1, b2) = _halves(a.high), _halves(b.high)
    # products of halves are exact, so that no compiler changes them by fusing them with a sum
    error = ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2
    return Pair(p, _rounded_by(error + (a.high * b.low + a.low * b.high), xp=xp))


def divided(a: Pair, b: Array, *, xp: Any) -> Pair:
    q = a.high / b
    p = times(Pair(q), Pair(b), xp=xp)
    return Pair(q, _rounded_by(((a.high - p.high) - p.low + a.low) / b, xp=xp))


def _halves(a: Array) -> tuple[Array, Array]:
    far = a * _SPLIT.get(dtype_name(a), _SPLIT["float64"])
    high = (a + far) - far
    return high, a - high


def _rounded_by(low: Array, *, xp: Any) -> Array:
    """0 beside a result that is not finite, or nearly"""
    return constant(xp.where(xp.isfinite(low), low, xp.zeros_like(low)), xp)
