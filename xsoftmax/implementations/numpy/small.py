"""Small NumPy arrays of any layout under any options: one step into compiled code, which looks at shapes and labels.

An entry gets what a verb got. It returns None where anything is odd: the checks know the words for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from ...calls.records import Array, Problem
from ...kernels.cpu.numbers import FLOATS, INTEGERS
from .addresses import TYPES, are_readable, bits, identity, kernel
from .operations import quick_result

_BOOL = np.dtype(bool)
_PRODUCTS = {"softmax_vjp": 0, "softmax_jvp": 0, "log_softmax_jvp": 1, "log_softmax_vjp": 2}
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
_LEAST, _MOST = 2.0**-126, 2.0**127  # normal numbers of any dtype
_MOST_DIMENSIONS = 32
_NUMBERS = (float, int)


def _is_temperature(value: Any) -> bool:
    return type(value) in _NUMBERS and _LEAST <= value <= _MOST


def _are_kept(where: Any) -> bool:
    return type(where) is np.ndarray and where.dtype == _BOOL


def like_logits(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    axes, like = bits(p.axes), TYPES[np.dtype(p.dtype)]
    plain, transformed = partial(kernel, "small", verb), partial(kernel, "small", f"{verb}_of_transformed")

    def entry(x: Array, where: Array | None, temperature: float, out: Array | None) -> Array | None:
        if where is None and type(temperature) is float and temperature == 1.0:
            if (y := quick_result(out, x)) is None:
                return None
            return y if plain()(id(x), id(y), axes, like) else None
        if not _is_temperature(temperature) or not (where is None or _are_kept(where)):
            return None
        if (y := quick_result(out, x, *(() if where is None else (where,)))) is None:
            return None
        mask = identity(where)
        return y if transformed()(id(x), mask, id(y), axes, float(temperature), like) else None

    return entry


def logsumexp(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    axes, like = bits(p.axes), TYPES[np.dtype(p.dtype)]
    plain, of_kept = partial(kernel, "small", "logsumexp"), partial(kernel, "small", "logsumexp_of_kept")
    rows_of = _without(p.axes, ndim)

    def entry(x: Array, where: Array | None, keepdims: bool) -> Array | None:
        if where is not None and not _are_kept(where):
            return None
        y = np.empty(rows_of(x.shape, keepdims), x.dtype)
        at = id(x), id(y), axes, like
        done = plain()(*at) if where is None else of_kept()(at[0], id(where), *at[1:])
        return y[()] if done else None

    return entry


def _without(axes: tuple[int, ...], ndim: int) -> Callable[[tuple[int, ...], bool], tuple[int, ...]]:
    """The shape of the rows from that of the logits."""
    left = [axis for axis in range(-ndim, 0) if axis not in axes]
    pick = itemgetter(*left) if len(left) > 1 else None

    def rows_of(shape: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
        if keepdims:
            kept = list(shape)
            for axis in axes:
                kept[axis] = 1
            return tuple(kept)
        if pick is not None:
            return pick(shape)
        return (shape[left[0]],) if left else ()

    return rows_of


class _Options:
    """A loss's targets and options as numbers for a kernel, or `odd`."""

    __slots__ = ("direct", "mask", "numbers", "odd", "reduction", "row", "targets", "transform")

    def __init__(self, x: Array, targets: Array, options: tuple[Any, ...]) -> None:
        where, weight, sample_weight, ignore_index, smoothing, temperature, softcap, z_loss, reduction = options
        self.odd = True
        if type(targets) is not np.ndarray or type(reduction) is not str:
            return
        self.reduction = _REDUCTIONS.get(reduction, -1)
        labels, floats = -1, -1
        if targets.ndim == x.ndim:
            floats = FLOATS.get(targets.dtype, -1)
        else:
            labels = INTEGERS.get(targets.dtype, -1)
        if self.reduction < 0 or (labels < 0 and floats < 0) or not (where is None or _are_kept(where)):
            return
        if type(smoothing) not in _NUMBERS or not 0.0 <= smoothing <= 1.0 or not _is_temperature(temperature):
            return
        if type(z_loss) not in _NUMBERS or not 0.0 <= z_loss < math.inf:
            return
        if softcap is not None and not _is_temperature(softcap):
            return
        ignores = ignore_index is not None
        if ignores and not (type(ignore_index) is int and labels >= 0 and -(2**62) < ignore_index < 2**62):
            return
        weights = []
        for a in (weight, sample_weight):
            kind = 0 if a is None else FLOATS.get(a.dtype, -1) if type(a) is np.ndarray else -1
            if kind < 0 or not (a is None or a.flags.aligned):
                return
            weights += [identity(a), kind]
        if not targets.flags.aligned:
            return
        self.odd = False
        self.direct = (
            where is None and temperature == 1.0 and softcap is None and not smoothing
            and (labels >= 0 or (targets.dtype == x.dtype and weight is None))
        )  # fmt: skip
        self.targets = id(targets), labels
        self.mask = floats, identity(where)
        self.row = (*weights, ignore_index or 0, ignores)
        self.numbers = float(z_loss), self.reduction
        self.transform = float(smoothing), float(temperature), 0.0 if softcap is None else float(softcap)


