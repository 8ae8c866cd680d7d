"""CUDA kernels on CuPy arrays: on the array's device, CuPy's current stream and its allocator."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import cupy
import numpy as np

from ...calls.records import Array, Problem
from ...kernels.cuda import launch as cuda
from . import launch as launcher
from .operations import WRITES, Operations
from .quick import ShortCuts
from .weights import Weighings


def refuses(problem: Problem) -> list[str]:
    if problem.container != "ndarray":
        return [f"a {problem.container} is not plain memory"]
    return launcher.refusals()


@lru_cache(maxsize=16)
def _dtype(name: str) -> Any:
    """Looked up once: NumPy takes 2 µs to find a dtype's name, or the dtype of a name."""
    return np.dtype(import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)


class _CuPy:
    def pointer(self, x: Array) -> int:
        return x.data.ptr

    def strides(self, x: Array) -> tuple[int, ...]:
        item = x.itemsize
        return tuple(stride // item for stride in x.strides)

    def empty_like(self, x: Array) -> Array:
        with x.device:  # CuPy allocates on the current one
            return cupy.empty_like(x)

    def empty(self, shape: tuple[int, ...], dtype: str, like: Array) -> Array:
        with like.device:
            return cupy.empty(shape, _dtype(dtype))

    def contiguous(self, x: Array) -> Array:
        if x.flags.c_contiguous:
            return x
        with x.device:
            return cupy.ascontiguousarray(x)

    def device(self, x: Array) -> cuda.Device:
        return launcher.device(x.device.id)

    def launch(self, x: Array, launch: cuda.Launch, blocks: int, arguments: Any) -> None:
        launcher.run(x.device.id, launch, blocks, arguments)


_operations, _weighings = Operations(_CuPy()), Weighings(_CuPy())
OPERATIONS = _operations.declared() | _weighings.declared()
INTO = WRITES
ENTRIES = ShortCuts(_operations, _weighings, "cupy").entries()
