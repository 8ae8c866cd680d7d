"""Softmax, its logarithm and its normaliser, with their exact products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import checks
from .choose import run
from .problem import Array, Axis, Given, on_arrays, on_logits

__all__ = [
    "log_softmax",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "logsumexp",
    "softmax",
    "softmax_jacobian",
    "softmax_jvp",
    "softmax_vjp",
]


def softmax(
    x: Array,
    /,
    *,
    axis: Axis = -1,
    where: Array | None = None,
    temperature: float = 1.0,
    out: Array | None = None,
) -> Array:
    """softmax"""
    given = on_logits("softmax", x, axis=axis, where=where, temperature=temperature, out=out)
    return written(_run("softmax", given), out)


def log_softmax(
    x: Array,
    /,
    *,
    axis: Axis = -1,
    where: Array | None = None,
    temperature: float = 1.0,
    out: Array | None = None,
) -> Array:
    """log_softmax"""
    given = on_logits("log_softmax", x, axis=axis, where=where, temperature=temperature, out=out)
    return written(_run("log_softmax", given), out)


def logsumexp(
    x: Array,
    /,
    *,
    axis: Axis = -1,
    b: Array | None = None,
    where: Array | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
) -> Array | tuple[Array, Array]:
    """logsumexp"""
    given = on_logits("logsumexp", x, axis=axis, b=b, where=where)
    xp = given.xp
    if b is None:
        value = _run("logsumexp", given)
        nan, zero, one = xp.full_like(value, math.nan), xp.zeros_like(value), xp.ones_like(value)
        sign = xp.where(value == -math.inf, zero, xp.where(xp.isnan(value), nan, one)) if return_sign else None
    else:
        value, sign = _run("signed_logsumexp", given)
        if not return_sign:
            value = xp.where(sign < 0.0, xp.full_like(value, math.nan), value)
    if keepdims:
        return (value, sign) if return_sign else value
    value = reduced(value, given.problem.axes, xp)
    return (value, reduced(sign, given.problem.axes, xp)) if return_sign else value


def softmax_jacobian(y: Array, /, *, axis: int = -1) -> Array:
    """softmax_jacobian"""
    given = on_arrays("softmax_jacobian", {"y": y}, axis=axis, one=True)
    checks.check_indexable("softmax_jacobian", given.xp, "softmax_vjp and softmax_jvp do without")
    (y,), (axis,) = given.arrays, given.problem.axes
    order = [i for i in range(y.ndim) if i != y.ndim + axis] + [y.ndim + axis]
    return run("softmax_jacobian", replace(given.problem, axes=(-1,)), given.xp.permute_dims(y, order), xp=given.xp)


def softmax_vjp(y: Array, dy: Array, /, *, axis: Axis = -1, where: Array | None = None) -> Array:
    """softmax_vjp"""
    return _run("softmax_product", on_arrays("softmax_vjp", {"y": y, "dy": dy}, axis=axis, where=where))


def softmax_jvp(y: Array, dx: Array, /, *, axis: Axis = -1, where: Array | None = None) -> Array:
    """softmax_jvp"""
    return _run("softmax_product", on_arrays("softmax_jvp", {"y": y, "dx": dx}, axis=axis, where=where))


def log_softmax_vjp(log_y: Array, dy: Array, /, *, axis: Axis = -1, where: Array | None = None) -> Array:
    """log_softmax_vjp"""
    return _run("log_softmax_vjp", on_arrays("log_softmax_vjp", {"log_y": log_y, "dy": dy}, axis=axis, where=where))


def log_softmax_jvp(log_y: Array, dx: Array, /, *, axis: Axis = -1, where: Array | None = None) -> Array:
    """log_softmax_jvp"""
    return _run("log_softmax_jvp", on_arrays("log_softmax_jvp", {"log_y": log_y, "dx": dx}, axis=axis, where=where))


def _run(operation: str, given: Given) -> Any:
    """Run an operation on whole rows; no class axis at all means classes of one, and an empty array has no rows."""
    problem, xp = given.problem, given.xp
    if any(checks.is_empty(array) for array in given.arrays):
        return _on_nothing(operation, given)
    if problem.axes:
        return run(operation, problem, *given.arrays, given.where, xp=xp)
    arrays = [None if a is None else xp.expand_dims(a, axis=-1) for a in (*given.arrays, given.where)]
    return _each(
        run(operation, replace(problem, axes=(-1,)), *arrays, xp=xp), lambda a: xp.squeeze(a, axis=-1)
    )


def _on_nothing(operation: str, given: Given) -> Any:
    x, xp, axes = given.arrays[0], given.xp, given.problem.axes
    if operation not in ("logsumexp", "signed_logsumexp"):
        return x * 1.0
    zero = xp.sum(x, axis=axes, keepdims=True) if axes else x * 1.0
    value = zero - math.inf
    return value if operation == "logsumexp" else (value, zero)


def _each(results: Any, f: Callable[[Array], Array]) -> Any:
    return tuple(map(f, results)) if isinstance(results, tuple) else f(results)


def reduced(x: Array, axes: tuple[int, ...], xp: Any) -> Array:
    """`x` without its reduced axes; where nothing is left, what the library's own sum returns."""
    x = xp.squeeze(x, axis=axes) if axes else x
    return scalar(x, xp)


def scalar(x: Array, xp: Any) -> Array:
    return x[()] if x.ndim == 0 and checks.library_of(xp) == "numpy" else x


def written(result: Array, out: Array | None) -> Array:
    if out is None:
        return result
    out[...] = result
    return out
