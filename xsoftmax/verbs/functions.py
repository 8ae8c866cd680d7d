"""Softmax, its logarithm and its normaliser, with their exact products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..calls import checks
from ..calls.arguments import on_arrays, on_logits
from ..calls.records import Array, ArrayCall, Axis
from ..calls.table import VERBS
from ..choose import entry, perform
from ..libraries.arrays import cast, with_axis
from .graphs import one_node
from .results import reduced, untouched, written

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
    """Probabilities from logits: ``y_i = exp(x_i) / Σ_j exp(x_j)``.

    Computed as ``exp(x_i - c) / Σ_j exp(x_j - c)`` with a shift ``c`` near the maximum, for which ``x - c`` is exact.

    Parameters
    ----------
    x : array, shape ``(..., C, ...)``
        Logits of any array-API library: float16, bfloat16, float32, float64; integers and bools are converted to the
        library's default floating dtype first.
    axis : int, tuple of int or None, default -1
        The axes that hold the classes; None: all.
    where : bool array, optional
        Broadcastable to `x`. Where False, a class is absent whatever `x` holds there, and its probability 0.
    temperature : float, default 1.0
        Divides the logits; finite and > 0.
    out : array, optional
        Receives the result: its shape and dtype, writeable; may be `x` itself, but not overlap it in part.

    Returns
    -------
    array, shape of `x`
        Probabilities, in the library, on the device and in the dtype of `x`.

    Raises
    ------
    TypeError
        If an argument is not an array of the one library and device, or of an unsupported dtype, or `out` can't be
        written to.
    ValueError
        If shapes don't fit, `axis` is out of range or repeated, `temperature` is not a finite number > 0, or `out`
        overlaps an input in part.

    Notes
    -----
    Error in ulps of the exact result, for every element: float16, bfloat16 and float32 ≤ 1 (float32 without float64
    on the device ≤ 8), float64 ≤ 6; ``|Σ y - 1|`` ≤ 2 eps. No probability exceeds 1, equal logits give bit-equal
    probabilities.

    A logit of -inf has probability 0. A row with nan or +inf, or with nothing but -inf, is nan; a row with nothing
    kept by `where` is 0. An empty array gives an empty array. Lazy arrays stay lazy.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions",
    IMA J. Numer. Anal. 41 (2021), https://doi.org/10.1093/imanum/draa038

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.softmax(np.array([1.0, 2.0, 3.0])).round(3)
    array([0.09 , 0.245, 0.665])
    >>> xs.softmax(np.array([1000.0, 1000.0]))  # exp(1000) overflows; this does not
    array([0.5, 0.5])
    """
    run = entry("softmax", x, axis)
    if run is not None and (y := run(x, where, temperature, out, _like_logits)) is not None:
        return y
    return _like_logits(x, "softmax", axis=axis, where=where, temperature=temperature, out=out)


def log_softmax(
    x: Array,
    /,
    *,
    axis: Axis = -1,
    where: Array | None = None,
    temperature: float = 1.0,
    out: Array | None = None,
) -> Array:
    """Log-probabilities from logits: ``log y_i = x_i - log Σ_j exp(x_j)``, in nats.

    Computed as ``(x_i - m) - log1p(q / wm)``: one copy of the maximum ``m`` stays out of the sum ``q``, so that a
    log-probability next to 0 keeps all its digits.

    Parameters
    ----------
    x, axis, where, temperature, out
        As in `softmax`.

    Returns
    -------
    array, shape of `x`
        Log-probabilities ≤ 0, in the library, on the device and in the dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Notes
    -----
    Error in ulps of the exact result, also next to 0: float16, bfloat16 and float32 ≤ 1 (float32 without float64 on
    the device ≤ 8), float64 ≤ 6.

    A logit of -inf has log-probability -inf, and so has a class that `where` masks. A row with nan or +inf, or with
    nothing but -inf, is nan. An empty array gives an empty array. Lazy arrays stay lazy.

    References
    ----------
    https://doi.org/10.1093/imanum/draa038

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.log_softmax(np.array([40.0, 0.0]))  # the first: -log1p(exp(-40))
    array([-4.24835426e-18, -4.00000000e+01])
    """
    run = entry("log_softmax", x, axis)
    if run is not None and (y := run(x, where, temperature, out, _like_logits)) is not None:
        return y
    return _like_logits(x, "log_softmax", axis=axis, where=where, temperature=temperature, out=out)


@one_node
def _like_logits(x: Array, verb: str, *, out: Array | None, **options: Any) -> Array:
    call = on_logits(verb, x, out=out, **options)
    return written(perform(_rows, call, verb, out), out)


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
    """Logarithm of a sum of exponentials: ``log Σ_i b_i exp(x_i)``, in nats.

    Computed as ``m + log1p(q / wm)``, with one copy of the maximum ``m`` kept out of the sum ``q``.

    Parameters
    ----------
    x : array, shape ``(..., C, ...)``
        As in `softmax`.
    axis : int, tuple of int or None, default -1
        The axes that are summed over; None: all. Read on the broadcast shape of `x` and `b`.
    b : array, optional
        Factors of any sign, broadcast against `x` both ways; an integer `b` is converted to the default floating
        dtype, and the result promoted. A factor 0 hides its class, whatever `x` holds there.
    where : bool array, optional
        Broadcastable to `x`. Where False, a class is absent.
    keepdims : bool, default False
        Whether summed axes stay, with length 1.
    return_sign : bool, default False
        Whether to return ``(log |Σ|, sign of Σ)``; the sign is -1, 0 or 1.

    Returns
    -------
    array, or tuple of two arrays
        Without the summed axes; where none is left, what the library's own ``sum`` returns. nan where the sum is
        negative and its sign not asked for; -inf where it is 0.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Notes
    -----
    Error in ulps of ``max(|m|, |log s|, |result|)``, ``s = Σ exp(x - m)``: float16, bfloat16 and float32 ≤ 1 (float32
    without float64 on the device ≤ 4), float64 ≤ 4; with signed `b` times ``Σ |b| exp(x) / |Σ b exp(x)|``,
    and where that sum is near ±1, 4 roundings of each term below the maximum.

    A row with nothing but -inf, with nothing kept by `where`, or with no class at all gives -inf; one with +inf gives
    inf; one with nan gives nan. Lazy arrays stay lazy.

    References
    ----------
    https://doi.org/10.1093/imanum/draa038

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.logsumexp(np.array([0.0, -40.0]))
    np.float64(4.248354255291589e-18)
    >>> xs.logsumexp(np.array([[1.0, 2.0], [3.0, 3.0]]), b=np.array([1.0, -1.0]), return_sign=True)
    (array([1.54132485,       -inf]), array([-1.,  0.]))
    """
    run = entry("logsumexp", x, axis) if b is None and return_sign is False and type(keepdims) is bool else None
    if run is not None and (value := run(x, where, keepdims, _any_logsumexp)) is not None:
        return value
    return _any_logsumexp(x, axis, b, where, keepdims, return_sign)


@one_node
def _any_logsumexp(
    x: Array, axis: Axis, b: Array | None, where: Array | None, keepdims: bool, return_sign: bool
) -> Array | tuple[Array, Array]:
    keepdims = checks.flag("logsumexp", "keepdims", keepdims)
    return_sign = checks.flag("logsumexp", "return_sign", return_sign)
    call = on_logits("logsumexp", x, axis=axis, b=b, where=where)
    rows = "kept rows" if keepdims else "rows"
    call = call._replace(returns=(rows, rows) if return_sign else (rows,))
    return perform(_logsumexp, call, b is not None, keepdims, return_sign)


def _logsumexp(call: ArrayCall, signed: bool, keepdims: bool, return_sign: bool, *, run: Any) -> Any:
    xp = call.xp
    if not signed:
        value, sign = _rows(call, "logsumexp", run=run), None
        if return_sign:
            nan, zero, one = xp.full_like(value, math.nan), xp.zeros_like(value), xp.ones_like(value)
            sign = xp.where(value == -math.inf, zero, xp.where(xp.isnan(value), nan, one))
    else:
        value, sign = _rows(call, "signed_logsumexp", run=run)
        if not return_sign:
            value = xp.where(sign < 0.0, xp.full_like(value, math.nan), value)
    if keepdims:
        return (value, sign) if return_sign else value
    value = reduced(value, call.problem.axes, xp)
    return (value, reduced(sign, call.problem.axes, xp)) if return_sign else value


@one_node
def softmax_jacobian(y: Array, /, *, axis: int = -1) -> Array:
    """Jacobian of softmax: ``∂y_i / ∂x_j = y_i (δ_ij - y_j)``.

    Parameters
    ----------
    y : array, shape ``(..., C, ...)``
        Probabilities, such as ``softmax(x)``.
    axis : int, default -1
        The axis that holds the classes.

    Returns
    -------
    array, shape ``(..., C, C)``
        The class axis is moved last, and there twice. `softmax_vjp` and `softmax_jvp` multiply by this matrix without
        forming it.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Notes
    -----
    Error in ulps: float16, bfloat16 and float32 ≤ 1 (float32 without float64 on the device ≤ 8), float64 ≤ 6. On the
    diagonal, ``1 - y_i`` of a class with more than half is the sum of the others, which does not cancel.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.softmax_jacobian(np.array([0.25, 0.75]))
    array([[ 0.1875, -0.1875],
           [-0.1875,  0.1875]])
    """
    call = on_arrays("softmax_jacobian", {"y": y}, axis=axis, one=True)
    checks.check_indexable("softmax_jacobian", call.xp, "softmax_vjp and softmax_jvp do without")
    checks.check_room("softmax_jacobian", "y", call.arrays[0], call.xp)
    return perform(_softmax_jacobian, call)


def _softmax_jacobian(call: ArrayCall, *, run: Any) -> Array:
    y: Array = call.arrays[0]
    (axis,) = call.problem.axes
    order = [i for i in range(y.ndim) if i != y.ndim + axis] + [y.ndim + axis]
    y = call.xp.permute_dims(y, order)
    if checks.is_empty(y):
        return with_axis(y, -1) * with_axis(y, -2)
    return run("softmax_jacobian", replace(call.problem, axes=(-1,)), y, xp=call.xp)


def softmax_vjp(y: Array, dy: Array, /, *, axis: Axis = -1, where: Array | None = None) -> Array:
    """Cotangent times the Jacobian of softmax: ``y_i (dy_i - Σ_j y_j dy_j)``.

    Parameters
    ----------
    y : array, shape ``(..., C, ...)``
        Probabilities, such as ``softmax(x)``.
    dy : array, shape of `y`
        Cotangent of `y`.
    axis : int, tuple of int or None, default -1
        The axes that hold the classes; None: all.
    where : bool array, optional
        Broadcastable to `y`. Where False, a class is absent whatever `y` and `dy` hold there, and the result 0.

    Returns
    -------
    array, shape of `y`
        Cotangent of `x`, in the promoted dtype of `y` and `dy`; O(C) memory a row, never the C × C matrix.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Notes
    -----
    Error in ulps of ``y_i (|dy_i| + Σ y |dy|)``: float16, bfloat16 and float32 ≤ 1 (float32 without float64 on the
    device ≤ 8), float64 ≤ 6, for `y` that sums to 1. Cotangents are taken relative to that of a class with more than
    half of `y`, whose own entry would otherwise cancel.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.softmax_vjp(np.array([0.25, 0.75]), np.array([1.0, 0.0]))
    array([ 0.1875, -0.1875])
    """
    return _product("softmax_vjp", {"y": y, "dy": dy}, axis, where)


def softmax_jvp(y: Array, dx: Array, /, *, axis: Axis = -1, where: Array | None = None) -> Array:
    """Jacobian of softmax times a tangent: ``y_i (dx_i - Σ_j y_j dx_j)``.

    The Jacobian is symmetric: the same product as `softmax_vjp`, under the name for the forward direction.

    Parameters
    ----------
    y, dx, axis, where
        As `y`, `dy`, `axis` and `where` of `softmax_vjp`; `dx` is a tangent of `x`.

    Returns
    -------
    array, shape of `y`
        Tangent of `y`.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.softmax_jvp(np.array([0.25, 0.75]), np.array([0.0, 1.0]))
    array([-0.1875,  0.1875])
    """
    return _product("softmax_jvp", {"y": y, "dx": dx}, axis, where)


def log_softmax_vjp(log_y: Array, dy: Array, /, *, axis: Axis = -1, where: Array | None = None) -> Array:
    """Cotangent times the Jacobian of log_softmax: ``dy_i - exp(log_y_i) Σ_j dy_j``.

    Parameters
    ----------
    log_y : array, shape ``(..., C, ...)``
        Log-probabilities, such as ``log_softmax(x)``.
    dy : array, shape of `log_y`
        Cotangent of `log_y`.
    axis : int, tuple of int or None, default -1
        The axes that hold the classes; None: all.
    where : bool array, optional
        Broadcastable to `log_y`. Where False, a class is absent whatever the arrays hold there, and the result 0.

    Returns
    -------
    array, shape of `log_y`
        Cotangent of `x`, in the promoted dtype of `log_y` and `dy`.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Notes
    -----
    Error in ulps of ``|dy_i| (1 - y_i) + y_i Σ_{j≠i} |dy_j|``, so that a confident class keeps its digits too: float16,
    bfloat16 and float32 ≤ 1 (float32 without float64 on the device ≤ 8), float64 ≤ 6.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.log_softmax_vjp(np.log([0.25, 0.75]), np.array([1.0, 0.0]))
    array([ 0.75, -0.75])
    """
    return _product("log_softmax_vjp", {"log_y": log_y, "dy": dy}, axis, where)


def log_softmax_jvp(log_y: Array, dx: Array, /, *, axis: Axis = -1, where: Array | None = None) -> Array:
    """Jacobian of log_softmax times a tangent: ``dx_i - Σ_j exp(log_y_j) dx_j``.

    Parameters
    ----------
    log_y, dx, axis, where
        As `log_y`, `dy`, `axis` and `where` of `log_softmax_vjp`; `dx` is a tangent of `x`.

    Returns
    -------
    array, shape of `log_y`
        Tangent of `log_y`.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Notes
    -----
    Error in ulps of ``|dx_i| (1 - y_i) + Σ_{j≠i} y_j |dx_j|``, so that a confident class keeps its digits too: float16,
    bfloat16 and float32 ≤ 1 (float32 without float64 on the device ≤ 8), float64 ≤ 6.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.log_softmax_jvp(np.log([0.25, 0.75]), np.array([1.0, 0.0]))
    array([ 0.75, -0.25])
    """
    return _product("log_softmax_jvp", {"log_y": log_y, "dx": dx}, axis, where)


def _product(verb: str, arrays: dict[str, Array], axis: Axis, where: Array | None) -> Array:
    y, v = arrays.values()
    run = entry(verb, y, axis)
    if run is not None and (product := run(y, v, where, _any_product)) is not None:
        return product
    return _any_product(*arrays.values(), verb=verb, names=tuple(arrays), axis=axis, where=where)


@one_node
def _any_product(y: Array, v: Array, *, verb: str, names: tuple[str, ...], axis: Axis, where: Array | None) -> Array:
    call = on_arrays(verb, dict(zip(names, (y, v), strict=True)), axis=axis, where=where)
    return perform(_rows, call, (*VERBS[verb].operations, verb)[0])


def _rows(call: ArrayCall, operation: str, out: Array | None = None, *, run: Any) -> Any:
    """Run an operation on whole rows; no class axis at all means classes of one, and an empty array has no rows."""
    problem, xp = call.problem, call.xp
    if any(checks.is_empty(array) for array in call.arrays):
        return _on_nothing(operation, call)
    if problem.axes:
        return run(operation, problem, *call.arrays, call.where, xp=xp, out=out)
    arrays = [None if a is None else with_axis(a, -1) for a in (*call.arrays, call.where)]
    return _each(run(operation, replace(problem, axes=(-1,)), *arrays, xp=xp), lambda a: xp.squeeze(a, axis=-1))


def _on_nothing(operation: str, call: ArrayCall) -> Any:
    x, xp, axes = call.arrays[0], call.xp, call.problem.axes
    if operation not in ("logsumexp", "signed_logsumexp"):
        return untouched(x, xp, call.problem.result)
    zero = cast(xp.sum(cast(x, "float32", xp), axis=axes, keepdims=True), call.problem.result, xp)
    value = xp.full_like(zero, -math.inf)
    return value if operation == "logsumexp" else (value, zero)


def _each(results: Any, f: Callable[[Array], Array]) -> Any:
    return tuple(map(f, results)) if isinstance(results, tuple) else f(results)
