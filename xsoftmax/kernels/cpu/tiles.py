"""Kernels that work across rows, for Numba: for short rows, and for class axes with a stride.

A tile is 64 rows, z[class][row], and every loop runs over the rows side by side: where they lie so, in x and y
themselves, else in a copy. An element lies at x + row · x_step + class · x_class_step, in bytes. Names as in `rows`.
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
    alive,
    below_majority,
    half_distance,
    has_digits,
    is_large,
    joined,
    lowering,
    moderate,
    ordinary,
    quotient,
    reach,
    share,
    shift,
    two_sum,
    unit,
    usual,
)
from .vector_math import EXACT, exp, fetch, fused, item, jit, larger, log1p, pointer

WIDTH = 64  # rows of a tile: a constant, so that LLVM knows which lines are apart, and no loop has an end piece
BLOCK = 32  # classes of a block; for float32 their terms are added plainly, sums of blocks are compensated
KEPT = 1024  # classes whose exponentials are kept, in 512 KiB; of longer rows they are computed twice
_MANY = 4096  # elements; fewer are in the cache
_LINE = 8 * WIDTH

# numbers of a row, kept side by side for a tile; the first three in the dtype of x
_TOP, _WHERE, _NAN, _M, _AT, _C, _K, _LOWEST, _WM, _Q, _LOW, _PART, _LOG_SUM, _FACTOR, _REST = range(15)
_SCALE, _ZETA, _LOSS, _LABEL, _X_LABEL, _AWAY, _PULL, _TOTAL, _OTHERS, _FAR = range(15, 25)
_TOTAL_LOW, _OTHERS_LOW, _FAR_LOW, _TOTAL_PART, _OTHERS_PART, _FAR_PART = range(25, 31)
_LSE, _LACKING = _X_LABEL, _LABEL  # of dense targets
_STREAMS = 31  # where the logits and results of a later tile lie: address and step from class to class, of each
_NUMBERS = 32
# from the numbers on: fours of classes, results of a block, logits
_FOURS, _OUT, _Z = _NUMBERS * _LINE, (_NUMBERS + BLOCK) * _LINE, (_NUMBERS + 2 * BLOCK) * _LINE


@jit(**EXACT)
def line(space: int, i: int) -> Any:
    return pointer(space + _LINE * i, np.float64)


@jit(**EXACT)
def _memory(classes: int, arrays: int) -> Any:
    return np.empty(((_Z + 64) // 8) + arrays * WIDTH * (classes if classes <= KEPT else BLOCK))


@jit(**EXACT)
def _aligned(memory: Any) -> int:
    return (memory.ctypes.data + 63) & -64


@jit(**EXACT)
def _after(z: int, classes: int) -> int:
    """Behind an array of what is kept of the classes."""
    return z + _LINE * (classes if classes <= KEPT else BLOCK)


@jit(**EXACT)
def _plainly(x_type: Any) -> int:
    """Classes whose terms are added without compensation; float64: 8 would be off by 7 ulp."""
    return BLOCK if item(x_type) == 4 else 2


@jit(**EXACT)
def _copied(step: int, n: int, dtype: Any) -> bool:
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
def _store(out: int, n: int, classes: int, y: int, step: int, class_step: int, y_type: Any, fours: int) -> None:
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
def _view(
    x: int, step: int, class_step: int, x_type: Any, n: int, first: int, classes: int, z: int, space: int, filled: bool
) -> tuple[int, int]:
    """Where a block's classes from `first` on lie, and the step between them; z is `filled` if it has been viewed."""
    if not _copied(step, n, x_type):
        return x + first * class_step, class_step
    width, at, size = WIDTH * item(x_type), z, min(BLOCK, classes - first)
    if classes <= KEPT:
        at = z + first * width
    if classes > KEPT or not filled:
        _load(x + first * class_step, step, class_step, x_type, n, size, at, space + _FOURS)
    return at, width


