"""What is true of a batch: which rows of a loss count, what its mean divides by, how its rows are reduced."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .calls.records import Array, LossCall, Rows
from .formulas import times_weight
from .libraries.arrays import looked_up, loss_dtype, rounded, with_axis
from .libraries.sums import apart, total


class Marks(NamedTuple):
    """Labels with the class axis, and the rows that don't count; what is not asked for is None."""

    label: Array | None
    absent: Array | None
    bad: Array | None


class RowWeights(NamedTuple):
    """Row weights s_i of a loss and the divisor of its mean; all arrays keep the class axis with length 1.

    `bad` are rows whose label is no class, where the operations do not see that; `part` is whether other rows, which
    are not here, go into the same sum or mean.
    """

    targets: Array
    rows: Rows
    s: Array | None
    absent: Array | None
    divisor: Array | int | None
    bad: Array | None = None
    part: bool = False


def marked(call: LossCall) -> Marks:
    """Absent: ignored, or of weight 0. Bad: a label that is no class, unless its row is absent."""
    absent = None if call.sample_weight is None else call.sample_weight == 0.0
    if not call.problem.labels:
        return Marks(None, absent, None)
    label = with_axis(call.targets, call.problem.axes[0])
    if call.ignore_index is not None:
        ignored = label == call.ignore_index
        absent = ignored if absent is None else ignored | absent
    bad = is_no_class(call, label)
    return Marks(label, absent, bad if absent is None else bad & ~absent)


def is_no_class(call: LossCall, label: Array) -> Array:
    return (label < 0) | (label >= call.classes)


def counted(call: LossCall, absent: Array | None, bad: Array | None) -> Array | None:
    """s_i, 0 for the rows that don't count; None: every row counts 1."""
    xp, s = call.xp, call.sample_weight
    out = bad if absent is None else absent if bad is None else absent | bad
    if out is None:
        return s
    ones = xp.astype(~out, getattr(xp, call.problem.compute))
    return ones if s is None else xp.where(out, xp.zeros_like(s), s)


def totals(call: LossCall, label: Array | None, counts: Array | None) -> tuple[Array | int, Array | int]:
    """Σ s_i, and what the mean divides by: of labels Σ s_i weight[label_i], of probabilities the same Σ s_i."""
    unweighted = _number_of_rows(call) if counts is None else _divisor(counts, call.xp)
    if label is None or call.weight is None:
        return unweighted, unweighted
    weights = _label_weight(call, label)
    return unweighted, _divisor(weights if counts is None else times_weight(counts, weights, xp=call.xp), call.xp)


def row_weights(call: LossCall, marks: Marks) -> RowWeights:
    """Row scale s_i / Σ w_i, from labels and weights alone, before any logit is read.

    mean of labels: w_i = s_i weight[label_i], but Σ s_i for the squared logsumexp, which is not class-weighted;
    mean of probabilities: w_i = s_i. Rows that are ignored or have s_i = 0 are absent; a label out of range makes nan.
    """
    p, xp, part = call.problem, call.xp, call.totals is not None
    label, absent, bad = marks
    counts = counted(call, absent, bad)
    divisor, zeta = None, p.z_loss
    if call.reduction == "mean":
        unweighted, divisor = call.totals or totals(call, label, counts)
        if p.labels and call.weight is not None:
            zeta = p.z_loss * divisor / or_one(unweighted, xp) if p.z_loss else 0.0
    scale: Array | float | None = counts
    if divisor is not None:
        scale = (1.0 if counts is None else counts) / or_one(divisor, xp)
        if not isinstance(divisor, int):  # rows that weigh nothing have no gradient
            scale = xp.where(divisor == 0.0, xp.zeros_like(scale), scale)
    if bad is not None:
        scale = xp.where(bad, xp.full_like(counts, math.nan), scale)
    hidden = absent if not part or bad is None else bad if absent is None else absent | bad
    targets = call.targets
    if label is not None and hidden is not None:
        targets = xp.squeeze(xp.where(hidden, xp.zeros_like(label), label), axis=p.axes[0])
    rows = Rows(call.where, call.weight, scale, zeta)
    return RowWeights(targets, rows, call.sample_weight, absent, divisor, bad if part else None, part)


def reduced_rows(call: LossCall, loss: Array, w: RowWeights) -> Array:
    """Σ s_i L_i, divided for the mean; nan for the mean of nothing."""
    loss = _reduced(call, loss, w)
    if not w.part or call.reduction == "none":
        loss = rounded(loss, loss_dtype(call.problem.dtype), call.xp)
    zero = call.xp.zeros_like(loss)  # of its dtype: on NumPy 2.1's other threads a number is a float64
    return zero - (zero - loss)  # never −0.0, of whatever weight or target


def _reduced(call: LossCall, loss: Array, w: RowWeights) -> Array:
    xp = call.xp
    if w.absent is not None:
        loss = xp.where(w.absent, xp.zeros_like(loss), loss)
    if w.bad is not None:
        loss = xp.where(w.bad, xp.full_like(loss, math.nan), loss)
    if w.s is not None:
        loss = loss * w.s
    if call.reduction == "none":
        return xp.squeeze(loss, axis=call.problem.axes[0])
    loss = sum_of_rows(loss, xp)
    return loss if w.divisor is None else mean_of(loss, w.divisor, xp)


def _divisor(x: Array, xp: Any) -> Array:
    """Σ x over all axes; every gradient of the mean has a share in its rounding"""
    return xp.reshape(sum(apart(x, tuple(range(-1, -x.ndim - 1, -1)), xp=xp)), ())


def sum_of_rows(x: Array, xp: Any) -> Array:
    """Σ x over all axes"""
    return xp.reshape(total(x, tuple(range(-x.ndim, 0)), xp=xp), ())


def mean_of(total: Array, divisor: Array | int, xp: Any) -> Array:
    """Σ s L / Σ w, nan for the mean of nothing."""
    if isinstance(divisor, int):
        return total / divisor if divisor else xp.full_like(total, math.nan)
    mean = 0.0 - total / (0.0 - or_one(divisor, xp))  # never −0.0
    # a mean that is nan by itself stays, so that its derivative is nan too
    return xp.where((divisor == 0.0) & ~xp.isnan(mean), xp.full_like(mean, math.nan), mean)


def or_one(divisor: Array | int, xp: Any) -> Array | int:
    if isinstance(divisor, int):
        return divisor or 1
    return xp.where(divisor == 0.0, xp.ones_like(divisor), divisor)


def _number_of_rows(call: LossCall) -> Array | int:
    """Rows of an unweighted loss; counted where the shape does not tell."""
    axis = call.problem.axes[0]
    sizes = [n for i, n in enumerate(call.x.shape, start=-call.x.ndim) if i != axis]
    if all(isinstance(n, int) for n in sizes):
        return math.prod(sizes)
    first = call.x[(..., slice(0, 1), *(slice(None),) * (-axis - 1))]
    return sum_of_rows(call.xp.astype(call.xp.ones_like(first), getattr(call.xp, call.problem.compute)), call.xp)


def _label_weight(call: LossCall, label: Array) -> Array:
    """weight[label], 0 for a label that is no class."""
    xp, bad = call.xp, is_no_class(call, label)
    weights = looked_up(xp.reshape(call.weight, (-1,)), xp.where(bad, xp.zeros_like(label), label), xp)
    return xp.where(bad, xp.zeros_like(weights), weights)
