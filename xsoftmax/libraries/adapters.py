"""How each library's arrays are made, read and waited for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any, NamedTuple

from .arrays import array_namespace, wrapped


def _no_device(device: str, name: str) -> None:
    if device not in ("", "cpu"):
        raise ValueError(f"backend: name is {name + ':' + device!r}, expected {name!r}, which has no other device")


def _host_only(name: str, namespace: Callable[[], Any]) -> Callable[[str], tuple[Any, Any]]:
    def open_(device: str) -> tuple[Any, Any]:
        _no_device(device, name)
        return namespace(), "cpu"

    return open_


def _open_cupy(device: str) -> tuple[Any, Any]:
    import cupy

    if not (device or "0").isdecimal():
        raise ValueError(f"backend: name is {'cupy:' + device!r}, expected 'cupy', or a device number such as 'cupy:1'")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f"backend: cupy is installed, but no CUDA device answers ({error})") from error
    index = int(device or 0)
    if index >= count:
        raise RuntimeError(f"backend: cupy sees {count} CUDA device(s), none with index {index}")
    return wrapped("cupy"), cupy.cuda.Device(index)


def _asarray_cupy(x: Any, device: Any) -> Any:
    import cupy

    with device:
        return cupy.asarray(plain(x))


def _describe_cupy(device: Any) -> str:
    import cupy

    return f"cuda:{device.id} ({cupy.cuda.runtime.getDeviceProperties(device.id)['name'].decode()})"


def _open_torch(device: str) -> tuple[Any, Any]:
    import torch

    try:
        found = torch.device(device or "cpu")
    except RuntimeError as error:
        raise ValueError(f"backend: name is {'torch:' + device!r}, expected a device ({_first_line(error)})") from error
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA raises AssertionError
        raise RuntimeError(
            f"backend: 'torch:{device}' was asked for, but PyTorch {torch.__version__} has no such device"
            f" ({_first_line(error)})"
        ) from error
    return wrapped("torch"), found


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _asarray_torch(x: Any, device: Any) -> Any:
    import torch

    x = plain(x)
    if isinstance(x, torch.Tensor):
        return x.to(device)
    if not x.flags.writeable:
        x = x.copy()  # PyTorch has no read-only tensors and warns
    if x.dtype.name == "bfloat16":
        return torch.as_tensor(x.view("int16"), device=device).view(torch.bfloat16)
    return torch.as_tensor(x, device=device)


def _to_numpy_torch(x: Any) -> Any:
    import torch

    if x.dtype is torch.bfloat16:
        return x.contiguous().view(torch.int16).numpy(force=True).view(import_module("ml_dtypes").bfloat16)
    return x.numpy(force=True)


def _synchronize_torch(device: Any) -> None:
    import torch

    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


def _describe_torch(device: Any) -> str:
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _open_jax(device: str) -> tuple[Any, Any]:
    import jax

    try:
        return jax.numpy, jax.devices(device or None)[0]
    except RuntimeError as error:
        raise RuntimeError(
            f"backend: 'jax:{device}' was asked for, but JAX has no such device ({_first_line(error)})"
        ) from error


def _synchronize_jax(device: Any) -> None:
    import jax

    for array in jax.live_arrays(device.platform):
        array.block_until_ready()


def _open_strict(device: str) -> tuple[Any, Any]:
    import array_api_strict

    known = {_describe_strict(d): d for d in array_api_strict.__array_namespace_info__().devices()}
    if (device or "CPU_DEVICE") not in known:
        raise ValueError(f"backend: array-api-strict has no device {device!r}, expected one of {', '.join(known)}")
    return array_api_strict, known[device or "CPU_DEVICE"]


def _describe_strict(device: Any) -> str:
    return str(device).split("'")[1]  # array_api_strict.Device('device1')


def _to_numpy_strict(x: Any) -> Any:
    import array_api_strict
    import numpy

    return numpy.asarray(x.to_device(array_api_strict.Device("CPU_DEVICE")))


def _open_ndonnx(device: str) -> tuple[Any, Any]:
    import ndonnx

    _no_device(device, "ndonnx")
    return ndonnx, ndonnx.__array_namespace_info__().default_device()


def _to_numpy_ndonnx(x: Any) -> Any:
    return x.unwrap_numpy()


def _open_mlx(device: str) -> tuple[Any, Any]:
    import mlx.core

    _no_device(device, "mlx")
    return mlx.core, mlx.core.default_device()


def _asarray_mlx(x: Any, device: Any) -> Any:
    import mlx.core

    return mlx.core.array(plain(x))


def _to_numpy_mlx(x: Any) -> Any:
    import mlx.core
    import numpy

    if x.dtype == mlx.core.bfloat16:
        return numpy.asarray(x.view(mlx.core.uint16)).view(import_module("ml_dtypes").bfloat16)
    return numpy.asarray(x)


def _synchronize_mlx(device: Any) -> None:
    import mlx.core

    mlx.core.synchronize()


@cache  # each call makes new classes, and arrays of two calls do not mix
def _marray_numpy() -> Any:
    import marray

    return marray.masked_namespace(wrapped("numpy"))


def _open_marray(device: str) -> tuple[Any, Any]:
    _no_device(device, "marray")
    return _marray_numpy(), "cpu"


def _asarray_marray(x: Any, device: Any) -> Any:
    return _marray_numpy().asarray(plain(x))


def _to_numpy_marray(x: Any) -> Any:
    if x.mask.any():
        raise NotImplementedError(
            "to_numpy: x has masked entries, which a NumPy array cannot hold; take x.data and x.mask"
        )
    return x.data


def _asarray_cubed(x: Any, device: Any) -> Any:
    import cubed

    if getattr(x, "nbytes", 0) > 1_000_000:  # cubed's own limit
        raise NotImplementedError(f"asarray: x has {x.nbytes} bytes, cubed takes 1000000 at most from memory")
    return cubed.asarray(plain(x), device=device)


def _asarray_by(namespace: Callable[[], Any], **options: Any) -> Callable[[Any, Any], Any]:
    return lambda x, device: namespace().asarray(plain(x), device=device, **options)


def _astype(array: Any, dtype: Any) -> Any:
    return array_namespace(array).astype(array, dtype)


def _to_numpy_plain(x: Any) -> Any:
    return import_module("numpy").asarray(x)


def plain(x: Any) -> Any:
    """A NumPy array in native byte order, aligned and without negative strides; anything else as it is."""
    numpy = import_module("numpy")
    if not isinstance(x, numpy.ndarray):
        return x
    x = x.astype(x.dtype.newbyteorder("="), copy=False)
    return x.copy() if not x.flags.aligned or any(stride < 0 for stride in x.strides) else x


class Adapter(NamedTuple):
    """How arrays of a library come and go."""

    open: Callable[[str], tuple[Any, Any]]
    """Device name (empty: the default) to namespace and device; RuntimeError if it does not answer."""
    asarray: Callable[[Any, Any], Any]
    to_numpy: Callable[[Any], Any]
    astype: Callable[[Any, Any], Any] = _astype
    synchronize: Callable[[Any], None] = lambda device: None
    describe: Callable[[Any], str] = str


ADAPTERS = {
    "numpy": Adapter(
        open=_host_only("numpy", partial(wrapped, "numpy")),
        asarray=lambda x, device: x,
        to_numpy=_to_numpy_plain,
    ),
    "cupy": Adapter(
        open=_open_cupy,
        asarray=_asarray_cupy,
        to_numpy=lambda x: x.get(),
        synchronize=lambda device: device.synchronize(),
        describe=_describe_cupy,
    ),
    "torch": Adapter(
        open=_open_torch,
        asarray=_asarray_torch,
        to_numpy=_to_numpy_torch,
        synchronize=_synchronize_torch,
        describe=_describe_torch,
    ),
    "jax": Adapter(
        open=_open_jax,
        asarray=_asarray_by(partial(import_module, "jax.numpy")),
        to_numpy=_to_numpy_plain,
        synchronize=_synchronize_jax,
        describe=lambda device: f"{device.platform}:{device.id}",
    ),
    "dask": Adapter(
        open=_host_only("dask", partial(wrapped, "dask.array")),
        asarray=_asarray_by(partial(wrapped, "dask.array")),
        to_numpy=lambda x: _to_numpy_plain(x.compute()),
    ),
    "array_api_strict": Adapter(
        open=_open_strict,
        asarray=_asarray_by(partial(import_module, "array_api_strict")),
        to_numpy=_to_numpy_strict,
        describe=_describe_strict,
    ),
    "ndonnx": Adapter(
        open=_open_ndonnx,
        asarray=_asarray_by(partial(import_module, "ndonnx")),
        to_numpy=_to_numpy_ndonnx,
        describe=lambda device: "cpu",
    ),
    "mlx": Adapter(
        open=_open_mlx,
        asarray=_asarray_mlx,
        to_numpy=_to_numpy_mlx,
        synchronize=_synchronize_mlx,
    ),
    "cubed": Adapter(
        open=_host_only("cubed", partial(import_module, "cubed")),
        asarray=_asarray_cubed,
        to_numpy=lambda x: _to_numpy_plain(x.compute()),
    ),
    "marray": Adapter(
        open=_open_marray,
        asarray=_asarray_marray,
        to_numpy=_to_numpy_marray,
    ),
    "sparse": Adapter(
        open=_host_only("sparse", partial(import_module, "sparse")),
        asarray=_asarray_by(partial(import_module, "sparse")),
        to_numpy=lambda x: x.todense(),
    ),
}
