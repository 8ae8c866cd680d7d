"""Tiles: 64 rows side by side, for Numba; what short rows, and class axes with a stride, are worked in.

z[class][row]; every loop runs over the rows: where they lie side by side, in x and y themselves, else in a copy. An
element lies at x + row · x_step + class · x_class_step, in bytes. Names as in `rows`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .exponentials import (
    ROOM,
    has_digits,
    moderate,
    ordinary,
    quotient,
    reach,
    shift,
    two_sum,
)
from .vector_math import EXACT, exp, fetch, item, jit, larger, log1p, pointer

WIDTH = 64  # rows of a tile: a constant, so that LLVM knows which lines are apart, and no loop has an end piece
BLOCK = 32  # classes of a block; for float32 their terms are added plainly, sums of blocks are compensated
KEPT = 1024  # classes whose exponentials are kept, in 512 KiB; of longer rows they are computed twice
_MANY = 4096  # elements; fewer are in the cache
LINE = 8 * WIDTH

# numbers of a row, kept side by side for a tile; the first three in the dtype of x
_TOP, _WHERE, _NAN, M, _AT, C, K, LOWEST, WM, Q, LOW, PART, LOG_SUM, FACTOR, REST = range(15)
SCALE, ZETA, LOSS, LABEL, X_LABEL, AWAY, PULL, TOTAL, OTHERS, FAR = range(15, 25)
TOTAL_LOW, OTHERS_LOW, FAR_LOW, TOTAL_PART, OTHERS_PART, FAR_PART = range(25, 31)
LSE, LACKING = X_LABEL, LABEL  # of dense targets
_STREAMS = 31  # where the logits and results of a later tile lie: address and step from class to class, of each
_NUMBERS = 32
# from the numbers on: fours of classes, results of a block, logits
FOURS, OUT, Z = _NUMBERS * LINE, (_NUMBERS + BLOCK) * LINE, (_NUMBERS + 2 * BLOCK) * LINE


@jit(**EXACT)
def line(space: int, i: int) -> Any:
    return pointer(space + LINE * i, np.float64)


@jit(**EXACT)
def room_for(classes: int, arrays: int) -> Any:
    return np.empty(((Z + 64) // 8) + arrays * WIDTH * (classes if classes <= KEPT else BLOCK))


@jit(**EXACT)
def aligned(memory: Any) -> int:
    return (memory.ctypes.data + 63) & -64


@jit(**EXACT)
def after(z: int, classes: int) -> int:
    """Behind an array of what is kept of the classes."""
    return z + LINE * (classes if classes <= KEPT else BLOCK)


@jit(**EXACT)
def plainly(x_type: Any) -> int:
    """Classes whose terms are added without compensation; float64: 8 would be off by 7 ulp."""
    return BLOCK if item(x_type) == 4 else 2


@jit(**EXACT)
def is_copied(step: int, n: int, dtype: Any) -> bool:
    return step != item(dtype) or n != WIDTH


@intrinsic
def _move4(typing: Any, source: Any, target: Any, dtype: Any) -> Any:
    """Four numbers at once, from an address to another."""

    def generate(context: Any, builder: Any, signature: Any, a: Any) -> Any:
        number = context.get_value_type(dtype)
        four = ir.PointerType(ir.VectorType(number, 4))
        align = dtype.bitwidth // 8
        value = builder.load(builder.inttoptr(a[0], four), align=align)
        builder.store(value, builder.inttoptr(a[1], four), align=align)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, dtype), generate


@jit(**EXACT)
def _load(x: int, step: int, class_step: int, x_type: Any, n: int, classes: int, z: int, fours: int) -> None:
    size = item(x_type)
    if class_step == size and classes >= 4:
        _load_fours(x, step, x_type, n, classes, z, fours)
        return
    for j in range(classes):
        to, at = pointer(z + j * WIDTH * size, x_type), x + j * class_step
        for t in range(n):
            to[t] = pointer(at + t * step, x_type)[0]
        for t in range(n, WIDTH):
            to[t] = 0.0


@jit(**EXACT)
def _load_fours(x: int, step: int, x_type: Any, n: int, classes: int, z: int, fours: int) -> None:
    """Four classes of a row at once, then side by side: 0.1 ns a number instead of 0.19; the last four may overlap."""
    size = item(x_type)
    for j in range(0, classes, 4):
        at, to = x + min(j, classes - 4) * size, fours + j * WIDTH * size
        for t in range(n):
            _move4(at + t * step, to + 4 * t * size, x_type)
        for t in range(n, WIDTH):
            _move4(at, to + 4 * t * size, x_type)
    for j in range(0, classes, 4):
        given = pointer(fours + j * WIDTH * size, x_type)
        to = pointer(z + min(j, classes - 4) * WIDTH * size, x_type)
        for t in range(WIDTH):
            to[t], to[t + WIDTH] = given[4 * t], given[4 * t + 1]
            to[t + 2 * WIDTH], to[t + 3 * WIDTH] = given[4 * t + 2], given[4 * t + 3]


@jit(**EXACT)
def store(out: int, n: int, classes: int, y: int, step: int, class_step: int, y_type: Any, fours: int) -> None:
    size = item(y_type)
    if class_step == size and classes >= 4:
        _store_fours(out, n, classes, y, step, y_type, fours)
        return
    for j in range(classes):
        given, at = pointer(out + j * WIDTH * size, y_type), y + j * class_step
        for t in range(n):
            pointer(at + t * step, y_type)[0] = given[t]


@jit(**EXACT)
def _store_fours(out: int, n: int, classes: int, y: int, step: int, y_type: Any, fours: int) -> None:
    size = item(y_type)
    for j in range(0, classes, 4):
        to = pointer(fours + j * WIDTH * size, y_type)
        given = pointer(out + min(j, classes - 4) * WIDTH * size, y_type)
        for t in range(WIDTH):
            to[4 * t], to[4 * t + 1] = given[t], given[t + WIDTH]
            to[4 * t + 2], to[4 * t + 3] = given[t + 2 * WIDTH], given[t + 3 * WIDTH]
    for j in range(0, classes, 4):
        at, given4 = y + min(j, classes - 4) * size, fours + j * WIDTH * size
        for t in range(n):
            _move4(given4 + 4 * t * size, at + t * step, y_type)


@jit(**EXACT)
def view(
    x: int, step: int, class_step: int, x_type: Any, n: int, first: int, classes: int, z: int, space: int, filled: bool
) -> tuple[int, int]:
    """Where a block's classes from `first` on lie, and the step between them; z is `filled` if it has been viewed."""
    if not is_copied(step, n, x_type):
        return x + first * class_step, class_step
    width, at, size = WIDTH * item(x_type), z, min(BLOCK, classes - first)
    if classes <= KEPT:
        at = z + first * width
    if classes > KEPT or not filled:
        _load(x + first * class_step, step, class_step, x_type, n, size, at, space + FOURS)
    return at, width


