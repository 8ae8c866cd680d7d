"""Which rows of a loss count, and the sums that a mean divides by, from labels and weights alone."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .formulas import times_weight
from .libraries.arrays import looked_up, with_axis
from .libraries.sums import total

Array = Any


class Marks(NamedTuple):
    """Labels with the class axis, and the rows that don't count; what is not asked for is None."""

    label: Array | None
    absent: Array | None
    bad: Array | None


def marked(given: Any) -> Marks:
    """Absent: ignored, or of weight 0. Bad: a label that is no class, unless its row is absent."""
    absent = None if given.sample_weight is None else given.sample_weight == 0.0
    if not given.problem.labels:
        return Marks(None, absent, None)
    label = with_axis(given.targets, given.problem.axes[0])
    if given.ignore_index is not None:
        ignored = label == given.ignore_index
        absent = ignored if absent is None else ignored | absent
    bad = is_no_class(given, label)
    return Marks(label, absent, bad if absent is None else bad & ~absent)


def is_no_class(given: Any, label: Array) -> Array:
    return (label < 0) | (label >= given.classes)


def counted(given: Any, absent: Array | None, bad: Array | None) -> Array | None:
    """s_i, 0 for the rows that don't count; None: every row counts 1."""
    xp, s = given.xp, given.sample_weight
    out = bad if absent is None else absent if bad is None else absent | bad
    if out is None:
        return s
    ones = xp.astype(~out, getattr(xp, given.problem.compute))
    return ones if s is None else xp.where(out, xp.zeros_like(s), s)


def totals(given: Any, label: Array | None, counts: Array | None) -> tuple[Array | int, Array | int]:
    """Σ s_i, and what the mean divides by: of labels Σ s_i weight[label_i], of probabilities the same Σ s_i."""
    unweighted = _number_of_rows(given) if counts is None else sum_of_rows(counts, given.xp)
    if label is None or given.weight is None:
        return unweighted, unweighted
    weights = _label_weight(given, label)
    return unweighted, sum_of_rows(weights if counts is None else times_weight(counts, weights, xp=given.xp), given.xp)


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


def _number_of_rows(given: Any) -> Array | int:
    """Rows of an unweighted loss; counted where the shape does not tell."""
    axis = given.problem.axes[0]
    sizes = [n for i, n in enumerate(given.x.shape, start=-given.x.ndim) if i != axis]
    if all(isinstance(n, int) for n in sizes):
        return math.prod(sizes)
    first = given.x[(..., slice(0, 1), *(slice(None),) * (-axis - 1))]
    return sum_of_rows(given.xp.astype(given.xp.ones_like(first), getattr(given.xp, given.problem.compute)), given.xp)


def _label_weight(given: Any, label: Array) -> Array:
    """weight[label], 0 for a label that is no class."""
    xp, bad = given.xp, is_no_class(given, label)
    weights = looked_up(xp.reshape(given.weight, (-1,)), xp.where(bad, xp.zeros_like(label), label), xp)
    return xp.where(bad, xp.zeros_like(weights), weights)