@jit(**EXACT)
def _maxima(z: int, step: int, x_type: Any, first: int, classes: int, space: int) -> None:
    """The largest logit, the first class that has it, and whether there is a nan: two classes at a time."""
    top, where = pointer(space + _LINE * _TOP, x_type), pointer(space + _LINE * _WHERE, x_type)
    missing = pointer(space + _LINE * _NAN, x_type)
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
    top, where = pointer(space + _LINE * _TOP, x_type), pointer(space + _LINE * _WHERE, x_type)
    missing, k = pointer(space + _LINE * _NAN, x_type), pointer(space + _LINE * _K, np.int64)
    m, at, c, lowest, wm = line(space, _M), line(space, _AT), line(space, _C), line(space, _LOWEST), line(space, _WM)
    q, low, part = line(space, _Q), line(space, _LOW), line(space, _PART)
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
    c, lowest, at, part = line(space, _C), line(space, _LOWEST), line(space, _AT), line(space, _PART)
    k = pointer(space + _LINE * _K, np.int64)
    for j in range(classes):
        x, e, label = pointer(z + j * step, x_type), pointer(w + j * w_step, np.float64), np.float64(first + j)
        for t in range(WIDTH):
            d = np.float64(x[t]) - c[t]
            value = exp(d if d > lowest[t] else lowest[t], k[t], x_type)
            value = value if d > lowest[t] else 0.0
            e[t] = value
            part[t] += value if at[t] != label else 0.0


@jit(**EXACT)
def _streams(
    space: int, left: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, y: int, y_step: int,
    y_class_step: int,
) -> None:  # fmt: skip
    """Set what the cache is told of beside a tile: x and y of the tile after the next, unless few rows are left.

    The processor alone does not see 21 streams of 256 bytes coming: 1.4 ns a number, told 0.5.
    """
    streams = pointer(space + _LINE * _STREAMS, np.int64)
    far = 2 * WIDTH
    streams[0] = x + far * x_step if left * classes > _MANY else 0
    streams[1] = WIDTH * item(x_type) if x_class_step == item(x_type) else x_class_step
    streams[2] = y + far * y_step if y else streams[0]
    streams[3] = streams[1] if not y else WIDTH * item(x_type) if y_class_step == item(x_type) else y_class_step


@jit(**EXACT)
def _fetch(space: int, j: int, x_type: Any) -> None:
    streams = pointer(space + _LINE * _STREAMS, np.int64)
    if streams[0]:
        for byte in range(0, WIDTH * item(x_type), 64):
            fetch(streams[0] + j * streams[1] + byte)
            fetch(streams[2] + j * streams[3] + byte)


@jit(**EXACT)
def _at_once(z: int, step: int, x_type: Any, classes: int, space: int, w: int) -> bool:
    """Exponentials and whole sums of up to BLOCK classes of float32 rows; whether the logits are moderate."""
    m, wm, q, low, part = line(space, _M), line(space, _WM), line(space, _Q), line(space, _LOW), line(space, _PART)
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
    top, k = pointer(space + _LINE * _TOP, x_type), pointer(space + _LINE * _K, np.int64)
    m, c, lowest, wm = line(space, _M), line(space, _C), line(space, _LOWEST), line(space, _WM)
    q, low, part = line(space, _Q), line(space, _LOW), line(space, _PART)
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
    m, wm, q, ties = line(space, _M), line(space, _WM), line(space, _Q), line(space, _AWAY)
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
def _flush(space: int, high: int, low: int, part: int) -> None:
    s, rest, added = line(space, high), line(space, low), line(space, part)
    for t in range(WIDTH):
        s[t], rest[t] = two_sum(s[t], rest[t], added[t])
        added[t] = 0.0


@jit(**EXACT)
def _exponentials(
    x: int, x_step: int, x_class_step: int, x_type: Any, n: int, classes: int, space: int, w: int, w_step: int
) -> None:
    """The numbers of each row but q = (_Q + _PART) + _LOW. In w exponentials: of all classes, or of the last block."""
    viewed = item(x_type) == 4 and classes <= BLOCK
    if viewed:
        at, step = _view(x, x_step, x_class_step, x_type, n, 0, classes, space + _Z, space, False)
        if _at_once_with_digits(at, step, x_type, classes, space, w):
            return
    for j in range(0, classes, BLOCK):
        at, step = _view(x, x_step, x_class_step, x_type, n, j, classes, space + _Z, space, viewed)
        _maxima(at, step, x_type, j, min(BLOCK, classes - j), space)
    _shifts(space, x_type)
    plain = _plainly(x_type)
    for j in range(0, classes, BLOCK):
        size, e = min(BLOCK, classes - j), w + j * w_step if classes <= KEPT else w
        at, step = _view(x, x_step, x_class_step, x_type, n, j, classes, space + _Z, space, True)
        for i in range(0, size, plain):
            if i + j:
                _flush(space, _Q, _LOW, _PART)
            _block(at + i * step, step, x_type, j + i, min(plain, size - i), space, e + i * w_step, w_step)


