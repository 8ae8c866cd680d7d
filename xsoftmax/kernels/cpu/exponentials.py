"""Exponentials of a row whose classes lie side by side, and their sum, for Numba.

A row is an address; x logits, m max x, e = exp(x − c) 2^k, wm = e at the maximum, q = Σ e less one copy of wm.
Everything inside is float64. A row with nan or ∞ has no m.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ACROSS
from .vector_math import EXACT, SUMS, exp, exponent, fetch, fused, item, jit, larger, maximum, pointer

LANES = ACROSS  # what a loop takes at once, and a row has more: where it ends, LLVM would go on number by number
BLOCK = 1024  # classes whose terms are added plainly, 32 side by side; sums of blocks are compensated
_EXACT_BLOCK = 64  # of float64, two a lane, which equal terms leave exact: 32 a lane would be off by 15 ulp
KEPT = 1 << 19  # classes whose exponentials are kept between passes, in 4 MiB; those of longer rows are computed twice
_TOP = 500  # exponent of wm
REACH = 760.0
ROOM = 500.0  # exp(500) times 2²¹ is finite, exp(−650) a normal number
_UNSHIFTED = 2.0**20  # where argument reduction alone is exact; beyond, x − m is
_LEAST = 2.0**-1016  # of a ratio that has its digits
_LARGE = 2.0**960  # of a factor
_LONG = 512  # classes from which on the cache is told what comes: below, that costs more than it brings
_AHEAD = 4096  # bytes
_PIECE, _LINE = 128, 64  # classes for which it is told at once, and bytes that it moves


@jit(**EXACT)
def largest(x: Any, size: int) -> Any:
    m = x[0]
    for j in range(size):
        m = maximum(m, x[j])
    return m


@jit(**EXACT)
def _plainly(like: Any) -> int:
    """Classes whose terms are added without compensation, for a result in the dtype of `like`."""
    return BLOCK if item(like) == 4 else _EXACT_BLOCK


@jit(**EXACT)
def together(left: int, like: Any) -> int:
    """The same, of so many classes that are left: float64 has no long end, which LLVM would add number by number."""
    if item(like) == 4 or left >= _EXACT_BLOCK:
        return min(left, _plainly(like))
    if left >= LANES:
        return left // LANES * LANES
    return 8 if left >= 8 else min(left, 4)


@jit(**EXACT)
def shift(m: float, like: Any) -> tuple[float, int]:
    """c and k; for float32, whose results end at exp(−104), float64 has room enough without k."""
    if item(like) == 4:
        return (0.0 if abs(m) <= ROOM else m), 0
    c = 0.0 if abs(m) <= _UNSHIFTED else m
    return c, _TOP - exponent(m - c)


@jit(**EXACT)
def reach(like: Any) -> float:
    """exp(−reach) is 0 beside 1, also as a sum of 2²¹ terms."""
    return 150.0 if item(like) == 4 else REACH


@jit(**EXACT)
def _block(x: Any, size: int, m: float, c: float, k: int, like: Any, w: Any) -> None:
    lowest = (m - c) - reach(like)
    for j in range(size):
        d = np.float64(x[j]) - c
        e = exp(d if d > lowest else lowest, k, like)
        w[j] = e if d > lowest else 0.0  # what multiplies it may be huge


# ---------------------------------------------------------------------------------------------------------------------
# moderate rows: exp(x) 2^k without a shift, in one pass. float32: |max x| ≤ 500, k = 0, and 0 where x < −650; float64:
# |max x| ≤ 300, k = 500, and 0 where x < −1050


@jit(**EXACT)
def bias(like: Any) -> int:
    """k"""
    return 0 if item(like) == 4 else 500


@jit(**EXACT)
def moderate(x: float, like: Any) -> float:
    """x itself where exp(x) 2^k is a normal number; nan becomes so large that the sum is not ordinary."""
    floor, ceiling = (-650.0, 650.0) if item(like) == 4 else (-1050.0, 340.0)
    d = x if x < ceiling else ceiling
    return d if d > floor else floor


@jit(**EXACT)
def ordinary(s: float, like: Any) -> bool:
    """Whether a sum is that of a moderate row: its logarithm less that of 2^k between −500 and 600, −300 and 330."""
    if item(like) == 4:
        return s > 7.2e-218 and s < 3.7e260
    return s > 1.8e20 and s < 5.2e293


@jit(**EXACT)
def has_digits(m: float, q: float, wm: float, like: Any) -> bool:
    """Whether q = Σ e − wm of an ordinary sum has digits enough of its own, m being in reach."""
    if item(like) == 4:
        return abs(m) <= ROOM and q > 2.0**-20 * wm
    return abs(m) <= 300.0 and q > wm


@jit(**SUMS)
def _terms(x: Any, size: int, m: Any, w: Any, at: int, to: int) -> Any:
    """Σ exp(x), and the larger of m and the maximum; the exponentials in w. m or w may be None: not that, then.

    The cache is told of what will be read at `at` and written at `to`, unless these are 0: in rows that are long, x
    and the result stream through it beside w, and the processor alone does not see that coming (8,192 classes: 0.70
    ns each, told 0.35).
    """
    s, top = 0.0, m
    step = _PIECE if at else size
    for start in range(0, size, step):
        stop = min(start + step, size)
        if at:
            for byte in range(item(x[0]) * start, item(x[0]) * stop, _LINE):
                fetch(at + byte)
                fetch(to + byte)
        for j in range(start, stop):
            e = exp(moderate(np.float64(x[j]), x[0]), bias(x[0]), x[0])
            s += e
            if m is not None:
                top = larger(top, x[j])
            if w is not None:
                w[j] = e
    return s, top


def _last(lanes: int) -> Any:
    """The same of so many last classes, of which some have been added already. A constant number of them is one piece
    of code without a loop; eights in a loop took twice the time.
    """

    def terms(x: Any, done: int, m: Any, w: Any) -> Any:
        s, top = 0.0, m
        for j in range(lanes):
            e = exp(moderate(np.float64(x[j]), x[0]), bias(x[0]), x[0])
            s += e if j >= done else 0.0
            if m is not None:
                top = larger(top, x[j])
            if w is not None:
                w[j] = e
        return s, top

    return jit(**SUMS)(terms)


_last_16, _last_32 = _last(16), _last(32)


@jit(**SUMS)
def _others(x: Any, done: int, size: int, m: float, w: Any) -> tuple[float, float]:
    """Σ e below the maximum, and how many classes are at it, without those that have been added already."""
    q, ties = 0.0, 0.0
    for j in range(size):
        v = np.float64(x[j])
        q += w[j] if v < m and j >= done else 0.0
        ties += 1.0 if v == m and j >= done else 0.0
    return q, ties


@jit(**EXACT)
def two_sum(high: float, low: float, x: float) -> tuple[float, float]:
    """high + low + x, the rounding of high + x kept in low (Knuth)."""
    s = high + x
    b = s - high
    return s, low + ((high - (s - b)) + (x - b))


@jit(**EXACT)
def joined(high: float, low: float) -> float:
    """The sum that `two_sum` keeps in two; of an infinite one low is nan."""
    return high + low if np.isfinite(high) else high


@jit(**EXACT)
def half_distance(m: float, x: float) -> float:
    """(m − x) / 2, which is finite wherever x is."""
    return 0.5 * m - 0.5 * x


@jit(**EXACT)
def at_once(x: int, x_type: Any, classes: int, m: Any, w: Any, keep: bool, to: int) -> Any:
    """Σ exp(x) 2^k of a row, ordinary if it is moderate, and the larger of m and max x.

    `to`: where the result will be written, 0 for nowhere.
    """
    end = classes // LANES * LANES
    s, rest, top = 0.0, 0.0, m
    block = _plainly(x_type)
    for start in range(0, end, block):
        offset = start * item(x_type)
        at = x + offset + _AHEAD if classes >= _LONG else 0
        into = None if w is None else pointer(w + 8 * start if keep else w, np.float64)
        part, top = _terms(
            pointer(x + offset, x_type), min(block, end - start), top, into, at, to + offset if to else at
        )
        s, rest = two_sum(s, rest, part)
    if end < classes:
        left = classes - end
        size = 16 if left <= 16 else 32
        last = classes - size
        into = None if w is None else pointer(w + 8 * last if keep else w, np.float64)
        rear = pointer(x + last * item(x_type), x_type)
        if left <= 16:
            part, top = _last_16(rear, size - left, top, into)
        else:
            part, top = _last_32(rear, size - left, top, into)
        s, rest = two_sum(s, rest, part)
    return s + rest, top


@jit(**EXACT)
def exponentials(
    x: int, x_type: Any, classes: int, w: int, keep: bool, to: int
) -> tuple[float, float, int, float, float]:
    """m, c, k, wm and q; the exponentials of the last block, or of all, in w. m = ∞ or nan: nothing else counts.

    `to`: where the result will be written, 0 for nowhere.
    """
    first = pointer(x, x_type)[0]
    s, top = at_once(x, x_type, classes, first, w, keep, to)
    m, k = np.float64(top), bias(x_type)
    wm = exp(moderate(m, x_type), k, first)
    if ordinary(s, x_type) and has_digits(m, s - wm, wm, x_type):
        return m, 0.0, k, wm, s - wm
    return exactly(x, x_type, classes, m, ordinary(s, x_type), w, keep)


@jit(**EXACT)
def exactly(
    x: int, x_type: Any, classes: int, m: float, known: bool, w: int, keep: bool
) -> tuple[float, float, int, float, float]:
    """The same, the maximum left out of the sum; in three passes, or in two where m is `known`."""
    row, end, last = pointer(x, x_type), classes // LANES * LANES, classes - LANES
    rear = pointer(x + last * item(x_type), x_type)
    if not known:
        m = np.float64(maximum(largest(row, end), largest(rear, LANES)))
    if not np.isfinite(m):
        return m, 0.0, 0, math.nan, math.nan
    c, k = shift(m, row[0])
    wm = exp(m - c, k, row[0])
    q, rest, ties = 0.0, 0.0, 0.0
    step = _plainly(x_type)
    for start in range(0, end, step):
        size, into = min(step, end - start), pointer(w + 8 * start if keep else w, np.float64)
        block = pointer(x + start * item(x_type), x_type)
        _block(block, size, m, c, k, row[0], into)
        part, tied = _others(block, 0, size, m, into)
        q, rest = two_sum(q, rest, part)
        ties += tied
    if end < classes:
        into = pointer(w + 8 * last if keep else w, np.float64)
        _block(rear, LANES, m, c, k, row[0], into)
        part, tied = _others(rear, end - last, LANES, m, into)
        q, rest = two_sum(q, rest, part)
        ties += tied
    return m, c, k, wm, (q + rest) + (ties - 1.0) * wm


@jit(**EXACT)
def refill(x: int, x_type: Any, start: int, size: int, m: float, c: float, k: int, w: int, keep: bool) -> None:
    """The exponentials of a block, in w; those that were kept are there."""
    if not keep:
        block = pointer(x + start * item(x_type), x_type)
        _block(block, size, m, c, k, block[0], pointer(w, np.float64))


@jit(**EXACT)
def quotient(factor: float, q: float, wm: float) -> tuple[float, float]:
    """factor / (q + wm) and what its rounding, and that of the sum, leaves."""
    s, low = two_sum(wm, 0.0, q)
    ratio = factor / s
    return ratio, ((factor - s * ratio) - low * ratio) / s


@jit(**EXACT)
def usual(factor: float, ratio: float) -> bool:
    """Whether `ratio`, of `factor` to a sum, neither over- nor underflowed."""
    return (factor == 0.0) | ((abs(ratio) > _LEAST) & (abs(ratio) < np.inf))


@jit(**EXACT)
def share(scale: float, factor: float, q: float, wm: float) -> tuple[tuple[float, float], float]:
    """scale · factor / (q + wm) in two parts, over a power of two; that is 1 unless something over- or underflows."""
    ratio = quotient(scale * factor, q, wm)
    if usual(scale * factor, ratio[0]):
        return ratio, 1.0
    if not (np.isfinite(scale) and np.isfinite(factor)):
        return (ratio[0], 0.0), 1.0
    a, i = math.frexp(scale)
    b, j = math.frexp(factor)
    k = math.frexp(q + wm)[1]
    # of the ratio's exponent: small enough for the power to be a number, and e · ratio
    kept = min(max(i + j - k, -977), 1000 - max(k, 0))
    power = math.ldexp(1.0, max(min(i + j - k - kept, 1023), -1074))
    return quotient(math.ldexp(a * b, kept + k), q, wm), power


@jit(**EXACT)
def is_large(scale: float, zeta: float) -> bool:
    """Whether scale · 2 ζ logsumexp y may overflow where, less scale · t, it is a number."""
    return (zeta != 0.0) & (abs(scale) * (1.0 + 2.0 * abs(zeta)) > _LARGE)


@jit(**EXACT)
def lowering(scale: float, zeta: float) -> float:
    """A power of two with which it does not."""
    exponents = math.frexp(scale)[1] + math.frexp(1.0 + 2.0 * abs(zeta))[1]
    return math.ldexp(1.0, max(960 - exponents, -1000)) if np.isfinite(scale) else 1.0


@jit(**EXACT)
def below_majority(total: float, others: float, not_y: float) -> float:
    """Σ of the other t less T (1 − y); of an infinite T what of it is another class's, else nan: ∞ y − ∞"""
    if np.isfinite(total):
        return others - total * not_y
    return others if np.isinf(others) else math.nan


