"""Rows of NumPy arrays (n, C) too long to be copied: piece by piece, first for their states, which are merged.

The pieces of a row depend on C alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ... import formulas
from ...calls.records import Array, Problem, Rows
from ...formulas import Part
from ...libraries.arrays import HALF
from ...threads import each
from ..array_api import operations as array_api

LONG = 1 << 18  # classes; a float64 copy of a shorter row is 2 MiB at most
_PIECE = 1 << 16
_ROWS = 16  # whose states are kept at a time
_PRODUCTS: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "softmax_product": ("class_product_state", "class_softmax_product", formulas.merged_products),
    "log_softmax_vjp": ("class_vjp_state", "class_log_softmax_vjp", formulas.merged_log_products),
    "log_softmax_jvp": ("class_jvp_state", "class_log_softmax_jvp", formulas.merged_log_products),
}


def are_long(view: Array) -> bool:
    return bool(view.shape[-1] > LONG)


class _Place(NamedTuple):
    """A row, as a block of one, and some of its classes."""

    row: slice
    classes: slice

    def of(self, a: Array | None) -> Any:
        return None if a is None else a[self.row, self.classes]

    def of_row(self, a: Array | float | None) -> Any:
        return a[self.row] if isinstance(a, np.ndarray) and len(a) > 1 else a


def by_formulas(operation: str, *arguments: Any, xp: Any) -> Any:
    return getattr(array_api, operation)(*arguments, xp=xp, run=None)


def normalise(
    operation: str, p: Problem, x: Array, where: Array | None, y: Array, *, run: Callable[..., Any] = by_formulas
) -> None:
    """softmax and log_softmax into y, or logsumexp into (n, 1)."""
    p, classes = _of_pieces(p), x.shape[1]
    has_options = where is not None or p.softcap is not None or p.temperature != 1.0
    plain = replace(p, masked=False, temperature=1.0, softcap=None)
    if has_options:
        plain = replace(plain, dtype=p.compute, result=p.compute)

    def read(at: _Place) -> Array:
        piece = at.of(x)
        return _read(array_api.part_of_logits(p, piece, at.of(where), np)[1] if has_options else piece)

    def tempered(a: Array, m: Array) -> Array:
        return formulas.tempered(a, m, p.temperature, xp=np)

    def own(at: _Place) -> Any:
        piece = read(at)
        if p.temperature == 1.0:
            return run("class_state", plain, piece, None, Rows(), _part(at, classes), xp=np)
        m = np.max(piece, axis=-1, keepdims=True)
        return run("class_state", plain, tempered(piece, m), None, Rows(), _part(at, classes), xp=np)._replace(m=m)

    def result(at: _Place, own: Any, state: Any) -> None:
        z, own, state = tempered(read(at), state.m), *(s._replace(m=tempered(s.m, state.m)) for s in (own, state))
        if operation == "softmax":
            part = run("class_softmax", plain, z, None, _part(at, classes), own, state, xp=np)
        else:
            part = run("class_log_softmax", plain, z, None, state, xp=np)
        masked = 0.0 if operation == "softmax" else -np.inf
        at.of(y)[...] = array_api.masked(part, at.of(where), masked, np)

    def of_row(row: slice, state: Any) -> None:
        y[row] = formulas.logsumexp_of_state(state, p.temperature, xp=np)

    merge = partial(formulas.merged, classes=classes, temperature=p.temperature)
    if operation == "logsumexp":
        _on_pieces(x.shape, own, merge, of_row, None)
    else:
        _on_pieces(x.shape, own, merge, None, result)


def cross_entropy(
    p: Problem,
    x: Array,
    targets: Array,
    rows: Rows,
    loss: Array | None,
    grad: Array | None,
    *,
    run: Callable[..., Any] = by_formulas,
) -> None:
    """Loss of each row, not scaled, and scaled gradient; `rows` has arrays (n, C), (C,) and (n, 1)."""
    p, classes = _of_pieces(p), x.shape[1]

    def given(at: _Place) -> tuple[Any, ...]:
        weight = None if rows.weight is None else rows.weight[at.classes]
        some = Rows(at.of(rows.where), weight, at.of_row(rows.scale), at.of_row(rows.zeta))
        t = targets[at.row] if p.labels else _read(at.of(targets))
        kept = None if rows.where is None or not p.label_smoothing else rows.where[at.row]
        return p, _read(at.of(x)), t, some, _part(at, classes, kept)

    def own(at: _Place) -> Any:
        return run("class_state", *given(at), xp=np)

    def of_row(row: slice, state: Any) -> None:
        if loss is not None:
            at = _Place(row, slice(None))
            value = formulas.cross_entropy_of_state(state, at.of_row(rows.zeta), p.temperature, xp=np)
            loss[row] = value if rows.where is None or at.of(rows.where).any() else 0.0

    def result(at: _Place, own: Any, state: Any) -> None:
        at.of(grad)[...] = run("class_grad", *given(at), own, state, xp=np)

    merge = partial(formulas.merged, classes=classes, temperature=p.temperature)
    _on_pieces(x.shape, own, merge, of_row, None if grad is None else result)


def product(
    operation: str,
    p: Problem,
    y: Array,
    v: Array,
    where: Array | None,
    to: Array,
    *,
    run: Callable[..., Any] = by_formulas,
) -> None:
    first, second, merge = _PRODUCTS[operation]
    p = _of_pieces(p)

    def given(at: _Place) -> tuple[Any, ...]:
        return p, _read(at.of(y)), _read(at.of(v)), at.of(where)

    def own(at: _Place) -> Any:
        return run(first, *given(at), xp=np)

    def result(at: _Place, own: Any, state: Any) -> None:
        at.of(to)[...] = run(second, *given(at), state, xp=np)

    _on_pieces(y.shape, own, merge, None, result)


def _of_pieces(p: Problem) -> Problem:
    """Half precision is read as float32, and rounded to it on its way back."""
    dtype, result = ("float32" if name in HALF else name for name in (p.dtype, p.result))
    return replace(p, axes=(-1,), dtype=dtype, result=result, compute="float64")


def _read(piece: Array) -> Array:
    """As the implementations take it, side by side; a copy where it isn't."""
    dtype = np.float32 if piece.dtype.name in HALF else piece.dtype.newbyteorder("=")
    return np.require(piece, dtype, ["C", "A"])


