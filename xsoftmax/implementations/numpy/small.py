"""Small NumPy arrays of any layout under any options: one step into compiled code, which looks at shapes and labels.

An entry gets what a verb got. It returns None where anything is odd: the checks know the words for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ...calls.records import Array, Problem
from ...kernels.cpu.numbers import FLOATS
from .addresses import TYPES, are_readable, bits, identity, kernel
from .given import Given, are_kept, is_temperature, result_like, rows_shape, scalar

_PRODUCTS = {"softmax_vjp": 0, "softmax_jvp": 0, "log_softmax_jvp": 1, "log_softmax_vjp": 2}
_MOST_DIMENSIONS = 32


def like_logits(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    axes, like = bits(p.axes), TYPES[np.dtype(p.dtype)]
    plain, transformed = partial(kernel, "small", verb), partial(kernel, "small", f"{verb}_of_transformed")

    def entry(x: Array, where: Array | None, temperature: float, out: Array | None, again: Any) -> Array | None:
        if where is None and type(temperature) is float and temperature == 1.0:
            if (y := result_like(out, x)) is None:
                return None
            return y if plain()(id(x), id(y), axes, like) else None
        if not is_temperature(temperature) or not (where is None or are_kept(where)):
            return None
        if (y := result_like(out, x, where)) is None:
            return None
        mask = identity(where)
        return y if transformed()(id(x), mask, id(y), axes, float(temperature), like) else None

    return entry


def logsumexp(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    axes, like = bits(p.axes), TYPES[np.dtype(p.dtype)]
    plain, of_kept = partial(kernel, "small", "logsumexp"), partial(kernel, "small", "logsumexp_of_kept")
    rows_of = rows_shape(p.axes, ndim)

    def entry(x: Array, where: Array | None, keepdims: bool, again: Any) -> Array | None:
        if where is not None and not are_kept(where):
            return None
        y = np.empty(rows_of(x.shape, keepdims), x.dtype)
        at = id(x), id(y), axes, like
        done = plain()(*at) if where is None else of_kept()(at[0], id(where), *at[1:])
        return y[()] if done else None

    return entry


def _loss(
    x: Array,
    given: Given,
    losses: Array | None,
    upstream: Array | None,
    grad: Array | None,
    wants: bool,
    axes: int,
    like: Any,
) -> Any:
    """Whether it is done, and the value. `upstream`: what the gradient is of, for each row or one for all."""
    kind = 0 if upstream is None else FLOATS[upstream.dtype]
    to = identity(losses), identity(upstream), kind, identity(grad), axes, like
    if given.direct:
        return kernel("small_losses", "cross_entropy")(id(x), *given.targets, *given.row, *given.numbers, wants, *to)
    return kernel("small_losses", "cross_entropy_of_transformed")(
        id(x), *given.targets, *given.mask, *given.row, *given.transform, *given.numbers, wants, *to
    )


def cross_entropy(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    """The loss and its gradient, or what of them is wanted."""
    axes, like = bits(p.axes), TYPES[np.dtype(p.dtype)]
    rows_of = rows_shape(p.axes, ndim)
    wants_loss, wants_grad = "loss" in p.wants, "grad" in p.wants

    def entry(
        x: Array, targets: Array, options: tuple[Any, ...], out: Array | None, again: Any, upstream: Array | None = None
    ) -> Any:
        given = Given(x, targets, options)
        if given.odd or not (upstream is None or upstream.dtype in FLOATS):
            return None
        grad = None
        if wants_grad and (grad := result_like(out, x, targets, *options[:3])) is None:
            return None
        losses = np.empty(rows_of(x.shape, False), x.dtype) if wants_loss and given.reduction == 0 else None
        done, value = _loss(x, given, losses, upstream, grad, wants_loss, axes, like)
        if not done:
            return None
        if not wants_loss:
            return grad
        loss = losses[()] if losses is not None else scalar(value, x)
        return (loss, grad) if wants_grad else loss

    return entry


def _hessian(x: Array, given: Given, v: Array | None, to: Array, axes: int, like: Any) -> bool:
    kind = 0 if v is None else FLOATS[v.dtype]
    return kernel("small_hessians", "hessian")(
        id(x), *given.targets, *given.mask, *given.row, *given.transform, *given.numbers, identity(v), kind,
        id(to), axes, like,
    )  # fmt: skip


def hessian_product(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    axes, like = bits(p.axes), TYPES[np.dtype(p.dtype)]

    def entry(x: Array, targets: Array, v: Array, options: tuple[Any, ...], again: Any) -> Array | None:
        given = Given(x, targets, options)
        if given.odd or type(v) is not np.ndarray or v.dtype not in FLOATS or not v.flags.aligned:
            return None
        to = np.empty_like(x)
        return to if _hessian(x, given, v, to, axes, like) else None

    return entry


def gradient_and_hessian_diag(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    axes, like = bits(p.axes), TYPES[np.dtype(p.dtype)]

    def entry(x: Array, targets: Array, options: tuple[Any, ...], again: Any) -> tuple[Array, Array] | None:
        given = Given(x, targets, options)
        if given.odd:
            return None
        grad, diag = np.empty_like(x), np.empty_like(x)
        done, _ = _loss(x, given, None, None, grad, False, axes, like)
        return (grad, diag) if done and _hessian(x, given, None, diag, axes, like) else None

    return entry


def product(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    axes, like = bits(p.axes), TYPES[np.dtype(p.dtype)]
    operation = _PRODUCTS[verb]
    plain, of_kept = partial(kernel, "small_products", "product"), partial(kernel, "small_products", "product_of_kept")

    def entry(y: Array, v: Array, where: Array | None, again: Any) -> Array | None:
        if type(v) is not np.ndarray or v.dtype != y.dtype or not (where is None or are_kept(where)):
            return None
        to = np.empty_like(y)
        if where is None:
            return to if plain()(operation, id(y), id(v), id(to), axes, like) else None
        return to if of_kept()(operation, id(y), id(v), id(where), id(to), axes, like) else None

    return entry


_MINUS = np.array(-1.0)


def softmax_gradient(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    """u → y (u − Σ y u) / T"""
    axes, like = bits(p.axes), TYPES[np.dtype(p.dtype)]

    def entry(x: Array, u: Array, where: Array | None, temperature: float) -> Array | None:
        if u.dtype != x.dtype:
            return None
        to, numbers = np.empty_like(x), (float(temperature), like)
        done = kernel("small_products", "gradient")(id(x), id(u), identity(where), id(to), axes, *numbers)
        return _known(to) if done else None

    return entry


def log_softmax_gradient(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    """u → (u − y Σ u) / T, minus the gradient of Σ u (logsumexp(z) − z)"""
    of_loss = cross_entropy(verb, replace(p, wants=("grad",)), ndim)

    def entry(x: Array, u: Array, where: Array | None, temperature: float) -> Array | None:
        options = where, None, None, None, 0.0, temperature, None, 0.0, "sum"
        return _known(of_loss(x, u, options, None, None, _MINUS))

    return entry


def _known(gradient: Array | None) -> Array | None:
    """None of a row of nan, which is 0 where no cotangent reaches it: a rule knows."""
    return None if gradient is None or np.isnan(np.add.reduce(gradient, axis=None)) else gradient


def _entry(make: Callable[..., Any], verb: str) -> Callable[..., Any]:
    def of_kind(p: Problem, ndim: int, entry_of: Any) -> Any:
        fits = p.dtype in ("float32", "float64") and ndim <= _MOST_DIMENSIONS and p.axes and are_readable()
        return make(verb, p, ndim) if fits else None

    return of_kind


ENTRIES: dict[str, Callable[..., Any]] = {
    verb: _entry(make, verb)
    for verb, make in {
        "softmax": like_logits,
        "log_softmax": like_logits,
        "logsumexp": logsumexp,
        "softmax_gradient": softmax_gradient,
        "log_softmax_gradient": log_softmax_gradient,
        **dict.fromkeys(_PRODUCTS, product),
        "cross_entropy": cross_entropy,
        "cross_entropy_grad": cross_entropy,
        "cross_entropy_and_grad": cross_entropy,
        "cross_entropy_hvp": hessian_product,
        "cross_entropy_grad_and_hessian_diag": gradient_and_hessian_diag,
    }.items()
}
