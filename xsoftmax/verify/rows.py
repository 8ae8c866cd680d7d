"""Arrays as rows of classes and back, and the distinct entries of a row with their counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AsRows:
    """An array of ``shape`` seen as rows along ``axes`` (C order on both sides)."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @classmethod
    def of(cls, shape, axis) -> AsRows:
        axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
        return cls(tuple(shape), tuple(a % len(shape) for a in axes))

    @property
    def outer_axes(self) -> tuple[int, ...]:
        return tuple(a for a in range(len(self.shape)) if a not in self.axes)

    @property
    def outer_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[a] for a in self.outer_axes)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        return tuple(1 if a in self.axes else n for a, n in enumerate(self.shape))

    def split(self, a: np.ndarray) -> np.ndarray:
        """(rows, classes), broadcasting ``a`` to the shape first."""
        a = np.broadcast_to(a, self.shape).transpose(self.outer_axes + self.axes)
        return a.reshape(math.prod(self.outer_shape), math.prod(self.shape[k] for k in self.axes))

    def join(self, rows: np.ndarray) -> np.ndarray:
        """Undo ``split``."""
        order = self.outer_axes + self.axes
        return rows.reshape([self.shape[a] for a in order]).transpose(np.argsort(order).astype(int))


def distinct(*columns: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The distinct tuples of ``columns`` (one row each), the code of every entry, and the counts."""
    codes = np.zeros(columns[0].shape, np.int64)
    for column in columns:
        levels, code = np.unique(column, return_inverse=True)
        _, first, codes, counts = np.unique(
            codes * max(levels.size, 1) + code, return_index=True, return_inverse=True, return_counts=True
        )
    return [column[first] for column in columns], codes, counts


def as_float64(a) -> np.ndarray:
    """Every input is exact in float64 (integers were converted to a float before)."""
    return np.asarray(a).astype(np.float64)


def row_mask(where, rows: AsRows) -> np.ndarray:
    return rows.split(np.asarray(True if where is None else where))
