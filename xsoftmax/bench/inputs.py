"""The arrays that all contenders are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..verify.inputs import numpy_dtype

PIECE = 1 << 26  # random numbers that are drawn at a time


@dataclass(frozen=True, eq=False)
class Inputs:
    """Logits of scale 3 and labels, arrays of `xp`; `buffer` is what copies and `out=` write to."""

    x: Any
    labels: Any
    axis: int
    threads: int
    buffer: Any
    xp: Any = np
    _made: dict[Callable[[Inputs], Any], Any] = field(default_factory=dict)

    @classmethod
    def random(cls, shape: Sequence[int], dtype: str, threads: int, xp: Any = np) -> Inputs:
        rng = xp.random.default_rng(0)
        axis = class_axis(shape)
        x = xp.empty(shape, numpy_dtype(dtype))
        step = max(1, PIECE // math.prod(shape[1:]))
        for start in range(0, shape[0], step):
            part = x[start : start + step]
            part[...] = 3 * rng.standard_normal(part.shape, xp.float64 if dtype == "float64" else xp.float32)
        rows = tuple(size for dimension, size in enumerate(shape) if dimension != axis % len(shape))
        labels = rng.integers(0, shape[axis], rows)
        return cls(x, labels, axis, threads, xp.empty_like(x), xp)

    def rows(self, array: Any, which: tuple[np.ndarray, ...]) -> np.ndarray:
        """Some rows of an array of the logits' or of the labels' shape, classes last, on the host."""
        dtype = array.dtype
        bits = array.view("int16") if dtype.name == "bfloat16" else array  # indexed in all libraries
        moved = self.xp.moveaxis(bits, self.axis, -1) if array.ndim == self.x.ndim else bits
        return self.to_host(moved[tuple(map(self.xp.asarray, which))]).view(dtype)

    def to_host(self, array: Any) -> np.ndarray:
        return getattr(self.xp, "asnumpy", np.asarray)(array)

    def once(self, make: Callable[[Inputs], Any]) -> Any:
        """`make(inputs)`, kept."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]


def class_axis(shape: Sequence[int]) -> int:
    """The last axis of a matrix, else axis 1, where PyTorch has the classes."""
    return -1 if len(shape) == 2 else 1
