"""Cross-entropy of small NumPy arrays without a compiler, as in `alone`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...calls.records import Array, Problem
from ...libraries import sums
from ...libraries.quiet import quietly
from . import alone_rows
from .given import Given, result_like, rows_shape, scalar
from .matrices import Matrix, logits
from .operations import Arithmetic

_FEW = 1 << 10  # numbers that are added one by one


def _sum(terms: Array) -> float:
    if len(terms) <= _FEW:
        try:
            return math.fsum(terms.tolist())
        except (OverflowError, ValueError):  # beyond the largest number, or ∞ − ∞
            pass
    return float(sums.total(terms, (-1,), xp=np)[0])


def _total(terms: Array) -> float:
    """Σ by halving, in the order of the formulas, so that the bits are the same."""
    parts, n = [], len(terms)
    while n > 2:
        if n % 2:
            parts.append(terms[n - 1])
        n //= 2
        terms = terms[:n] + terms[n : 2 * n]
    parts.append(terms[0] + terms[1] if n == 2 else terms[0])
    while len(parts) > 1:
        odd = parts[-1:] if len(parts) % 2 else []
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)] + odd
    return float(parts[0])


class _Weighed(NamedTuple):
    """Labels, if any; weights of the rows and of the classes; what a gradient is scaled by and the mean divided by."""

    labels: Array | None
    s: Array | None
    weights: Array | None
    scale: Array | None
    divisor: float
    zeta: float


def _weighed(x: Array, targets: Array, options: tuple[Any, ...], shape: tuple[int, ...], classes: int) -> Any:
    """None where a shape does not fit or a label is no class."""
    _, weight, sample_weight, ignore_index, _, _, _, zeta, reduction = options
    if targets.shape != (x.shape if targets.ndim == x.ndim else shape):
        return None
    if not (sample_weight is None or sample_weight.shape == shape) or not (
        weight is None or weight.shape == (classes,)
    ):
        return None
    labels = None if targets.ndim == x.ndim else targets.reshape(-1).astype(np.int64)
    s = None if sample_weight is None else sample_weight.reshape(-1).astype(np.float64)
    if labels is not None:
        if ignore_index is not None:
            s = np.where(labels == ignore_index, 0.0, 1.0 if s is None else s)
        if s is not None:
            labels[s == 0.0] = 0
        if np.minimum.reduce(labels) < 0 or np.maximum.reduce(labels) >= classes:
            return None
    weights = None if weight is None else weight.astype(np.float64)
    divisor, scale = 1.0, s
    if reduction == "mean":
        rows = float(math.prod(shape)) if s is None else _sum(s)
        divisor = rows
        if labels is not None and weights is not None:
            divisor = _sum(weights[labels] if s is None else np.where(s == 0.0, 0.0, s * weights[labels]))
            zeta = zeta * divisor / (rows or 1.0) if zeta else 0.0
        if s is None:
            scale = np.full(math.prod(shape), 1.0 / divisor if divisor else 0.0)
        else:
            scale = s / divisor if divisor else np.zeros(len(s))
    return _Weighed(labels, s, weights, scale, divisor, float(zeta))


def _dense(matrix: Matrix, z: Array, kept: Array | None, w: _Weighed, targets: Array, smoothing: float) -> Array:
    """t = weight · ((1 − ε) target + ε / K), K the number of classes kept"""
    if w.labels is not None:
        t = np.zeros(z.shape)
        t[np.arange(len(t)), w.labels] = 1.0
    else:
        t = matrix.of(targets).astype(np.float64)
        if kept is not None:
            t[~kept] = 0.0
    if smoothing:
        share = smoothing / z.shape[1]
        if kept is not None:
            share = smoothing * kept / np.maximum(np.add.reduce(kept, axis=1, keepdims=True), 1)
        t = (1.0 - smoothing) * t + share
    return t if w.weights is None else np.where(t == 0.0, 0.0, t * w.weights)


def cross_entropy(arithmetic: Arithmetic, verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    """The loss and its gradient, or what of them is wanted; of float64 logits as they are, by label."""
    matrix, shape_of = Matrix(p.axes, ndim), rows_shape(p.axes, ndim)
    wants_loss, wants_grad = "loss" in p.wants, "grad" in p.wants

    def on_rows(
        x: Array,
        targets: Array,
        options: tuple[Any, ...],
        direct: bool,
        w: _Weighed,
        loss: Array | None,
        g: Array | None,
    ) -> bool:
        where, smoothing, temperature, softcap = options[0], *options[4:7]
        if direct and w.labels is not None and not w.zeta:
            z = matrix.of(x)
            if z.size > alone_rows.MANY or not alone_rows.label_rows(w.weights, z, w.labels, w.scale, loss, g):
                factors = None if w.scale is None else w.scale[:, None]
                arithmetic.cross_entropy(w.weights, z, None, g, w.labels[:, None], None, factors, loss)
            return True
        if x.dtype != np.float32 or x.size > alone_rows.MANY:
            return False
        found = logits(matrix, x, where, float(temperature), softcap)
        if found is None:
            return False
        z, kept, slope = found
        t = _dense(matrix, z, kept, w, targets, smoothing)
        return alone_rows.dense_rows(z, alone_rows.Dense(t, kept, w.zeta, w.scale, slope), loss, g)

    @quietly
    def entry(
        x: Array, targets: Array, options: tuple[Any, ...], out: Array | None, again: Any, upstream: Array | None = None
    ) -> Any:
        given = Given(x, targets, options)
        if given.odd:
            return None
        shape, classes = shape_of(x.shape, False), x.shape[p.axes[0]]
        if (w := _weighed(x, targets, options, shape, classes)) is None:
            return None
        if upstream is not None:
            factors = np.broadcast_to(upstream, shape).reshape(-1).astype(np.float64)
            w = w._replace(scale=factors if w.scale is None else np.where(w.scale == 0.0, 0.0, w.scale * factors))
        grad = None
        if wants_grad and (grad := result_like(out, x, targets, *options[:3])) is None:
            return None
        n = math.prod(shape)
        g = np.empty((n, classes), x.dtype) if wants_grad else None
        loss = np.empty((n, 1)) if wants_loss else None
        if not on_rows(x, targets, options, given.direct, w, loss, g):
            return None
        if grad is not None and g is not None:
            if w.s is not None:
                g[w.s == 0.0] = 0.0
            matrix.into(grad, g)
        if loss is None:
            return grad
        rows = loss[:, 0] if w.s is None else np.where(w.s == 0.0, 0.0, loss[:, 0] * w.s)
        if options[-1] == "none":
            value = (rows + 0.0).astype(x.dtype).reshape(shape)[()]
        else:
            value = scalar(_total(rows) / w.divisor + 0.0 if w.divisor else math.nan, x)  # never −0.0
        return (value, grad) if wants_grad else value

    return entry
