"""JAX arrays that hold values: a call with usual numbers is one compiled program, found by the kinds of its arrays.

The program is what the long way makes of traced arrays. Other numbers go that way, which has the temperature as an
argument of its program, so that annealing compiles nothing anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax

from ...calls.records import Array, Options, Problem

_USUAL = tuple(Options())[4:8]  # smoothing, temperature, cap and z-loss


def _hold_values(*arrays: Any) -> bool:
    return {"ArrayImpl", "NoneType"}.issuperset([type(array).__name__ for array in arrays])


def _are_usual(numbers: tuple[Any, ...]) -> bool:
    for number, usual in zip(numbers, _USUAL, strict=True):
        if type(number) is not type(usual) or number != usual:
            return False
    return True


@lru_cache(maxsize=256)
def _like_logits(again: Callable[..., Array], verb: str, axes: tuple[int, ...]) -> Callable[..., Array]:
    return jax.jit(lambda x, where: again(x, verb, out=None, axis=axes, where=where, temperature=1.0))


def like_logits(p: Problem, ndim: int, entry_of: Any) -> Callable[..., Any]:
    def entry(x: Array, where: Array | None, temperature: float, out: Array | None, again: Any) -> Array | None:
        usual = type(temperature) is float and temperature == 1.0
        if out is not None or not usual or not _hold_values(where):
            return None
        return _like_logits(again, p.verb, p.axes)(x, where)

    return entry


@lru_cache(maxsize=256)
def _logsumexp(again: Callable[..., Array], axes: tuple[int, ...], keepdims: bool) -> Callable[..., Array]:
    return jax.jit(lambda x, where: again(x, axes, None, where, keepdims, False))


def logsumexp(p: Problem, ndim: int, entry_of: Any) -> Callable[..., Any]:
    def entry(x: Array, where: Array | None, keepdims: bool, again: Any) -> Array | None:
        return _logsumexp(again, p.axes, keepdims)(x, where) if _hold_values(where) else None

    return entry


@lru_cache(maxsize=256)
def _loss(again: Callable[..., Any], axis: int, ignore_index: int | None, reduction: str) -> Callable[..., Any]:
    def loss(*arrays: Array | None) -> Any:
        return again(*arrays[:-3], axis, *arrays[-3:], ignore_index, *_USUAL, reduction)

    return jax.jit(loss)


def _run_loss(axis: int, again: Any, arrays: tuple[Array, ...], options: tuple[Any, ...]) -> Any:
    *rows, ignore_index, smoothing, temperature, softcap, z_loss, reduction = options
    if not _are_usual((smoothing, temperature, softcap, z_loss)) or type(reduction) is not str:
        return None
    if not (ignore_index is None or type(ignore_index) is int) or not _hold_values(*arrays, *rows):
        return None
    return _loss(again, axis, ignore_index, reduction)(*arrays, *rows)


def cross_entropy(p: Problem, ndim: int, entry_of: Any) -> Callable[..., Any]:
    (axis,) = p.axes

    def entry(x: Array, targets: Array, options: tuple[Any, ...], out: Array | None, again: Any) -> Any:
        return None if out is not None else _run_loss(axis, again, (x, targets), options)

    return entry


def hessian_product(p: Problem, ndim: int, entry_of: Any) -> Callable[..., Any]:
    (axis,) = p.axes

    def entry(x: Array, targets: Array, v: Array, options: tuple[Any, ...], again: Any) -> Any:
        return _run_loss(axis, again, (x, targets, v), options)

    return entry


def gradient_and_hessian_diag(p: Problem, ndim: int, entry_of: Any) -> Callable[..., Any]:
    (axis,) = p.axes

    def entry(x: Array, targets: Array, options: tuple[Any, ...], again: Any) -> Any:
        return _run_loss(axis, again, (x, targets), options)

    return entry


ENTRIES: dict[str, Callable[..., Any]] = {
    "softmax": like_logits,
    "log_softmax": like_logits,
    "logsumexp": logsumexp,
    **dict.fromkeys(("cross_entropy", "cross_entropy_grad", "cross_entropy_and_grad"), cross_entropy),
    "cross_entropy_hvp": hessian_product,
    "cross_entropy_grad_and_hessian_diag": gradient_and_hessian_diag,
}