@jit(**EXACT)
def _maxima(z: int, step: int, x_type: Any, first: int, classes: int, space: int) -> None:
    """The largest logit, the first class that has it, and whether there is a nan: two classes at a time."""
    top, where = pointer(space + LINE * _TOP, x_type), pointer(space + LINE * _WHERE, x_type)
    missing = pointer(space + LINE * _NAN, x_type)
    if first == 0:
        for t in range(WIDTH):
            top[t], where[t], missing[t] = -np.inf, 0.0, 0.0
    for j in range(0, classes, 2):
        other = min(j + 1, classes - 1)
        x, x1 = pointer(z + j * step, x_type), pointer(z + other * step, x_type)
        label, label1 = first + j, first + other
        for t in range(WIDTH):
            v, v1 = x[t], x1[t]
            missing[t] = missing[t] if v == v and v1 == v1 else math.nan
            at = label1 if v1 > v else label
            v = v1 if v1 > v else v
            where[t] = at if v > top[t] else where[t]
            top[t] = v if v > top[t] else top[t]


@jit(**EXACT)
def _shifts(space: int, x_type: Any) -> None:
    """m and its class in float64; c, k, the lowest x − c that counts, and wm. m not finite: c = ∞ keeps e finite."""
    top, where = pointer(space + LINE * _TOP, x_type), pointer(space + LINE * _WHERE, x_type)
    missing, k = pointer(space + LINE * _NAN, x_type), pointer(space + LINE * K, np.int64)
    m, at, c, lowest, wm = line(space, M), line(space, _AT), line(space, C), line(space, LOWEST), line(space, WM)
    q, low, part = line(space, Q), line(space, LOW), line(space, PART)
    for t in range(WIDTH):
        m[t], at[t] = np.float64(top[t]) + np.float64(missing[t]), where[t]
    for t in range(WIDTH):  # lines of 4 and of 8 bytes in one loop: LLVM would not vectorise it
        finite = abs(m[t]) < np.inf
        m0 = m[t] if finite else 0.0
        c0, k0 = shift(m0, x_type)
        c[t], k[t], lowest[t] = c0 if finite else np.inf, k0, (m0 - c0) - reach(x_type)
        wm[t] = exp(m0 - c0, k0, x_type)
        q[t], low[t], part[t] = 0.0, 0.0, 0.0


