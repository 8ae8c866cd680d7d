"""Which rows of a loss count, by how much, and what the mean divides by."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from . import checks, formulas
from .arrays import class_indices, is_lazy, rounded, with_axis
from .choose import aside
from .problem import Array, GivenLoss, Problem, Rows, loss_dtype


class Weighing(NamedTuple):
    """Row weights s_i of a loss and the divisor of its reduction; all arrays keep the class axis with length 1."""

    reduction: str
    targets: Array
    rows: Rows
    s: Array | None
    absent: Array | None
    divisor: Array | int | None


def weigh(given: GivenLoss, reduction: str) -> Weighing:
    """Row scale s_i / Σ w_i, from labels and weights alone, before any logit is read.

    mean of labels: w_i = s_i weight[label_i], but Σ s_i for the squared logsumexp, which is not class-weighted;
    mean of probabilities: w_i = s_i. Rows that are ignored or have s_i = 0 are absent; a label out of range makes nan.
    """
    p, xp, s = given.problem, given.xp, given.sample_weight
    if (own := aside("weigh", p, given, reduction)) is not None:
        targets, rows, absent, divisor = own
        return Weighing(reduction, targets, rows, s, absent, divisor)
    absent, bad, label = None if s is None else s == 0.0, None, None
    targets = given.targets
    if p.labels:
        label = with_axis(targets, p.axes[0])
        if given.ignore_index is not None:
            ignored = label == given.ignore_index
            absent = ignored if absent is None else ignored | absent
        bad = _bad_labels(given, label, absent)
        if absent is not None:
            label = xp.where(absent, xp.zeros_like(label), label)
            targets = xp.squeeze(label, axis=p.axes[0])
    counted = _counted(given, s, absent, bad)
    divisor, zeta = None, p.z_loss
    if reduction == "mean":
        divisor = _number_of_rows(given) if counted is None else _sum(counted, xp)
        if p.labels and given.weight is not None:
            unweighted = divisor
            weights = _label_weight(given, label)
            divisor = _sum(weights if counted is None else counted * weights, xp)
            zeta = p.z_loss * divisor / _or_one(unweighted, xp) if p.z_loss else 0.0
    scale: Array | float | None = counted
    if divisor is not None:
        scale = (1.0 if counted is None else counted) / _or_one(divisor, xp)
        if not isinstance(divisor, int):  # rows that weigh nothing have no gradient
            scale = xp.where(divisor == 0.0, xp.zeros_like(scale), scale)
    if bad is not None:
        scale = xp.where(bad, xp.full_like(counted, math.nan), scale)
    return Weighing(reduction, targets, Rows(given.where, given.weight, scale, zeta), s, absent, divisor)


def reduce_rows(p: Problem, loss: Array, w: Weighing, *, xp: Any) -> Array:
    """Σ s_i L_i, divided for the mean; nan for the mean of nothing."""
    dtype = loss_dtype(p.dtype)
    if (own := aside("reduce_rows", p, loss, w, dtype)) is not None:
        return own
    return rounded(_reduced(loss, w, p.axes[0], xp=xp), dtype, xp)


def _reduced(loss: Array, w: Weighing, axis: int, *, xp: Any) -> Array:
    if w.absent is not None:
        loss = xp.where(w.absent, xp.zeros_like(loss), loss)
    if w.s is not None:
        loss = loss * w.s
    if w.reduction == "none":
        return xp.squeeze(loss, axis=axis)
    loss = _sum(loss, xp)
    if w.divisor is None:
        return loss
    mean = loss / _or_one(w.divisor, xp)
    if isinstance(w.divisor, int):
        return mean if w.divisor else xp.full_like(mean, math.nan)
    # a mean that is nan by itself stays, so that its derivative is nan too
    return xp.where((w.divisor == 0.0) & ~xp.isnan(mean), xp.full_like(mean, math.nan), mean)


def _bad_labels(given: GivenLoss, label: Array, absent: Array | None) -> Array | None:
    """Labels out of range: an error where values can be looked at, else marked."""
    p, xp = given.problem, given.xp
    bad = (label < 0) | (label >= given.classes)
    if absent is not None:
        bad = bad & ~absent
    if is_lazy(given.targets, p.library) or is_lazy(given.x, p.library):
        return bad
    checks.check_labels(p.verb, given.raw_targets, given.classes, bad, xp)
    return None


def _counted(given: GivenLoss, s: Array | None, absent: Array | None, bad: Array | None) -> Array | None:
    """s_i, 0 for the rows that don't count; None: every row counts 1."""
    xp = given.xp
    out = bad if absent is None else absent if bad is None else absent | bad
    if out is None:
        return s
    ones = xp.astype(~out, getattr(xp, given.problem.compute))
    return ones if s is None else xp.where(out, xp.zeros_like(s), s)


def _number_of_rows(given: GivenLoss) -> Array | int:
    """Rows of an eager, unweighted loss; counted where the shape does not tell."""
    axis = given.problem.axes[0]
    sizes = [n for i, n in enumerate(given.x.shape, start=-given.x.ndim) if i != axis]
    if all(isinstance(n, int) for n in sizes):
        return math.prod(sizes)
    first = given.x[(..., slice(0, 1), *(slice(None),) * (-axis - 1))]
    return _sum(given.xp.astype(given.xp.ones_like(first), getattr(given.xp, given.problem.compute)), given.xp)


def _label_weight(given: GivenLoss, label: Array) -> Array:
    """weight[label], 0 for a label that is no class."""
    p, xp = given.problem, given.xp
    hit = label == class_indices(given.classes, p.axes[0], xp, given.device, given.weight)
    return xp.sum(xp.where(hit, given.weight, xp.zeros_like(given.weight)), axis=p.axes[0], keepdims=True)


def _sum(x: Array, xp: Any) -> Array:
    return xp.reshape(formulas.total(x, tuple(range(-x.ndim, 0)), xp=xp), ())


def _or_one(divisor: Array | int, xp: Any) -> Array | int:
    if isinstance(divisor, int):
        return divisor or 1
    return xp.where(divisor == 0.0, xp.ones_like(divisor), divisor)
