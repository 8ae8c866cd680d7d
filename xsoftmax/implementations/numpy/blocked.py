"""NumPy alone, on blocks of rows that stay in the cache: few passes for ordinary rows, the formulas for the others.

x logits · m max x · e = exp(x − c) in float64 · wm the maximum's e · q the sum of the other e.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from ... import formulas
from ...calls.records import Array, Problem, Rows
from ...libraries import sums
from ..array_api import operations as array_api
from . import alone, blocked_parts
from . import long as long_rows
from .long import are_long
from .operations import READ, WRITES, Operations
from .views import ELEMENTS

_SHORT = 32  # classes; NumPy reduces shorter rows one by one, at 30 ns each, but their transpose at once
_ORDINARY = 600.0  # exp(x) is a normal number wherever it counts, and the sum finite
_FACTOR = 2.0**128  # divided by the sum of an ordinary row, it and its reciprocal are normal numbers
_LOG_HALF = -math.log(2.0)
_PIECE = 1 << 17  # classes; longer rows are exponentiated piece by piece, twice where the result needs it


class _Turned(NamedTuple):
    """Rows, their maxima, and the class axis: 0 where the transpose is better."""

    x: Array
    m: Array
    axis: int


class _Sums(NamedTuple):
    x: Array
    m: Array
    e: Array | None  # of long rows: none
    wm: Array
    q: Array
    axis: int

    def pieces(self) -> Iterator[tuple[slice, Array]]:
        """Exponentials, and the classes they are of."""
        if self.e is not None:
            yield slice(None), self.e
            return
        for classes in _pieces(self.x.shape[-1]):
            yield classes, _exp(self.x[:, classes], self.m)


def refuses(problem: Problem) -> list[str]:
    return []


class _NumPy:
    def block(self, size: int) -> int:
        return ELEMENTS

    def reads(self, view: Array) -> bool:
        return view.dtype in READ

    def normalise(self, operation: str, x: Array, y: Array) -> None:
        with np.errstate(all="ignore"):
            turned = _turned(x)
            if (ordinary := _ordinary(turned)) is None:
                (_softmax if operation == "softmax" else partial(_logarithm, operation))(turned, y)
                return
            if are_long(x):
                for i, is_ordinary in enumerate(ordinary):
                    some = slice(i, i + 1)
                    if is_ordinary:
                        self.normalise(operation, x[some], y[some])
                    else:
                        long_rows.normalise(operation, _problem(operation), x[some], None, y[some])
                return
            for rows in np.flatnonzero(ordinary), np.flatnonzero(~ordinary):
                for some in _by_pieces(rows, x.shape[1]):
                    part, result = x[some], np.empty((len(some), y.shape[1]), y.dtype)
                    if ordinary[some[0]]:
                        self.normalise(operation, part, result)
                    else:
                        result[...] = getattr(formulas, operation)(part.astype(np.float64), (-1,), xp=np)
                    y[some] = result

    def cross_entropy(
        self,
        weight: Array | None,
        x: Array,
        targets: Array | None,
        grad: Array | None,
        labels: Array | None,
        zeta: Array | None,
        scale: Array | None,
        loss: Array | None,
    ) -> None:
        with np.errstate(all="ignore"):
            if labels is None or zeta is not None:
                _by_formulas(weight, x, targets, grad, labels, zeta, scale, loss)
                return
            turned, factor = _turned(x), _factor(weight, labels[:, 0], scale)
            if (ordinary := _ordinary(turned, factor)) is None:
                _label_rows(weight, turned, grad, labels[:, 0], factor, loss)
                return
            if are_long(x):
                if len(x) == 1:
                    _by_formulas(weight, x, None, grad, labels, None, scale, loss)
                    return
                for i in range(len(x)):
                    by_row = (None if a is None else a[i : i + 1] for a in (x, None, grad, labels, None, scale, loss))
                    self.cross_entropy(weight, *by_row)
                return
            for rows in np.flatnonzero(ordinary), np.flatnonzero(~ordinary):
                for some in _by_pieces(rows, x.shape[1]):
                    g = None if grad is None else np.empty((len(some), x.shape[1]), grad.dtype)
                    value = None if loss is None else np.empty((len(some), 1))
                    if ordinary[some[0]]:
                        shares = None if factor is None else factor[some]
                        _label_rows(weight, _turned(x[some]), g, labels[some, 0], shares, value)
                    else:
                        share = None if scale is None else scale[some]
                        _by_formulas(weight, x[some], None, g, labels[some], None, share, value)
                    for a, part in ((grad, g), (loss, value)):
                        if a is not None:
                            a[some] = part

    def product(self, operation: str, y: Array, v: Array, to: Array) -> None:
        if are_long(y):
            long_rows.product(operation, _problem(operation), y, v, None, to)
            return
        wide = y.astype(np.float64), v.astype(np.float64)
        with np.errstate(all="ignore"):
            if operation == "softmax_product":
                to[...] = formulas.softmax_product(*wide, (-1,), xp=np)
            else:
                to[...] = _log_product(operation, *wide)


def _ordinary(turned: _Turned, factor: Array | None = None) -> Array | None:
    """Which rows can be exponentiated as they are, and their shares taken of a factor; None: all."""
    ordinary = np.abs(turned.m).reshape(-1) < _ORDINARY
    if factor is not None:
        size = np.abs(factor)
        ordinary &= (size == 0.0) | ((size > 1.0 / _FACTOR) & (size < _FACTOR))
    return None if ordinary.all() else ordinary


def _by_pieces(rows: Array, classes: int) -> list[Array]:
    """The rows, some at a time."""
    n = max(1, _PIECE // classes)
    return [rows[i : i + n] for i in range(0, len(rows), n)]


def _turned(x: Array) -> _Turned:
    axis = -1
    if x.shape[1] <= _SHORT or (len(x) > 1 and x.strides[1] > x.strides[0]):
        x, axis = np.ascontiguousarray(x.T), 0
    return _Turned(x, np.max(x, axis=axis, keepdims=True).astype(np.float64), axis)


def _softmax(turned: _Turned, y: Array) -> None:
    x, m, axis = turned
    if axis == -1 and x.shape[1] > _PIECE:
        sums = _sums_by_pieces(x, m)
        for classes, e in sums.pieces():
            np.divide(e, sums.q + sums.wm, out=y[:, classes], casting="same_kind")
        return
    e = _exp(x, m)
    np.divide(e, _sum(e, axis, x), out=y.T if axis == 0 else y, casting="same_kind")


def _logarithm(operation: str, turned: _Turned, y: Array) -> None:
    sums = _sums(turned)
    log_sum = np.log1p(sums.q / sums.wm)
    to = y.T if sums.axis == 0 else y
    if operation == "logsumexp":
        np.add(sums.m, log_sum, out=to, casting="same_kind")
        return
    for classes in [slice(None)] if sums.axis == 0 else _pieces(sums.x.shape[1]):
        distance = np.subtract(sums.x[:, classes], sums.m, dtype=np.float64)
        np.subtract(distance, log_sum, out=to[:, classes], casting="same_kind")


def _exp(x: Array, m: Array) -> Array:
    """exp(x − c); float64 rows below 0 are shifted by an integer, exactly, lest a normal quotient lose digits."""
    if x.dtype == np.float32:
        return np.exp(x, dtype=np.float64)
    d = x - np.where(m < 0.0, np.ceil(m) - 1.0, 0.0)
    return np.exp(d, out=d)


def _sum(e: Array, axis: int, x: Array) -> Array:
    """As exact as results in the dtype of x need: NumPy's own sum of 1000 terms is off by some units."""
    if x.dtype == np.float32:
        return np.sum(e, axis=axis, keepdims=True)
    return sums.total(e, (-2 if axis == 0 else -1,), xp=np)


