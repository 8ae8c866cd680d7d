"""The rows of a loss weighed before any logit is read, and reduced after."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .. import weights
from ..calls import checks
from ..calls.arguments import Array, GivenLoss, Problem, Rows, loss_dtype
from ..choose import aside
from ..libraries.arrays import is_lazy, rounded


class Weighing(NamedTuple):
    """Row weights s_i of a loss and the divisor of its reduction; all arrays keep the class axis with length 1.

    `bad` are rows whose label is no class, where the operations do not see that; `part` is whether other rows, which
    are not here, go into the same sum or mean.
    """

    reduction: str
    targets: Array
    rows: Rows
    s: Array | None
    absent: Array | None
    divisor: Array | int | None
    bad: Array | None = None
    part: bool = False


def weigh(given: GivenLoss, reduction: str) -> Weighing:
    """Row scale s_i / Σ w_i, from labels and weights alone, before any logit is read.

    mean of labels: w_i = s_i weight[label_i], but Σ s_i for the squared logsumexp, which is not class-weighted;
    mean of probabilities: w_i = s_i. Rows that are ignored or have s_i = 0 are absent; a label out of range makes nan.
    """
    p, xp, s = given.problem, given.xp, given.sample_weight
    part = given.totals is not None
    if not part and (own := aside("weigh", p, given, reduction)) is not None:
        targets, rows, absent, divisor = own
        return Weighing(reduction, targets, rows, s, absent, divisor)
    label, absent, bad = weights.marked(given)
    if bad is not None and not part:
        bad = _unless_checked(given, bad)
    counted = weights.counted(given, absent, bad)
    divisor, zeta = None, p.z_loss
    if reduction == "mean":
        unweighted, divisor = given.totals or weights.totals(given, label, counted)
        if p.labels and given.weight is not None:
            zeta = p.z_loss * divisor / weights.or_one(unweighted, xp) if p.z_loss else 0.0
    scale: Array | float | None = counted
    if divisor is not None:
        scale = (1.0 if counted is None else counted) / weights.or_one(divisor, xp)
        if not isinstance(divisor, int):  # rows that weigh nothing have no gradient
            scale = xp.where(divisor == 0.0, xp.zeros_like(scale), scale)
    if bad is not None:
        scale = xp.where(bad, xp.full_like(counted, math.nan), scale)
    hidden = absent if not part or bad is None else bad if absent is None else absent | bad
    targets = given.targets
    if label is not None and hidden is not None:
        targets = xp.squeeze(xp.where(hidden, xp.zeros_like(label), label), axis=p.axes[0])
    rows = Rows(given.where, given.weight, scale, zeta)
    return Weighing(reduction, targets, rows, s, absent, divisor, bad if part else None, part)


def reduce_rows(p: Problem, loss: Array, w: Weighing, *, xp: Any) -> Array:
    """Σ s_i L_i, divided for the mean; nan for the mean of nothing."""
    dtype = loss_dtype(p.dtype)
    if not w.part and (own := aside("reduce_rows", p, loss, w, dtype)) is not None:
        return own
    loss = _reduced(p, loss, w, xp=xp)
    if not w.part or w.reduction == "none":
        loss = rounded(loss, dtype, xp)
    zero = xp.zeros_like(loss)  # of its dtype: on NumPy 2.1's other threads a number is a float64
    return zero - (zero - loss)  # never −0.0, of whatever weight or target


def _reduced(p: Problem, loss: Array, w: Weighing, *, xp: Any) -> Array:
    if w.absent is not None:
        loss = xp.where(w.absent, xp.zeros_like(loss), loss)
    if w.bad is not None:
        loss = xp.where(w.bad, xp.full_like(loss, math.nan), loss)
    if w.s is not None:
        loss = loss * w.s
    if w.reduction == "none":
        return xp.squeeze(loss, axis=p.axes[0])
    loss = weights.sum_of_rows(loss, xp)
    if w.divisor is None:
        return loss
    return weights.mean_of(loss, w.divisor, xp)


def _unless_checked(given: GivenLoss, bad: Array) -> Array | None:
    """An error where values can be looked at, else the rows as they are marked."""
    p = given.problem
    if is_lazy(given.targets, p.library) or is_lazy(given.x, p.library):
        return bad
    checks.check_labels(p.verb, given.raw_targets, given.classes, bad, given.xp)
    return None
