"""New Dask arrays from blocks of others; no dtype is guessed by running a function on nothing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import dask.array as da
import numpy as np

from ...calls.records import Array
from ...libraries.arrays import array_namespace, rounded


def blockwise(f: Any, index: Iterable[int], arrays: list[Any], dtype: Any, name: str, **options: Any) -> Array:
    """`da.blockwise` of `arrays`, each followed by its index."""
    index = tuple(index)
    meta = np.empty_like(arrays[0]._meta, shape=(0,) * len(index), dtype=dtype)
    task = partial(_quietly, f)
    return da.blockwise(task, index, *arrays, dtype=dtype, meta=meta, token=f"xsoftmax-{name}", **options)


def _quietly(f: Any, *blocks: Any) -> Any:
    with np.errstate(all="ignore"):
        return f(*blocks)


def alone(block: Any) -> Any:
    """Blocks come in lists along axes that the result hasn't; these have one."""
    while isinstance(block, list):
        (block,) = block
    return block


def narrowed(a: Array, dtype: Any) -> Array:
    if a.dtype == dtype:
        return a
    index = tuple(range(a.ndim))
    return blockwise(partial(_rounded, name=np.dtype(dtype).name), index, [a, index], dtype, "rounded")


def _rounded(a: Array, name: str) -> Array:
    xp = array_namespace(a)
    return rounded(xp.reshape(a, tuple(a.shape)), name, xp)  # a sum may be a scalar of NumPy