def _sums(turned: _Turned) -> _Sums:
    x, m, axis = turned
    if axis == -1 and x.shape[1] > _PIECE:
        return _sums_by_pieces(x, m)
    e = _exp(x, m)
    # one copy of the maximum stays out
    top = np.expand_dims(np.argmax(x, axis=axis), axis)
    wm = np.take_along_axis(e, top, axis)
    np.put_along_axis(e, top, 0.0, axis)
    q = _sum(e, axis, x)
    np.put_along_axis(e, top, wm, axis)
    return _Sums(x, m, e, wm, q, axis)


def _sums_by_pieces(x: Array, m: Array) -> _Sums:
    top = np.argmax(x, axis=-1)[:, None]
    wm = _exp(np.take_along_axis(x, top, -1), m)
    parts = []
    for classes in _pieces(x.shape[1]):
        e = _exp(x[:, classes], m)
        here = top[:, 0] - classes.start
        inside = (here >= 0) & (here < e.shape[1])
        e[inside, here[inside]] = 0.0
        parts.append(_sum(e, -1, x))
    return _Sums(x, m, None, wm, _sum(np.concatenate(parts, axis=-1), -1, x), -1)


def _pieces(classes: int) -> list[slice]:
    return [slice(start, min(start + _PIECE, classes)) for start in range(0, classes, _PIECE)]


