"""Results as the verbs return them."""

from __future__ import annotations

from typing import Any

from ..calls import checks
from ..calls.records import Array
from ..libraries.arrays import cast


def untouched(x: Array, xp: Any, dtype: str) -> Array:
    """A copy of an empty array that keeps its place in an autograd graph."""
    return cast(x * 1.0, dtype, xp)


def reduced(x: Array, axes: tuple[int, ...], xp: Any) -> Array:
    """`x` without its reduced axes; where nothing is left, what the library's own sum returns."""
    x = xp.squeeze(x, axis=axes) if axes else x
    return scalar(x, xp)


def scalar(x: Array, xp: Any) -> Array:
    return x[()] if x.ndim == 0 and checks.library_of(xp) == "numpy" else x


def written(result: Array, out: Array | None) -> Array:
    if out is None or result is out:
        return result
    out[...] = result
    return out
