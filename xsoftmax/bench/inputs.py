"""The arrays that all contenders are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..verify.inputs import numpy_dtype


@dataclass(frozen=True, eq=False)
class Inputs:
    """Logits of scale 3 and labels; `buffer` is what copies and `out=` write to."""

    x: np.ndarray
    labels: np.ndarray
    axis: int
    threads: int
    buffer: np.ndarray
    _made: dict[Callable[[Inputs], Any], Any] = field(default_factory=dict)

    @classmethod
    def random(cls, shape: Sequence[int], dtype: str, threads: int) -> Inputs:
        """Classes along the last axis of a matrix, else along axis 1, where PyTorch has them."""
        rng = np.random.default_rng(0)
        axis = -1 if len(shape) == 2 else 1
        x = rng.standard_normal(shape, np.float64 if dtype == "float64" else np.float32)
        x *= 3
        x = x.astype(numpy_dtype(dtype), copy=False)
        labels = rng.integers(0, shape[axis], np.moveaxis(x, axis, -1).shape[:-1])
        return cls(x, labels, axis, threads, np.empty_like(x))

    def once(self, make: Callable[[Inputs], Any]) -> Any:
        """`make(inputs)`, kept."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]
