"""Which array libraries and devices are here; choosing one; moving arrays in and out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["NAMES", "Backend", "Status", "backend", "backends"]

NAMES = (
    "numpy",
    "cupy",
    "torch",
    "torch:cuda",
    "jax",
    "dask",
    "array-api-strict",
    "array-api-strict:device1",
    "array-api-strict:no_float64",
    "array-api-strict:no_x64",
    "ndonnx",
    "mlx",
    "cubed",
    "marray",
    "sparse",
)

_NARROWER = {"float64": "float32", "int64": "int32", "uint64": "uint32"}


@dataclass(frozen=True)
class Backend:
    """An array library on a device.

    Attributes
    ----------
    name : str
        The name it was chosen by, such as ``"torch:cuda"``.
    xp : module
        The library's array-API namespace, through ``array_api_compat`` where that wraps the library.
    device : object
        The library's own device object or name.
    """

    name: str
    xp: Any = field(hash=False)
    device: Any = field(hash=False)  # some libraries' devices have no hash

    def __reduce__(self) -> tuple[Callable[[str], Backend], tuple[str]]:
        """By name: it may be copied, and pickled to a process where the library and the device are too."""
        return backend, (self.name,)

    @property
    def _library(self) -> _Library:
        return _LIBRARIES[self.name.partition(":")[0]]

    @property
    def float64(self) -> bool:
        """Whether the library computes in float64 on this device."""
        return "float64" in self.dtypes()

    @property
    def lazy(self) -> bool:
        """Whether arrays may be promises: then no verb looks at a value, and a bad label gives a row of nan."""
        return self._library.lazy

    @property
    def checks_labels(self) -> bool:
        """Whether a bad label raises: true for eager libraries on the CPU, where looking costs no synchronisation."""
        return not self.lazy and getattr(self.device, "type", "cpu") == "cpu" and self._library.module != "cupy"

    @property
    def flushes_subnormals(self) -> bool:
        """Whether results that are subnormal may come out as zero."""
        return self._library.flushes_subnormals or getattr(self.device, "type", "cpu") == "cuda"

    def dtypes(self) -> tuple[str, ...]:
        """Names of the floating dtypes, narrowest first, that arrays of this backend can have."""
        native = self._native_dtypes()
        held = [name for name in self._library.dtypes if name in native or name in ("float16", "bfloat16")]
        if self._library.ml_dtypes and find_spec("ml_dtypes") is None:
            held.remove("bfloat16")
        return tuple(held)

    def asarray(self, x: Any, /, dtype: Any = None) -> Any:
        """Array of this backend with the values of `x`, moved to its device.

        Parameters
        ----------
        x : array of any supported library, sequence of numbers, or number
        dtype : str or dtype, optional
            Name (``"bfloat16"``) or dtype object of the library. By default the dtype of `x`; where a device has no
            64-bit type of its kind, the 32-bit one.

        Returns
        -------
        array
            May share memory with `x`, as the library's own ``asarray`` does.

        Raises
        ------
        TypeError
            If `dtype` is no dtype, or a floating one that this backend lacks.
        NotImplementedError
            If `x` is larger than the library takes from memory (cubed).
        OverflowError
            If integers do not fit the 32-bit type of a device that has no 64-bit one.
        """
        name = None if dtype is None else _dtype_name(dtype)
        if name is not None:
            self._check_held(name or "''", "dtype is")
        if _library_of(x) is not self._library or self._library.module == "numpy":
            x = self._fitted(_to_numpy(x), name)
        array = self._library.asarray(x, self.device)
        if name is None or _dtype_name(array.dtype) == name:
            return array
        if self._library.ml_dtypes and name == "bfloat16":
            return array.astype(import_module("ml_dtypes").bfloat16)
        return self._library.astype(array, getattr(self.xp, name, name))

    def to_numpy(self, x: Any, /) -> np.ndarray:
        """NumPy array with the values of `x`, computed and copied to the host where needed.

        Parameters
        ----------
        x : array of this backend

        Returns
        -------
        numpy.ndarray
            bfloat16 comes as ``ml_dtypes.bfloat16``. May share memory with `x`, and may be read-only.

        Raises
        ------
        NotImplementedError
            If `x` has masked entries (marray).
        """
        return _to_numpy(x)

    def synchronize(self) -> None:
        """Wait until the device has done all work queued so far."""
        self._library.synchronize(self.device)

    def _native_dtypes(self) -> Any:
        device = self.device if self._library.module == "array_api_strict" else None
        return self.xp.__array_namespace_info__().dtypes(device=device, kind=None)

    def _check_held(self, name: str, what: str) -> None:
        if name not in self.dtypes() and ("float" in name or not re.match(r"bool|u?int|complex", name)):
            raise TypeError(
                f"asarray: {what} {name}, expected one of {', '.join(self.dtypes())} on backend {self.name!r}"
            )

    def _fitted(self, x: np.ndarray, name: str | None) -> np.ndarray:
        """Give `x` a dtype that the device holds."""
        found = x.dtype.name
        floating = "float" in found
        if floating and found not in self.dtypes() and name not in (None, "bfloat16"):
            return x.astype(name)
        if found in _NARROWER and found.lstrip("u") not in (self.dtypes() if floating else self._native_dtypes()):
            narrow = x.astype(_NARROWER[found])
            if not floating and (narrow != x).any():
                raise OverflowError(
                    f"asarray: x holds {found} values beyond {_NARROWER[found]}, the widest on backend {self.name!r}"
                )
            return narrow
        self._check_held(found, "x has dtype")
        return x


@dataclass(frozen=True)
class Status:
    """What is known of one backend here.

    Attributes
    ----------
    name : str
        Name for `backend`.
    usable : bool
        Whether it can compute now.
    version : str or None
        Version of the library, None if it is not installed.
    device : str or None
        The device that answers, None if none does.
    reason : str or None
        Why it is not usable, None if it is.
    extra : str
        The command that installs it.
    """

    name: str
    usable: bool
    version: str | None
    device: str | None
    reason: str | None
    extra: str


def backend(name: str = "auto") -> Backend:
    """Choose an array library and a device.

    Parameters
    ----------
    name : str
        A library, or a library and a device after a colon: ``"numpy"``, ``"torch:cuda"``, ``"cupy:1"``. ``"auto"`` is
        CuPy where a CUDA device answers, else NumPy. `backends` lists the names.

    Returns
    -------
    Backend

    Raises
    ------
    TypeError
        If `name` is not a str.
    ValueError
        If no library or device has this name.
    ImportError
        If the library is not installed or cannot be imported. The message says what to install.
    RuntimeError
        If the library is installed and the device does not answer.

    Examples
    --------
    >>> import xsoftmax as xs
    >>> b = xs.backend("numpy")
    >>> b.to_numpy(xs.softmax(b.asarray([0.0, 0.0])))
    array([0.5, 0.5])
    """
    if not isinstance(name, str):
        raise TypeError(f"backend: name is a {type(name).__name__}, expected a str such as 'numpy' or 'torch:cuda'")
    if name == "auto":
        try:
            return backend("cupy")
        except (ImportError, RuntimeError):
            return backend("numpy")
    root, colon, device = name.partition(":")
    if root not in _LIBRARIES:
        raise ValueError(f"backend: name is {name!r}, expected 'auto' or one of {', '.join(NAMES)}")
    if colon and not device:
        raise ValueError(f"backend: name is {name!r}, expected {root!r}, or a device after the colon")
    library = _LIBRARIES[root]
    if not _present(library.module):
        raise ModuleNotFoundError(f"backend: {name!r} is not installed; {library.install}", name=library.module)
    try:
        import_module(library.module)
    except Exception as error:
        raise ImportError(
            f"backend: {name!r} cannot be imported ({type(error).__name__}: {error}); {library.install}"
        ) from error
    xp, found = library.open(device)
    return Backend(name, xp, found)


def backends() -> tuple[Status, ...]:
    """What is here, usable or why not.

    Returns
    -------
    tuple of Status
        One for each known name. Each installed library is imported and asked to compute one number; one that is
        broken is reported, with its own error as the reason.
    """
    return tuple(_status(name) for name in NAMES)


def _status(name: str) -> Status:
    library = _LIBRARIES[name.partition(":")[0]]
    version = _version(library)
    device = None
    try:
        found = backend(name)
        device = library.describe(found.device)
        found.to_numpy(found.xp.exp(found.asarray([0.0], dtype="float32")))
    except Exception as error:  # a broken library can raise anything
        reason = str(error).removeprefix("backend: ") or type(error).__name__
        return Status(name, False, version, device, reason, library.install)
    return Status(name, True, version, device, None, library.install)


def _present(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(library: _Library) -> str | None:
    for distribution in library.distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _dtype_name(dtype: Any) -> str:
    # Libraries spell it float32, torch.float32, mlx.core.float32, <class 'numpy.float32'>.
    text = getattr(dtype, "name", None) or str(dtype)
    found = re.search(r"(bool|u?int|b?float|complex)\d*", text)
    return found.group() if found else text


def _library_of(x: Any) -> _Library | None:
    # Nearest class first: arrays of sparse inherit from a mixin of NumPy.
    roots = [cls.__module__.partition(".")[0] for cls in type(x).__mro__]
    return next((library for root in roots for library in _LIBRARIES.values() if root in library.roots), None)


def _to_numpy(x: Any) -> np.ndarray:
    library = _library_of(x)
    if library is not None:
        return library.to_numpy(x)
    array: np.ndarray = import_module("numpy").asarray(x)
    return array


def _plain(x: Any) -> Any:
    """A NumPy array in native byte order, aligned and without negative strides; anything else as it is."""
    numpy = import_module("numpy")
    if not isinstance(x, numpy.ndarray):
        return x
    x = x.astype(x.dtype.newbyteorder("="), copy=False)
    return x.copy() if not x.flags.aligned or any(stride < 0 for stride in x.strides) else x


def _no_device(device: str, name: str) -> None:
    if device not in ("", "cpu"):
        raise ValueError(f"backend: name is {name + ':' + device!r}, expected {name!r}, which has no other device")


def _host_only(name: str, namespace: str) -> Callable[[str], tuple[Any, Any]]:
    def open_(device: str) -> tuple[Any, Any]:
        _no_device(device, name)
        return import_module(namespace), "cpu"

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
    return import_module("array_api_compat.cupy"), cupy.cuda.Device(index)


def _asarray_cupy(x: Any, device: Any) -> Any:
    import cupy

    with device:
        return cupy.asarray(_plain(x))


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
    return import_module("array_api_compat.torch"), found


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _asarray_torch(x: Any, device: Any) -> Any:
    import torch

    x = _plain(x)
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

    return mlx.core.array(_plain(x))


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

    return marray.masked_namespace(import_module("array_api_compat.numpy"))


def _open_marray(device: str) -> tuple[Any, Any]:
    _no_device(device, "marray")
    return _marray_numpy(), "cpu"


def _asarray_marray(x: Any, device: Any) -> Any:
    return _marray_numpy().asarray(_plain(x))


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
    return cubed.asarray(_plain(x), device=device)


def _asarray_by(namespace: str, **options: Any) -> Callable[[Any, Any], Any]:
    return lambda x, device: import_module(namespace).asarray(_plain(x), device=device, **options)


def _astype(array: Any, dtype: Any) -> Any:
    return import_module("array_api_compat").array_namespace(array).astype(array, dtype)


def _to_numpy_plain(x: Any) -> Any:
    return import_module("numpy").asarray(x)


@dataclass(frozen=True)
class _Library:
    module: str
    roots: tuple[str, ...]
    """Top-level modules of its array types."""
    distributions: tuple[str, ...]
    install: str
    open: Callable[[str], tuple[Any, Any]]
    """Device name (empty: the default) to namespace and device; RuntimeError if it does not answer."""
    asarray: Callable[[Any, Any], Any]
    to_numpy: Callable[[Any], Any]
    dtypes: tuple[str, ...]
    """Floating dtypes its arrays can have on its best device."""
    astype: Callable[[Any, Any], Any] = _astype
    synchronize: Callable[[Any], None] = lambda device: None
    describe: Callable[[Any], str] = str
    lazy: bool = False
    flushes_subnormals: bool = False
    ml_dtypes: bool = False
    """bfloat16 is that of ml_dtypes, not the library's own."""


