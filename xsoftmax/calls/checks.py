"""Checks of single arguments; each error names function, argument, what was found and what was expected."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from ..libraries import facts
from ..libraries.arrays import (
    FLOATING,
    INTEGER,
    array_namespace,
    class_indices,
    device_of,
    dtype_name,
    in_graph,
    is_distributed,
    is_symbolic,
    is_writeable_array,
    library_of,
)
from ..libraries.strides import overlaps_itself
from .records import Array, Axis

# What makes an array of a data frame or of a sparse matrix, by library or kind.
_TO_ARRAY = {
    **dict.fromkeys(("pandas", "polars"), "to_numpy"),
    **dict.fromkeys(("scipy", "cupyx"), "toarray"),
    **dict.fromkeys(("BCOO", "BCSR"), "todense"),
}
REDUCTIONS = ("none", "mean", "sum")
_CHARACTERS = (str, bytes, bytearray, memoryview)  # sequences, bytes of ints even, but no tuples


# ---------------------------------------------------------------------------------------------------------------------
# arrays


def namespace(verb: str, arrays: dict[str, Array], **optional: Array | None) -> Any:
    """The one namespace of `arrays` and of the optional arrays that are not None."""
    arrays = {**arrays, **{name: x for name, x in optional.items() if x is not None}}
    found = {name: _namespace_of(verb, name, x) for name, x in arrays.items()}
    (first, xp), *others = found.items()
    for name, other in others:
        if other is not xp:
            raise TypeError(
                f"{verb}: {first} is an array of {library_of(xp)} and {name} of {library_of(other)}, "
                "expected one library"
            )
    check_device(verb, xp, arrays)
    return xp


def _namespace_of(verb: str, name: str, x: Any) -> Any:
    kind = type(x)
    library = kind.__module__.partition(".")[0]
    if library == "dask" and type(getattr(x, "_meta", None)).__name__ == "MaskedArray":
        fix = f"pass dask.array.ma.getdata({name}) and where=~dask.array.ma.getmaskarray({name})"
        raise TypeError(f"{verb}: {name} is a dask.Array of numpy.MaskedArray, expected blocks without masks; {fix}")
    if library == "torch" and (odd := _not_dense(name, x)) is not None:
        what, fix = odd
        raise TypeError(f"{verb}: {name} is {what}, expected a dense one; pass {fix}")
    refused = {
        ("numpy", "MaskedArray"): f"pass {name}.data and where=~{name}.mask",
        ("numpy", "matrix"): f"pass numpy.asarray({name})",
    }.get((library, kind.__name__))
    if refused is None and (method := _TO_ARRAY.get(library) or _TO_ARRAY.get(kind.__name__)):
        refused = f"pass {name}.{method}()"
    if refused is None and kind is not bool and not isinstance(x, (int, float, complex)):
        try:
            return array_namespace(x)
        except TypeError:
            pass
    elif refused is None and library == "numpy":  # numpy.float64 is a float and an array scalar
        return array_namespace(x)
    described = kind.__name__ if library == "builtins" else f"{library}.{kind.__name__}"
    fix = refused or f"convert it first, for example with numpy.asarray({name})"
    raise TypeError(f"{verb}: {name} is a {described}, expected an array; {fix}")


def _not_dense(name: str, x: Any) -> tuple[str, str] | None:
    """What a PyTorch tensor is instead of a dense one, and what makes it one."""
    import torch

    if not isinstance(x, torch.Tensor):
        return None
    kind, layout, dtype = f"torch.{type(x).__name__}", *(str(a).removeprefix("torch.") for a in (x.layout, x.dtype))
    if x.is_nested:
        return f"a nested {kind} ({layout})", f"torch.nested.to_padded_tensor({name}, 0.0) and a mask as where"
    if x.layout is not torch.strided:
        return f"{'a sparse' if 'sparse' in layout else 'an mkldnn'} {kind} ({layout})", f"{name}.to_dense()"
    if x.is_quantized:
        return f"a quantized {kind} ({dtype})", f"{name}.dequantize()"
    if type(x).__name__ == "MaskedTensor":
        return f"a masked {kind}", f"{name}.get_data() and where={name}.get_mask()"
    return None


def check_device(verb: str, xp: Any, arrays: dict[str, Array]) -> None:
    if facts.of(library_of(xp)).places:
        return
    (first, x), *others = arrays.items()
    for name, other in others:
        if is_distributed(other) != is_distributed(x):
            whole, cut = (first, name) if is_distributed(other) else (name, first)
            raise TypeError(
                f"{verb}: {cut} is a DTensor and {whole} is not, expected both or neither; pass "
                f"distribute_tensor({whole}, {cut}.device_mesh, …), or {cut}.full_tensor()"
            )
        if device_of(other) != device_of(x):
            raise TypeError(
                f"{verb}: {first} is on device {device_of(x)} and {name} on {device_of(other)}, expected one device"
            )


def as_array(x: Array, xp: Any) -> Array:
    """NumPy's array scalars as 0-d arrays."""
    return xp.asarray(x) if x is not None and library_of(xp) == "numpy" and isinstance(x, xp.generic) else x