@jit(**EXACT)
def _block(z: int, step: int, x_type: Any, first: int, classes: int, space: int, w: int, w_step: int) -> None:
    """Exponentials of classes from `first` on, and in part their sum, the maximum left out."""
    c, lowest, at, part = line(space, C), line(space, LOWEST), line(space, _AT), line(space, PART)
    k = pointer(space + LINE * K, np.int64)
    for j in range(classes):
        x, e, label = pointer(z + j * step, x_type), pointer(w + j * w_step, np.float64), np.float64(first + j)
        for t in range(WIDTH):
            d = np.float64(x[t]) - c[t]
            value = exp(d if d > lowest[t] else lowest[t], k[t], x_type)
            value = value if d > lowest[t] else 0.0
            e[t] = value
            part[t] += value if at[t] != label else 0.0


@jit(**EXACT)
def set_streams(
    space: int, left: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, y: int, y_step: int,
    y_class_step: int,
) -> None:  # fmt: skip
    """Set what the cache is told of beside a tile: x and y of the tile after the next, unless few rows are left.

    The processor alone does not see 21 streams of 256 bytes coming: 1.4 ns a number, told 0.5.
    """
    streams = pointer(space + LINE * _STREAMS, np.int64)
    far = 2 * WIDTH
    streams[0] = x + far * x_step if left * classes > _MANY else 0
    streams[1] = WIDTH * item(x_type) if x_class_step == item(x_type) else x_class_step
    streams[2] = y + far * y_step if y else streams[0]
    streams[3] = streams[1] if not y else WIDTH * item(x_type) if y_class_step == item(x_type) else y_class_step


@jit(**EXACT)
def _fetch(space: int, j: int, x_type: Any) -> None:
    streams = pointer(space + LINE * _STREAMS, np.int64)
    if streams[0]:
        for byte in range(0, WIDTH * item(x_type), 64):
            fetch(streams[0] + j * streams[1] + byte)
            fetch(streams[2] + j * streams[3] + byte)


@jit(**EXACT)
def _at_once(z: int, step: int, x_type: Any, classes: int, space: int, w: int) -> bool:
    """Exponentials and whole sums of up to BLOCK classes of float32 rows; whether the logits are moderate."""
    m, wm, q, low, part = line(space, M), line(space, WM), line(space, Q), line(space, LOW), line(space, PART)
    for t in range(WIDTH):
        m[t], wm[t], q[t], low[t], part[t] = 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(classes):
        x, e = pointer(z + j * step, x_type), line(w, j)
        _fetch(space, j, x_type)
        for t in range(WIDTH):
            value = exp(moderate(np.float64(x[t]), x_type), 0, x_type)
            e[t] = value
            part[t] += value
    lost = 0
    for t in range(WIDTH):
        lost += 0 if ordinary(part[t], x_type) else 1
    return lost == 0


@jit(**EXACT)
def _at_once_with_digits(z: int, step: int, x_type: Any, classes: int, space: int, w: int) -> bool:
    """The same, with the numbers of each row as `_shifts` and `_block` leave them, but where the maximum is."""
    top, k = pointer(space + LINE * _TOP, x_type), pointer(space + LINE * K, np.int64)
    m, c, lowest, wm = line(space, M), line(space, C), line(space, LOWEST), line(space, WM)
    q, low, part = line(space, Q), line(space, LOW), line(space, PART)
    for t in range(WIDTH):
        top[t] = -np.inf
    for t in range(WIDTH):
        part[t] = 0.0
    for j in range(classes):
        x, e = pointer(z + j * step, x_type), line(w, j)
        _fetch(space, j, x_type)
        for t in range(WIDTH):
            value = exp(moderate(np.float64(x[t]), x_type), 0, x_type)
            e[t] = value
            part[t] += value
        for t in range(WIDTH):
            top[t] = larger(top[t], x[t])
    for t in range(WIDTH):
        m[t] = top[t]
    lost, few = 0, 0
    for t in range(WIDTH):
        c[t], k[t], lowest[t], low[t] = 0.0, 0, moderate(-np.inf, x_type), 0.0
        wm[t] = exp(moderate(m[t], x_type), 0, x_type)
        q[t] = part[t] - wm[t]
        lost += 0 if abs(m[t]) <= ROOM and ordinary(part[t], x_type) else 1
        few += 0 if has_digits(m[t], q[t], wm[t], x_type) else 1
        part[t] = 0.0
    if few and not lost:
        _others(z, step, x_type, classes, space, w)
    return lost == 0


