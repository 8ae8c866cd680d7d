"""A product whose rows that are nan, but unused, have gradient 0."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ...calls.records import Array


def times(a: Array, b: Array) -> Array:
    return _times_p.bind(a, b)


def _cotangent(u: Array, factor: Array) -> Array:
    """u · factor, 0 where u is."""
    return jnp.where(u == 0.0, 0.0, times(u, factor))


def _batched(factors: Any, axes: Any) -> tuple[Array, int]:
    (size,) = {a.shape[axis] for a, axis in zip(factors, axes, strict=True) if axis is not None}
    a, b = (
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(factors, axes, strict=True)
    )
    return times(a, b), 0


_times_p = Primitive("xsoftmax_times")
_times_p.def_impl(jnp.multiply)
_times_p.def_abstract_eval(lambda a, b: a)
ad.defbilinear(_times_p, lambda u, a, b: _cotangent(u, b), lambda u, a, b: _cotangent(u, a))
batching.primitive_batchers[_times_p] = _batched
mlir.register_lowering(_times_p, mlir.lower_fun(jnp.multiply, multiple_results=False))