def _part(at: _Place, classes: int, where: Array | None = None) -> Part:
    kept = classes if where is None else np.full((1, 1), float(np.count_nonzero(where)))
    return Part(at.classes.start, classes, kept)


def _on_pieces(
    shape: tuple[int, ...],
    own: Callable[[_Place], Any],
    merge: Callable[..., Any],
    of_row: Callable[[slice, Any], None] | None,
    result: Callable[[_Place, Any, Any], None] | None,
) -> None:
    """Each piece's own state; those of a row merged, for what is told of the row; then the results of each piece."""
    n, classes = shape
    count = -(-classes // _PIECE)
    pieces = [slice(classes * i // count, classes * (i + 1) // count) for i in range(count)]
    for start in range(0, n, _ROWS):
        rows = [slice(i, i + 1) for i in range(start, min(n, start + _ROWS))]
        places = [_Place(row, piece) for row in rows for piece in pieces]
        states = _each(own, places)
        merged = [_merged(states[i : i + count], merge) for i in range(0, len(states), count)]
        if of_row is not None:
            with np.errstate(all="ignore"):
                for row, state in zip(rows, merged, strict=True):
                    of_row(row, state)
        if result is not None:
            whole = [state for state in merged for _ in pieces]
            _each(result, places, states, whole)


def _each(work: Callable[..., Any], *arguments: list[Any]) -> list[Any]:
    """On the threads."""
    found = [None] * len(arguments[0])

    def one(i: int) -> None:
        with np.errstate(all="ignore"):
            found[i] = work(*(a[i] for a in arguments))

    each(one, len(found))
    return found


def _merged(states: list[Any], merge: Callable[..., Any]) -> Any:
    with np.errstate(all="ignore"):
        side_by_side = type(states[0])(*(np.concatenate(arrays, axis=-1) for arrays in zip(*states, strict=True)))
        return merge(side_by_side, axes=(-1,), xp=np)
