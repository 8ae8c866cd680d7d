"""Cross-entropy of small arrays of any layout under any options, for Numba; arrays and answers as in `small`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ACROSS
from . import objects, row_losses, tile_losses
from .exponentials import alive, held, joined, two_sum
from .small import are_across, given, hide, kept_classes, taken, total, transform
from .vector_math import EXACT, item, jit, pointer

NONE, MEAN, SUM = range(3)


@jit(**EXACT)
def takes(
    x: int, targets: int, where: int, weight: int, sample_weight: int, axes: int, labels: bool, n: int, classes: int
) -> bool:
    """Whether the shapes fit."""
    if not objects.is_aligned(x) or not objects.fits(targets, x, axes, axes if labels else 0, True):
        return False
    if where and not objects.fits(where, x, axes, 0, False):
        return False
    if weight and not (objects.dimensions(weight) == 1 and objects.length(weight, 0) == classes):
        return False
    return sample_weight == 0 or objects.fits(sample_weight, x, axes, axes, True)


@jit(**EXACT)
def by_class(weight: int, kind: int, classes: int) -> Any:
    """The weights of the classes, of which there may be none."""
    if weight == 0:
        return np.empty(0)
    found = np.empty(classes)
    at = np.empty(classes, np.int64)
    for j in range(classes):
        at[j] = j * objects.step(weight, 0)
    objects.floats(weight, kind, at, np.zeros(1, np.int64), found)
    return found


@jit(**EXACT)
def by_row(a: int, kind: int, x: int, axes: int, n: int) -> Any:
    """The weights of the rows, 1 without."""
    s = np.ones(n)
    if a:
        objects.floats(a, kind, objects.offsets(a, x, ~axes, axes, n), np.zeros(1, np.int64), s)
    return s


@jit(**EXACT)
def labels_of(targets: int, kind: int, x: int, axes: int, n: int) -> Any:
    labels = np.empty(n, np.int64)
    objects.integers(targets, kind, objects.offsets(targets, x, ~axes, axes, n), labels)
    return labels


@jit(**EXACT)
def _sum(terms: Any) -> float:
    high, low = 0.0, 0.0
    for term in terms:
        high, low = two_sum(high, low, term)
    return joined(high, low)


@jit(**EXACT)
def weigh(
    labels: Any, s: Any, weights: Any, ignore_index: int, ignores: bool, z_loss: float, reduction: int, classes: int,
    scale: Any,
) -> tuple[bool, float, float]:  # fmt: skip
    """Whether each label is one, the divisor of the mean, and ζ; the scale of each row, 0 where it is absent.

    Absent rows get the weight 0 and the label 0.
    """
    n = len(scale)
    for i in range(n):
        if len(labels):
            if ignores and labels[i] == ignore_index:
                s[i] = 0.0
            if s[i] == 0.0:
                labels[i] = 0
            elif labels[i] < 0 or labels[i] >= classes:
                return False, 0.0, 0.0
        scale[i] = s[i]
    divisor, zeta = 1.0, z_loss
    if reduction == MEAN:
        unweighted = _sum(scale)
        divisor = unweighted
        if len(labels) and len(weights):
            terms = np.empty(n)
            for i in range(n):
                weight = weights[labels[i]]
                terms[i] = scale[i] * weight if scale[i] != 0.0 or np.isfinite(weight) else 0.0
            divisor = _sum(terms)
            zeta = z_loss * divisor / (unweighted if unweighted != 0.0 else 1.0) if z_loss != 0.0 else 0.0
        for i in range(n):
            scale[i] = scale[i] / divisor if divisor != 0.0 else 0.0
    return True, divisor, zeta


@jit(**EXACT)
def from_above(upstream: int, kind: int, x: int, axes: int, scale: Any) -> bool:
    """The scale of each row times what its loss is multiplied by later; False: of no such shape."""
    if upstream == 0:
        return True
    if not objects.fits(upstream, x, axes, axes, False):
        return False
    factors = by_row(upstream, kind, x, axes, len(scale))
    for i in range(len(scale)):
        scale[i] = scale[i] * factors[i] if scale[i] != 0.0 else 0.0
    return True


@jit(**EXACT)
def reduced(loss: Any, s: Any, divisor: float, reduction: int, to: int, like: Any) -> float:
    """Σ s L, divided for the mean, or each s L into `to`; never −0.0."""
    if len(loss) == 0:
        return 0.0
    for i in range(len(loss)):
        loss[i] = loss[i] * s[i] if s[i] != 0.0 else 0.0
    if reduction == NONE:
        losses = pointer(to, like)
        for i in range(len(loss)):
            losses[i] = loss[i] + 0.0
        return 0.0
    value = total(loss)
    if reduction == MEAN:
        return value / divisor + 0.0 if divisor != 0.0 else math.nan
    return value + 0.0


@jit(**EXACT)
def _of_labels(
    n: int, classes: int, x: int, like: Any, labels: Any, weights: Any, zeta: Any, scale: Any, loss: Any, grad: int,
    across: bool,
) -> None:  # fmt: skip
    step, bytes_, weight = classes * item(like), item(like), weights.ctypes.data if len(weights) else 0
    pull, into = zeta.ctypes.data if zeta[0] != 0.0 else 0, loss.ctypes.data if len(loss) else 0
    at, factor = labels.ctypes.data, scale.ctypes.data
    if across:
        tile_losses.cross_entropy_labels(
            n, classes, x, step, bytes_, like, at, weight, pull, 0, factor, 8, into, grad, step, bytes_, like
        )
    else:
        row_losses.cross_entropy_labels(
            n, classes, x, step, like, at, weight, pull, 0, factor, 8, into, grad, step, like
        )


@jit(**EXACT)
def _of_targets(
    n: int, classes: int, x: int, like: Any, t: int, zeta: Any, scale: Any, loss: Any, grad: int, across: bool
) -> None:
    step, bytes_ = classes * item(like), item(like)
    pull, into = zeta.ctypes.data if zeta[0] != 0.0 else 0, loss.ctypes.data if len(loss) else 0
    factor = scale.ctypes.data
    if across:
        tile_losses.cross_entropy_dense(
            n, classes, x, step, bytes_, like, t, step, bytes_, like, pull, 0, factor, 8, into, grad, step, bytes_, like
        )
    else:
        row_losses.cross_entropy_dense(
            n, classes, x, step, like, t, step, like, pull, 0, factor, 8, into, grad, step, like
        )


@jit(**EXACT)
def cross_entropy(
    x: int, targets: int, labels_kind: int, weight: int, weight_kind: int, sample_weight: int, sample_kind: int,
    ignore_index: int, ignores: bool, z_loss: float, reduction: int, wants_loss: bool, losses: int, upstream: int,
    upstream_kind: int, grad: int, axes: int, like: Any,
) -> tuple[bool, float]:  # fmt: skip
    """Of labels of that kind; of probabilities in the logits' dtype, without class weights, where it is −1."""
    n, classes = objects.extent(x, axes)
    if not takes(x, targets, 0, weight, sample_weight, axes, labels_kind >= 0, n, classes):
        return False, 0.0
    s, scale, zeta = by_row(sample_weight, sample_kind, x, axes, n), np.empty(n), np.empty(1)
    weights = by_class(weight, weight_kind, classes)
    labels = labels_of(targets, labels_kind, x, axes, n) if labels_kind >= 0 else np.empty(0, np.int64)
    fine, divisor, zeta[0] = weigh(labels, s, weights, ignore_index, ignores, z_loss, reduction, classes, scale)
    if not (fine and from_above(upstream, upstream_kind, x, axes, scale)):
        return False, 0.0
    loss, across = np.empty(n if wants_loss else 0), are_across(x, axes, classes, like)
    direct = objects.is_matrix(x, axes) and (grad == 0 or objects.is_matrix(grad, axes))
    space = np.empty(1) if direct else taken(x, axes, n, classes, like, like)
    z, into = (objects.data(x), objects.data(grad) if grad else 0) if direct else (space.ctypes.data, 0)
    found = np.empty(1) if direct or grad == 0 else np.empty(n * classes)
    if not direct and grad:
        into = found.ctypes.data
    if labels_kind >= 0:
        _of_labels(n, classes, z, like, labels, weights, zeta, scale, loss, into, across)
    else:
        t = taken(targets, axes, n, classes, like, like)
        across = across or not objects.are_side_by_side(targets, axes, item(like))
        _of_targets(n, classes, z, like, t.ctypes.data, zeta, scale, loss, into, across)
        alive(t)
    alive(space)
    value = reduced(loss, s, divisor, reduction, objects.data(losses) if losses else 0, like)
    if grad and not direct:
        given(found, like, grad, axes, n, classes, like)
    alive(scale)
    alive(zeta)
    return True, value


