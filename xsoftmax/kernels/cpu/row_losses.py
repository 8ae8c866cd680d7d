"""Kernels of cross-entropy and of vector products, for rows whose classes lie side by side.

L = Σ_i t_i (lse − x_i) + ζ lse² and ∂L/∂x_i = T y_i − t_i + 2 ζ lse y_i, where lse = logsumexp(x), T = Σ_i t_i.
Steps are bytes from row to row, 0 for a value that all rows share; an address 0 stands for an array that is not there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .exponentials import (
    BLOCK,
    KEPT,
    REACH,
    alive,
    below_majority,
    buffer,
    exponentials,
    fill,
    half_distance,
    is_large,
    joined,
    largest,
    lowering,
    quotient,
    reach,
    refill,
    scaled,
    share,
    times,
    together,
    two_sum,
    unit,
)
from .vector_math import EXACT, SUMS, exp, fused, item, jit, log1p, pointer

_LOG_HALF = -math.log(2.0)


@jit(**EXACT)
def _number(address: int, otherwise: float) -> float:
    return pointer(address, np.float64)[0] if address else otherwise


@jit(**EXACT)
def _offset(address: int, bytes_: int) -> int:
    return address + bytes_ if address else 0


@jit(**EXACT)
def cross_entropy_labels(
    n: int, classes: int, x: int, x_step: int, x_type: Any, labels: int, weight: int, zeta: int, zeta_step: int,
    scale: int, scale_step: int, loss: int, grad: int, grad_step: int, grad_type: Any,
) -> None:  # fmt: skip
    """t = weight[label] at the label, 0 elsewhere."""
    space = buffer(classes)
    w, keep = space.ctypes.data, classes <= KEPT
    for i in range(n):
        row, to = x + i * x_step, grad + i * grad_step
        label = pointer(labels, np.int64)[i]
        factor = _number(_offset(scale, i * scale_step), 1.0)
        z = _number(_offset(zeta, i * zeta_step), 0.0)
        m, c, k, wm, q = exponentials(row, x_type, classes, w, keep, to if grad else 0)
        finite = np.isfinite(m)
        total = _number(_offset(weight, 8 * label), 1.0)
        at_label = np.float64(pointer(row, x_type)[label])
        log_sum = log1p(q / wm) if finite else math.nan
        lse = m + log_sum
        if loss:
            far = half_distance(m, at_label) if total != 0.0 else 0.0
            value = total * log_sum + (2.0 * (total * far) if far != 0.0 else 0.0)
            pointer(loss, np.float64)[i] = (value + z * lse * lse if z != 0.0 else value) + 0.0  # never −0.0
        if grad:
            g = pointer(to, grad_type)
            if factor == 0.0:
                fill(g, classes, 0.0)
            elif not finite:
                fill(g, classes, math.nan)
            else:
                s = q + wm
                d, lowest = at_label - c, (m - c) - reach(x_type)
                e = exp(max(d, lowest), k, pointer(row, x_type)[0])
                y = e / s if d > lowest else 0.0
                small = unit(z, lse)
                total *= small
                away = -total * (q / s) if y > 0.5 and abs(total) < np.inf else total * y - total
                pull = 2.0 * z * small * lse if z != 0.0 else 0.0
                ratio, power = share(factor, total + pull, q, wm)
                scaled(row, x_type, classes, m, c, k, ratio, w, keep, to, grad_type)
                g[label] = factor * (away + pull * y) / power
                if power != small:
                    times(g, classes, power / small, g)
    alive(space)


@jit(**SUMS)
def _targets_block(x: Any, t: Any, size: int, m: float) -> tuple[float, float, float]:
    """Σ t, Σ t below the maximum, and Σ t (m − x) / 2, 0 · ∞ = 0."""
    total, others, far = 0.0, 0.0, 0.0
    for j in range(size):
        v, u = np.float64(x[j]), np.float64(t[j])
        total += u
        others += u if v < m else 0.0
        distant = u * half_distance(m, v)
        far += distant if distant == distant else 0.0
    return total, others, far


@jit(**EXACT)
def _targets(x: int, x_type: Any, t: int, t_type: Any, classes: int, m: float) -> tuple[float, float, float]:
    total, total_low, others, others_low, far, far_low = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    start = 0
    while start < classes:
        size = together(classes - start, x_type)
        a, b, d = _targets_block(
            pointer(x + start * item(x_type), x_type), pointer(t + start * item(t_type), t_type), size, m
        )
        start += size
        total, total_low = two_sum(total, total_low, a)
        others, others_low = two_sum(others, others_low, b)
        far, far_low = two_sum(far, far_low, d)
    return joined(total, total_low), joined(others, others_low), joined(far, far_low)


@jit(**EXACT)
def cross_entropy_dense(
    n: int, classes: int, x: int, x_step: int, x_type: Any, targets: int, t_step: int, t_type: Any, zeta: int,
    zeta_step: int, scale: int, scale_step: int, loss: int, grad: int, grad_step: int, grad_type: Any,
) -> None:  # fmt: skip
    """Any targets t."""
    space = buffer(classes)
    w, keep = space.ctypes.data, classes <= KEPT
    for i in range(n):
        row, to, t = x + i * x_step, grad + i * grad_step, targets + i * t_step
        factor = _number(_offset(scale, i * scale_step), 1.0)
        z = _number(_offset(zeta, i * zeta_step), 0.0)
        m, c, k, wm, q = exponentials(row, x_type, classes, w, keep, to if grad else 0)
        finite = np.isfinite(m)
        total, others, far = _targets(row, x_type, t, t_type, classes, m) if finite else (math.nan, math.nan, math.nan)
        log_sum = log1p(q / wm) if finite else math.nan
        lse = m + log_sum
        if loss:
            value = total * log_sum + 2.0 * far
            pointer(loss, np.float64)[i] = (value + z * lse * lse if z != 0.0 else value) + 0.0
        if grad:
            if factor == 0.0:
                fill(pointer(to, grad_type), classes, 0.0)
            elif not finite:
                fill(pointer(to, grad_type), classes, math.nan)
            else:
                top = below_majority(total, others, q / (q + wm))
                small = lowering(factor, z) if is_large(factor, z) else 1.0
                factor *= small
                _dense_grad(
                    row,
                    x_type,
                    t,
                    t_type,
                    classes,
                    m,
                    c,
                    k,
                    quotient(1.0, q, wm),
                    total,
                    top,
                    lse if z != 0.0 else 0.0,
                    factor,
                    2.0 * z * factor,
                    w,
                    keep,
                    to,
                    grad_type,
                )
                if small < 1.0:
                    g = pointer(to, grad_type)
                    times(g, classes, 1.0 / small, g)
    alive(space)


@jit(**EXACT)
def _dense_grad(
    x: int, x_type: Any, t: int, t_type: Any, classes: int, m: float, c: float, k: int, inverse: tuple[float, float],
    total: float, top: float, lse: float, factor: float, pull: float, w: int, keep: bool, to: int, grad_type: Any,
) -> None:  # fmt: skip
    for start in range(0, classes, BLOCK):
        size = min(BLOCK, classes - start)
        e = pointer(w + 8 * start if keep else w, np.float64)
        refill(x, x_type, start, size, m, c, k, w, keep)
        u, g = pointer(t + start * item(t_type), t_type), pointer(to + start * item(grad_type), grad_type)
        for j in range(size):
            y = fused(e[j], inverse[0], e[j] * inverse[1])
            away = top if y > 0.5 else total * y - np.float64(u[j])
            e[j] = factor * away + pull * (y * lse)
        for j in range(size):
            g[j] = e[j]


# ---------------------------------------------------------------------------------------------------------------------
# products with a vector


@jit(**SUMS)
def _majority_block(y: Any, v: Any, size: int) -> tuple[float, float, float]:
    """Σ y, Σ y v, and v at the class with more than half of y."""
    total, dot, pivot = 0.0, 0.0, 0.0
    for j in range(size):
        p, u = np.float64(y[j]), np.float64(v[j])
        total += p
        dot += p * u
        pivot += u if p > 0.5 else 0.0
    return total, dot, pivot


@jit(**SUMS)
def _dot_block(y: Any, v: Any, size: int, pivot: float) -> float:
    dot = 0.0
    for j in range(size):
        dot += np.float64(y[j]) * (np.float64(v[j]) - pivot)
    return dot


@jit(**EXACT)
def softmax_product(
    n: int, classes: int, y: int, y_step: int, y_type: Any, v: int, v_step: int, v_type: Any, to: int, to_step: int,
    to_type: Any,
) -> None:  # fmt: skip
    """y_i (v_i − Σ_j y_j v_j), v relative to a class with more than half of y where Σ y = 1 but for rounding."""
    space = np.empty(BLOCK)
    d = pointer(space.ctypes.data, np.float64)
    for i in range(n):
        ys, vs, out = y + i * y_step, v + i * v_step, to + i * to_step
        total, low, dot, dot_low, pivot = 0.0, 0.0, 0.0, 0.0, 0.0
        start = 0
        while start < classes:
            a, b = pointer(ys + start * item(y_type), y_type), pointer(vs + start * item(v_type), v_type)
            size = together(classes - start, to_type)
            part, product, at_top = _majority_block(a, b, size)
            start += size
            total, low = two_sum(total, low, part)
            dot, dot_low = two_sum(dot, dot_low, product)
            pivot += at_top
        if not abs(total + low - 1.0) < 1.0 / 64.0:
            pivot = 0.0
        if pivot != 0.0:
            dot, dot_low, start = 0.0, 0.0, 0
            while start < classes:
                a, b = pointer(ys + start * item(y_type), y_type), pointer(vs + start * item(v_type), v_type)
                size = together(classes - start, to_type)
                dot, dot_low = two_sum(dot, dot_low, _dot_block(a, b, size, pivot))
                start += size
        mean = joined(dot, dot_low)
        for start in range(0, classes, BLOCK):
            a, b = pointer(ys + start * item(y_type), y_type), pointer(vs + start * item(v_type), v_type)
            g = pointer(out + start * item(to_type), to_type)
            size = min(BLOCK, classes - start)
            for j in range(size):
                d[j] = np.float64(a[j]) * ((np.float64(b[j]) - pivot) - mean)
            for j in range(size):
                g[j] = d[j]
    alive(space)


# log_softmax: a class alone with more than half of y stays out of the sum that its own result needs


@jit(**SUMS)
def _vjp_sums(log_y: Any, v: Any, size: int) -> tuple[float, float, float]:
    """Σ v of the classes with at most half of y, Σ v of those above, and their number."""
    rest, at_top, above = 0.0, 0.0, 0.0
    for j in range(size):
        a, u = np.float64(log_y[j]), np.float64(v[j])
        rest += 0.0 if a > _LOG_HALF else u
        at_top += u if a > _LOG_HALF else 0.0
        above += 1.0 if a > _LOG_HALF else 0.0
    return rest, at_top, above


@jit(**SUMS)
def _jvp_sums(log_y: Any, v: Any, size: int, w: Any) -> tuple[float, float, float, float]:
    """Σ w v of the classes with at most half of y; of those above Σ w v, Σ v and their number."""
    rest, of_top, at_top, above = 0.0, 0.0, 0.0, 0.0
    for j in range(size):
        a, u = np.float64(log_y[j]), np.float64(v[j])
        rest += 0.0 if a > _LOG_HALF else w[j] * u
        of_top += w[j] * u if a > _LOG_HALF else 0.0
        at_top += u if a > _LOG_HALF else 0.0
        above += 1.0 if a > _LOG_HALF else 0.0
    return rest, of_top, at_top, above


@jit(**SUMS)
def _sum(v: Any, size: int) -> float:
    total = 0.0
    for j in range(size):
        total += np.float64(v[j])
    return total


@jit(**SUMS)
def _weighted_sum(w: Any, v: Any, size: int) -> float:
    total = 0.0
    for j in range(size):
        total += w[j] * np.float64(v[j])
    return total


@jit(**EXACT)
def _log_exponentials(log_y: Any, size: int, like: Any, ordinary: bool, w: Any) -> None:
    """y; of ordinary rows times 2^500."""
    if ordinary:
        for j in range(size):
            a = np.float64(log_y[j])
            w[j] = exp(a if a > -REACH else -REACH, 500, like)
    else:
        for j in range(size):
            w[j] = math.exp(np.float64(log_y[j]))


@jit(**EXACT)
def _log_sums(
    ys: int, y_type: Any, vs: int, v_type: Any, classes: int, to_type: Any, transposed: bool, ordinary: bool,
    shared: bool, at: int
) -> tuple[float, float, float, float]:  # fmt: skip
    """Σ of the terms of the classes with at most half of y; of those above Σ of the terms, Σ v and their number.

    `shared`: none is above.
    """
    w = pointer(at, np.float64)
    rest, low, of_top, at_top, above, start, ready = 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0
    while start < classes:
        a, b = pointer(ys + start * item(y_type), y_type), pointer(vs + start * item(v_type), v_type)
        size = together(classes - start, to_type)
        e = pointer(at + 8 * (start % BLOCK), np.float64)
        if start == ready and not transposed:
            ready = min(classes, start + BLOCK)
            _log_exponentials(a, ready - start, to_type, ordinary, w)
        part, terms, v, some = 0.0, 0.0, 0.0, 0.0
        if shared:
            part = _sum(b, size) if transposed else _weighted_sum(e, b, size)
        elif transposed:
            part, v, some = _vjp_sums(a, b, size)
            terms = v
        else:
            part, terms, v, some = _jvp_sums(a, b, size, e)
        rest, low = two_sum(rest, low, part)
        of_top, at_top, above = of_top + terms, at_top + v, above + some
        start += size
    return joined(rest, low), of_top, at_top, above


@jit(**EXACT)
def _log_result(
    ys: int, y_type: Any, vs: int, v_type: Any, classes: int, out: int, to_type: Any, total: float, top: float,
    least: float, transposed: bool, ordinary: bool, w: Any,
) -> None:  # fmt: skip
    """v_i − total, or v_i − y_i total; `top` where log y is above `least`."""
    # y · 2^500 · total is to be finite, total · 2^−500 normal
    large = not ordinary or abs(total) > 2.0**400
    inner, outer = (total * 2.0**-500 if ordinary else total, 1.0) if large else (total, 2.0**-500)
    for start in range(0, classes, BLOCK):
        a, b = pointer(ys + start * item(y_type), y_type), pointer(vs + start * item(v_type), v_type)
        g = pointer(out + start * item(to_type), to_type)
        size = min(BLOCK, classes - start)
        if transposed:
            _log_exponentials(a, size, to_type, ordinary, w)
            for j in range(size):
                w[j] = fused(-(w[j] * inner), outer, np.float64(b[j]))
        else:
            for j in range(size):
                w[j] = np.float64(b[j]) - total
        if least < np.inf:
            for j in range(size):
                w[j] = top if np.float64(a[j]) > least else w[j]
        for j in range(size):
            g[j] = w[j]


@jit(**EXACT)
def log_softmax_product(
    n: int, classes: int, log_y: int, y_step: int, y_type: Any, v: int, v_step: int, v_type: Any, to: int, to_step: int,
    to_type: Any, transposed: bool,
) -> None:  # fmt: skip
    """v_i − Σ_j exp(log_y_j) v_j; transposed: v_i − exp(log_y_i) Σ_j v_j.

    At a class alone with more than half of y: v_i (1 − y_i) less the other terms.
    """
    space = np.empty(BLOCK)
    at = space.ctypes.data
    w = pointer(at, np.float64)
    for i in range(n):
        ys, vs, out = log_y + i * y_step, v + i * v_step, to + i * to_step
        highest = np.float64(largest(pointer(ys, y_type), classes))
        ordinary = highest <= 1.0  # no log-probability is larger; nan is not ordinary either
        shared = highest <= _LOG_HALF  # by classes of which none has more than half
        rest, of_top, at_top, above = _log_sums(
            ys, y_type, vs, v_type, classes, to_type, transposed, ordinary, shared, at
        )
        if not transposed and ordinary:
            if abs(rest) + abs(of_top) < np.inf:
                rest, of_top = rest * 2.0**-500, of_top * 2.0**-500
            else:  # v · 2^500 may overflow
                rest, of_top, at_top, above = _log_sums(
                    ys, y_type, vs, v_type, classes, to_type, False, False, shared, at
                )
        top, least = math.nan, np.inf
        if above == 1.0:  # 0.1 µs
            others = math.exp(highest) * rest if transposed else rest
            top, least = -at_top * math.expm1(highest) - others, _LOG_HALF
        _log_result(
            ys, y_type, vs, v_type, classes, out, to_type, rest + of_top, top, least, transposed, ordinary, w
        )  # fmt: skip
    alive(space)