def _extra(name: str) -> str:
    return f'pip install "xsoftmax[{name}]"'


_ALL = ("float16", "bfloat16", "float32", "float64")

_LIBRARIES = {
    "numpy": _Library(
        module="numpy",
        roots=("numpy",),
        distributions=("numpy",),
        install="pip install numpy",
        open=_host_only("numpy", "array_api_compat.numpy"),
        asarray=lambda x, device: x,
        to_numpy=_to_numpy_plain,
        dtypes=_ALL,
        ml_dtypes=True,
    ),
    "cupy": _Library(
        module="cupy",
        roots=("cupy",),
        distributions=("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        install=f"{_extra('cuda13x')} or {_extra('cuda12x')}",
        open=_open_cupy,
        asarray=_asarray_cupy,
        to_numpy=lambda x: x.get(),
        dtypes=_ALL,
        synchronize=lambda device: device.synchronize(),
        describe=_describe_cupy,
        flushes_subnormals=True,
        ml_dtypes=True,
    ),
    "torch": _Library(
        module="torch",
        roots=("torch",),
        distributions=("torch",),
        install=_extra("torch"),
        open=_open_torch,
        asarray=_asarray_torch,
        to_numpy=_to_numpy_torch,
        dtypes=_ALL,
        synchronize=_synchronize_torch,
        describe=_describe_torch,
    ),
    "jax": _Library(
        module="jax",
        roots=("jax", "jaxlib"),
        distributions=("jax",),
        install=_extra("jax"),
        open=_open_jax,
        asarray=_asarray_by("jax.numpy"),
        to_numpy=_to_numpy_plain,
        dtypes=_ALL,
        synchronize=_synchronize_jax,
        describe=lambda device: f"{device.platform}:{device.id}",
        lazy=True,
        flushes_subnormals=True,
    ),
    "dask": _Library(
        module="dask.array",
        roots=("dask",),
        distributions=("dask",),
        install=_extra("dask"),
        open=_host_only("dask", "array_api_compat.dask.array"),
        asarray=_asarray_by("array_api_compat.dask.array"),
        to_numpy=lambda x: _to_numpy_plain(x.compute()),
        dtypes=_ALL,
        lazy=True,
        ml_dtypes=True,
    ),
    "array-api-strict": _Library(
        module="array_api_strict",
        roots=("array_api_strict",),
        distributions=("array-api-strict",),
        install="pip install array-api-strict",
        open=_open_strict,
        asarray=_asarray_by("array_api_strict"),
        to_numpy=_to_numpy_strict,
        describe=_describe_strict,
        dtypes=("float32", "float64"),
    ),
    "ndonnx": _Library(
        module="ndonnx",
        roots=("ndonnx",),
        distributions=("ndonnx",),
        install="pip install ndonnx onnxruntime",
        open=_open_ndonnx,
        asarray=_asarray_by("ndonnx"),
        to_numpy=_to_numpy_ndonnx,
        dtypes=("float16", "float32", "float64"),
        describe=lambda device: "cpu",
        lazy=True,
    ),
    "mlx": _Library(
        module="mlx.core",
        roots=("mlx",),
        distributions=("mlx",),
        install='pip install "mlx[cpu]"',
        open=_open_mlx,
        asarray=_asarray_mlx,
        to_numpy=_to_numpy_mlx,
        dtypes=("float16", "bfloat16", "float32"),
        synchronize=_synchronize_mlx,
        lazy=True,
        flushes_subnormals=True,
    ),
    "cubed": _Library(
        module="cubed",
        roots=("cubed",),
        distributions=("cubed",),
        install="pip install cubed",
        open=_host_only("cubed", "cubed"),
        asarray=_asarray_cubed,
        to_numpy=lambda x: _to_numpy_plain(x.compute()),
        dtypes=("float32", "float64"),
        lazy=True,
    ),
    "marray": _Library(
        module="marray",
        roots=("marray",),
        distributions=("marray",),
        install="pip install marray",
        open=_open_marray,
        asarray=_asarray_marray,
        to_numpy=_to_numpy_marray,
        dtypes=("float32", "float64"),
    ),
    "sparse": _Library(
        module="sparse",
        roots=("sparse",),
        distributions=("sparse",),
        install="pip install sparse",
        open=_host_only("sparse", "sparse"),
        asarray=_asarray_by("sparse"),
        to_numpy=lambda x: x.todense(),
        dtypes=("float32", "float64"),
    ),
}
