"""Facts about an array and its library: namespace, dtype name, device, and what arithmetic is at hand there."""

from __future__ import annotations

import math
from contextvars import ContextVar
from functools import lru_cache
from importlib import import_module
from typing import Any

import array_api_compat
from array_api_compat import array_namespace as array_namespace
from array_api_compat import is_writeable_array as is_writeable_array

from . import facts

_LAYER = "array_api_compat."  # asked here alone

HALF = frozenset({"float16", "bfloat16"})
FLOATING = HALF | {"float32", "float64"}
INTEGER = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))

# Whether arrays are part of a graph of PyTorch's compiler, also where this runs it as it stands.
in_graph: ContextVar[bool] = ContextVar("xsoftmax_in_graph", default=False)


@lru_cache(maxsize=256)
def _dtype_name(kind: type, dtype: Any) -> str:  # `kind` keeps dtypes of unlike libraries from being compared
    return str(getattr(dtype, "name", None) or dtype).rpartition(".")[2].lower()


def dtype_name(x: Any, /) -> str:
    """The array-API spelling of the dtype of `x`, whatever its library calls it."""
    return _dtype_name(x.dtype.__class__, x.dtype)


@lru_cache(maxsize=64)
def library_of(xp: Any) -> str:
    return xp.__name__.removeprefix(_LAYER).partition(".")[0]


def wrapped(name: str) -> Any:
    """The namespace of a library that has none of its own: "numpy", "dask.array"."""
    return import_module(_LAYER + name)


def device_of(x: Any) -> Any:
    """The device of `x`; None where its library has no such notion (mlx), hides it (a JAX tracer) or knows several."""
    device = array_api_compat.device(x) if hasattr(x, "device") else None
    return None if hasattr(device, "device_set") else device  # of a JAX array on several, it is their sharding


def container_of(x: Any, library: str) -> str:
    """The kind of array within its library: not all of PyTorch's may be handed to compiled code."""
    return "compiled" if library == "torch" and _is_compiled() else type(x).__name__


def device_type(x: Any, library: str) -> str:
    return getattr(getattr(x, "device", None), "type", facts.of(library).device)


def is_lazy(x: Any, library: str) -> bool:
    """Whether the values of `x` can't be looked at here and now."""
    if library == "torch":
        import torch

        return (
            x.device.type != "cpu"
            or type(x) not in (torch.Tensor, torch.nn.Parameter)
            or _is_compiled()
            or torch._C._functorch.is_functorch_wrapped_tensor(x)
        )
    return not facts.of(library).shows_values


def _is_compiled() -> bool:
    import torch

    return in_graph.get() or torch.compiler.is_compiling()


def is_symbolic(size: Any) -> bool:
    """Whether a size stands for any number, in a graph that is made once for all of them."""
    return type(size).__name__ == "SymInt"


def is_distributed(x: Any) -> bool:
    """Whether `x` is one array of several processes, PyTorch's DTensor."""
    return type(x).__name__ == "DTensor"


def constant(x: Any, xp: Any) -> Any:
    """`x`, of which no derivative is taken."""
    library = library_of(xp)
    if library == "torch":
        recorded = x.requires_grad or import_module("torch").autograd.forward_ad._current_level >= 0
        return x.detach() if recorded else x  # a batch of cotangents can't be detached
    return import_module("jax").lax.stop_gradient(x) if library == "jax" else x


def completed(x: Any) -> Any:
    """A sum or maximum of which each process has a part, put together once: a cast would round the parts."""
    if not is_distributed(x):
        return x
    from torch.distributed.tensor import Replicate

    return x.redistribute(placements=[Replicate() if p.is_partial() else p for p in x.placements])


def may_be_cut(x: Any, xp: Any) -> bool:
    """Whether parts of an axis of `x` may lie on devices of their own."""
    return facts.of(library_of(xp)).adds == "in parts" or is_distributed(x)


