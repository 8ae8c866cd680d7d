"""How arrays of NumPy are handed to kernels: addresses, steps, and a number that stands for the dtype."""

from __future__ import annotations

from ctypes import c_int, c_int64
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from ...calls.records import Array

TYPES: dict[Any, Any] = {np.dtype(kind): kind(0) for kind in (np.float32, np.float64)}


@lru_cache(maxsize=64)
def kernel(module: str, name: str) -> Any:
    """Imported late, with Numba."""
    return getattr(import_module(f"xsoftmax.kernels.cpu.{module}"), name)


def memory(a: Array | None) -> int:
    return 0 if a is None else a.__array_interface__["data"][0]


def step(a: Array | None) -> int:
    return 0 if a is None else a.strides[0]


def steps(a: Array | None) -> tuple[int, ...]:
    """Bytes from row to row and from class to class; NumPy leaves those of an axis of length 1 open."""
    if a is None:
        return 0, 0
    return a.strides if a.shape[-1] > 1 else (*a.strides[:-1], a.itemsize)


def side_by_side(a: Array) -> bool:
    """Whether the classes of a row are so."""
    return bool(a.shape[-1] == 1 or a.strides[-1] == a.itemsize)


# ---------------------------------------------------------------------------------------------------------------------
# as objects: `kernels.cpu.objects` reads where they lie, and in what shape


@lru_cache(maxsize=1)
def are_readable() -> bool:
    """Whether arrays lie in memory as these kernels read them."""
    a = np.empty((3, 5), np.float32)[::-1]
    at = id(a) + object.__basicsize__
    address, shape, strides = (c_int64.from_address(at + byte).value for byte in (0, 16, 24))
    number, flags = (c_int.from_address(at + byte).value for byte in (8, 48))
    read = (number, *(c_int64.from_address(place + 8 * i).value for place in (shape, strides) for i in range(2)))
    return (address, read, flags) == (a.__array_interface__["data"][0], (2, 3, 5, -20, 4), a.flags.num)


def identity(a: Array | None) -> int:
    return 0 if a is None else id(a)


def bits(axes: tuple[int, ...]) -> int:
    """1 for the last axis, 2 for the one before it."""
    return sum(1 << (-axis - 1) for axis in axes)
