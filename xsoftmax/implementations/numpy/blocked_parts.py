"""Parts of rows of NumPy arrays (n, C).

float32 logits without options go through `cross_entropy`, as if these classes were all. The others are worked by the
formulas, in blocks that stay in the cache, on the threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ... import formulas
from ...calls.records import Array, Problem, Rows
from ...formulas import Part, ProductState, State
from ...libraries.quiet import quietly
from ...threads import each
from ..array_api import operations as array_api
from ..array_api.linear import rows_of
from ..array_api.pieces import of_rows
from .views import cut


def class_state(p: Problem, x: Array, targets: Array | None, rows: Rows, part: Part, *, xp: Any, run: Any) -> State:
    if _is_plain(p, rows, targets):
        top = np.argmax(x, axis=1)
        m = np.take_along_axis(x, top[:, None], 1).astype(np.float64)
        if np.isfinite(m).all():
            loss, _ = run("cross_entropy", _of_labels(p, "loss"), x, top, Rows(), xp=xp)
            return state_of(m, np.expm1(loss), x, targets, rows, part, xp)
    return _any_state(p, x, targets, rows, part, xp=xp, run=run)


def state_of(m: Array, ratio: Array, x: Array, labels: Array | None, rows: Rows, part: Part, xp: Any) -> State:
    """`ratio` is q / wm, of which log1p is the loss of the maximum."""
    wm = formulas.weight_of(m, m, part.classes, xp=xp)
    if labels is None:
        zeros = np.zeros_like(m)
        return State(m, wm, ratio * wm, zeros, zeros, zeros)
    _, at_label, t = _at_label(x, labels, rows, part)
    at_max = at_label == m
    zeros = np.zeros_like(t)
    far = np.multiply(t, m - at_label, out=zeros.copy(), where=t != 0.0)
    return State(m, wm, ratio * wm, np.where(at_max, t, zeros), np.where(at_max, zeros, t), far)


def class_grad(
    p: Problem,
    x: Array,
    targets: Array,
    rows: Rows,
    part: Part,
    own: State,
    state: State,
    *,
    xp: Any,
    run: Any,
    out: Array | None = None,
) -> Array:
    if _is_plain(p, rows, targets) and are_finite(own, state) and np.isfinite(factor_of(rows, state)).all():
        return _plain_grad(p, x, targets, rows, part, own, state, xp, run, out)
    return _any_grad(p, x, targets, rows, part, own, state, xp=xp, run=run, out=out)


def class_softmax(
    p: Problem, x: Array, where: Array | None, part: Part, own: State, state: State, *, xp: Any, run: Any
) -> Array:
    """The gradient of a loss whose T = 1 is at no class."""
    rows = Rows(where)
    if _is_plain(p, rows, None) and are_finite(own, state):
        of_loss = state._replace(top=0.0, others=1.0)
        return _plain_grad(p, x, None, rows, part, own, of_loss, xp, run, None)
    return _any_softmax(p, x, where, part, own, state, xp=xp, run=run)


def _log_softmax(p: Problem, x: Array, where: Array | None, state: State, *, xp: Any, run: Any) -> Array:
    """(x − m) − log1p(q / wm)"""
    if not (_is_plain(p, Rows(where), None) and are_finite(state)):
        return array_api.class_log_softmax(p, x, where, state, xp=xp, run=run)
    d = np.subtract(x, state.m, dtype=np.float64)
    return np.subtract(d, state.log_sum(xp=xp), out=np.empty_like(x), casting="same_kind")


def _product_state(p: Problem, y: Array, v: Array, where: Array | None, *, xp: Any, run: Any) -> ProductState:
    """One class at the largest y, whatever the others: a second one with more than half would be no probability."""
    if not (_is_plain(p, Rows(where), None) and y.dtype == v.dtype == np.float32):
        return array_api.class_product_state(p, y, v, where, xp=xp, run=run)
    others, at = y.astype(np.float64), np.argmax(y, axis=1)[:, None]
    top, of_top = (np.take_along_axis(a, at, 1).astype(np.float64) for a in (y, v))
    np.put_along_axis(others, at, 0.0, 1)
    rest = np.sum(others, axis=1, keepdims=True)
    np.multiply(others, v, out=others)
    return ProductState(top, np.ones_like(top), of_top, rest, np.sum(others, axis=1, keepdims=True))


def _softmax_product(
    p: Problem, y: Array, v: Array, where: Array | None, state: ProductState, *, xp: Any, run: Any
) -> Array:
    if not (_is_plain(p, Rows(where), None) and y.dtype == v.dtype == np.float32):
        return array_api.class_softmax_product(p, y, v, where, state, xp=xp, run=run)
    pivot, mean = formulas.pivot_and_mean(state, xp=xp)
    d = np.subtract(v, pivot, dtype=np.float64)
    np.subtract(d, mean, out=d)
    return np.multiply(y, d, out=np.empty_like(y), casting="same_kind")


def _in_blocks(work: Any) -> Any:
    """In blocks that stay in the cache."""

    def in_blocks(p: Problem, x: Array, *given: Any, xp: Any, run: Any, out: Array | None = None) -> Any:
        parts = [rows for _, rows in cut(1, *x.shape)] or [slice(0, 0)]

        def result(block: slice) -> Any:
            return work(p, x[block], *(_taken(a, block) for a in given), xp=xp, run=run)

        first = result(parts[0])
        if len(parts) == 1 and out is None:
            return first
        arrays = first if isinstance(first, tuple) else (first,)
        whole = [np.empty((len(x), *a.shape[1:]), a.dtype) for a in arrays] if out is None else [out]

        def fill(i: int) -> None:
            found = result(parts[i]) if i else first
            for to, a in zip(whole, found if isinstance(found, tuple) else (found,), strict=True):
                to[parts[i]] = a

        each(quietly(fill), len(parts))
        return type(first)(*whole) if isinstance(first, tuple) else whole[0]

    return in_blocks


def _taken(a: Any, block: slice) -> Any:
    if isinstance(a, Rows):
        return rows_of(a, block)
    if isinstance(a, Part):
        return a._replace(kept=of_rows(a.kept, block))
    if isinstance(a, tuple):
        return type(a)(*(of_rows(one, block) for one in a))
    return a[block] if getattr(a, "ndim", 0) == 1 else of_rows(a, block)  # labels


_any_state = _in_blocks(array_api.class_state)
_any_grad = _in_blocks(array_api.class_grad)
_any_softmax = _in_blocks(array_api.class_softmax)
class_log_softmax = _in_blocks(_log_softmax)
class_product_state = _in_blocks(_product_state)
class_softmax_product = _in_blocks(_softmax_product)
class_vjp_state = _in_blocks(array_api.class_vjp_state)
class_jvp_state = _in_blocks(array_api.class_jvp_state)
class_log_softmax_vjp = _in_blocks(array_api.class_log_softmax_vjp)
class_log_softmax_jvp = _in_blocks(array_api.class_log_softmax_jvp)


def _plain_grad(
    p: Problem,
    x: Array,
    labels: Array | None,
    rows: Rows,
    part: Part,
    own: State,
    state: State,
    xp: Any,
    run: Any,
    out: Array | None,
) -> Array:
    """T y_i = T (s_own / s) y_i of these classes alone"""

    def others(at: Array, total: Array) -> Array:
        w = formulas.weight_of(own.m, state.m, part.classes, xp=xp)
        share = w * (1.0 + own.q / own.wm) / (state.q + state.wm)
        _, grad = run("cross_entropy", _of_labels(p, "grad"), x, at[:, 0], Rows(scale=total * share), xp=xp, out=out)
        return grad

    return grad_of(others, x, labels, rows, part, state, xp, of_all=False)


def grad_of(
    others: Callable[[Array, Array], Array],
    x: Array,
    labels: Array | None,
    rows: Rows,
    part: Part,
    state: State,
    xp: Any,
    *,
    of_all: bool,
) -> Array:
    """`others(at, T)`, T y_i, but at the label, if it is here, T y − t.

    `of_all`: it is T y_i at the class `at` too, to which the label's place falls where it is not here.
    """
    at, value, t = _at_label(x, labels, rows, part)
    scale = _scale_of(rows)
    at_label = scale * formulas.cross_entropy_grad_of_part(value, state, t, 0.0, part.classes, xp=xp)
    at_label = np.where(scale == 0.0, 0.0, at_label)
    grad = others(at, factor_of(rows, state))
    if of_all:  # equal logits have equal gradients, also those that no kernel would compute
        at_label = np.where(t == 0.0, np.take_along_axis(grad, at, 1), at_label)
    np.put_along_axis(grad, at, at_label, 1)
    return grad


def _scale_of(rows: Rows) -> Array:
    return np.ones(()) if rows.scale is None else np.asarray(rows.scale)


def factor_of(rows: Rows, state: State) -> Array:
    """T, scaled; 0 of absent rows, whatever T is"""
    scale = _scale_of(rows)
    return np.where(scale == 0.0, 0.0, scale * state.sum_t)


def _at_label(x: Array, labels: Array | None, rows: Rows, part: Part) -> tuple[Array, Array, Array]:
    """Place, logit and t of the label, each (n, 1); where it is not here, of the first class, with t = 0.

    A label that is no class: t = nan.
    """
    if labels is None:
        first = x[:, :1].astype(np.float64)
        return np.zeros(first.shape, np.int64), first, np.zeros_like(first)
    at = labels[:, None] - part.start
    here = (at >= 0) & (at < x.shape[1])
    at = np.where(here, at, 0)
    t = here.astype(np.float64) if rows.weight is None else np.where(here, rows.weight[at], 0.0)
    bad = (labels < 0) | (labels >= part.classes)
    t = np.where(bad[:, None], np.nan, t)
    return at, np.take_along_axis(x, at, 1).astype(np.float64), t


def are_finite(*states: State) -> bool:
    return all(np.isfinite(state.m).all() for state in states)


def _is_plain(p: Problem, rows: Rows, targets: Array | None) -> bool:
    """Whether float64 has digits to spare, and nothing but labels and weights is given."""
    return p.dtype == "float32" and is_without_options(p, rows, targets)


def is_without_options(p: Problem, rows: Rows, targets: Array | None) -> bool:
    options = rows.where is not None or p.label_smoothing or p.softcap is not None or p.temperature != 1.0 or p.z_loss
    return (p.labels or targets is None) and not options


def _of_labels(p: Problem, wants: str) -> Problem:
    return replace(p, wants=(wants,), labels=True, class_weighted=False)


OPERATIONS = {
    "class_state": class_state,
    "class_grad": class_grad,
    "class_softmax": class_softmax,
    "class_log_softmax": class_log_softmax,
    "class_product_state": class_product_state,
    "class_softmax_product": class_softmax_product,
    "class_vjp_state": class_vjp_state,
    "class_jvp_state": class_jvp_state,
    "class_log_softmax_vjp": class_log_softmax_vjp,
    "class_log_softmax_jvp": class_log_softmax_jvp,
}