@jit(**EXACT)
def smoothed_targets(
    targets: int, kind: int, labels: Any, kept: Any, weights: Any, smoothing: float, x: int, axes: int, n: int,
    classes: int,
) -> Any:  # fmt: skip
    """t = weight · ((1 − ε) target + ε / K), K the number of classes kept."""
    t, masks = np.zeros(n * classes), len(kept) > 0
    if len(labels):
        for i in range(n):
            t[i * classes + labels[i]] = 1.0
    else:
        at, of = objects.offsets(targets, x, ~axes, 0, n), objects.offsets(targets, x, axes, 0, classes)
        objects.floats(targets, kind, at, of, t)
        if masks:
            hide(t, kept, 0.0)
    mask = pointer(kept.ctypes.data, np.uint8)
    for i in range(n):
        number = 0.0
        for j in range(classes):
            number += 1.0 if not masks or mask[i * classes + j] else 0.0
        number = max(number, 1.0)
        for j in range(classes):
            k = i * classes + j
            if smoothing != 0.0:
                is_kept = 1.0 if not masks or mask[k] else 0.0
                t[k] = (1.0 - smoothing) * t[k] + smoothing * is_kept / number
            if len(weights):
                t[k] = t[k] * weights[j] if t[k] != 0.0 or np.isfinite(weights[j]) else 0.0
    if masks:
        held(kept)
    return t


