"""Parts of rows of NumPy arrays (n, C) by kernels, without options; the others as `numpy_blocked` has them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ...calls.records import Array, Problem, Rows
from ...formulas import Part, ProductState, State, pivot_and_mean
from ...kernels import ACROSS
from ...threads import each
from .addresses import TYPES, kernel, memory, side_by_side
from .blocked_parts import are_finite, factor_of, grad_of, is_without_options, state_of
from .operations import READ
from .views import cut

_ELEMENTS = 1 << 18  # of a block: 0.1 ms at least, against 10 µs for a call from the pool


def class_state(p: Problem, x: Array, targets: Array | None, rows: Rows, part: Part, *, xp: Any, run: Any) -> State:
    if _are_read(x) and x.shape[1] > ACROSS and is_without_options(p, rows, targets):
        m, ratio = (np.empty((len(x), 1)) for _ in range(2))
        _on_rows("states", x, _by_row(m), _by_row(ratio))
        if np.isfinite(m).all():
            return state_of(m, ratio, x, targets, rows, part, xp)
    return run.behind("class_state", p, x, targets, rows, part, xp=xp)


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
    plain = is_without_options(p, rows, targets) and are_finite(state) and np.isfinite(factor_of(rows, state)).all()
    if _are_read(x) and plain:
        grad = np.empty(x.shape, x.dtype) if out is None else out
        if _are_read(grad):
            y = partial(_softmax, x, state, grad)
            return grad_of(lambda at, total: y(total), x, targets, rows, part, state, xp, of_all=True)
    return run.behind("class_grad", p, x, targets, rows, part, own, state, xp=xp, out=out)


def class_softmax(
    p: Problem, x: Array, where: Array | None, part: Part, own: State, state: State, *, xp: Any, run: Any
) -> Array:
    if _are_read(x) and is_without_options(p, Rows(where), None) and are_finite(state):
        return _softmax(x, state, np.empty(x.shape, x.dtype), 1.0)
    return run.behind("class_softmax", p, x, where, part, own, state, xp=xp)


def class_log_softmax(p: Problem, x: Array, where: Array | None, state: State, *, xp: Any, run: Any) -> Array:
    if _has_digits(x) and is_without_options(p, Rows(where), None) and are_finite(state):
        y = np.empty(x.shape, x.dtype)
        _on_rows("log_softmax", x, _by_row(state.m), _by_row(state.log_sum(xp=xp)), y)
        return y
    return run.behind("class_log_softmax", p, x, where, state, xp=xp)


def class_product_state(p: Problem, y: Array, v: Array, where: Array | None, *, xp: Any, run: Any) -> ProductState:
    if where is None and _has_digits(y) and _has_digits(v):
        state = np.empty((len(y), len(ProductState._fields)))
        _on_rows("product_states", y, v, state)
        return ProductState(*(state[:, i : i + 1] for i in range(state.shape[1])))
    return run.behind("class_product_state", p, y, v, where, xp=xp)


def class_softmax_product(
    p: Problem, y: Array, v: Array, where: Array | None, state: ProductState, *, xp: Any, run: Any
) -> Array:
    if where is None and _has_digits(y) and _has_digits(v):
        result = np.empty(y.shape, y.dtype)
        _on_rows("product", y, v, *map(_by_row, pivot_and_mean(state, xp=xp)), result)
        return result
    return run.behind("class_softmax_product", p, y, v, where, state, xp=xp)


def _softmax(x: Array, state: State, out: Array, factor: Array | float) -> Array:
    _on_rows("softmax", x, _by_row(state.m), _by_row(factor / (1.0 + state.q / state.wm)), out)
    return out


def _are_read(x: Array) -> bool:
    return x.dtype in READ and side_by_side(x) and x.flags.aligned and x.size > 0


def _has_digits(x: Array) -> bool:
    """Whether float64 has digits to spare."""
    return _are_read(x) and x.itemsize == 4


def _by_row(a: Array) -> Array:
    """Numbers of rows (n, 1), side by side."""
    return np.ascontiguousarray(a, np.float64).reshape(-1)


def _on_rows(name: str, *arrays: Array) -> None:
    """In blocks of rows, on the threads. Matrices are an address, a step and a type, numbers of rows an address."""
    function = kernel("parts", name)
    n, classes = arrays[0].shape
    blocks = [rows for _, rows in cut(1, n, classes, _ELEMENTS)]

    def work(i: int) -> None:
        arguments: list[Any] = []
        for a in arrays:
            block = a[blocks[i]]
            arguments.append(memory(block))
            if a.ndim > 1:
                arguments += [block.strides[0], TYPES[a.dtype]]
        function(len(arrays[0][blocks[i]]), classes, *arguments)

    each(work, len(blocks))


OPERATIONS = {
    "class_state": class_state,
    "class_grad": class_grad,
    "class_softmax": class_softmax,
    "class_log_softmax": class_log_softmax,
    "class_product_state": class_product_state,
    "class_softmax_product": class_softmax_product,
}