@jit(**EXACT)
def _moderate_rows(
    x: int, x_step: int, x_class_step: int, x_type: Any, n: int, classes: int, space: int, w: int
) -> bool:
    if item(x_type) == 8 or classes > BLOCK:
        return False
    at, step = _view(x, x_step, x_class_step, x_type, n, 0, classes, space + _Z, space, False)
    return _at_once(at, step, x_type, classes, space, w)


@jit(**EXACT)
def _kept(
    x: int, x_step: int, x_class_step: int, x_type: Any, n: int, first: int, classes: int, space: int, w: int
) -> int:
    """Exponentials of a block, computed again if need be."""
    if classes <= KEPT:
        return w + first * _LINE
    at, step = _view(x, x_step, x_class_step, x_type, n, first, classes, space + _Z, space, True)
    _block(at, step, x_type, first, min(BLOCK, classes - first), space, w, _LINE)
    return w


@jit(**EXACT)
def _log_sums(space: int) -> None:
    m, wm, log_sum = line(space, _M), line(space, _WM), line(space, _LOG_SUM)
    q, low, part = line(space, _Q), line(space, _LOW), line(space, _PART)
    for t in range(WIDTH):
        finite = abs(m[t]) < np.inf
        value = log1p((q[t] + part[t] + low[t]) / wm[t])
        log_sum[t] = value if finite else math.nan


@jit(**EXACT)
def _inverses(space: int) -> None:
    """1 / s in two parts; nan where m is not finite."""
    m, wm, factor, rest = line(space, _M), line(space, _WM), line(space, _FACTOR), line(space, _REST)
    q, low, part = line(space, _Q), line(space, _LOW), line(space, _PART)
    for t in range(WIDTH):
        high, left = quotient(1.0, q[t] + part[t] + low[t], wm[t])
        factor[t], rest[t] = high if abs(m[t]) < np.inf else math.nan, left


@jit(**EXACT)
def _scaled(w: int, size: int, space: int, to: int, to_step: int, y_type: Any) -> None:
    factor, rest = line(space, _FACTOR), line(space, _REST)
    for j in range(size):
        e, y = line(w, j), pointer(to + j * to_step, y_type)
        if item(y_type) == 8:
            for t in range(WIDTH):
                y[t] = fused(e[t], factor[t], e[t] * rest[t])
        else:
            for t in range(WIDTH):
                y[t] = e[t] * factor[t]


@jit(**EXACT)
def softmax(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, y: int, y_step: int, y_class_step: int,
    y_type: Any,
) -> None:  # fmt: skip
    memory = _memory(classes, 2)
    space = _aligned(memory)
    w, out = _after(space + _Z, classes), space + _OUT
    for start in range(0, n, WIDTH):
        rows, xi, yi = min(WIDTH, n - start), x + start * x_step, y + start * y_step
        copied = _copied(y_step, rows, y_type)
        _streams(space, n - start, classes, xi, x_step, x_class_step, x_type, yi, y_step, y_class_step)
        if not _moderate_rows(xi, x_step, x_class_step, x_type, rows, classes, space, w):
            _exponentials(xi, x_step, x_class_step, x_type, rows, classes, space, w, _LINE)
        _inverses(space)
        for j in range(0, classes, BLOCK):
            size, yj = min(BLOCK, classes - j), yi + j * y_class_step
            e = _kept(xi, x_step, x_class_step, x_type, rows, j, classes, space, w)
            to, to_step = (out, WIDTH * item(y_type)) if copied else (yj, y_class_step)
            _scaled(e, size, space, to, to_step, y_type)
            if copied:
                _store(out, rows, size, yj, y_step, y_class_step, y_type, space + _FOURS)
    alive(memory)


@jit(**EXACT)
def _log_probabilities(
    z: int, step: int, x_type: Any, size: int, space: int, w: int, to: int, to_step: int, y_type: Any
) -> None:
    """(x − m) − log_sum; through w, since y may be x."""
    m, log_sum, d = line(space, _M), line(space, _LOG_SUM), pointer(w, np.float64)
    for j in range(size):
        x, y = pointer(z + j * step, x_type), pointer(to + j * to_step, y_type)
        for t in range(WIDTH):
            d[t] = np.float64(x[t]) - m[t]
        for t in range(WIDTH):
            y[t] = d[t] - log_sum[t]


