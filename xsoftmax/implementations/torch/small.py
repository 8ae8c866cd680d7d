"""Small plain tensors on the CPU: one step into the entry of NumPy for arrays of the same memory.

A result whose logits ask for a gradient goes back by an entry that has it; where that is differentiated in its turn,
or another array asks for a gradient, the long way is taken again and differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.autograd import forward_ad

from ...calls.records import Array, Problem
from .memory import plain_keys


def _are_plain(*tensors: Any) -> bool:
    """Whether nothing traces, wraps or transforms these."""
    if torch._C._len_torch_dispatch_stack() or forward_ad._current_level >= 0:
        return False
    for tensor in tensors:
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor) or tensor.dtype is torch.bfloat16:  # which NumPy has not
            return False
        if torch._C._dispatch_keys(tensor).raw_repr() not in plain_keys("cpu"):
            return False
    return True


def _array(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().numpy()


def _asks(*tensors: Any) -> bool:
    """Whether one of them asks for a gradient."""
    return torch.is_grad_enabled() and True in [tensor.requires_grad for tensor in tensors if tensor is not None]


class _Rule:
    """A value that is known, `back(u, *arrays)` of the logits' cotangent, None if odd, and the long way."""

    __slots__ = ("again", "back", "value")

    def __init__(self, value: Any, back: Callable[..., Any], again: Callable[..., Any]) -> None:
        self.value, self.back, self.again = value, back, again


class _Known(torch.autograd.Function):
    """Without `setup_context`, for which PyTorch enters 40 functions more; no transform of `torch.func` comes here."""

    @staticmethod
    def forward(ctx: Any, rule: _Rule, *arrays: Array | None) -> Array:
        ctx.rule, value, rule.value = rule, rule.value, None
        ctx.save_for_backward(*arrays)
        return value

    @staticmethod
    def backward(ctx: Any, u: Array) -> tuple[Array | None, ...]:
        arrays, needs, recorded = ctx.saved_tensors, ctx.needs_input_grad[1:], torch.is_grad_enabled()
        if not recorded and True not in needs[1:] and _are_plain(u):
            dx = ctx.rule.back(_array(u), *map(_array, arrays))
            if dx is not None:
                return None, torch.from_numpy(dx), *(None,) * (len(arrays) - 1)
        asked = [array for array, need in zip(arrays, needs, strict=True) if need]
        with torch.enable_grad():
            value = ctx.rule.again(*arrays)
        found = iter(torch.autograd.grad(value, asked, u, create_graph=recorded, allow_unused=True))
        return None, *(next(found) if need else None for need in needs)


def _numpy(p: Problem) -> Problem:
    return replace(p, library="numpy", container="ndarray")


def like_logits(p: Problem, ndim: int, entry_of: Callable[[str, Problem], Any]) -> Any:
    verb, inner = p.verb, entry_of(p.verb, _numpy(p))
    gradient = entry_of(f"{verb}_gradient", _numpy(p))

    def entry(x: Array, where: Array | None, temperature: float, out: Array | None, again: Any) -> Any:
        if out is not None or not _are_plain(x, where):
            return None
        asks = _asks(x)
        if asks and torch._C._are_functorch_transforms_active():
            return None
        y = inner(_array(x), _array(where), temperature, None, None)
        if y is None or not asks:
            return None if y is None else torch.from_numpy(y)

        def back(u: Any, x: Any, where: Any) -> Any:
            return None if gradient is None else gradient(x, u, where, temperature)

        def long(x: Array, where: Array | None) -> Array:
            return again(x, verb, out=None, axis=p.axes, where=where, temperature=temperature)

        return _Known.apply(_Rule(torch.from_numpy(y), back, long), x, where)

    return inner and entry


def logsumexp(p: Problem, ndim: int, entry_of: Callable[[str, Problem], Any]) -> Any:
    inner = entry_of(p.verb, _numpy(p))

    def entry(x: Array, where: Array | None, keepdims: bool, again: Any) -> Any:
        if not _are_plain(x, where) or _asks(x):
            return None
        value = inner(_array(x), _array(where), keepdims, None)
        return None if value is None else _tensor(value, x)

    return inner and entry


