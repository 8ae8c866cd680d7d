"""Small NumPy arrays without a compiler: a call of NumPy costs 1 µs, whatever it does, so that few are made.

Rows are brought into a matrix, of float64 where something is done to the logits, and from there into the arithmetic of
blocks. What has no entry here goes the long way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ...calls.records import Array, Problem
from ...libraries.quiet import quietly
from . import alone_rows
from .alone_losses import cross_entropy
from .given import are_kept, is_temperature, result_like, rows_shape
from .matrices import Matrix, logits
from .operations import Arithmetic


def like_logits(arithmetic: Arithmetic, verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    matrix, hidden = Matrix(p.axes, ndim), 0.0 if verb == "softmax" else -np.inf
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
        elif (found := logits(matrix, x, where, temperature)) is None:
            return None
        else:
            z, kept, _ = found
        result = y if matrix.is_plain else np.empty(z.shape, x.dtype)
        if quick is None or z.size > alone_rows.MANY or not quick(z, result):
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
    matrix, shape_of = Matrix(p.axes, ndim), rows_shape(p.axes, ndim)
    quick = _QUICK[verb] if p.dtype == "float32" else None

    @quietly
    def entry(x: Array, where: Array | None, keepdims: bool, again: Any) -> Array | None:
        if where is None:
            z = matrix.of(x)
        elif not are_kept(where) or (found := logits(matrix, x, where, 1.0)) is None:
            return None
        else:
            z, _, _ = found
        value = np.empty((len(z), 1), x.dtype)
        if quick is None or z.size > alone_rows.MANY or not quick(z, value):
            arithmetic.normalise(verb, z, value)
        return value.reshape(shape_of(x.shape, keepdims))[()]

    return entry


_QUICK = {
    "softmax": alone_rows.softmax,
    "log_softmax": alone_rows.log_softmax,
    "logsumexp": alone_rows.logsumexp,
}
_PRODUCTS = {
    "softmax_vjp": alone_rows.softmax_product,
    "softmax_jvp": alone_rows.softmax_product,
    "log_softmax_vjp": alone_rows.log_softmax_vjp,
    "log_softmax_jvp": alone_rows.log_softmax_jvp,
}


def product(arithmetic: Arithmetic, verb: str, p: Problem, ndim: int) -> Callable[..., Any] | None:
    """Of float32, without a mask."""
    matrix, on_rows = Matrix(p.axes, ndim), _PRODUCTS[verb]

    @quietly
    def entry(y: Array, v: Array, where: Array | None, again: Any) -> Array | None:
        if where is not None or type(v) is not np.ndarray or v.dtype != y.dtype or v.shape != y.shape:
            return None
        to, rows = np.empty_like(y), matrix.of(y)
        result = np.empty(rows.shape, y.dtype)
        if not on_rows(rows, matrix.of(v), result):
            return None
        matrix.into(to, result)
        return to

    return entry if p.dtype == "float32" else None


def entries(arithmetic: Arithmetic) -> dict[str, Callable[..., Any]]:
    makers: dict[str, Callable[..., Any]] = {
        "softmax": like_logits,
        "log_softmax": like_logits,
        "logsumexp": logsumexp,
        **dict.fromkeys(_PRODUCTS, product),
        **dict.fromkeys(("cross_entropy", "cross_entropy_grad", "cross_entropy_and_grad"), cross_entropy),
    }

    def of_kind(make: Callable[..., Any], p: Problem, ndim: int, entry_of: Any) -> Any:
        return make(arithmetic, p.verb, p, ndim) if p.dtype in ("float32", "float64") and p.axes else None

    return {verb: partial(of_kind, make) for verb, make in makers.items()}