@jit(**EXACT)
def log_softmax(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, y: int, y_step: int, y_class_step: int,
    y_type: Any,
) -> None:  # fmt: skip
    memory = _memory(classes, 2)
    space = _aligned(memory)
    w, out = _after(space + _Z, classes), space + _OUT
    for start in range(0, n, WIDTH):
        rows, xi, yi = min(WIDTH, n - start), x + start * x_step, y + start * y_step
        copied = _copied(y_step, rows, y_type)
        _streams(space, n - start, classes, xi, x_step, x_class_step, x_type, yi, y_step, y_class_step)
        _exponentials(xi, x_step, x_class_step, x_type, rows, classes, space, w, 0)
        _log_sums(space)
        for j in range(0, classes, BLOCK):
            size, yj = min(BLOCK, classes - j), yi + j * y_class_step
            at, step = _view(xi, x_step, x_class_step, x_type, rows, j, classes, space + _Z, space, True)
            to, to_step = (out, WIDTH * item(y_type)) if copied else (yj, y_class_step)
            _log_probabilities(at, step, x_type, size, space, w, to, to_step, y_type)
            if copied:
                _store(out, rows, size, yj, y_step, y_class_step, y_type, space + _FOURS)
    alive(memory)


@jit(**EXACT)
def logsumexp(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, y: int, y_step: int, y_type: Any
) -> None:
    memory = _memory(classes, 2)
    space = _aligned(memory)
    m, log_sum, value = line(space, _M), line(space, _LOG_SUM), line(space, _LOSS)
    for start in range(0, n, WIDTH):
        rows, w, xi = min(WIDTH, n - start), _after(space + _Z, classes), x + start * x_step
        _streams(space, n - start, classes, xi, x_step, x_class_step, x_type, 0, 0, 0)
        _exponentials(xi, x_step, x_class_step, x_type, rows, classes, space, w, 0)
        _log_sums(space)
        for t in range(WIDTH):
            value[t] = m[t] + log_sum[t] if abs(m[t]) < np.inf else m[t]
        for t in range(rows):
            pointer(y + (start + t) * y_step, y_type)[0] = value[t]
    alive(memory)


# ---------------------------------------------------------------------------------------------------------------------
# cross-entropy


@jit(**EXACT)
def _given(address: int, step: int, start: int, rows: int, otherwise: float, to: Any) -> None:
    """A number for each row of the tile."""
    for t in range(WIDTH):
        to[t] = otherwise
    if address:
        for t in range(rows):
            to[t] = pointer(address + (start + t) * step, np.float64)[0]


@jit(**EXACT)
def _at_labels(
    x: int, x_step: int, x_class_step: int, x_type: Any, labels: int, weight: int, rows: int, space: int
) -> None:
    """Each row's label, its logit and its weight."""
    label, x_label, total = line(space, _LABEL), line(space, _X_LABEL), line(space, _TOTAL)
    for t in range(WIDTH):
        label[t], x_label[t], total[t] = -1.0, 0.0, 0.0
    for t in range(rows):
        j = pointer(labels, np.int64)[t]
        label[t] = j
        x_label[t] = pointer(x + t * x_step + j * x_class_step, x_type)[0]
        total[t] = pointer(weight, np.float64)[j] if weight else 1.0


@jit(**EXACT)
def _label_losses(space: int) -> None:
    m, log_sum, loss, zeta = line(space, _M), line(space, _LOG_SUM), line(space, _LOSS), line(space, _ZETA)
    total, x_label = line(space, _TOTAL), line(space, _X_LABEL)
    for t in range(WIDTH):
        lse = m[t] + log_sum[t]
        far = half_distance(m[t], x_label[t]) if total[t] != 0.0 else 0.0
        value = total[t] * log_sum[t] + (2.0 * (total[t] * far) if far != 0.0 else 0.0)
        loss[t] = (value + zeta[t] * lse * lse if zeta[t] != 0.0 else value) + 0.0  # never −0.0


