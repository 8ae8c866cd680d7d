"""Small NumPy arrays without a compiler: a call of NumPy costs 1 µs, whatever it does, so that few are made.

Rows are brought into a matrix, of float64 where something is done to the logits, and from there into the arithmetic of
blocks. What has no entry here goes the long way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...calls.records import Array, Problem
from ...libraries import sums
from ...libraries.quiet import quietly
from .given import Given, are_kept, is_temperature, result_like, rows_shape, scalar
from .operations import Arithmetic

_ORDINARY = 600.0  # exp(x) is a normal number wherever it counts, and the sum finite
_HUGE = 2.0**64
_MANY = 1 << 12  # elements; beyond, passes over the transpose are faster
_DIGITS = 2.0**-20  # Σ e / wm − 1 above it has more than the digits of a float32
_FEW = 1 << 10  # numbers that are added one by one


class _Matrix:
    """Arrays of one kind as rows of classes, and back."""

    def __init__(self, axes: tuple[int, ...], ndim: int) -> None:
        others = [axis for axis in range(-ndim, 0) if axis not in axes]
        self.order, self.axes = (*others, *axes), axes
        self.is_plain = axes == (-1,) and ndim == 2

    def of(self, x: Array) -> Array:
        if self.is_plain:
            return x
        turned = x.transpose(self.order)
        return turned.reshape(-1, math.prod(turned.shape[-len(self.axes) :]))

    def into(self, y: Array, result: Array) -> None:
        turned = y.transpose(self.order)
        np.copyto(turned, result.reshape(turned.shape), casting="same_kind")


def _logits(matrix: _Matrix, x: Array, where: Array | None, temperature: float) -> tuple[Array, Array | None] | None:
    """float64 logits, and the classes kept; None where differences of the logits are to be divided."""
    z = matrix.of(x).astype(np.float64)
    if where is None:
        kept = None
    else:
        if where.shape != x.shape:
            if where.ndim > x.ndim:
                return None
            for own, n in zip(reversed(where.shape), reversed(x.shape), strict=False):
                if own not in (1, n):
                    return None
            where = np.broadcast_to(where, x.shape)
        kept = matrix.of(where)
        z[~kept] = -np.inf
    if temperature < 1.0:
        largest = np.maximum.reduce(z, axis=None)
        if not -_HUGE * temperature < largest < _HUGE * temperature:
            return None
    if temperature != 1.0:
        z /= temperature
    return z, kept


def like_logits(arithmetic: Arithmetic, verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    matrix, hidden = _Matrix(p.axes, ndim), 0.0 if verb == "softmax" else -np.inf
    quick = _QUICK[verb] if p.dtype == "float32" else None

    @quietly
    def entry(x: Array, where: Array | None, temperature: float, out: Array | None, again: Any) -> Array | None:
        plain = where is None and type(temperature) is float and temperature == 1.0
        if not (is_temperature(temperature) and (where is None or are_kept(where))):
            return None
        if (y := result_like(out, x, where)) is None:
            return None
        if plain:
            z, kept = matrix.of(x), None
        elif (found := _logits(matrix, x, where, temperature)) is None:
            return None
        else:
            z, kept = found
        result = y if matrix.is_plain else np.empty(z.shape, x.dtype)
        if quick is None or z.size > _MANY or not quick(z, result):
            if plain or result.dtype == z.dtype:
                arithmetic.normalise(verb, z, result)
            else:
                arithmetic.normalise(verb, z, z)
                np.copyto(result, z, casting="same_kind")
        if kept is not None:
            result[~kept] = hidden
        if result is not y:
            matrix.into(y, result)
        return y

    return entry


def logsumexp(arithmetic: Arithmetic, verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    matrix, shape_of = _Matrix(p.axes, ndim), rows_shape(p.axes, ndim)
    quick = _QUICK[verb] if p.dtype == "float32" else None

    @quietly
    def entry(x: Array, where: Array | None, keepdims: bool, again: Any) -> Array | None:
        if where is None:
            z = matrix.of(x)
        elif not are_kept(where) or (found := _logits(matrix, x, where, 1.0)) is None:
            return None
        else:
            z, _ = found
        value = np.empty((len(z), 1), x.dtype)
        if quick is None or z.size > _MANY or not quick(z, value):
            arithmetic.normalise(verb, z, value)
        return value.reshape(shape_of(x.shape, keepdims))[()]

    return entry


def _sum(terms: Array) -> float:
    return (
        math.fsum(terms.tolist())
        if len(terms) <= _FEW and np.isfinite(terms).all()
        else float(sums.total(terms, (-1,), xp=np)[0])
    )


def cross_entropy(arithmetic: Arithmetic, verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    """Of labels, without what changes the logits or makes targets of them."""
    matrix, shape_of = _Matrix(p.axes, ndim), rows_shape(p.axes, ndim)
    wants_loss, wants_grad = "loss" in p.wants, "grad" in p.wants

    @quietly
    def entry(
        x: Array, targets: Array, options: tuple[Any, ...], out: Array | None, again: Any, upstream: Array | None = None
    ) -> Any:
        given = Given(x, targets, options)
        _, weight, sample_weight, ignore_index, _, _, _, z_loss, reduction = options
        if given.odd or not given.direct or targets.ndim == x.ndim or z_loss or upstream is not None:
            return None
        shape, classes = shape_of(x.shape, False), x.shape[p.axes[0]]
        alike = targets.shape == shape and (sample_weight is None or sample_weight.shape == shape)
        if not alike or not (weight is None or weight.shape == (classes,)):
            return None
        labels = targets.reshape(-1).astype(np.int64)
        s = None if sample_weight is None else sample_weight.reshape(-1).astype(np.float64)
        if ignore_index is not None:
            ignored = labels == ignore_index
            s = np.where(ignored, 0.0, 1.0 if s is None else s)
        if s is not None:
            labels[s == 0.0] = 0
        if np.minimum.reduce(labels) < 0 or np.maximum.reduce(labels) >= classes:
            return None
        weights = None if weight is None else weight.astype(np.float64)
        divisor, scale = 1.0, s
        if reduction == "mean":
            counts = s
            if weights is not None:
                counts = weights[labels] if s is None else np.where(s == 0.0, 0.0, s * weights[labels])
            divisor = float(len(labels)) if counts is None else _sum(counts)
            share = 1.0 / divisor if divisor else 0.0
            scale = np.full(len(labels), share) if s is None else s / divisor if divisor else np.zeros(len(labels))
        grad = None
        if wants_grad and (grad := result_like(out, x, targets, *options[1:3])) is None:
            return None
        z = matrix.of(x)
        g = np.empty(z.shape, x.dtype) if wants_grad else None
        loss = np.empty((len(z), 1)) if wants_loss else None
        if z.size > _MANY or not _label_rows(weights, z, labels, scale, loss, g):
            factors = None if scale is None else scale[:, None]
            arithmetic.cross_entropy(weights, z, None, g, labels[:, None], None, factors, loss)
        if grad is not None and g is not None:
            if s is not None:
                g[s == 0.0] = 0.0
            matrix.into(grad, g)
        if loss is None:
            return grad
        rows = loss[:, 0] if s is None else np.where(s == 0.0, 0.0, loss[:, 0] * s)
        if reduction == "none":
            value = (rows + 0.0).astype(x.dtype).reshape(shape)[()]
        else:
            total = _sum(rows) + 0.0
            value = scalar(total / divisor if divisor else math.nan, x)
        return (value, grad) if wants_grad else value

    return entry


# ---------------------------------------------------------------------------------------------------------------------
# rows that are float32, or become so, and can be exponentiated as they are; False: not these


def _largest(z: Array) -> Array | None:
    m = np.maximum.reduce(z, axis=1, keepdims=True)
    return m if np.vdot(m, m) < _ORDINARY**2 else None  # one call, where the largest of |m| would be two


def _softmax(z: Array, to: Array) -> bool:
    if _largest(z) is None:
        return False
    e = np.exp(z, dtype=np.float64)
    np.divide(e, np.add.reduce(e, axis=1, keepdims=True), out=to, casting="same_kind")
    return True


def _log_softmax(z: Array, to: Array) -> bool:
    if (found := _sums(z)) is None:
        return False
    np.subtract(np.subtract(z, found.m, dtype=np.float64), np.log1p(found.ratio), out=to, casting="same_kind")
    return True


def _logsumexp(z: Array, to: Array) -> bool:
    if (found := _sums(z)) is None:
        return False
    np.add(found.m, np.log1p(found.ratio), out=to, casting="same_kind")
    return True


class _Sums(NamedTuple):
    m: Array
    e: Array  # exp(z)
    s: Array  # Σ e
    ratio: Array  # s / wm − 1, which has digits enough


def _sums(z: Array) -> _Sums | None:
    if (m := _largest(z)) is None:
        return None
    e = np.exp(z, dtype=np.float64)
    s = np.add.reduce(e, axis=1, keepdims=True)
    ratio = s / np.exp(m, dtype=np.float64) - 1.0
    return _Sums(m, e, s, ratio) if np.minimum.reduce(ratio, axis=None) > _DIGITS else None


def _label_rows(
    weights: Array | None, z: Array, labels: Array, scale: Array | None, loss: Array | None, grad: Array | None
) -> bool:
    """L = T (log1p(q / wm) + m − x_t), ∂L/∂x_i = T (y_i − δ_it); −T q / s where y_t > 1/2"""
    if z.dtype != np.float32 or (found := _sums(z)) is None:
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


_QUICK = {"softmax": _softmax, "log_softmax": _log_softmax, "logsumexp": _logsumexp}


def entries(arithmetic: Arithmetic) -> dict[str, Callable[..., Any]]:
    makers: dict[str, Callable[..., Any]] = {
        "softmax": like_logits,
        "log_softmax": like_logits,
        "logsumexp": logsumexp,
        **dict.fromkeys(("cross_entropy", "cross_entropy_grad", "cross_entropy_and_grad"), cross_entropy),
    }

    def of_kind(make: Callable[..., Any], p: Problem, ndim: int, entry_of: Any) -> Any:
        return make(arithmetic, p.verb, p, ndim) if p.dtype in ("float32", "float64") and p.axes else None

    return {verb: partial(of_kind, make) for verb, make in makers.items()}