def product(p: Problem, ndim: int, entry_of: Callable[[str, Problem], Any]) -> Any:
    inner = entry_of(p.verb, _numpy(p))

    def entry(y: Array, v: Array, where: Array | None, again: Any) -> Any:
        if not _are_plain(y, v, where) or _asks(y, v):
            return None
        product = inner(_array(y), _array(v), _array(where), None)
        return None if product is None else torch.from_numpy(product)

    return inner and entry


def _options(options: tuple[Any, ...]) -> tuple[Any, ...]:
    where, weight, sample_weight, *others = options
    return _array(where), _array(weight), _array(sample_weight), *others


def _tensor(value: Any, like: Array) -> Array:
    """Of an array or of one of NumPy's numbers."""
    return torch.from_numpy(value) if value.ndim else torch.scalar_tensor(value.item(), dtype=like.dtype)


def cross_entropy(p: Problem, ndim: int, entry_of: Callable[[str, Problem], Any]) -> Any:
    inner = entry_of(p.verb, _numpy(p))
    gradient = entry_of("cross_entropy_grad", replace(_numpy(p), wants=("grad",)))
    (axis,) = p.axes

    def entry(x: Array, targets: Array, options: tuple[Any, ...], out: Array | None, again: Any) -> Any:
        arrays = x, targets, *options[:3]
        if out is not None or not _are_plain(*arrays):
            return None
        asks = _asks(*arrays)
        if asks and (p.verb != "cross_entropy" or torch._C._are_functorch_transforms_active()):
            return None
        value = inner(_array(x), _array(targets), _options(options), None, None)
        if value is None:
            return None
        if isinstance(value, tuple):
            return _tensor(value[0], x), torch.from_numpy(value[1])
        if not asks:
            return _tensor(value, x)
        numbers = options[3:]

        def back(u: Any, x: Any, targets: Any, *row: Any) -> Any:
            return gradient(x, targets, (*row, *numbers), None, None, u)

        def long(x: Array, targets: Array, *row: Any) -> Array:
            return again(x, targets, axis, *row, *numbers)

        return _Known.apply(_Rule(_tensor(value, x), back, long), *arrays)

    return inner and entry


def hessian_product(p: Problem, ndim: int, entry_of: Callable[[str, Problem], Any]) -> Any:
    inner = entry_of(p.verb, _numpy(p))

    def entry(x: Array, targets: Array, v: Array, options: tuple[Any, ...], again: Any) -> Any:
        arrays = x, targets, v, *options[:3]
        if not _are_plain(*arrays) or _asks(*arrays):
            return None
        product = inner(_array(x), _array(targets), _array(v), _options(options), None)
        return None if product is None else torch.from_numpy(product)

    return inner and entry


def gradient_and_hessian_diag(p: Problem, ndim: int, entry_of: Callable[[str, Problem], Any]) -> Any:
    inner = entry_of(p.verb, _numpy(p))

    def entry(x: Array, targets: Array, options: tuple[Any, ...], again: Any) -> Any:
        arrays = x, targets, *options[:3]
        if not _are_plain(*arrays) or _asks(*arrays):
            return None
        found = inner(_array(x), _array(targets), _options(options), None)
        return None if found is None else tuple(map(torch.from_numpy, found))

    return inner and entry


_PRODUCTS = ("softmax_vjp", "softmax_jvp", "log_softmax_vjp", "log_softmax_jvp")
ENTRIES: dict[str, Callable[..., Any]] = {
    "softmax": like_logits,
    "log_softmax": like_logits,
    "logsumexp": logsumexp,
    **dict.fromkeys(_PRODUCTS, product),
    **dict.fromkeys(("cross_entropy", "cross_entropy_grad", "cross_entropy_and_grad"), cross_entropy),
    "cross_entropy_hvp": hessian_product,
    "cross_entropy_grad_and_hessian_diag": gradient_and_hessian_diag,
}