@jit(**EXACT)
def _label_slopes(space: int, x_type: Any) -> int:
    """The gradient at the label, and what e is multiplied by elsewhere.

    By what both are too small, if the result > 0.
    """
    m, log_sum, wm, c = line(space, _M), line(space, _LOG_SUM), line(space, _WM), line(space, _C)
    q, low, part = line(space, _Q), line(space, _LOW), line(space, _PART)
    k, lowest = pointer(space + _LINE * _K, np.int64), line(space, _LOWEST)
    total, x_label, zeta, scale = line(space, _TOTAL), line(space, _X_LABEL), line(space, _ZETA), line(space, _SCALE)
    factor, rest, at_label, lacking = line(space, _FACTOR), line(space, _REST), line(space, _AWAY), line(space, _PULL)
    odd = 0
    for t in range(WIDTH):
        others = q[t] + part[t] + low[t]
        d = x_label[t] - c[t]
        s = others + wm[t]
        e = exp(d if d > lowest[t] else lowest[t], k[t], x_type)
        y = (e if d > lowest[t] else 0.0) / s
        small = unit(zeta[t], m[t] + log_sum[t])
        sum_t, lacking[t] = total[t] * small, 1.0 / small
        away = -sum_t * (others / s) if (y > 0.5) & (abs(sum_t) < np.inf) else sum_t * y - sum_t
        pull = 2.0 * zeta[t] * small * (m[t] + log_sum[t]) if zeta[t] != 0.0 else 0.0
        total[t] = sum_t + pull
        high, left = quotient(scale[t] * total[t], others, wm[t])
        odd += 0 if usual(scale[t] * total[t], high) & (small == 1.0) else 1
        none = scale[t] == 0.0
        lost = 0.0 if none or abs(m[t]) < np.inf else math.nan
        factor[t], rest[t] = (0.0 if none else high) + lost, 0.0 if none else left
        at_label[t] = (0.0 if none else scale[t] * (away + pull * y)) + lost
    for t in range(WIDTH if odd else 0):
        if scale[t] != 0.0 and abs(m[t]) < np.inf:
            ratio, power = share(scale[t], total[t], q[t] + part[t] + low[t], wm[t])
            factor[t], rest[t] = ratio
            at_label[t], lacking[t] = at_label[t] / power, lacking[t] * power
    return odd


@jit(**EXACT)
def _label_gradients(w: int, first: int, size: int, space: int, to: int, to_step: int, y_type: Any) -> None:
    factor, rest, label, at_label = line(space, _FACTOR), line(space, _REST), line(space, _LABEL), line(space, _AWAY)
    for j in range(size):
        e, y, this = line(w, j), pointer(to + j * to_step, y_type), np.float64(first + j)
        if item(y_type) == 8:
            for t in range(WIDTH):
                y[t] = at_label[t] if label[t] == this else fused(e[t], factor[t], e[t] * rest[t])
        else:
            for t in range(WIDTH):
                y[t] = at_label[t] if label[t] == this else e[t] * factor[t]


@jit(**EXACT)
def _enlarge(lacking: Any, rows: int, classes: int, to: int, to_step: int, to_class_step: int, y_type: Any) -> None:
    for t in range(rows):
        if lacking[t] != 1.0:
            for j in range(classes):
                pointer(to + t * to_step + j * to_class_step, y_type)[0] *= lacking[t]


@jit(**EXACT)
def _losses(space: int, loss: int, rows: int) -> None:
    for t in range(rows):
        pointer(loss, np.float64)[t] = line(space, _LOSS)[t]


