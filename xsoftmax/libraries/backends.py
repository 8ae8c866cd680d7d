"""Which array libraries and devices are here; choosing one; moving arrays in and out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .adapters import ADAPTERS, Adapter
from .facts import FACTS, Facts

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

_NAMED = {facts.name: facts for facts in FACTS.values()}
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
    def _facts(self) -> Facts:
        return _NAMED[self.name.partition(":")[0]]

    @property
    def _adapter(self) -> Adapter:
        return ADAPTERS[self._facts.roots[0]]

    @property
    def float64(self) -> bool:
        """Whether the library computes in float64 on this device."""
        return "float64" in self.dtypes()

    @property
    def lazy(self) -> bool:
        """Whether arrays may be promises: then no verb looks at a value, and a bad label gives a row of nan."""
        return self._facts.promises

    @property
    def checks_labels(self) -> bool:
        """Whether a bad label raises: true for eager libraries on the CPU, where looking costs no synchronisation."""
        return not self.lazy and getattr(self.device, "type", "cpu") == "cpu" and self._facts.shows_values

    @property
    def flushes_subnormals(self) -> bool:
        """Whether results that are subnormal may come out as zero."""
        return self._facts.flushes_subnormals or getattr(self.device, "type", "cpu") == "cuda"

    def dtypes(self) -> tuple[str, ...]:
        """Names of the floating dtypes, narrowest first, that arrays of this backend can have."""
        native = self._native_dtypes()
        held = [name for name in self._facts.dtypes if name in native or name in ("float16", "bfloat16")]
        if self._facts.ml_dtypes and find_spec("ml_dtypes") is None:
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
        if _facts_of(x) is not self._facts or self._facts.module == "numpy":
            x = self._fitted(_to_numpy(x), name)
        array = self._adapter.asarray(x, self.device)
        if name is None or _dtype_name(array.dtype) == name:
            return array
        if self._facts.ml_dtypes and name == "bfloat16":
            return array.astype(import_module("ml_dtypes").bfloat16)
        return self._adapter.astype(array, getattr(self.xp, name, name))

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
        self._adapter.synchronize(self.device)

    def _native_dtypes(self) -> Any:
        device = self.device if self._facts.module == "array_api_strict" else None
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
    if root not in _NAMED:
        raise ValueError(f"backend: name is {name!r}, expected 'auto' or one of {', '.join(NAMES)}")
    if colon and not device:
        raise ValueError(f"backend: name is {name!r}, expected {root!r}, or a device after the colon")
    facts = _NAMED[root]
    if not _present(facts.module):
        raise ModuleNotFoundError(f"backend: {name!r} is not installed; {facts.install}", name=facts.module)
    try:
        import_module(facts.module)
    except Exception as error:
        raise ImportError(
            f"backend: {name!r} cannot be imported ({type(error).__name__}: {error}); {facts.install}"
        ) from error
    xp, found = ADAPTERS[facts.roots[0]].open(device)
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
    facts = _NAMED[name.partition(":")[0]]
    version = _version(facts)
    device = None
    try:
        found = backend(name)
        device = found._adapter.describe(found.device)
        found.to_numpy(found.xp.exp(found.asarray([0.0], dtype="float32")))
    except Exception as error:  # a broken library can raise anything
        reason = str(error).removeprefix("backend: ") or type(error).__name__
        return Status(name, False, version, device, reason, facts.install)
    return Status(name, True, version, device, None, facts.install)


def _present(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(facts: Facts) -> str | None:
    for distribution in facts.distributions:
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


def _facts_of(x: Any) -> Facts | None:
    # Nearest class first: arrays of sparse inherit from a mixin of NumPy.
    roots = [cls.__module__.partition(".")[0] for cls in type(x).__mro__]
    return next((facts for root in roots for facts in FACTS.values() if root in facts.roots), None)


def _to_numpy(x: Any) -> np.ndarray:
    facts = _facts_of(x)
    if facts is not None:
        return ADAPTERS[facts.roots[0]].to_numpy(x)
    array: np.ndarray = import_module("numpy").asarray(x)
    return array