@jit(**EXACT)
def unit(zeta: float, lse: float) -> float:
    """A power of two with which 2 ζ logsumexp does not overflow where the row's scale makes a number of it."""
    return 2.0**-32 if zeta != 0.0 and abs(lse) > 2.0**992 else 1.0


@jit(**EXACT)
def times(e: Any, size: int, factor: float, y: Any) -> None:
    for j in range(size):
        y[j] = e[j] * factor


@jit(**EXACT)
def scaled(
    x: int, x_type: Any, classes: int, m: float, c: float, k: int, ratio: tuple[float, float], w: int, keep: bool,
    y: int, y_type: Any,
) -> None:  # fmt: skip
    """y = ratio · e; through w, so that y may be x."""
    high, low = ratio
    for start in range(0, classes, BLOCK):
        size = min(BLOCK, classes - start)
        refill(x, x_type, start, size, m, c, k, w, keep)
        e, to = pointer(w + 8 * start if keep else w, np.float64), pointer(y + start * item(y_type), y_type)
        if item(y_type) == 8:
            for j in range(size):
                to[j] = fused(e[j], high, e[j] * low)
        else:
            times(e, size, high, to)


@jit(**EXACT)
def fill(y: Any, size: int, value: float) -> None:
    for j in range(size):
        y[j] = value


@jit(**EXACT)
def alive(space: Any) -> None:
    """Numba frees an array after its last use, and an address is none: this is the last."""
    space[0] = 0.0


@jit(**EXACT)
def held(space: Any) -> None:
    """The same, of numbers that are still needed."""
    space[0] = space[0]


@jit(**EXACT)
def buffer(classes: int) -> Any:
    """Space for the exponentials of a row."""
    return np.empty(max(classes, BLOCK) if classes <= KEPT else BLOCK)
