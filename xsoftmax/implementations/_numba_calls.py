"""How arrays of NumPy are handed to kernels: addresses, steps, and a number that stands for the dtype."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from ..problem import Array

TYPES: dict[Any, Any] = {np.dtype(kind): kind(0) for kind in (np.float32, np.float64)}


@lru_cache(maxsize=64)
def kernel(module: str, name: str) -> Any:
    """Imported late, with Numba."""
    return getattr(import_module(f"xsoftmax.kernels.{module}"), name)


def memory(a: Array | None) -> int:
    return 0 if a is None else a.__array_interface__["data"][0]


def step(a: Array | None) -> int:
    return 0 if a is None else a.strides[0]