def _loss(
    x: Array, given: _Options, losses: Array | None, grad: Array | None, wants: bool, axes: int, like: Any
) -> Any:
    """Whether it is done, and the value."""
    to = identity(losses), identity(grad), axes, like
    if given.direct:
        return kernel("small_losses", "cross_entropy")(id(x), *given.targets, *given.row, *given.numbers, wants, *to)
    return kernel("small_losses", "cross_entropy_of_transformed")(
        id(x), *given.targets, *given.mask, *given.row, *given.transform, *given.numbers, wants, *to
    )


def cross_entropy(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    """The loss and its gradient, or what of them is wanted."""
    axes, like = bits(p.axes), TYPES[np.dtype(p.dtype)]
    rows_of = _without(p.axes, ndim)
    wants_loss, wants_grad = "loss" in p.wants, "grad" in p.wants

    def entry(x: Array, targets: Array, options: tuple[Any, ...], out: Array | None = None) -> Any:
        given = _Options(x, targets, options)
        if given.odd:
            return None
        grad = None
        if wants_grad and (grad := _result(out, x, targets, options)) is None:
            return None
        losses = np.empty(rows_of(x.shape, False), x.dtype) if wants_loss and given.reduction == 0 else None
        done, value = _loss(x, given, losses, grad, wants_loss, axes, like)
        if not done:
            return None
        if not wants_loss:
            return grad
        loss = losses[()] if losses is not None else _scalar(value, x)
        return (loss, grad) if wants_grad else loss

    return entry


def _result(out: Array | None, x: Array, targets: Array, options: tuple[Any, ...]) -> Array | None:
    if out is None:
        return np.empty_like(x)
    return quick_result(out, x, targets, *(a for a in options[:3] if a is not None))


def _scalar(value: float, like: Array) -> Any:
    """As NumPy's; a cast that overflows or underflows would warn."""
    if _LEAST <= value <= _MOST:
        return like.dtype.type(value)
    with np.errstate(all="ignore"):
        return like.dtype.type(value)


def _hessian(x: Array, given: _Options, v: Array | None, to: Array, axes: int, like: Any) -> bool:
    kind = 0 if v is None else FLOATS[v.dtype]
    return kernel("small_hessians", "hessian")(
        id(x), *given.targets, *given.mask, *given.row, *given.transform, *given.numbers, identity(v), kind,
        id(to), axes, like,
    )  # fmt: skip


def hessian_product(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    axes, like = bits(p.axes), TYPES[np.dtype(p.dtype)]

    def entry(x: Array, targets: Array, v: Array, options: tuple[Any, ...]) -> Array | None:
        given = _Options(x, targets, options)
        if given.odd or type(v) is not np.ndarray or v.dtype not in FLOATS or not v.flags.aligned:
            return None
        to = np.empty_like(x)
        return to if _hessian(x, given, v, to, axes, like) else None

    return entry


def gradient_and_hessian_diag(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    axes, like = bits(p.axes), TYPES[np.dtype(p.dtype)]

    def entry(x: Array, targets: Array, options: tuple[Any, ...]) -> tuple[Array, Array] | None:
        given = _Options(x, targets, options)
        if given.odd:
            return None
        grad, diag = np.empty_like(x), np.empty_like(x)
        done, _ = _loss(x, given, None, grad, False, axes, like)
        return (grad, diag) if done and _hessian(x, given, None, diag, axes, like) else None

    return entry


def product(verb: str, p: Problem, ndim: int) -> Callable[..., Any]:
    axes, like = bits(p.axes), TYPES[np.dtype(p.dtype)]
    operation = _PRODUCTS[verb]
    plain, of_kept = partial(kernel, "small_products", "product"), partial(kernel, "small_products", "product_of_kept")

    def entry(y: Array, v: Array, where: Array | None) -> Array | None:
        if type(v) is not np.ndarray or v.dtype != y.dtype or not (where is None or _are_kept(where)):
            return None
        to = np.empty_like(y)
        if where is None:
            return to if plain()(operation, id(y), id(v), id(to), axes, like) else None
        return to if of_kept()(operation, id(y), id(v), id(where), id(to), axes, like) else None

    return entry


def _entry(make: Callable[..., Any], verb: str) -> Callable[[Problem, int], Any]:
    def of_kind(p: Problem, ndim: int) -> Any:
        fits = np.dtype(p.dtype) in TYPES and ndim <= _MOST_DIMENSIONS and p.axes and are_readable()
        return make(verb, p, ndim) if fits else None

    return of_kind


ENTRIES: dict[str, Callable[[Problem, int], Any]] = {
    verb: _entry(make, verb)
    for verb, make in {
        "softmax": like_logits,
        "log_softmax": like_logits,
        "logsumexp": logsumexp,
        **dict.fromkeys(_PRODUCTS, product),
        "cross_entropy": cross_entropy,
        "cross_entropy_grad": cross_entropy,
        "cross_entropy_and_grad": cross_entropy,
        "cross_entropy_hvp": hessian_product,
        "cross_entropy_grad_and_hessian_diag": gradient_and_hessian_diag,
    }.items()
}