def looked_up(table: Any, index: Any, xp: Any) -> Any:
    """`table[index]` of a table with one axis, for an index of any shape that lies inside."""
    library = library_of(xp)
    indexing = facts.of(library).indexing
    if indexing == "own":
        return table[index]
    if indexing == "sharded":
        return table.at[index].get(out_sharding=_told_sharding(index))
    if indexing == "blockwise":  # their own indexing computes the index, or takes one axis alone
        blockwise = import_module("dask.array" if library == "dask" else library).apply_gufunc
        whole = table.rechunk((table.shape[0],))
        return blockwise(_at, "(k),()->()", whole, index, output_dtypes=table.dtype)
    entries = xp.take(table, xp.reshape(index, (-1,)), axis=0)
    return xp.reshape(entries, index.dynamic_shape if None in index.shape else index.shape)  # of ndonnx, where traced


def _told_sharding(x: Any) -> Any:
    """The sharding of a JAX array whose type tells it; None where its compiler finds it."""
    import jax

    sharding = jax.typeof(x).sharding
    return sharding if sharding.mesh.are_all_axes_explicit and not sharding.mesh.empty else None


def _at(table: Any, index: Any) -> Any:
    return table[index]


def has_dtype(name: str, xp: Any, device: Any) -> bool:
    """Whether arrays of dtype `name` exist in `xp` on `device`."""
    if library_of(xp) == "jax":
        import jax

        return jax.dtypes.canonicalize_dtype(name).name == name
    return _has_dtype(name, xp, device)


@lru_cache(maxsize=256)
def _has_dtype(name: str, xp: Any, device: Any) -> bool:
    if library_of(xp) == "mlx" or getattr(device, "type", None) == "mps":
        return hasattr(xp, name) and name != "float64"
    return name in xp.__array_namespace_info__().dtypes(device=device, kind=("real floating", "signed integer"))


def default_float(xp: Any, device: Any) -> str:
    """The library's default floating dtype, by name."""
    info = xp.__array_namespace_info__()
    dtype = info.default_dtypes(device=device)["real floating"]
    return _dtype_name(dtype.__class__, dtype)


def index_dtype(xp: Any, device: Any) -> Any:
    """The widest signed integer dtype: labels are widened to it before any comparison."""
    return xp.int64 if has_dtype("int64", xp, device) else xp.int32


def cast(x: Any, name: str, xp: Any) -> Any:
    """`x` as dtype `name`, in native byte order."""
    return x if dtype_name(x) == name and is_native(x) else xp.astype(x, _dtype(name, xp))


# Above these a number rounds to infinity.
_OVERFLOWS = {"float16": 65520.0, "bfloat16": float.fromhex("0x1.ffp+127"), "float32": float.fromhex("0x1.ffffffp+127")}


def rounded(x: Any, name: str, xp: Any) -> Any:
    """`x` as the narrower dtype `name`; what is too large for it becomes infinite without a warning."""
    if dtype_name(x) == name:
        return x
    limit = _OVERFLOWS[name]
    x = xp.where(x >= limit, xp.full_like(x, math.inf), x)
    return cast(xp.where(x <= -limit, xp.full_like(x, -math.inf), x), name, xp)


def _dtype(name: str, xp: Any) -> Any:
    """The dtype object; NumPy and its kin take bfloat16 from ml_dtypes, and Dask's namespace doesn't name float16."""
    if hasattr(xp, name):
        return getattr(xp, name)
    import numpy as np

    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def is_native(x: Any) -> bool:
    return getattr(x.dtype, "isnative", True)


def with_axis(x: Any, axis: int) -> Any:
    """`x` with a new axis at the negative `axis`; by indexing, which Dask can do where a shape is unknown."""
    return x[(..., None, *(slice(None),) * (-axis - 1))]


def class_indices(n: int, axis: int, xp: Any, device: Any, like: Any = None) -> Any:
    """0 … n − 1 along the negative `axis`, shaped to broadcast against an array that has it, and cut as `like` is."""
    where = {} if device is None else {"device": device}
    indices = xp.arange(n, dtype=index_dtype(xp, device), **where)
    indices = xp.reshape(indices, (n,) + (1,) * (-axis - 1))
    if like is None or not may_be_cut(like, xp):
        return indices
    if is_distributed(like):
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(indices, like.device_mesh)  # all of them on every device
    return indices + xp.zeros_like(like, dtype=indices.dtype)


def loss_dtype(dtype: str) -> str:
    """The loss of half-precision logits is float32."""
    return "float32" if dtype in HALF else dtype
