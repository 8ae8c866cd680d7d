"""Cross-entropy and its gradient across rows, for Numba, tile by tile; as in `row_losses`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .exponentials import (
    alive,
    below_majority,
    half_distance,
    is_large,
    joined,
    lowering,
    quotient,
    share,
    unit,
    usual,
)
from .tile import (
    AWAY,
    BLOCK,
    FACTOR,
    FAR,
    FAR_LOW,
    FAR_PART,
    FOURS,
    LABEL,
    LACKING,
    LINE,
    LOG_SUM,
    LOSS,
    LOW,
    LOWEST,
    LSE,
    OTHERS,
    OTHERS_LOW,
    OTHERS_PART,
    OUT,
    PART,
    PULL,
    REST,
    SCALE,
    TOTAL,
    TOTAL_LOW,
    TOTAL_PART,
    WIDTH,
    WM,
    X_LABEL,
    ZETA,
    C,
    K,
    M,
    Q,
    Z,
    after,
    aligned,
    flush,
    inverses,
    is_copied,
    kept_block,
    line,
    log_sums,
    plainly,
    room_for,
    set_streams,
    store,
    tile_exponentials,
    view,
)
from .vector_math import EXACT, exp, fused, item, jit, pointer


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
    label, x_label, total = line(space, LABEL), line(space, X_LABEL), line(space, TOTAL)
    for t in range(WIDTH):
        label[t], x_label[t], total[t] = -1.0, 0.0, 0.0
    for t in range(rows):
        j = pointer(labels, np.int64)[t]
        label[t] = j
        x_label[t] = pointer(x + t * x_step + j * x_class_step, x_type)[0]
        total[t] = pointer(weight, np.float64)[j] if weight else 1.0


@jit(**EXACT)
def _label_losses(space: int) -> None:
    m, log_sum, loss, zeta = line(space, M), line(space, LOG_SUM), line(space, LOSS), line(space, ZETA)
    total, x_label = line(space, TOTAL), line(space, X_LABEL)
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
    m, log_sum, wm, c = line(space, M), line(space, LOG_SUM), line(space, WM), line(space, C)
    q, low, part = line(space, Q), line(space, LOW), line(space, PART)
    k, lowest = pointer(space + LINE * K, np.int64), line(space, LOWEST)
    total, x_label, zeta, scale = line(space, TOTAL), line(space, X_LABEL), line(space, ZETA), line(space, SCALE)
    factor, rest, at_label, lacking = line(space, FACTOR), line(space, REST), line(space, AWAY), line(space, PULL)
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
    factor, rest, label, at_label = line(space, FACTOR), line(space, REST), line(space, LABEL), line(space, AWAY)
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
        pointer(loss, np.float64)[t] = line(space, LOSS)[t]


@jit(**EXACT)
def cross_entropy_labels(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, labels: int, weight: int, zeta: int,
    zeta_step: int, scale: int, scale_step: int, loss: int, grad: int, grad_step: int, grad_class_step: int,
    grad_type: Any,
) -> None:  # fmt: skip
    memory = room_for(classes, 2)
    space = aligned(memory)
    w, out = after(space + Z, classes), space + OUT
    for start in range(0, n, WIDTH):
        rows, xi, gi = min(WIDTH, n - start), x + start * x_step, grad + start * grad_step
        to = gi if grad else 0
        set_streams(space, n - start, classes, xi, x_step, x_class_step, x_type, to, grad_step, grad_class_step)
        tile_exponentials(xi, x_step, x_class_step, x_type, rows, classes, space, w, LINE if grad else 0)
        log_sums(space)
        _given(zeta, zeta_step, start, rows, 0.0, line(space, ZETA))
        _at_labels(xi, x_step, x_class_step, x_type, labels + 8 * start, weight, rows, space)
        if loss:
            _label_losses(space)
            _losses(space, loss + 8 * start, rows)
        if not grad:
            continue
        _given(scale, scale_step, start, rows, 1.0, line(space, SCALE))
        odd = _label_slopes(space, x_type)
        copied = is_copied(grad_step, rows, grad_type)
        for j in range(0, classes, BLOCK):
            size, gj = min(BLOCK, classes - j), gi + j * grad_class_step
            e = kept_block(xi, x_step, x_class_step, x_type, rows, j, classes, space, w)
            to, to_step = (out, WIDTH * item(grad_type)) if copied else (gj, grad_class_step)
            _label_gradients(e, j, size, space, to, to_step, grad_type)
            if copied:
                store(out, rows, size, gj, grad_step, grad_class_step, grad_type, space + FOURS)
        if odd:
            _enlarge(line(space, PULL), rows, classes, gi, grad_step, grad_class_step, grad_type)
    alive(memory)


@jit(**EXACT)
def _target_sums(z: int, z_step: int, x_type: Any, u: int, u_step: int, t_type: Any, size: int, space: int) -> None:
    """Σ t, Σ t below the maximum, and Σ t (m − x) / 2, 0 · ∞ = 0."""
    m = line(space, M)
    total, others, far = line(space, TOTAL_PART), line(space, OTHERS_PART), line(space, FAR_PART)
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
    m, log_sum, loss, zeta = line(space, M), line(space, LOG_SUM), line(space, LOSS), line(space, ZETA)
    far, far_low, far_part = line(space, FAR), line(space, FAR_LOW), line(space, FAR_PART)
    total = line(space, TOTAL)
    for t in range(WIDTH):
        lse = m[t] + log_sum[t]
        value = total[t] * log_sum[t] + 2.0 * joined(far[t] + far_part[t], far_low[t])
        loss[t] = (value + zeta[t] * lse * lse if zeta[t] != 0.0 else value) + 0.0


@jit(**EXACT)
def _totals(space: int) -> None:
    total, total_low, total_part = line(space, TOTAL), line(space, TOTAL_LOW), line(space, TOTAL_PART)
    others, others_low, others_part = line(space, OTHERS), line(space, OTHERS_LOW), line(space, OTHERS_PART)
    for t in range(WIDTH):
        total[t] = joined(total[t] + total_part[t], total_low[t])
        others[t] = joined(others[t] + others_part[t], others_low[t])


@jit(**EXACT)
def _dense_slopes(space: int) -> int:
    """The gradient's first two terms at a class with more than half of y; what makes the third of y logsumexp.

    By what all are too small, if the result > 0.
    """
    m, log_sum, wm, zeta = line(space, M), line(space, LOG_SUM), line(space, WM), line(space, ZETA)
    q, low, part = line(space, Q), line(space, LOW), line(space, PART)
    total, others, away, pull = line(space, TOTAL), line(space, OTHERS), line(space, AWAY), line(space, PULL)
    scale, lse, lacking = line(space, SCALE), line(space, LSE), line(space, LACKING)
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
    factor, rest, away = line(space, FACTOR), line(space, REST), line(space, AWAY)
    pull, total, scale, lse = line(space, PULL), line(space, TOTAL), line(space, SCALE), line(space, LSE)
    for j in range(size):
        e, target, grad = line(w, j), pointer(u + j * u_step, t_type), pointer(to + j * to_step, y_type)
        for t in range(WIDTH):
            y = fused(e[t], factor[t], e[t] * rest[t])
            a = away[t] if y > 0.5 else total[t] * y - np.float64(target[t])
            grad[t] = scale[t] * a + pull[t] * (y * lse[t]) if scale[t] != 0.0 else 0.0


@jit(**EXACT)
def _clear(space: int) -> None:
    sums = line(space, TOTAL)
    for t in range((FAR_PART + 1 - TOTAL) * WIDTH):
        sums[t] = 0.0


@jit(**EXACT)
def cross_entropy_dense(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, targets: int, t_step: int,
    t_class_step: int, t_type: Any, zeta: int, zeta_step: int, scale: int, scale_step: int, loss: int, grad: int,
    grad_step: int, grad_class_step: int, grad_type: Any,
) -> None:  # fmt: skip
    memory, plain = room_for(classes, 3), plainly(x_type)
    space = aligned(memory)
    w, out = after(space + Z, classes), space + OUT
    u = after(w, classes)
    for start in range(0, n, WIDTH):
        rows, xi, ti = min(WIDTH, n - start), x + start * x_step, targets + start * t_step
        to = grad + start * grad_step if grad else 0
        set_streams(space, n - start, classes, xi, x_step, x_class_step, x_type, to, grad_step, grad_class_step)
        tile_exponentials(xi, x_step, x_class_step, x_type, rows, classes, space, w, LINE if grad else 0)
        log_sums(space)
        _clear(space)
        for j in range(0, classes, BLOCK):
            at, step = view(xi, x_step, x_class_step, x_type, rows, j, classes, space + Z, space, True)
            ut, u_step = view(ti, t_step, t_class_step, t_type, rows, j, classes, u, space, False)
            size = min(BLOCK, classes - j)
            for i in range(0, size, plain):
                if i + j:
                    flush(space, TOTAL, TOTAL_LOW, TOTAL_PART)
                    flush(space, OTHERS, OTHERS_LOW, OTHERS_PART)
                    flush(space, FAR, FAR_LOW, FAR_PART)
                _target_sums(
                    at + i * step, step, x_type, ut + i * u_step, u_step, t_type, min(plain, size - i), space
                )  # fmt: skip
        _given(zeta, zeta_step, start, rows, 0.0, line(space, ZETA))
        _totals(space)
        if loss:
            _dense_losses(space)
            _losses(space, loss + 8 * start, rows)
        if not grad:
            continue
        _given(scale, scale_step, start, rows, 1.0, line(space, SCALE))
        inverses(space)
        odd = _dense_slopes(space)
        copied = is_copied(grad_step, rows, grad_type)
        for j in range(0, classes, BLOCK):
            size, gj = min(BLOCK, classes - j), grad + start * grad_step + j * grad_class_step
            e = kept_block(xi, x_step, x_class_step, x_type, rows, j, classes, space, w)
            ut, u_step = view(ti, t_step, t_class_step, t_type, rows, j, classes, u, space, True)
            to, to_step = (out, WIDTH * item(grad_type)) if copied else (gj, grad_class_step)
            _dense_gradients(e, ut, u_step, t_type, size, space, to, to_step, grad_type)
            if copied:
                store(out, rows, size, gj, grad_step, grad_class_step, grad_type, space + FOURS)
        if odd:
            gi = grad + start * grad_step
            _enlarge(line(space, LACKING), rows, classes, gi, grad_step, grad_class_step, grad_type)
    alive(memory)
