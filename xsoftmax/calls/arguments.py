"""The small hashable description of what is asked, built from checked arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..libraries.arrays import (
    HALF,
    cast,
    container_of,
    default_float,
    device_of,
    dtype_name,
    has_dtype,
    index_dtype,
    is_symbolic,
    library_of,
    with_axis,
)
from . import checks
from .checks import Array, Axis


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked, without the arrays: hashable, so that the choice of an implementation is cached.

    `dtype` is that of the logits, `compute` that of the arithmetic, `result` that of the arrays returned; `axes` are
    negative. `wants` says which of "loss" and "grad" a cross-entropy returns.
    """

    verb: str
    library: str
    container: str
    dtype: str
    compute: str
    result: str
    axes: tuple[int, ...]
    masked: bool = False
    temperature: float = 1.0
    softcap: float | None = None
    labels: bool = False
    class_weighted: bool = False
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    wants: tuple[str, ...] = ()


class Rows(NamedTuple):
    """The row options that are arrays, each broadcastable to the logits or None.

    `scale` multiplies a row's gradient, 0 for a row that is absent; `zeta` is the factor of the squared logsumexp.
    """

    where: Array | None = None
    weight: Array | None = None
    scale: Array | float | None = None
    zeta: Array | float = 0.0


class Given(NamedTuple):
    """Checked arrays on their way to an implementation, in floating dtypes and native byte order."""

    problem: Problem
    xp: Any
    device: Any
    arrays: tuple[Array | None, ...]
    where: Array | None


class GivenLoss(NamedTuple):
    """Checked arguments of a loss; `targets` are labels in the widest integer dtype, or probabilities as given.

    `x` are the logits; with `linear`, (linear_weight, linear_bias), what is multiplied to become them. `totals` is
    given where these are some rows of a larger batch: what `weighing.totals` tells of all, empty if no mean is asked
    for.
    """

    problem: Problem
    xp: Any
    device: Any
    x: Array
    classes: int
    targets: Array
    raw_targets: Array
    where: Array | None
    weight: Array | None
    sample_weight: Array | None
    ignore_index: int | None
    v: Array | None = None
    linear: tuple[Array, Array | None] | None = None
    totals: tuple[Array | int, ...] | None = None


def on_logits(
    verb: str,
    x: Array,
    *,
    axis: Axis,
    b: Array | None = None,
    where: Array | None = None,
    temperature: float = 1.0,
    out: Array | None = None,
) -> Given:
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
        masked=where is not None,
        temperature=checks.positive(verb, "temperature", temperature),
    )
    return Given(problem, xp, device, floats, where)


def on_arrays(
    verb: str, arrays: dict[str, Array], *, axis: Axis, where: Array | None = None, one: bool = False
) -> Given:
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
        masked=where is not None,
    )
    return Given(problem, xp, device, floats, where)


def on_loss(
    verb: str,
    logits: Array,
    targets: Array,
    axis: int,
    where: Array | None,
    weight: Array | None,
    sample_weight: Array | None,
    ignore_index: int | None,
    label_smoothing: float,
    temperature: float,
    softcap: float | None,
    z_loss: float,
    reduction: str,
    *,
    wants: tuple[str, ...] = (),
    v: Array | None = None,
    out: Array | None = None,
    name: str = "logits",
) -> GivenLoss:
    """The cross-entropy family, on logits or (by `name`) on probabilities."""
    required = {name: logits, "targets": targets, **({} if wants else {"v": v})}
    optional = {"where": where, "weight": weight, "sample_weight": sample_weight}
    xp = checks.namespace(verb, required, **optional)
    x, v = (checks.as_array(a, xp) for a in (logits, v))
    checks.check_dtype(verb, name, x)
    axis = checks.one_axis(verb, axis, x.ndim, name)
    shape = tuple(x.shape)
    if shape[axis] == 0:
        raise ValueError(f"{verb}: {name} has shape {shape}, expected at least one class on axis {axis}")
    if v is not None:
        checks.check_dtype(verb, "v", v)
        checks.check_shape(verb, "v", v, shape, f"{name}.shape")
    floats = floating(x, xp, device_of(x))
    checks.check_out(verb, out, floats, {**required, **optional}, xp)
    given = _on_loss(
        verb, xp, floats, shape, axis, dtype_name(floats), targets, where, weight, sample_weight, ignore_index,
        label_smoothing, temperature, softcap, z_loss, reduction, wants, name
    )  # fmt: skip
    return given._replace(v=v)