_REAL = FLOATING | INTEGER | {"bool"}
_REAL_WORDS = "float16, bfloat16, float32, float64, an integer dtype or bool"


def check_dtype(verb: str, name: str, x: Array, kinds: frozenset[str] = _REAL, expected: str = _REAL_WORDS) -> None:
    if dtype_name(x) not in kinds:
        fix = "" if dtype_name(x) in _REAL else f"; convert {name} first, for example to float64"
        raise TypeError(f"{verb}: {name} has dtype {x.dtype}, expected {expected}{fix}")


def is_empty(x: Array) -> bool:
    return 0 in x.shape


def check_shape(verb: str, name: str, x: Array, expected: tuple[Any, ...], why: str) -> None:
    shape = tuple(x.shape)
    if len(shape) == len(expected) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int) for a, b in zip(shape, expected, strict=True)
    ):
        return
    raise ValueError(f"{verb}: {name} has shape {shape}, expected {tuple(expected)} = {why}")


def check_broadcasts(verb: str, name: str, x: Array, shape: tuple[Any, ...], what: str) -> None:
    own = tuple(x.shape)
    if len(own) <= len(shape) and all(
        a == 1 or a == b or not isinstance(a, int) or not isinstance(b, int)
        for a, b in zip(reversed(own), reversed(shape), strict=False)
    ):
        return
    raise ValueError(f"{verb}: {name} has shape {own}, expected one that broadcasts to {tuple(shape)} = {what}.shape")


def check_broadcastable(verb: str, name: str, x: Array, other_name: str, other: Array) -> None:
    for a, b in zip(reversed(x.shape), reversed(other.shape), strict=False):
        if isinstance(a, int) and isinstance(b, int) and a != b and 1 not in (a, b):
            raise ValueError(
                f"{verb}: {name} has shape {tuple(x.shape)}, expected one that broadcasts with "
                f"{tuple(other.shape)} = {other_name}.shape"
            )


def check_where(verb: str, where: Array | None, shape: tuple[Any, ...], what: str) -> None:
    if where is not None:
        check_dtype(verb, "where", where, frozenset({"bool"}), "bool")
        check_broadcasts(verb, "where", where, shape, what)


def check_targets(
    verb: str, name: str, targets: Array, shape: tuple[Any, ...], rows: tuple[Any, ...], axis: int
) -> bool:
    """Whether the targets are labels; their number of dimensions decides."""
    if targets.ndim == len(shape):
        check_dtype(verb, "targets", targets)
        check_shape(verb, "targets", targets, shape, f"{name}.shape")
        return False
    if targets.ndim != len(rows):
        raise ValueError(
            f"{verb}: targets has shape {tuple(targets.shape)}, expected {rows} = {name}.shape without axis {axis} "
            f"(class indices) or {shape} = {name}.shape (probabilities)"
        )
    if len(shape) > 2 and axis == -1 and tuple(targets.shape) == (shape[0], *shape[2:]) != rows:
        raise ValueError(
            f"{verb}: targets has shape {tuple(targets.shape)}, expected {rows} = {name}.shape without axis {axis}; "
            "for classes on axis 1 pass axis=1"
        )
    check_shape(verb, "targets", targets, rows, f"{name}.shape without axis {axis}")
    expected = f"an integer dtype for class indices, or shape {shape} = {name}.shape for probabilities"
    check_dtype(verb, "targets", targets, INTEGER, expected)
    return True


def check_linear(verb: str, x: Array, factor: Array, bias: Array | None) -> None:
    """logits = x @ factor.T + bias"""
    if not x.ndim:
        raise ValueError(f"{verb}: input has shape (), expected at least one dimension")
    shape, width = tuple(factor.shape), x.shape[-1]
    if factor.ndim != 2 or (isinstance(shape[1], int) and isinstance(width, int) and shape[1] != width):
        raise ValueError(
            f"{verb}: linear_weight has shape {shape}, expected (V, {width}) = for each class a row like input's"
        )
    if shape[0] == 0:
        raise ValueError(f"{verb}: linear_weight has shape {shape}, expected at least one class on axis 0")
    if bias is not None:
        check_shape(verb, "linear_bias", bias, (shape[0],), "the number of rows of linear_weight")