@jit(**EXACT)
def cross_entropy_labels(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, labels: int, weight: int, zeta: int,
    zeta_step: int, scale: int, scale_step: int, loss: int, grad: int, grad_step: int, grad_class_step: int,
    grad_type: Any,
) -> None:  # fmt: skip
    memory = _memory(classes, 2)
    space = _aligned(memory)
    w, out = _after(space + _Z, classes), space + _OUT
    for start in range(0, n, WIDTH):
        rows, xi, gi = min(WIDTH, n - start), x + start * x_step, grad + start * grad_step
        to = gi if grad else 0
        _streams(space, n - start, classes, xi, x_step, x_class_step, x_type, to, grad_step, grad_class_step)
        _exponentials(xi, x_step, x_class_step, x_type, rows, classes, space, w, _LINE if grad else 0)
        _log_sums(space)
        _given(zeta, zeta_step, start, rows, 0.0, line(space, _ZETA))
        _at_labels(xi, x_step, x_class_step, x_type, labels + 8 * start, weight, rows, space)
        if loss:
            _label_losses(space)
            _losses(space, loss + 8 * start, rows)
        if not grad:
            continue
        _given(scale, scale_step, start, rows, 1.0, line(space, _SCALE))
        odd = _label_slopes(space, x_type)
        copied = _copied(grad_step, rows, grad_type)
        for j in range(0, classes, BLOCK):
            size, gj = min(BLOCK, classes - j), gi + j * grad_class_step
            e = _kept(xi, x_step, x_class_step, x_type, rows, j, classes, space, w)
            to, to_step = (out, WIDTH * item(grad_type)) if copied else (gj, grad_class_step)
            _label_gradients(e, j, size, space, to, to_step, grad_type)
            if copied:
                _store(out, rows, size, gj, grad_step, grad_class_step, grad_type, space + _FOURS)
        if odd:
            _enlarge(line(space, _PULL), rows, classes, gi, grad_step, grad_class_step, grad_type)
    alive(memory)


@jit(**EXACT)
def _target_sums(z: int, z_step: int, x_type: Any, u: int, u_step: int, t_type: Any, size: int, space: int) -> None:
    """Σ t, Σ t below the maximum, and Σ t (m − x) / 2, 0 · ∞ = 0."""
    m = line(space, _M)
    total, others, far = line(space, _TOTAL_PART), line(space, _OTHERS_PART), line(space, _FAR_PART)
    for j in range(size):
        x, target = pointer(z + j * z_step, x_type), pointer(u + j * u_step, t_type)
        for t in range(WIDTH):
            v, a = np.float64(x[t]), np.float64(target[t])
            total[t] += a
            others[t] += a if v < m[t] else 0.0
            distant = a * half_distance(m[t], v)
            far[t] += distant if distant == distant else 0.0


@jit(**EXACT)
def _dense_losses(space: int) -> None:
    m, log_sum, loss, zeta = line(space, _M), line(space, _LOG_SUM), line(space, _LOSS), line(space, _ZETA)
    far, far_low, far_part = line(space, _FAR), line(space, _FAR_LOW), line(space, _FAR_PART)
    total = line(space, _TOTAL)
    for t in range(WIDTH):
        lse = m[t] + log_sum[t]
        value = total[t] * log_sum[t] + 2.0 * joined(far[t] + far_part[t], far_low[t])
        loss[t] = (value + zeta[t] * lse * lse if zeta[t] != 0.0 else value) + 0.0


@jit(**EXACT)
def _totals(space: int) -> None:
    total, total_low, total_part = line(space, _TOTAL), line(space, _TOTAL_LOW), line(space, _TOTAL_PART)
    others, others_low, others_part = line(space, _OTHERS), line(space, _OTHERS_LOW), line(space, _OTHERS_PART)
    for t in range(WIDTH):
        total[t] = joined(total[t] + total_part[t], total_low[t])
        others[t] = joined(others[t] + others_part[t], others_low[t])


@jit(**EXACT)
def _dense_slopes(space: int) -> int:
    """The gradient's first two terms at a class with more than half of y; what makes the third of y logsumexp.

    By what all are too small, if the result > 0.
    """
    m, log_sum, wm, zeta = line(space, _M), line(space, _LOG_SUM), line(space, _WM), line(space, _ZETA)
    q, low, part = line(space, _Q), line(space, _LOW), line(space, _PART)
    total, others, away, pull = line(space, _TOTAL), line(space, _OTHERS), line(space, _AWAY), line(space, _PULL)
    scale, lse, lacking = line(space, _SCALE), line(space, _LSE), line(space, _LACKING)
    odd = 0
    for t in range(WIDTH):
        q0 = q[t] + part[t] + low[t]
        away[t] = others[t] - total[t] * (q0 / (q0 + wm[t]))
        pull[t] = 2.0 * zeta[t] * scale[t]
        lse[t] = m[t] + log_sum[t] if zeta[t] != 0.0 else 0.0
        odd += 1 if is_large(scale[t], zeta[t]) | np.isinf(total[t]) else 0
    for t in range(WIDTH if odd else 0):
        lacking[t] = 1.0
        if np.isinf(total[t]):
            away[t] = below_majority(total[t], others[t], 0.0)
        if is_large(scale[t], zeta[t]):
            small = lowering(scale[t], zeta[t])
            scale[t] *= small
            pull[t], lacking[t] = 2.0 * zeta[t] * scale[t], 1.0 / small
    return odd


