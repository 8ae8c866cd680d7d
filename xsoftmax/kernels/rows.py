"""Kernels of rows whose classes lie side by side, for Numba: one row after the other, each read while it is in cache.

Arrays are addresses, steps are bytes from row to row; x logits, m max x, e = exp(x − c) 2^k, wm = e at the maximum,
q = Σ e less one copy of wm. Everything inside is float64, rounded once at the store. A row with nan or ∞ is nan.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .vector_math import EXACT, SUMS, exp, exponent, item, jit, log1p, maximum, pointer

LANES = 32  # what a loop takes at once: the end of a row is padded, since LLVM would go on there number by number
BLOCK = 1024  # classes whose terms are added plainly, 32 side by side; sums of blocks are compensated
_EXACT_BLOCK = 256  # where a sum of equal terms that always rounds up would be seen: 32 additions are off by 5 ulp
KEPT = 65_536  # classes whose exponentials are kept between passes, in 512 KiB; those of longer rows are computed twice
DIGITS = 2.0**-20  # Σ e − wm above this share of wm has more than the digits of a float32
_TOP = 500  # exponent of wm
REACH = 760.0
FLOOR, CEILING = -650.0, 650.0
LEAST, MOST = math.exp(-500.0), math.exp(600.0)  # of a sum whose maximum lies between −514.6 and 600
_ROOM = 500.0  # exp(500) times 2²¹ is finite, exp(−650) a normal number
_UNSHIFTED = 2.0**20  # where argument reduction alone is exact; beyond, x − m is


@jit(**EXACT)
def largest(x: Any, size: int) -> float:
    m = x[0]
    for j in range(size):
        m = maximum(m, x[j])
    return np.float64(m)


@jit(**EXACT)
def padded(x: Any, start: int, classes: int, to: Any) -> None:
    for j in range(LANES):
        to[j] = -np.inf
    for j in range(classes - start):
        to[j] = x[start + j]


@jit(**EXACT)
def shift(m: float, like: Any) -> tuple[float, int]:
    """c and k; for float32, whose results end at exp(−104), float64 has room enough without k."""
    if item(like) == 4:
        return (0.0 if abs(m) <= _ROOM else m), 0
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
        w[j] = exp(d if d > lowest else lowest, k, like)


@jit(**EXACT)
def moderate(x: float) -> float:
    """x itself where exp(x) is a normal number; nan becomes the largest, which the sum tells."""
    d = x if x < CEILING else CEILING
    return d if d > FLOOR else FLOOR


@jit(**SUMS)
def _sum_at_once(x: Any, size: int, w: Any) -> float:
    s = 0.0
    for j in range(size):
        w[j] = exp(moderate(np.float64(x[j])), 0, x[0])
        s += w[j]
    return s


@jit(**SUMS)
def _all_at_once(x: Any, size: int, m: float, w: Any) -> tuple[float, float]:
    """Σ exp(x), and the larger of m and the maximum."""
    s = 0.0
    for j in range(size):
        m = maximum(m, x[j])
        d = np.float64(x[j])
        w[j] = exp(d if d > FLOOR else FLOOR, 0, x[0])
        s += w[j]
    return s, m


@jit(**SUMS)
def _others(x: Any, size: int, m: float, w: Any) -> tuple[float, float]:
    """Σ e below the maximum, and how many classes are at it."""
    q, ties = 0.0, 0.0
    for j in range(size):
        v = np.float64(x[j])
        q += w[j] if v < m else 0.0
        ties += 1.0 if v == m else 0.0
    return q, ties


@jit(**EXACT)
def two_sum(high: float, low: float, x: float) -> tuple[float, float]:
    """high + low + x, the rounding of high + x kept in low (Knuth)."""
    s = high + x
    b = s - high
    return s, low + ((high - (s - b)) + (x - b))


@jit(**EXACT)
def _at_once(
    x: int, x_type: Any, classes: int, w: int, keep: bool, tail: Any, digits: bool
) -> tuple[float, float, float]:
    """m, wm and q of a float32 row of moderate logits, else nan; without `digits` any m near the maximum will do."""
    row, end = pointer(x, x_type), classes // LANES * LANES
    m, s, rest = row[0], 0.0, 0.0
    for start in range(0, end, BLOCK):
        block, into = pointer(x + start * item(x_type), x_type), pointer(w + 8 * start if keep else w, np.float64)
        size = min(BLOCK, end - start)
        if digits:
            part, m = _all_at_once(block, size, m, into)
        else:
            part = _sum_at_once(block, size, into)
        s, rest = two_sum(s, rest, part)
    if end < classes:
        into = pointer(w + 8 * end if keep else w, np.float64)
        padded(row, end, classes, tail)
        if digits:
            part, m = _all_at_once(tail, LANES, m, into)
        else:
            part = _sum_at_once(tail, LANES, into)
        s, rest = two_sum(s, rest, part)
    if not digits:
        return (math.log(s), 0.0, s) if s > LEAST and s < MOST else (math.nan, math.nan, math.nan)
    top = np.float64(m)
    if not abs(top) <= _ROOM:
        return math.nan, math.nan, math.nan
    wm = exp(top, 0, row[0])
    return top, wm, (s - wm) + rest


@jit(**EXACT)
def exponentials(
    x: int, x_type: Any, classes: int, w: int, keep: bool, space: Any, short: Any, digits: bool
) -> tuple[float, float, int, float, float]:
    """m, c, k, wm and q; the exponentials of the last block, or of all, in w. m = ∞ or nan: nothing else counts.

    `digits`: q is wanted with all its own, not only as a part of the sum.
    """
    row, end = pointer(x, x_type), classes // LANES * LANES
    if item(x_type) == 4:
        m, wm, q = _at_once(x, x_type, classes, w, keep, pointer(short.ctypes.data, x_type), digits)
        if q > DIGITS * wm:
            return m, 0.0, 0, wm, q
    tail = pointer(space.ctypes.data, np.float64)
    m = -np.inf
    if end:
        m = largest(row, end)
    if end < classes:
        padded(row, end, classes, tail)
        m = maximum(m, largest(tail, LANES))
    if not np.isfinite(m):
        return m, 0.0, 0, math.nan, math.nan
    c, k = shift(m, row[0])
    wm = exp(m - c, k, row[0])
    q, rest, ties = 0.0, 0.0, 0.0
    step = _EXACT_BLOCK if item(x_type) == 8 else BLOCK
    for start in range(0, end, step):
        size, into = min(step, end - start), pointer(w + 8 * start if keep else w, np.float64)
        block = pointer(x + start * item(x_type), x_type)
        _block(block, size, m, c, k, row[0], into)
        part, tied = _others(block, size, m, into)
        q, rest = two_sum(q, rest, part)
        ties += tied
    if end < classes:
        into = pointer(w + 8 * end if keep else w, np.float64)
        _block(tail, LANES, m, c, k, row[0], into)
        part, tied = _others(tail, LANES, m, into)
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
                to[j] = e[j] * high + e[j] * low
        else:
            for j in range(size):
                to[j] = e[j] * high


@jit(**EXACT)
def fill(y: Any, size: int, value: float) -> None:
    for j in range(size):
        y[j] = value


@jit(**EXACT)
def alive(space: Any) -> None:
    """Numba frees an array after its last use, and an address is none: this is the last."""
    space[0] = 0.0


@jit(**EXACT)
def buffer(classes: int) -> Any:
    return np.empty(max(classes + LANES, BLOCK) if classes <= KEPT else BLOCK)


@jit(**EXACT)
def softmax(n: int, classes: int, x: int, x_step: int, x_type: Any, y: int, y_step: int, y_type: Any) -> None:
    space = buffer(classes)
    w, keep = space.ctypes.data, classes <= KEPT
    tail, short = np.empty(LANES), np.empty(LANES, np.float32)
    for i in range(n):
        row, to = x + i * x_step, y + i * y_step
        m, c, k, wm, q = exponentials(row, x_type, classes, w, keep, tail, short, False)
        if np.isfinite(m):
            scaled(row, x_type, classes, m, c, k, quotient(1.0, q, wm), w, keep, to, y_type)
        else:
            fill(pointer(to, y_type), classes, math.nan)
    alive(space)
    alive(tail)
    alive(short)


@jit(**EXACT)
def log_softmax(n: int, classes: int, x: int, x_step: int, x_type: Any, y: int, y_step: int, y_type: Any) -> None:
    space = np.empty(BLOCK)
    w = space.ctypes.data
    d = pointer(w, np.float64)
    tail, short = np.empty(LANES), np.empty(LANES, np.float32)
    for i in range(n):
        row, to = x + i * x_step, y + i * y_step
        m, _, _, wm, q = exponentials(row, x_type, classes, w, False, tail, short, True)
        if not np.isfinite(m):
            fill(pointer(to, y_type), classes, math.nan)
            continue
        log_sum = log1p(q / wm)
        for start in range(0, classes, BLOCK):
            block = pointer(row + start * item(x_type), x_type)
            into = pointer(to + start * item(y_type), y_type)
            size = min(BLOCK, classes - start)
            if row == to:  # in place: LLVM can't tell that no element is read after it is written
                for j in range(size):
                    d[j] = np.float64(block[j]) - m
                for j in range(size):
                    into[j] = d[j] - log_sum
            else:
                for j in range(size):
                    into[j] = (np.float64(block[j]) - m) - log_sum
    alive(space)
    alive(tail)
    alive(short)


@jit(**EXACT)
def logsumexp(n: int, classes: int, x: int, x_step: int, x_type: Any, y: int, y_step: int, y_type: Any) -> None:
    space = np.empty(BLOCK)
    tail, short = np.empty(LANES), np.empty(LANES, np.float32)
    for i in range(n):
        m, _, _, wm, q = exponentials(x + i * x_step, x_type, classes, space.ctypes.data, False, tail, short, True)
        pointer(y + i * y_step, y_type)[0] = m + log1p(q / wm) if np.isfinite(m) else m
    alive(space)
    alive(tail)
    alive(short)
