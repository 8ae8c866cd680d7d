"""Arrays of one kind as matrices of rows and classes, and back."""

from __future__ import annotations

import math

import numpy as np

from ...calls.records import Array

_HUGE = 2.0**64


class Matrix:
    """Which axes are classes."""

    def __init__(self, axes: tuple[int, ...], ndim: int) -> None:
        others = [axis for axis in range(-ndim, 0) if axis not in axes]
        self.order, self.axes = (*others, *axes), axes
        self.is_plain = axes == (-1,) and ndim == 2

    def of(self, x: Array) -> Array:
        if self.is_plain:
            return x
        turned = x.transpose(self.order)
        return turned.reshape(-1, math.prod(turned.shape[-len(self.axes) :]))

    def into(self, y: Array, result: Array) -> None:
        turned = y.transpose(self.order)
        np.copyto(turned, result.reshape(turned.shape), casting="same_kind")


def logits(
    matrix: Matrix, x: Array, where: Array | None, temperature: float, softcap: float | None = None
) -> tuple[Array, Array | None, Array | float] | None:
    """float64 logits z, the classes kept, and dz/dx; None where differences of the logits are to be divided."""
    z = matrix.of(x).astype(np.float64)
    slope: Array | float = 1.0 / temperature
    if softcap is not None:
        u = z / softcap
        e = np.exp(-2.0 * np.abs(u))
        slope = slope * 4.0 * e / ((1.0 + e) * (1.0 + e))
        z = np.where(np.isinf(z), z, softcap * np.tanh(u))
    if where is None:
        kept = None
    else:
        if where.shape != x.shape:
            if where.ndim > x.ndim:
                return None
            for own, n in zip(reversed(where.shape), reversed(x.shape), strict=False):
                if own not in (1, n):
                    return None
            where = np.logical_and(where, True, out=np.empty(x.shape, np.bool_))  # broadcast_to enters 8 functions
        kept = matrix.of(where)
        z[~kept] = -np.inf
    if temperature < 1.0:
        largest = np.maximum.reduce(z, axis=None)
        if not -_HUGE * temperature < largest < _HUGE * temperature:
            return None
    if temperature != 1.0:
        z /= temperature
    return z, kept, slope