@jit(**EXACT)
def _dense_gradients(
    w: int, u: int, u_step: int, t_type: Any, size: int, space: int, to: int, to_step: int, y_type: Any
) -> None:
    factor, rest, away = line(space, _FACTOR), line(space, _REST), line(space, _AWAY)
    pull, total, scale, lse = line(space, _PULL), line(space, _TOTAL), line(space, _SCALE), line(space, _LSE)
    for j in range(size):
        e, target, grad = line(w, j), pointer(u + j * u_step, t_type), pointer(to + j * to_step, y_type)
        for t in range(WIDTH):
            y = fused(e[t], factor[t], e[t] * rest[t])
            a = away[t] if y > 0.5 else total[t] * y - np.float64(target[t])
            grad[t] = scale[t] * a + pull[t] * (y * lse[t]) if scale[t] != 0.0 else 0.0


@jit(**EXACT)
def _clear(space: int) -> None:
    sums = line(space, _TOTAL)
    for t in range((_FAR_PART + 1 - _TOTAL) * WIDTH):
        sums[t] = 0.0


@jit(**EXACT)
def cross_entropy_dense(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, targets: int, t_step: int,
    t_class_step: int, t_type: Any, zeta: int, zeta_step: int, scale: int, scale_step: int, loss: int, grad: int,
    grad_step: int, grad_class_step: int, grad_type: Any,
) -> None:  # fmt: skip
    memory, plain = _memory(classes, 3), _plainly(x_type)
    space = _aligned(memory)
    w, out = _after(space + _Z, classes), space + _OUT
    u = _after(w, classes)
    for start in range(0, n, WIDTH):
        rows, xi, ti = min(WIDTH, n - start), x + start * x_step, targets + start * t_step
        to = grad + start * grad_step if grad else 0
        _streams(space, n - start, classes, xi, x_step, x_class_step, x_type, to, grad_step, grad_class_step)
        _exponentials(xi, x_step, x_class_step, x_type, rows, classes, space, w, _LINE if grad else 0)
        _log_sums(space)
        _clear(space)
        for j in range(0, classes, BLOCK):
            at, step = _view(xi, x_step, x_class_step, x_type, rows, j, classes, space + _Z, space, True)
            ut, u_step = _view(ti, t_step, t_class_step, t_type, rows, j, classes, u, space, False)
            size = min(BLOCK, classes - j)
            for i in range(0, size, plain):
                if i + j:
                    _flush(space, _TOTAL, _TOTAL_LOW, _TOTAL_PART)
                    _flush(space, _OTHERS, _OTHERS_LOW, _OTHERS_PART)
                    _flush(space, _FAR, _FAR_LOW, _FAR_PART)
                _target_sums(
                    at + i * step, step, x_type, ut + i * u_step, u_step, t_type, min(plain, size - i), space
                )  # fmt: skip
        _given(zeta, zeta_step, start, rows, 0.0, line(space, _ZETA))
        _totals(space)
        if loss:
            _dense_losses(space)
            _losses(space, loss + 8 * start, rows)
        if not grad:
            continue
        _given(scale, scale_step, start, rows, 1.0, line(space, _SCALE))
        _inverses(space)
        odd = _dense_slopes(space)
        copied = _copied(grad_step, rows, grad_type)
        for j in range(0, classes, BLOCK):
            size, gj = min(BLOCK, classes - j), grad + start * grad_step + j * grad_class_step
            e = _kept(xi, x_step, x_class_step, x_type, rows, j, classes, space, w)
            ut, u_step = _view(ti, t_step, t_class_step, t_type, rows, j, classes, u, space, True)
            to, to_step = (out, WIDTH * item(grad_type)) if copied else (gj, grad_class_step)
            _dense_gradients(e, ut, u_step, t_type, size, space, to, to_step, grad_type)
            if copied:
                _store(out, rows, size, gj, grad_step, grad_class_step, grad_type, space + _FOURS)
        if odd:
            gi = grad + start * grad_step
            _enlarge(line(space, _LACKING), rows, classes, gi, grad_step, grad_class_step, grad_type)
    alive(memory)
