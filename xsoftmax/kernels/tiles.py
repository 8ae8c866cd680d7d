"""Kernels that work across rows, for Numba: for short rows, and for class axes with a stride.

A tile of rows is loaded as z[class][row] in float64, and every loop runs over the rows side by side. An element lies at
x + row · x_step + class · x_class_step, in bytes. Meaning and names as in `rows` and `row_losses`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .rows import DIGITS, LEAST, MOST, alive, moderate, quotient, reach, shift, two_sum
from .vector_math import EXACT, exp, item, jit, log1p, maximum, pointer

# numbers of a row, kept side by side for a tile
_M, _C, _K, _LOWEST, _WM, _Q, _LOW, _PART, _TIES, _LOG_SUM, _A, _B, _D, _REST = range(14)
_NUMBERS = 14
_PLAIN = 32  # classes whose float32 terms are added plainly; all other sums are compensated


@jit(**EXACT)
def width(classes: int) -> int:
    """Rows of a tile: 32 KiB for 64 classes, at least a vector."""
    return 64 if classes <= 64 else max(8, min(64, 16384 // classes))


@jit(**EXACT)
def line(space: int, i: int, size: int) -> Any:
    return pointer(space + 8 * i * size, np.float64)


@jit(**EXACT)
def _load(x: int, step: int, class_step: int, x_type: Any, n: int, classes: int, size: int, z: int) -> None:
    apart = step // item(x_type)
    for j in range(classes):
        given, to = pointer(x + j * class_step, x_type), line(z, j, size)
        if n < size:
            for t in range(size):
                to[t] = 0.0
        if apart == 1:
            for t in range(n):
                to[t] = given[t]
        else:  # along the rows again: half the time of going along the classes
            for t in range(n):
                to[t] = given[t * apart]


@jit(**EXACT)
def _store(w: int, size: int, n: int, classes: int, y: int, step: int, class_step: int, y_type: Any) -> None:
    apart = step // item(y_type)
    for j in range(classes):
        given, to = line(w, j, size), pointer(y + j * class_step, y_type)
        if apart == 1:
            for t in range(n):
                to[t] = given[t]
        else:
            for t in range(n):
                to[t * apart] = given[t]


@jit(**EXACT)
def _maxima(z: int, size: int, classes: int, space: int) -> None:
    m = line(space, _M, size)
    for t in range(size):
        m[t] = -np.inf
    for j in range(classes):
        x = line(z, j, size)
        for t in range(size):
            m[t] = maximum(m[t], x[t])


@jit(**EXACT)
def _shifts(size: int, space: int, like: Any) -> None:
    """c, k, the lowest x − c that counts, and wm; 0 stands for an m that is not finite."""
    m, c, lowest = line(space, _M, size), line(space, _C, size), line(space, _LOWEST, size)
    k, wm = pointer(space + 8 * _K * size, np.int64), line(space, _WM, size)
    q, low, part, ties = (
        line(space, _Q, size),
        line(space, _LOW, size),
        line(space, _PART, size),
        line(space, _TIES, size),
    )
    for t in range(size):
        m0 = m[t] if abs(m[t]) < np.inf else 0.0
        c[t], k[t] = shift(m0, like)
        lowest[t] = (m0 - c[t]) - reach(like)
        wm[t] = exp(m0 - c[t], k[t], like)
        q[t], low[t], part[t], ties[t] = 0.0, 0.0, 0.0, 0.0


@jit(**EXACT)
def _flush(size: int, space: int) -> None:
    q, low, part = line(space, _Q, size), line(space, _LOW, size), line(space, _PART, size)
    for t in range(size):
        q[t], low[t] = two_sum(q[t], low[t], part[t])
        part[t] = 0.0


@jit(**EXACT)
def _at_once(z: int, w: int, w_step: int, size: int, classes: int, space: int, like: Any, digits: bool) -> bool:
    """wm, q (and with `digits` m) of float32 rows of moderate logits; whether all are."""
    q, wm, m, log_sum = (
        line(space, _Q, size),
        line(space, _WM, size),
        line(space, _M, size),
        line(space, _LOG_SUM, size),
    )
    for t in range(size):
        q[t], wm[t], m[t] = 0.0, 0.0, 0.0
    for j in range(classes):
        x, e = line(z, j, size), pointer(w + j * w_step, np.float64)
        for t in range(size):
            e[t] = exp(moderate(x[t]), 0, like)
            q[t] += e[t]
    lost = 0
    for t in range(size):
        lost += 0 if q[t] > LEAST and q[t] < MOST else 1
    if digits and not lost:
        _maxima(z, size, classes, space)
        for t in range(size):
            wm[t] = exp(m[t], 0, like)
            q[t] -= wm[t]
            log_sum[t] = log1p(q[t] / wm[t])
        for t in range(size):
            lost += 0 if q[t] > DIGITS * wm[t] else 1
    return lost == 0


@jit(**EXACT)
def _exponentials(z: int, w: int, w_step: int, size: int, classes: int, space: int, like: Any, digits: bool) -> None:
    """Exponentials of class j at w + j · w_step, and the numbers of each row; log_sum is nan where m is not finite."""
    if item(like) == 4 and _at_once(z, w, w_step, size, classes, space, like, digits):
        return
    _maxima(z, size, classes, space)
    _shifts(size, space, like)
    m, c, lowest = line(space, _M, size), line(space, _C, size), line(space, _LOWEST, size)
    k, wm = pointer(space + 8 * _K * size, np.int64), line(space, _WM, size)
    part, ties = line(space, _PART, size), line(space, _TIES, size)
    for j in range(classes):
        x, e = line(z, j, size), pointer(w + j * w_step, np.float64)
        for t in range(size):
            v = x[t]
            d = v - c[t]
            e[t] = exp(d if d > lowest[t] else lowest[t], k[t], like)
            part[t] += e[t] if v < m[t] else 0.0
            ties[t] += 1.0 if v == m[t] else 0.0
        if item(like) == 8 or j % _PLAIN == _PLAIN - 1:
            _flush(size, space)
    _flush(size, space)
    q, low, log_sum = line(space, _Q, size), line(space, _LOW, size), line(space, _LOG_SUM, size)
    for t in range(size):
        q[t] = (q[t] + low[t]) + (ties[t] - 1.0) * wm[t]
        finite = abs(m[t]) < np.inf
        ratio = log1p((q[t] if finite else 0.0) / wm[t])
        log_sum[t] = ratio if finite else math.nan


@jit(**EXACT)
def softmax(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, y: int, y_step: int, y_class_step: int,
    y_type: Any,
) -> None:  # fmt: skip
    size = width(classes)
    tile, numbers = np.empty(2 * classes * size), np.empty(_NUMBERS * size)
    z, space = tile.ctypes.data, numbers.ctypes.data
    w = z + 8 * classes * size
    q, wm, m = line(space, _Q, size), line(space, _WM, size), line(space, _M, size)
    factor, rest = line(space, _A, size), line(space, _REST, size)
    for start in range(0, n, size):
        rows = min(size, n - start)
        _load(x + start * x_step, x_step, x_class_step, x_type, rows, classes, size, z)
        _exponentials(z, w, 8 * size, size, classes, space, x_type, False)
        if item(y_type) == 8:
            for t in range(size):
                high, rest[t] = quotient(1.0, q[t], wm[t])
                factor[t] = high if abs(m[t]) < np.inf else math.nan
            for j in range(classes):
                e, to = line(w, j, size), line(z, j, size)
                for t in range(size):
                    to[t] = e[t] * factor[t] + e[t] * rest[t]
        else:
            for t in range(size):
                factor[t] = 1.0 / (q[t] + wm[t]) if abs(m[t]) < np.inf else math.nan
            for j in range(classes):
                e, to = line(w, j, size), line(z, j, size)
                for t in range(size):
                    to[t] = e[t] * factor[t]
        _store(z, size, rows, classes, y + start * y_step, y_step, y_class_step, y_type)
    alive(tile)
    alive(numbers)


@jit(**EXACT)
def log_softmax(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, y: int, y_step: int, y_class_step: int,
    y_type: Any,
) -> None:  # fmt: skip
    size = width(classes)
    tile, numbers = np.empty(classes * size), np.empty(_NUMBERS * size)
    z, space = tile.ctypes.data, numbers.ctypes.data
    m, log_sum = line(space, _M, size), line(space, _LOG_SUM, size)
    for start in range(0, n, size):
        rows = min(size, n - start)
        _load(x + start * x_step, x_step, x_class_step, x_type, rows, classes, size, z)
        _exponentials(z, space + 8 * _A * size, 0, size, classes, space, x_type, True)
        for j in range(classes):
            v = line(z, j, size)
            for t in range(size):
                v[t] = (v[t] - m[t]) - log_sum[t]
        _store(z, size, rows, classes, y + start * y_step, y_step, y_class_step, y_type)
    alive(tile)
    alive(numbers)


@jit(**EXACT)
def logsumexp(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, y: int, y_step: int, y_type: Any
) -> None:
    size = width(classes)
    tile, numbers = np.empty(classes * size), np.empty(_NUMBERS * size)
    z, space = tile.ctypes.data, numbers.ctypes.data
    m, log_sum = line(space, _M, size), line(space, _LOG_SUM, size)
    for start in range(0, n, size):
        rows = min(size, n - start)
        _load(x + start * x_step, x_step, x_class_step, x_type, rows, classes, size, z)
        _exponentials(z, space + 8 * _A * size, 0, size, classes, space, x_type, True)
        for t in range(rows):
            value = m[t] + log_sum[t] if abs(m[t]) < np.inf else m[t]
            pointer(y + (start + t) * y_step, y_type)[0] = value
    alive(tile)
    alive(numbers)


# ---------------------------------------------------------------------------------------------------------------------
# cross-entropy


@jit(**EXACT)
def _given(address: int, step: int, start: int, rows: int, size: int, otherwise: float, to: Any) -> None:
    """A number for each row of the tile."""
    for t in range(size):
        to[t] = pointer(address + (start + t) * step, np.float64)[0] if address and t < rows else otherwise


@jit(**EXACT)
def cross_entropy_labels(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, labels: int, weight: int, zeta: int,
    zeta_step: int, scale: int, scale_step: int, loss: int, grad: int, grad_step: int, grad_class_step: int,
    grad_type: Any,
) -> None:  # fmt: skip
    size = width(classes)
    tile, numbers = np.empty(2 * classes * size), np.empty(_NUMBERS * size)
    z, space = tile.ctypes.data, numbers.ctypes.data
    w = z + 8 * classes * size
    m, log_sum, q, wm = (
        line(space, _M, size),
        line(space, _LOG_SUM, size),
        line(space, _Q, size),
        line(space, _WM, size),
    )
    factor, zetas = line(space, _A, size), line(space, _B, size)
    slope, rest = line(space, _D, size), line(space, _REST, size)
    for start in range(0, n, size):
        rows = min(size, n - start)
        _load(x + start * x_step, x_step, x_class_step, x_type, rows, classes, size, z)
        _exponentials(z, w, 8 * size, size, classes, space, x_type, True)
        _given(scale, scale_step, start, rows, size, 1.0, factor)
        _given(zeta, zeta_step, start, rows, size, 0.0, zetas)
        for t in range(rows):
            label = pointer(labels, np.int64)[start + t]
            total = pointer(weight, np.float64)[label] if weight else 1.0
            lse = m[t] + log_sum[t]
            if loss:
                far = m[t] - line(z, label, size)[t] if total != 0.0 else 0.0
                value = total * log_sum[t] + total * far
                pointer(loss, np.float64)[start + t] = value + zetas[t] * lse * lse if zetas[t] != 0.0 else value
            if grad:
                s = q[t] + wm[t]
                y = line(w, label, size)[t] / s
                away = -total * (q[t] / s) if y > 0.5 else total * y - total
                pull = 2.0 * zetas[t] * lse if zetas[t] != 0.0 else 0.0
                lost = math.nan if not abs(m[t]) < np.inf else 0.0
                high, rest[t] = quotient(factor[t] * (total + pull), q[t], wm[t])
                slope[t] = high + lost
                # z is not needed any more: the gradient at the label, until the others are there
                line(z, 0, size)[t] = factor[t] * (away + pull * y) + lost
        if grad:
            at_label = line(space, _PART, size)
            for t in range(size):
                at_label[t] = line(z, 0, size)[t]
            for j in range(classes):
                e, to = line(w, j, size), line(z, j, size)
                for t in range(size):
                    to[t] = e[t] * slope[t] + e[t] * rest[t] if factor[t] != 0.0 else 0.0
            for t in range(rows):
                if factor[t] != 0.0:
                    line(z, pointer(labels, np.int64)[start + t], size)[t] = at_label[t]
            _store(z, size, rows, classes, grad + start * grad_step, grad_step, grad_class_step, grad_type)
    alive(tile)
    alive(numbers)


@jit(**EXACT)
def cross_entropy_dense(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, targets: int, t_step: int,
    t_class_step: int, t_type: Any, zeta: int, zeta_step: int, scale: int, scale_step: int, loss: int, grad: int,
    grad_step: int, grad_class_step: int, grad_type: Any,
) -> None:  # fmt: skip
    size = width(classes)
    tile, numbers, sums = np.empty(3 * classes * size), np.empty(_NUMBERS * size), np.empty(6 * size)
    z, space, added = tile.ctypes.data, numbers.ctypes.data, sums.ctypes.data
    w, u = z + 8 * classes * size, z + 16 * classes * size
    m, log_sum, q, wm = (
        line(space, _M, size),
        line(space, _LOG_SUM, size),
        line(space, _Q, size),
        line(space, _WM, size),
    )
    factor, zetas = line(space, _A, size), line(space, _B, size)
    slope, rest = line(space, _D, size), line(space, _REST, size)
    total, others, far = line(added, 0, size), line(added, 1, size), line(added, 2, size)
    inverse, top, pull = line(added, 3, size), line(added, 4, size), line(added, 5, size)
    for start in range(0, n, size):
        rows = min(size, n - start)
        _load(x + start * x_step, x_step, x_class_step, x_type, rows, classes, size, z)
        _load(targets + start * t_step, t_step, t_class_step, t_type, rows, classes, size, u)
        _exponentials(z, w, 8 * size, size, classes, space, x_type, True)
        _given(scale, scale_step, start, rows, size, 1.0, factor)
        _given(zeta, zeta_step, start, rows, size, 0.0, zetas)
        _target_sums(z, u, size, classes, space, added)
        for t in range(size):
            lse = m[t] + log_sum[t]
            value = total[t] * log_sum[t] + far[t]
            slope[t] = value + zetas[t] * lse * lse if zetas[t] != 0.0 else value
            s = q[t] + wm[t]
            high, rest[t] = quotient(1.0, q[t], wm[t])
            inverse[t] = high if abs(m[t]) < np.inf else math.nan
            top[t] = others[t] - total[t] * (q[t] / s)
            pull[t] = 2.0 * zetas[t] * lse if zetas[t] != 0.0 else 0.0
        if loss:
            for t in range(rows):
                pointer(loss, np.float64)[start + t] = slope[t]
        if grad:
            for j in range(classes):
                e, target, to = line(w, j, size), line(u, j, size), line(z, j, size)
                for t in range(size):
                    y = e[t] * inverse[t] + e[t] * rest[t]
                    away = top[t] if y > 0.5 else total[t] * y - target[t]
                    to[t] = factor[t] * (away + pull[t] * y) if factor[t] != 0.0 else 0.0
            _store(z, size, rows, classes, grad + start * grad_step, grad_step, grad_class_step, grad_type)
    alive(tile)
    alive(numbers)
    alive(sums)


@jit(**EXACT)
def _target_sums(z: int, u: int, size: int, classes: int, space: int, added: int) -> None:
    """Σ t, Σ t below the maximum, and Σ t (m − x) where t ≠ 0."""
    m = line(space, _M, size)
    total, others, far = line(added, 0, size), line(added, 1, size), line(added, 2, size)
    total_low, others_low, far_low = line(added, 3, size), line(added, 4, size), line(added, 5, size)
    for t in range(size):
        total[t], others[t], far[t], total_low[t], others_low[t], far_low[t] = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(classes):
        x, target = line(z, j, size), line(u, j, size)
        for t in range(size):
            v, a = x[t], target[t]
            total[t], total_low[t] = two_sum(total[t], total_low[t], a)
            others[t], others_low[t] = two_sum(others[t], others_low[t], a if v < m[t] else 0.0)
            far[t], far_low[t] = two_sum(far[t], far_low[t], a * (m[t] - v) if a != 0.0 else 0.0)
    for t in range(size):
        total[t] += total_low[t]
        others[t] += others_low[t]
        far[t] += far_low[t] if far[t] < np.inf else 0.0  # with ∞ the rest is nan