@jit(**EXACT)
def _others(z: int, step: int, x_type: Any, classes: int, space: int, w: int) -> None:
    """q, of the exponentials below the maximum."""
    m, wm, q, ties = line(space, M), line(space, WM), line(space, Q), line(space, AWAY)
    for t in range(WIDTH):
        q[t], ties[t] = 0.0, -1.0
    for j in range(classes):
        x, e = pointer(z + j * step, x_type), line(w, j)
        for t in range(WIDTH):
            v = np.float64(x[t])
            q[t] += e[t] if v < m[t] else 0.0
            ties[t] += 1.0 if v == m[t] else 0.0
    for t in range(WIDTH):
        q[t] += ties[t] * wm[t]


@jit(**EXACT)
def flush(space: int, high: int, low: int, part: int) -> None:
    s, rest, added = line(space, high), line(space, low), line(space, part)
    for t in range(WIDTH):
        s[t], rest[t] = two_sum(s[t], rest[t], added[t])
        added[t] = 0.0


@jit(**EXACT)
def tile_exponentials(
    x: int, x_step: int, x_class_step: int, x_type: Any, n: int, classes: int, space: int, w: int, w_step: int
) -> None:
    """The numbers of each row but q = (Q + PART) + LOW. In w exponentials: of all classes, or of the last block."""
    viewed = item(x_type) == 4 and classes <= BLOCK
    if viewed:
        at, step = view(x, x_step, x_class_step, x_type, n, 0, classes, space + Z, space, False)
        if _at_once_with_digits(at, step, x_type, classes, space, w):
            return
    for j in range(0, classes, BLOCK):
        at, step = view(x, x_step, x_class_step, x_type, n, j, classes, space + Z, space, viewed)
        _maxima(at, step, x_type, j, min(BLOCK, classes - j), space)
    _shifts(space, x_type)
    plain = plainly(x_type)
    for j in range(0, classes, BLOCK):
        size, e = min(BLOCK, classes - j), w + j * w_step if classes <= KEPT else w
        at, step = view(x, x_step, x_class_step, x_type, n, j, classes, space + Z, space, True)
        for i in range(0, size, plain):
            if i + j:
                flush(space, Q, LOW, PART)
            _block(at + i * step, step, x_type, j + i, min(plain, size - i), space, e + i * w_step, w_step)


@jit(**EXACT)
def moderate_rows(
    x: int, x_step: int, x_class_step: int, x_type: Any, n: int, classes: int, space: int, w: int
) -> bool:
    if item(x_type) == 8 or classes > BLOCK:
        return False
    at, step = view(x, x_step, x_class_step, x_type, n, 0, classes, space + Z, space, False)
    return _at_once(at, step, x_type, classes, space, w)


@jit(**EXACT)
def kept_block(
    x: int, x_step: int, x_class_step: int, x_type: Any, n: int, first: int, classes: int, space: int, w: int
) -> int:
    """Exponentials of a block, computed again if need be."""
    if classes <= KEPT:
        return w + first * LINE
    at, step = view(x, x_step, x_class_step, x_type, n, first, classes, space + Z, space, True)
    _block(at, step, x_type, first, min(BLOCK, classes - first), space, w, LINE)
    return w


@jit(**EXACT)
def log_sums(space: int) -> None:
    m, wm, log_sum = line(space, M), line(space, WM), line(space, LOG_SUM)
    q, low, part = line(space, Q), line(space, LOW), line(space, PART)
    for t in range(WIDTH):
        finite = abs(m[t]) < np.inf
        value = log1p((q[t] + part[t] + low[t]) / wm[t])
        log_sum[t] = value if finite else math.nan


@jit(**EXACT)
def inverses(space: int) -> None:
    """1 / s in two parts; nan where m is not finite."""
    m, wm, factor, rest = line(space, M), line(space, WM), line(space, FACTOR), line(space, REST)
    q, low, part = line(space, Q), line(space, LOW), line(space, PART)
    for t in range(WIDTH):
        high, left = quotient(1.0, q[t] + part[t] + low[t], wm[t])
        factor[t], rest[t] = high if abs(m[t]) < np.inf else math.nan, left
