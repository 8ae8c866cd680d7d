"""Products whose rows that are nan, but unused, have gradient 0."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ...calls.records import Array


def _cotangent(times: Callable[..., Array], u: Array, factor: Array) -> Array:
    """u · factor, 0 where u is."""
    return jnp.where(u == 0.0, 0.0, times(u, factor))


def _batched(times: Callable[..., Array], factors: Any, axes: Any) -> tuple[Array, int]:
    (size,) = {a.shape[axis] for a, axis in zip(factors, axes, strict=True) if axis is not None}
    a, b = (
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(factors, axes, strict=True)
    )
    return times(a, b), 0


def _bilinear(name: str, product: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    primitive = Primitive(name)
    times: Callable[..., Array] = primitive.bind
    primitive.def_impl(product)
    primitive.def_abstract_eval(lambda a, b: a)
    ad.defbilinear(primitive, lambda u, a, b: _cotangent(times, u, b), lambda u, a, b: _cotangent(times, u, a))
    batching.primitive_batchers[primitive] = partial(_batched, times)
    mlir.register_lowering(primitive, mlir.lower_fun(product, multiple_results=False))
    return times


times = _bilinear("xsoftmax_times", jnp.multiply)
times_or_zero = _bilinear("xsoftmax_times_or_zero", lambda a, b: jnp.where(b == 0.0, 0.0, a * b))