def check_indexable(verb: str, xp: Any, fix: str) -> None:
    """Class indices need a range; a library without one can't have them."""
    if not hasattr(xp, "arange"):
        raise NotImplementedError(f"{verb}: {library_of(xp)} has no arange, which class indices need; {fix}")


def check_room(verb: str, name: str, x: Array, xp: Any) -> None:
    """The result has a dimension more."""
    most = facts.of(library_of(xp)).most_dimensions
    if most is not None and x.ndim >= most:
        raise ValueError(
            f"{verb}: {name} has {x.ndim} dimensions, expected {most - 1} at most: "
            f"the result has one more, and arrays of {library_of(xp)} have {most} at most"
        )


def check_labels(verb: str, labels: Array, classes: int, bad: Array, xp: Any) -> None:
    """`bad` marks the labels out of range; their library can look at values."""
    if not bool(xp.any(bad)):
        return
    # argmax would do, but array-api-strict cannot return its int64 on a device without one.
    flags = xp.reshape(bad, (-1,))
    places = class_indices(flags.shape[0], -1, xp, device_of(bad))
    flat = int(xp.min(xp.where(flags, places, xp.full_like(places, flags.shape[0]))))
    first = xp.reshape(labels, (-1,))[flat]
    label = int(first.item() if hasattr(first, "item") else first)  # int() of a uint64 overflows in PyTorch
    position: list[int] = []
    for n in reversed(labels.shape):
        flat, index = divmod(flat, n)
        position.insert(0, index)
    hint = "; pass ignore_index=-100 to leave such rows out" if label == -100 else ""
    raise ValueError(
        f"{verb}: targets has label {label} at position {tuple(position)}, expected 0 <= label < {classes}{hint}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# options


def negative_axes(verb: str, axis: Axis, ndim: int, name: str) -> tuple[int, ...]:
    """`axis` as negative ints, ascending."""
    if axis is None:
        return tuple(range(-ndim, 0))
    given = tuple(axis) if isinstance(axis, Sequence) and not isinstance(axis, _CHARACTERS) else (axis,)
    axes = []
    for a in given:
        if (index := _integer(a)) is None:
            raise TypeError(f"{verb}: axis is {shown(axis)}, expected an int, a tuple of ints or None")
        if not ndim:
            raise ValueError(f"{verb}: axis is {shown(axis)}, expected None for {name} of 0 dimensions")
        if not -ndim <= index < ndim:
            raise ValueError(
                f"{verb}: axis is {shown(axis)}, expected values from {-ndim} to {ndim - 1} "
                f"for {name} of {ndim} dimension{'s' * (ndim != 1)}"
            )
        axes.append(index - ndim if index >= 0 else index)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{verb}: axis is {shown(axis)}, expected each axis once")
    return tuple(sorted(axes))


def one_axis(verb: str, axis: Any, ndim: int, name: str) -> int:
    if not ndim:
        raise ValueError(f"{verb}: {name} has shape (), expected at least one dimension")
    if _integer(axis) is None:
        raise TypeError(f"{verb}: axis is {shown(axis)}, expected an int")
    return negative_axes(verb, axis, ndim, name)[0]


def number(verb: str, name: str, value: Any, legal: Any, expected: str) -> float:
    if type(value).__name__ == "SymFloat":  # an input of a graph
        if name == "temperature":  # annealed; the other numbers stay through a training run
            return value
        value = float(value)
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if isinstance(value, bool) or not isinstance(value, Real) or kind == "m":  # NumPy's timedelta64 calls itself Real
        raise TypeError(f"{verb}: {name} is a {type(value).__name__}, expected {expected}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not legal(number):
        raise ValueError(f"{verb}: {name} is {shown(value)}, expected {expected}")
    return number


def positive(verb: str, name: str, value: Any) -> float:
    return number(verb, name, value, lambda x: 0.0 < x < math.inf, "a finite number > 0")


def finite(verb: str, name: str, value: Any) -> float:
    return number(verb, name, value, lambda x: 0.0 <= x < math.inf, "a finite number >= 0")


def fraction(verb: str, name: str, value: Any) -> float:
    return number(verb, name, value, lambda x: 0.0 <= x <= 1.0, "a number from 0 to 1")


def check_reduction(verb: str, reduction: Any) -> None:
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"{verb}: reduction is {shown(reduction)}, expected one of {', '.join(map(repr, REDUCTIONS))}")


def flag(verb: str, name: str, value: Any) -> bool:
    """Whatever has a truth value may be one, but an array."""
    if getattr(value, "shape", ()) != ():
        raise TypeError(f"{verb}: {name} is a {type(value).__name__}, expected a bool")
    return bool(value)


def check_ignore_index(verb: str, ignore_index: Any, labels: bool) -> None:
    if ignore_index is None:
        return
    if isinstance(ignore_index, bool) or not (isinstance(ignore_index, Integral) or is_symbolic(ignore_index)):
        raise TypeError(f"{verb}: ignore_index is {ignore_index!r}, expected an int or None")
    if not labels:
        raise ValueError(f"{verb}: ignore_index is {ignore_index!r}, expected None with probability targets")


def chunk_sizes(verb: str, chunk_size: Any) -> tuple[int | None, int | None]:
    """Rows and classes of a chunk; None: to be chosen."""
    given = chunk_size if isinstance(chunk_size, tuple) else (chunk_size, None)
    if len(given) != 2 or not all(size is None or _is_count(size) for size in given):
        raise ValueError(
            f"{verb}: chunk_size is {shown(chunk_size)}, expected None, a number of rows >= 1 or a pair (rows, classes)"
        )
    rows, classes = (None if size is None else operator.index(size) for size in given)
    return rows, classes


def _is_count(value: Any) -> bool:
    return (count := _integer(value)) is not None and count > 0


def _integer(value: Any) -> int | None:
    """None where it is no integer; a bool is none, whosever it is."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def shown(value: Any) -> str:
    """Its repr, where that is short; Python has none of an int of more than 4300 digits."""
    if isinstance(value, int) and value.bit_length() > 400:
        return f"an int of {value.bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:
        return f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}…"


# ---------------------------------------------------------------------------------------------------------------------
# out


def check_out(verb: str, out: Array | None, x: Array, inputs: dict[str, Array], xp: Any) -> None:
    """`out` is the result's shape and dtype, writeable, and shares memory with no input unless it is one."""
    if out is None:
        return
    if _namespace_of(verb, "out", out) is not xp:
        raise TypeError(f"{verb}: out is not an array of {library_of(xp)}, expected the library of the input")
    if not facts.of(library_of(xp)).writeable or not _is_writeable(out):
        raise TypeError(f"{verb}: out is a read-only or lazy array, expected one that can be written to")
    check_device(verb, xp, {"out": out, **{k: v for k, v in inputs.items() if v is not None}})
    if dtype_name(out) != dtype_name(x):
        raise TypeError(f"{verb}: out has dtype {out.dtype}, expected {x.dtype}, the result's")
    check_shape(verb, "out", out, tuple(x.shape), "the result's shape")
    if library_of(xp) == "torch" and _records_gradients([out, *inputs.values()]):
        raise ValueError(f"{verb}: out was given while gradients are recorded, expected out=None or torch.no_grad()")
    if facts.of(library_of(xp)).views and overlaps_itself(*_layout(out)):
        raise ValueError(f"{verb}: out overlaps itself, expected memory of its own for each element")
    for name, given in inputs.items():
        if given is not None and _overlaps_partly(out, given, xp):
            raise ValueError(f"{verb}: out overlaps {name} in part, expected {name} itself or memory of its own")


def _is_writeable(x: Array) -> bool:
    return is_writeable_array(x) and not (hasattr(x, "_is_zerotensor") and x._is_zerotensor())


def _records_gradients(arrays: list[Array]) -> bool:
    import torch

    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arrays)


