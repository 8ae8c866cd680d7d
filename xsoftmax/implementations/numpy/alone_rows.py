"""Rows of float32, or that become so, exponentiated as they are: few calls of NumPy; False or None: not these.

Arithmetic is that of float64. A row that passes has 1 − y of more than 2⁻²¹ everywhere, so that no result of float32
lacks digits where it cancels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...calls.records import Array

_ORDINARY = 600.0  # exp(x) is a normal number wherever it counts, and the sum finite
_DIGITS = 2.0**-20  # Σ e / wm − 1 above it has more than the digits of a float32
MANY = 1 << 12  # elements; beyond, passes over the transpose are faster


def _largest(z: Array) -> Array | None:
    m = np.maximum.reduce(z, axis=1, keepdims=True)
    flat = m[:, 0]
    return m if flat @ flat < _ORDINARY**2 else None  # one call, where the largest of |m| would be two


def softmax(z: Array, to: Array) -> bool:
    if _largest(z) is None:
        return False
    e = np.exp(z, dtype=np.float64)
    np.divide(e, np.add.reduce(e, axis=1, keepdims=True), out=to, casting="same_kind")
    return True


def log_softmax(z: Array, to: Array) -> bool:
    if (found := sums(z)) is None:
        return False
    np.subtract(np.subtract(z, found.m, dtype=np.float64), np.log1p(found.ratio), out=to, casting="same_kind")
    return True


def logsumexp(z: Array, to: Array) -> bool:
    if (found := sums(z)) is None:
        return False
    np.add(found.m, np.log1p(found.ratio), out=to, casting="same_kind")
    return True


class Sums(NamedTuple):
    m: Array
    e: Array  # exp(z)
    s: Array  # Σ e
    ratio: Array  # s / wm − 1, which has digits enough


def sums(z: Array) -> Sums | None:
    if (m := _largest(z)) is None:
        return None
    e = np.exp(z, dtype=np.float64)
    s = np.add.reduce(e, axis=1, keepdims=True)
    ratio = s / np.exp(m, dtype=np.float64) - 1.0
    return Sums(m, e, s, ratio) if np.minimum.reduce(ratio, axis=None) > _DIGITS else None


def label_rows(
    weights: Array | None, z: Array, labels: Array, scale: Array | None, loss: Array | None, grad: Array | None
) -> bool:
    """L = T (log1p(q / wm) + m − x_t), ∂L/∂x_i = T (y_i − δ_it); −T q / s where y_t > 1/2"""
    if z.dtype != np.float32 or (found := sums(z)) is None:
        return False
    m, e, s, ratio = found
    at = np.arange(len(labels)), labels
    total = 1.0 if weights is None else weights[labels]
    if loss is not None:
        loss[:, 0] = total * (np.log1p(ratio[:, 0]) + np.subtract(m[:, 0], z[at], dtype=np.float64))
    if grad is not None:
        factor = total if scale is None else scale * total
        y = e[at] / s[:, 0]
        np.multiply(e, np.reshape(factor / s[:, 0], (-1, 1)), out=grad, casting="same_kind")
        grad[at] = factor * np.where(y > 0.5, -ratio[:, 0] / (1.0 + ratio[:, 0]), y - 1.0)
    return True


class Dense(NamedTuple):
    """Targets t of a loss, and what is added and multiplied."""

    t: Array
    kept: Array | None
    zeta: float
    scale: Array | None
    slope: Array | float  # dz/dx


def dense_rows(z: Array, of: Dense, loss: Array | None, grad: Array | None) -> bool:
    """L = T log1p(q / wm) + Σ t (m − z) + ζ lse², ∂L/∂x_i = (T y_i − t_i + 2 ζ lse y_i) dz_i/dx_i"""
    if (found := sums(z)) is None:
        return False
    m, e, s, ratio = found
    t, log_sum = of.t, np.log1p(ratio)
    total, lse = np.add.reduce(t, axis=1, keepdims=True), m + log_sum
    if loss is not None:
        far = np.where(t == 0.0, 0.0, t * (m - z))
        np.add(total * log_sum, np.add.reduce(far, axis=1, keepdims=True), out=loss)
        if of.zeta:
            loss += of.zeta * lse * lse
    if grad is not None:
        g = e / s
        g *= total + 2.0 * of.zeta * lse if of.zeta else total
        g -= t
        g *= of.slope
        if of.scale is not None:
            g *= of.scale[:, None]
        if of.kept is not None:
            g[~of.kept] = 0.0
        np.copyto(grad, g, casting="same_kind")
    return True


def softmax_product(y: Array, v: Array, to: Array) -> bool:
    """y (v − Σ y v), v relative to a class with more than half of y where Σ y = 1 but for rounding"""
    total = np.add.reduce(y, axis=1, keepdims=True, dtype=np.float64)
    top = (y > 0.5) & (np.abs(total - 1.0) < 1.0 / 64.0)
    d = v - np.add.reduce(np.where(top, v, 0.0), axis=1, keepdims=True, dtype=np.float64)
    d -= np.add.reduce(y * d, axis=1, keepdims=True)
    np.multiply(y, d, out=to, casting="same_kind")
    return True


def _probabilities(log_y: Array) -> Array | None:
    """y, none of which is so near 1 that a product cancels."""
    return np.exp(log_y, dtype=np.float64) if np.maximum.reduce(log_y, axis=None) < -_DIGITS else None


def log_softmax_vjp(log_y: Array, v: Array, to: Array) -> bool:
    """v − y Σ v"""
    if (y := _probabilities(log_y)) is None:
        return False
    np.subtract(v, y * np.add.reduce(v, axis=1, keepdims=True, dtype=np.float64), out=to, casting="same_kind")
    return True


def log_softmax_jvp(log_y: Array, v: Array, to: Array) -> bool:
    """v − Σ y v"""
    if (y := _probabilities(log_y)) is None:
        return False
    np.subtract(v, np.add.reduce(y * v, axis=1, keepdims=True), out=to, casting="same_kind")
    return True