def on_linear_loss(
    verb: str,
    input: Array,
    linear_weight: Array,
    targets: Array,
    linear_bias: Array | None,
    where: Array | None,
    weight: Array | None,
    sample_weight: Array | None,
    ignore_index: int | None,
    label_smoothing: float,
    temperature: float,
    softcap: float | None,
    z_loss: float,
    reduction: str,
    *,
    wants: tuple[str, ...],
) -> GivenLoss:
    """A loss of logits = input @ linear_weight.T + linear_bias, which are not made here."""
    required = {"input": input, "linear_weight": linear_weight, "targets": targets}
    optional = {"linear_bias": linear_bias, "where": where, "weight": weight, "sample_weight": sample_weight}
    xp = checks.namespace(verb, required, **optional)
    x, factor, bias = (checks.as_array(a, xp) for a in (input, linear_weight, linear_bias))
    for name, a in (("input", x), ("linear_weight", factor), ("linear_bias", bias)):
        if a is not None:
            checks.check_dtype(verb, name, a)
    checks.check_linear(verb, x, factor, bias)
    device = device_of(x)
    x, factor = floating(x, xp, device), floating(factor, xp, device)
    bias = None if bias is None else floating(bias, xp, device)
    shape = (*x.shape[:-1], factor.shape[0])
    dtype = promoted([dtype_name(a) for a in (x, factor, bias) if a is not None])
    given = _on_loss(
        verb, xp, x, shape, -1, dtype, targets, where, weight, sample_weight, ignore_index,
        label_smoothing, temperature, softcap, z_loss, reduction, wants, "logits"
    )  # fmt: skip
    return given._replace(linear=(factor, bias))


def _on_loss(
    verb: str,
    xp: Any,
    x: Array,
    shape: tuple[Any, ...],
    axis: int,
    dtype: str,
    targets: Array,
    where: Array | None,
    weight: Array | None,
    sample_weight: Array | None,
    ignore_index: int | None,
    label_smoothing: float,
    temperature: float,
    softcap: float | None,
    z_loss: float,
    reduction: str,
    wants: tuple[str, ...],
    name: str,
) -> GivenLoss:
    """`shape` and `dtype` are those of the logits."""
    targets, where, weight, sample_weight = (checks.as_array(a, xp) for a in (targets, where, weight, sample_weight))
    rows = shape[:axis] + shape[len(shape) + axis + 1 :]
    labels = checks.check_targets(verb, name, targets, shape, rows, axis)
    if labels:
        checks.check_indexable(verb, xp, "pass probabilities, such as one-hot rows")
    checks.check_where(verb, where, shape, name)
    checks.check_ignore_index(verb, ignore_index, labels)
    checks.check_reduction(verb, reduction)
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
        masked=where is not None,
        temperature=checks.positive(verb, "temperature", temperature),
        softcap=None if softcap is None else checks.positive(verb, "softcap", softcap),
        labels=labels,
        class_weighted=weight is not None,
        label_smoothing=checks.fraction(verb, "label_smoothing", label_smoothing),
        z_loss=checks.finite(verb, "z_loss", z_loss),
        wants=wants,
    )
    if weight is not None:
        weight = xp.reshape(cast(weight, compute, xp), (-1,) + (1,) * (-axis - 1))
    if sample_weight is not None:
        sample_weight = with_axis(cast(sample_weight, compute, xp), axis)
    widened = targets
    if labels:
        widened, ignore_index = _widened(targets, ignore_index, xp, device)
    return GivenLoss(problem, xp, device, x, shape[axis], widened, targets, where, weight, sample_weight, ignore_index)


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


def loss_dtype(dtype: str) -> str:
    """The loss of half-precision logits is float32."""
    return "float32" if dtype in HALF else dtype