def _overlaps_partly(out: Array, x: Array, xp: Any) -> bool:
    if out is x or is_empty(out) or is_empty(x):
        return False
    if library_of(xp) == "torch":
        if in_graph.get() or not _has_memory(out):  # in a graph all is read before anything is written
            return False
        first, second = _span(out), _span(x)
        same = out.data_ptr() == x.data_ptr() and out.stride() == x.stride() and out.dtype == x.dtype
        return not same and first[0] < second[1] and second[0] < first[1]
    if not hasattr(xp, "shares_memory"):
        return False
    same = _address(out) == _address(x) and out.strides == x.strides and out.dtype == x.dtype
    return not same and bool(xp.shares_memory(out, x))


def _has_memory(x: Array) -> bool:
    """Not so on the device "meta", and where PyTorch tries out a function with tensors of no memory."""
    return x.device.type != "meta" and not type(x).__module__.startswith("torch._subclasses")


def _layout(x: Array) -> tuple[Sequence[int], Sequence[int], int]:
    """Shape, strides, and the size of an element in the unit of the strides."""
    return (x.shape, x.stride(), 1) if hasattr(x, "stride") else (x.shape, x.strides, x.itemsize)


def _address(x: Array) -> int:
    return (getattr(x, "__array_interface__", None) or x.__cuda_array_interface__)["data"][0]


def _span(x: Array) -> tuple[int, int]:
    """First byte of a tensor and the one behind its last; PyTorch has no negative strides."""
    reach = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + x.element_size() * (reach + 1)