@jit(**EXACT)
def transformed(x: int, kept: Any, axes: int, n: int, classes: int, like: Any) -> Any:
    """Logits as float64, −∞ where a class is masked."""
    z = taken(x, axes, n, classes, like, 0.0)[: n * classes]
    if len(kept):
        hide(z, kept, -math.inf)
    return z


@jit(**EXACT)
def slope_of(x: float, softcap: float) -> float:
    """sech²(x / softcap)"""
    e = math.exp(-2.0 * abs(x / softcap))
    return 4.0 * e / ((1.0 + e) * (1.0 + e))


@jit(**EXACT)
def is_kept(kept: Any, i: int, classes: int) -> bool:
    """Whether a row has a class that is not masked."""
    mask = pointer(kept.ctypes.data, np.uint8)
    found = False
    for j in range(classes):
        found = found or mask[i * classes + j] != 0
    held(kept)
    return found


@jit(**EXACT)
def in_units(scale: Any) -> Any:
    """What gradients lack by scales of which slope and temperature make numbers again: powers of two."""
    lacking = np.ones(len(scale))
    for i in range(len(scale)):
        size = abs(scale[i])
        power = 2.0**-128 if size > 2.0**900 else 2.0**512 if 0.0 < size < 2.0**-900 else 1.0
        scale[i], lacking[i] = scale[i] * power, 1.0 / power
    return lacking


@jit(**EXACT)
def cross_entropy_of_transformed(
    x: int, targets: int, labels_kind: int, targets_kind: int, where: int, weight: int, weight_kind: int,
    sample_weight: int, sample_kind: int, ignore_index: int, ignores: bool, smoothing: float, temperature: float,
    softcap: float, z_loss: float, reduction: int, wants_loss: bool, losses: int, upstream: int,
    upstream_kind: int, grad: int, axes: int, like: Any,
) -> tuple[bool, float]:  # fmt: skip
    """Under any options."""
    n, classes = objects.extent(x, axes)
    if not takes(x, targets, where, weight, sample_weight, axes, labels_kind >= 0, n, classes):
        return False, 0.0
    s, scale, zeta = by_row(sample_weight, sample_kind, x, axes, n), np.empty(n), np.empty(1)
    weights = by_class(weight, weight_kind, classes)
    labels = labels_of(targets, labels_kind, x, axes, n) if labels_kind >= 0 else np.empty(0, np.int64)
    fine, divisor, zeta[0] = weigh(labels, s, weights, ignore_index, ignores, z_loss, reduction, classes, scale)
    if not (fine and from_above(upstream, upstream_kind, x, axes, scale)):
        return False, 0.0
    lacking = in_units(scale)
    kept = kept_classes(where, x, axes, n, classes) if where else np.empty(0)
    z = transformed(x, kept, axes, n, classes, like)
    if transform(z, n, classes, softcap, temperature) and z_loss != 0.0:
        return False, 0.0
    loss, g = np.empty(n if wants_loss else 0), np.empty(n * classes if grad else 0)
    into, across = g.ctypes.data if grad else 0, classes <= ACROSS
    if labels_kind >= 0 and smoothing == 0.0:
        _of_labels(n, classes, z.ctypes.data, 0.0, labels, weights, zeta, scale, loss, into, across)
    else:
        t = smoothed_targets(targets, targets_kind, labels, kept, weights, smoothing, x, axes, n, classes)
        _of_targets(n, classes, z.ctypes.data, 0.0, t.ctypes.data, zeta, scale, loss, into, across)
        alive(t)
    alive(z)
    if where:
        for i in range(len(loss)):
            loss[i] = loss[i] if is_kept(kept, i, classes) else 0.0
    value = reduced(loss, s, divisor, reduction, objects.data(losses) if losses else 0, like)
    if grad:
        if softcap != 0.0:
            raw = transformed(x, kept, axes, n, classes, like)
            for k in range(n * classes):
                g[k] = g[k] * slope_of(raw[k], softcap) if g[k] != 0.0 else 0.0
        for i in range(n):
            for k in range(i * classes, (i + 1) * classes):
                g[k] = g[k] / temperature * lacking[i]
        if where:
            hide(g, kept, 0.0)
        given(g, 0.0, grad, axes, n, classes, like)
    if where:
        held(kept)
    alive(scale)
    alive(zeta)
    return True, value