def _factor(weight: Array | None, labels: Array, scale: Array | None) -> Array | None:
    """T of each row, scaled; None: 1"""
    total = None if weight is None else weight[labels]
    if scale is None:
        return total
    scale = np.broadcast_to(scale, (len(labels), 1))[:, 0]
    return formulas.times_weight(scale, np.asarray(1.0 if total is None else total), xp=np)


def _label_rows(
    weight: Array | None,
    turned: _Turned,
    grad: Array | None,
    labels: Array,
    factor: Array | None,
    loss: Array | None,
) -> None:
    """L = T (log1p(q / wm) + m − x_t), ∂L/∂x_i = T (y_i − δ_it); −T q / s where y_t > 1/2"""
    sums = _sums(turned)
    rows = np.arange(len(labels))
    at = (labels, rows) if sums.axis == 0 else (rows, labels)
    m, wm, q = (a.reshape(-1) for a in (sums.m, sums.wm, sums.q))
    total = 1.0 if weight is None else weight[labels]
    if loss is not None:
        far = m - sums.x[at]
        far = far if weight is None else np.where(total == 0.0, 0.0, far)
        loss[:, 0] = total * np.log1p(q / wm) + total * far
    if grad is None:
        return
    s = q + wm
    factor = 1.0 if factor is None else factor
    e_label = _exp(sums.x[at], m)
    y = e_label / s
    to = grad.T if sums.axis == 0 else grad
    for classes, e in sums.pieces():
        share = (factor / s)[None] if sums.axis == 0 else np.reshape(factor / s, (-1, 1))
        np.multiply(e, share, out=to[:, classes] if e.shape != to.shape else to, casting="same_kind")
    to[at] = factor * np.where(y > 0.5, -(q / s), y - 1.0)


def _log_product(operation: str, log_y: Array, v: Array) -> Array:
    """As the formulas have it; what a confident class needs is done for the rows that have one, not for all."""
    transposed = operation == "log_softmax_vjp"
    y = np.exp(log_y)
    terms = v if transposed else y * v
    total = sums.total(terms, (-1,), xp=np)
    result = np.subtract(v, np.multiply(y, total, out=y) if transposed else total, out=y)
    if (some := np.flatnonzero(~(np.max(log_y, axis=1) <= _LOG_HALF))).size:
        result[some] = getattr(formulas, operation)(log_y[some], v[some], (-1,), xp=np)
    return result


def _by_formulas(
    weight: Array | None,
    x: Array,
    targets: Array | None,
    grad: Array | None,
    labels: Array | None,
    zeta: Array | None,
    scale: Array | None,
    loss: Array | None,
) -> None:
    wants = tuple(name for name, a in (("loss", loss), ("grad", grad)) if a is not None)
    problem = replace(_problem("cross_entropy"), labels=labels is not None, wants=wants)
    given = targets if labels is None else labels[:, 0]
    rows = Rows(weight=weight, scale=scale, zeta=0.0 if zeta is None else zeta)
    if are_long(x):
        long_rows.cross_entropy(problem, x, given, rows, loss, grad)
        return
    values, gradient = array_api.cross_entropy(problem, x.astype(np.float64), given, rows, xp=np, run=None)
    if loss is not None:
        loss[...] = values
    if grad is not None:
        grad[...] = gradient


def _problem(operation: str) -> Problem:
    return Problem(operation, "numpy", "ndarray", "float64", "float64", "float64", (-1,))


OPERATIONS = Operations(_NumPy()).declared() | blocked_parts.OPERATIONS
INTO = WRITES | {"class_grad"}
ENTRIES = alone.entries(_NumPy())
