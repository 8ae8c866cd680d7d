"""The Hessian of a loss of small arrays, times a vector or its diagonal, for Numba; as in `small_losses`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ACROSS
from . import objects
from .exponentials import alive, buffer, exponentials, held, joined, quotient, two_sum
from .small import given, hide, kept_classes, transform
from .small_losses import by_class, by_row, labels_of, slope_of, smoothed_targets, takes, transformed, weigh
from .vector_math import EXACT, fused, jit, log1p

_MOST = 9 / 16  # of y; two rounded halves are no majority
_LEAST = 2.0**-958  # of a factor: 2^64 times the least normal number
_LARGE = 2.0**992


@jit(**EXACT)
def _vector(v: int, kind: int, kept: Any, x: int, axes: int, n: int, classes: int) -> Any:
    found = np.empty(n * classes)
    objects.floats(v, kind, objects.offsets(v, x, ~axes, 0, n), objects.offsets(v, x, axes, 0, classes), found)
    if len(kept):
        hide(found, kept, 0.0)
    return found


@jit(**EXACT)
def _row(
    z: Any, y: Any, t: Any, v: Any, raw: Any, zeta: float, scale: float, softcap: float, temperature: float
) -> bool:
    """One row into y, which holds its exponentials before; without `v` the diagonal. False: left to the formulas."""
    classes = len(t)
    w = buffer(len(z))
    m, _, _, wm, q = exponentials(z.ctypes.data, 0.0, len(z), w.ctypes.data, True, 0)
    alive_row = np.isfinite(m)
    lse = m + log1p(q / wm) if alive_row else math.nan
    if not alive_row or scale == 0.0:
        for j in range(classes):
            y[j] = math.nan if scale != 0.0 else 0.0
        alive(w)
        return True
    if zeta != 0.0 and abs(lse) > _LARGE:
        alive(w)
        return False
    high, low = quotient(1.0, q, wm)
    not_top = q / (q + wm)
    sum_t, rest_t, others, rest_others = 0.0, 0.0, 0.0, 0.0
    for j in range(classes):
        y[j] = fused(w[j], high, w[j] * low)
        sum_t, rest_t = two_sum(sum_t, rest_t, t[j])
        others, rest_others = two_sum(others, rest_others, 0.0 if y[j] > _MOST else t[j])
    alive(w)
    own, pull = joined(sum_t, rest_t), 2.0 * zeta
    away = joined(others, rest_others) - own * not_top
    factor = own + pull * lse if zeta != 0.0 else own
    # a factor that would be huge, tiny or 0 is applied at the end: what it multiplies may be the opposite
    now = softcap == 0.0 and _LEAST < abs(factor * scale) < 1.0 / _LEAST
    later = 1.0 if now else scale
    if now:
        factor, pull = factor * scale, pull * scale
    p, mean, rest_mean = 0.0, 0.0, 0.0
    u = v.copy()
    if len(v):
        for j in range(classes):
            u[j] = v[j] * slope_of(raw[j], softcap) if softcap != 0.0 else v[j]
            p = u[j] if y[j] > _MOST else p
        for j in range(classes):
            mean, rest_mean = two_sum(mean, rest_mean, 0.0 if y[j] > _MOST else y[j] * (u[j] - p))
    rest = joined(mean, rest_mean)
    for j in range(classes):
        is_top = y[j] > _MOST
        not_y = not_top if is_top else 1.0 - y[j]
        slope = slope_of(raw[j], softcap) if softcap != 0.0 else 1.0
        if len(v):
            d = y[j] * (-rest if is_top else u[j] - (p + rest))
            product = factor * d if zeta == 0.0 or y[j] * not_y != 0.0 else 0.0
            if zeta != 0.0:
                product += pull * (p + rest) * y[j]
            product *= slope
        else:
            d = y[j] * not_y
            product = factor * d if zeta == 0.0 or d != 0.0 else 0.0
            if zeta != 0.0:
                product += pull * y[j] * y[j]
            product *= slope * slope
        product /= temperature
        if softcap != 0.0:
            of_z = away if is_top else own * y[j] - t[j]
            if zeta != 0.0 and y[j] != 0.0:
                of_z += pull * lse * y[j]
            bent = of_z * (-2.0 * math.tanh(raw[j] / softcap) * slope / softcap)
            product += bent * v[j] if len(v) else bent
        y[j] = product / temperature * later
    return True


@jit(**EXACT)
def _of_rows(
    x: int, targets: int, labels: Any, targets_kind: int, where: int, weights: Any, scale: Any, zeta: float,
    smoothing: float, temperature: float, softcap: float, v: int, v_kind: int, to: int, axes: int, like: Any,
) -> bool:  # fmt: skip
    n, classes = objects.extent(x, axes)
    kept = kept_classes(where, x, axes, n, classes) if where else np.empty(0)
    raw = transformed(x, kept, axes, n, classes, like)
    z = raw.copy()
    if transform(z, n, classes, softcap, temperature) and zeta != 0.0:
        return False
    t = smoothed_targets(targets, targets_kind, labels, kept, weights, smoothing, x, axes, n, classes)
    vector = _vector(v, v_kind, kept, x, axes, n, classes) if v else np.empty(0)
    found = np.empty(n * classes)
    padded = np.full(max(classes, ACROSS + 1), -math.inf)
    for i in range(n):
        some = slice(i * classes, (i + 1) * classes)
        padded[:classes] = z[some]
        of_row = vector[some] if v else vector
        if not _row(padded, found[some], t[some], of_row, raw[some], zeta, scale[i], softcap, temperature):
            return False
    if where:
        hide(found, kept, 0.0)
        held(kept)
    given(found, 0.0, to, axes, n, classes, like)
    return True


@jit(**EXACT)
def of_block(
    x: int, targets: int, labels_kind: int, targets_kind: int, where: int, weight: int, scale: int, zeta: float,
    smoothing: float, temperature: float, softcap: float, v: int, v_kind: int, to: int, axes: int, like: Any,
) -> bool:  # fmt: skip
    """Of rows that are weighed, all of whose arrays fit. v = 0: the diagonal. False: left to the formulas."""
    n, classes = objects.extent(x, axes)
    labels = labels_of(targets, labels_kind, x, axes, n) if labels_kind >= 0 else np.empty(0, np.int64)
    for label in labels:
        if label < 0 or label >= classes:
            return False
    weights, scales = by_class(weight, 1, classes), by_row(scale, 1, x, axes, n)
    return _of_rows(
        x, targets, labels, targets_kind, where, weights, scales, zeta, smoothing, temperature, softcap, v, v_kind, to,
        axes, like,
    )  # fmt: skip


@jit(**EXACT)
def hessian(
    x: int, targets: int, labels_kind: int, targets_kind: int, where: int, weight: int, weight_kind: int,
    sample_weight: int, sample_kind: int, ignore_index: int, ignores: bool, smoothing: float, temperature: float,
    softcap: float, z_loss: float, reduction: int, v: int, v_kind: int, to: int, axes: int, like: Any,
) -> bool:  # fmt: skip
    """v = 0: the diagonal."""
    n, classes = objects.extent(x, axes)
    if not takes(x, targets, where, weight, sample_weight, axes, labels_kind >= 0, n, classes):
        return False
    if v and not objects.fits(v, x, axes, 0, True):
        return False
    s, scale = by_row(sample_weight, sample_kind, x, axes, n), np.empty(n)
    weights = by_class(weight, weight_kind, classes)
    labels = labels_of(targets, labels_kind, x, axes, n) if labels_kind >= 0 else np.empty(0, np.int64)
    fine, _, zeta = weigh(labels, s, weights, ignore_index, ignores, z_loss, reduction, classes, scale)
    return fine and _of_rows(
        x, targets, labels, targets_kind, where, weights, scale, zeta, smoothing, temperature, softcap, v, v_kind, to,
        axes, like,
    )  # fmt: skip
