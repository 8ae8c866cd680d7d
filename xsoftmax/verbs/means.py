"""The rows of a loss weighed before any logit is read, and reduced after: by an implementation that has its own way."""

from __future__ import annotations

from ..calls import checks
from ..calls.records import Array, LossCall
from ..choose import aside
from ..libraries.arrays import is_lazy, loss_dtype
from ..weights import Marks, RowWeights, marked, reduced_rows, row_weights


def weigh(call: LossCall) -> RowWeights:
    p, part = call.problem, call.totals is not None
    if not part and (own := aside("weigh", p, call)) is not None:
        targets, rows, absent, divisor = own
        return RowWeights(targets, rows, call.sample_weight, absent, divisor)
    marks = marked(call)
    return row_weights(call, marks if part else _checked(call, marks))


def reduce_rows(call: LossCall, loss: Array, w: RowWeights) -> Array:
    p = call.problem
    if not w.part and (own := aside("reduce_rows", p, loss, w, call.reduction, loss_dtype(p.dtype))) is not None:
        return own
    return reduced_rows(call, loss, w)


def _checked(call: LossCall, marks: Marks) -> Marks:
    """An error for a bad label where values can be looked at, else the rows as they are marked."""
    p = call.problem
    if marks.bad is None or is_lazy(call.targets, p.library) or is_lazy(call.x, p.library):
        return marks
    checks.check_labels(p.verb, call.raw_targets, call.classes, marks.bad, call.xp)
    return marks._replace(bad=None)
