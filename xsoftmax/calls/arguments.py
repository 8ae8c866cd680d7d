"""The small hashable description of what is asked, built from checked arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..libraries.arrays import (
    HALF,
    cast,
    container_of,
    default_float,
    device_of,
    device_type,
    dtype_name,
    has_dtype,
    index_dtype,
    is_symbolic,
    library_of,
    with_axis,
)
from . import checks
from .records import Array, ArrayCall, Axis, LossCall, Options, Problem
from .table import VERBS


def on_logits(
    verb: str,
    x: Array,
    *,
    axis: Axis,
    b: Array | None = None,
    where: Array | None = None,
    temperature: float = 1.0,
    out: Array | None = None,
) -> ArrayCall:
    """softmax and its kin; logits and factors `b` are broadcast against each other."""
    xp = checks.namespace(verb, {"x": x}, b=b, where=where)
    x, b, where = (checks.as_array(a, xp) for a in (x, b, where))
    checks.check_dtype(verb, "x", x)
    device = device_of(x)
    floats: tuple[Array, ...] = (floating(x, xp, device),)
    if b is not None:
        checks.check_dtype(verb, "b", b)
        checks.check_broadcastable(verb, "b", b, "x", x)
        floats = _broadcast(floats[0], floating(b, xp, device), xp)
    checks.check_where(verb, where, floats[0].shape, "x")
    axes = checks.negative_axes(verb, axis, floats[0].ndim, "x")
    checks.check_out(verb, out, floats[0], {"x": x, "where": where}, xp)
    dtype = promoted([dtype_name(array) for array in floats])
    problem = Problem(
        verb,
        library_of(xp),
        container_of(x, library_of(xp)),
        dtype,
        compute_dtype(dtype, xp, device, wide_halves=False),
        dtype,
        axes,
        device=device_type(x, library_of(xp)),
        masked=where is not None,
        temperature=checks.positive(verb, "temperature", temperature),
    )
    return ArrayCall(problem, xp, device, floats, where, VERBS[verb].returns)


def on_arrays(
    verb: str, arrays: dict[str, Array], *, axis: Axis, where: Array | None = None, one: bool = False
) -> ArrayCall:
    """Verbs on one or more arrays of the same shape; the result has their promoted dtype."""
    xp = checks.namespace(verb, arrays, where=where)
    where = checks.as_array(where, xp)
    given = {name: checks.as_array(x, xp) for name, x in arrays.items()}
    (first, x), *others = given.items()
    for name, array in given.items():
        checks.check_dtype(verb, name, array)
    for name, array in others:
        checks.check_shape(verb, name, array, tuple(x.shape), f"{first}.shape")
    checks.check_where(verb, where, x.shape, first)
    device = device_of(x)
    axes = (checks.one_axis(verb, axis, x.ndim, first),) if one else checks.negative_axes(verb, axis, x.ndim, first)
    floats = tuple(floating(array, xp, device) for array in given.values())
    dtype = promoted([dtype_name(array) for array in floats])
    problem = Problem(
        verb,
        library_of(xp),
        container_of(x, library_of(xp)),
        dtype,
        compute_dtype(dtype, xp, device, wide_halves=False),
        dtype,
        axes,
        device=device_type(x, library_of(xp)),
        masked=where is not None,
    )
    return ArrayCall(problem, xp, device, floats, where, VERBS[verb].returns)


class _Logits(NamedTuple):
    """The logits of a loss, or what a linear one makes them of: `x`. `name` is what an error calls them."""

    x: Array
    name: str
    shape: tuple[Any, ...]
    axis: int
    dtype: str


def on_loss(
    verb: str,
    arrays: dict[str, Array],
    options: Options,
    *,
    axis: int,
    wants: tuple[str, ...] = (),
    out: Array | None = None,
) -> LossCall:
    """The cross-entropy family, on logits or probabilities, which come first, targets, and a vector `v` if need be."""
    optional = {"where": options.where, "weight": options.weight, "sample_weight": options.sample_weight}
    xp = checks.namespace(verb, arrays, **optional)
    name, x = next(iter(arrays.items()))
    x, v = (checks.as_array(a, xp) for a in (x, arrays.get("v")))
    checks.check_dtype(verb, name, x)
    axis = checks.one_axis(verb, axis, x.ndim, name)
    shape = tuple(x.shape)
    if shape[axis] == 0:
        raise ValueError(f"{verb}: {name} has shape {shape}, expected at least one class on axis {axis}")
    if v is not None:
        checks.check_dtype(verb, "v", v)
        checks.check_shape(verb, "v", v, shape, f"{name}.shape")
    floats = floating(x, xp, device_of(x))
    checks.check_out(verb, out, floats, {**arrays, **optional}, xp)
    logits = _Logits(floats, name, shape, axis, dtype_name(floats))
    return _on_loss(verb, xp, logits, arrays["targets"], options, wants)._replace(v=v)


def on_linear_loss(verb: str, arrays: dict[str, Array], options: Options, *, wants: tuple[str, ...]) -> LossCall:
    """A loss of logits = input @ linear_weight.T + linear_bias, which are not made here."""
    required = {name: a for name, a in arrays.items() if name != "linear_bias"}
    optional = {"where": options.where, "weight": options.weight, "sample_weight": options.sample_weight}
    xp = checks.namespace(verb, required, linear_bias=arrays["linear_bias"], **optional)
    linear = {name: checks.as_array(a, xp) for name, a in arrays.items() if name != "targets"}
    for name, a in linear.items():
        if a is not None:
            checks.check_dtype(verb, name, a)
    checks.check_linear(verb, *linear.values())
    device = device_of(linear["input"])
    x, factor = (floating(linear[name], xp, device) for name in ("input", "linear_weight"))
    bias = None if linear["linear_bias"] is None else floating(linear["linear_bias"], xp, device)
    dtype = promoted([dtype_name(a) for a in (x, factor, bias) if a is not None])
    logits = _Logits(x, "logits", (*x.shape[:-1], factor.shape[0]), -1, dtype)
    return _on_loss(verb, xp, logits, arrays["targets"], options, wants)._replace(linear=(factor, bias))


def _on_loss(verb: str, xp: Any, logits: _Logits, targets: Array, options: Options, wants: tuple[str, ...]) -> LossCall:
    x, name, shape, axis, dtype = logits
    targets, where, weight, sample_weight = (
        checks.as_array(a, xp) for a in (targets, options.where, options.weight, options.sample_weight)
    )
    rows = shape[:axis] + shape[len(shape) + axis + 1 :]
    labels = checks.check_targets(verb, name, targets, shape, rows, axis)
    if labels:
        checks.check_indexable(verb, xp, "pass probabilities, such as one-hot rows")
    checks.check_where(verb, where, shape, name)
    checks.check_ignore_index(verb, options.ignore_index, labels)
    checks.check_reduction(verb, options.reduction)
    for key, array, expected, why in (
        ("weight", weight, (shape[axis],), f"the number of classes of {name} on axis {axis}"),
        ("sample_weight", sample_weight, rows, f"{name}.shape without axis {axis}"),
    ):
        if array is not None:
            checks.check_dtype(verb, key, array)
            checks.check_shape(verb, key, array, expected, why)
    device = device_of(x)
    compute = compute_dtype(dtype, xp, device, wide_halves=True)
    problem = Problem(
        verb,
        library_of(xp),
        container_of(x, library_of(xp)),
        dtype,
        compute,
        dtype,
        (axis,),
        device=device_type(x, library_of(xp)),
        masked=where is not None,
        temperature=checks.positive(verb, "temperature", options.temperature),
        softcap=None if options.softcap is None else checks.positive(verb, "softcap", options.softcap),
        labels=labels,
        class_weighted=weight is not None,
        label_smoothing=checks.fraction(verb, "label_smoothing", options.label_smoothing),
        z_loss=checks.finite(verb, "z_loss", options.z_loss),
        wants=wants,
    )
    widened, ignored = _widened(targets, options.ignore_index, xp, device) if labels else (targets, None)
    return LossCall(
        problem,
        xp,
        device,
        x,
        classes=shape[axis],
        targets=widened,
        raw_targets=targets,
        where=where,
        weight=None if weight is None else xp.reshape(cast(weight, compute, xp), (-1,) + (1,) * (-axis - 1)),
        sample_weight=None if sample_weight is None else with_axis(cast(sample_weight, compute, xp), axis),
        ignore_index=ignored,
        reduction=options.reduction,
        returns=_returned(verb, options.reduction),
    )


def _returned(verb: str, reduction: str) -> tuple[str, ...]:
    return tuple("number" if a == "rows" and reduction != "none" else a for a in VERBS[verb].returns)


def _broadcast(x: Array, b: Array, xp: Any) -> tuple[Array, Array]:
    """Both in their promoted dtype and broadcast shape; by addition, which Dask can do where a shape is unknown."""
    dtype = promoted([dtype_name(x), dtype_name(b)])
    x, b = cast(x, dtype, xp), cast(b, dtype, xp)
    if tuple(x.shape) == tuple(b.shape):
        return x, b
    return x + xp.zeros_like(b), b + xp.zeros_like(x)


def _widened(labels: Array, ignore_index: int | None, xp: Any, device: Any) -> tuple[Array, int | None]:
    """Labels in the widest signed dtype, and what they are compared with; an unsigned one that doesn't fit is < 0."""
    sign, bits = dtype_name(labels).split("int")
    widest = index_dtype(xp, device)
    least, most = (0, 2 ** int(bits) - 1) if sign else (-(2 ** (int(bits) - 1)), 2 ** (int(bits) - 1) - 1)
    if ignore_index is not None:
        ignore_index = ignore_index if is_symbolic(ignore_index) else int(ignore_index)
        if not least <= ignore_index <= most:
            ignore_index = None
        elif ignore_index > xp.iinfo(widest).max:
            ignore_index -= 2 ** int(bits)  # as the cast does
    return (labels if labels.dtype == widest else xp.astype(labels, widest)), ignore_index


def floating(x: Array, xp: Any, device: Any) -> Array:
    """`x` in native byte order; integers and bools in the library's default floating dtype."""
    name = dtype_name(x)
    return cast(x, name if name in checks.FLOATING else default_float(xp, device), xp)


def compute_dtype(dtype: str, xp: Any, device: Any, *, wide_halves: bool) -> str:
    """The dtype of the arithmetic: float64 for float32 where it is at hand; half precision only needs float32."""
    if dtype in HALF and not wide_halves:
        return "float32"
    return "float64" if has_dtype("float64", xp, device) else "float32"


def promoted(names: list[str]) -> str:
    """The narrowest dtype that holds all of `names`; float16 and bfloat16 meet in float32."""
    if len(set(names)) == 1:
        return names[0]
    return "float64" if "float64" in names else "float32"
