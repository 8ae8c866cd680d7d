"""What a verb was given, looked at as cheaply as can be: plain NumPy arrays and numbers, or odd."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import numpy as np

from ...calls.records import Array
from ...kernels.cpu.numbers import FLOATS, INTEGERS

_BOOL = np.dtype(bool)
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
_LEAST, _MOST = 2.0**-126, 2.0**127  # normal numbers of any dtype
_COLD = 2.0**-64  # a temperature that makes ∞ of distances of which a loss needs a share
_NUMBERS = (float, int)


def is_temperature(value: Any) -> bool:
    return type(value) in _NUMBERS and _LEAST <= value <= _MOST


def are_kept(where: Any) -> bool:
    return type(where) is np.ndarray and where.dtype == _BOOL


def rows_shape(axes: tuple[int, ...], ndim: int) -> Callable[[tuple[int, ...], bool], tuple[int, ...]]:
    """The shape of the rows from that of the logits."""
    left = [axis for axis in range(-ndim, 0) if axis not in axes]
    pick = itemgetter(*left) if len(left) > 1 else None

    def of_rows(shape: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
        if keepdims:
            kept = list(shape)
            for axis in axes:
                kept[axis] = 1
            return tuple(kept)
        if pick is not None:
            return pick(shape)
        return (shape[left[0]],) if left else ()

    return of_rows


class Given:
    """A loss's targets and options as numbers for a kernel, or `odd`."""

    __slots__ = ("direct", "mask", "numbers", "odd", "reduction", "row", "targets", "transform")

    def __init__(self, x: Array, targets: Array, options: tuple[Any, ...]) -> None:
        where, weight, sample_weight, ignore_index, smoothing, temperature, softcap, z_loss, reduction = options
        self.odd = True
        if type(targets) is not np.ndarray or type(reduction) is not str:
            return
        self.reduction = _REDUCTIONS.get(reduction, -1)
        labels, floats = -1, -1
        if targets.ndim == x.ndim:
            floats = FLOATS.get(targets.dtype, -1)
        else:
            labels = INTEGERS.get(targets.dtype, -1)
        if self.reduction < 0 or (labels < 0 and floats < 0) or not (where is None or are_kept(where)):
            return
        if type(smoothing) not in _NUMBERS or not 0.0 <= smoothing <= 1.0:
            return
        if not is_temperature(temperature) or temperature < _COLD:
            return
        if type(z_loss) not in _NUMBERS or not 0.0 <= z_loss <= _MOST:
            return
        if softcap is not None and not is_temperature(softcap):
            return
        ignores = ignore_index is not None
        if ignores and not (type(ignore_index) is int and labels >= 0 and -(2**62) < ignore_index < 2**62):
            return
        weights = []
        for a in (weight, sample_weight):
            kind = 0 if a is None else FLOATS.get(a.dtype, -1) if type(a) is np.ndarray else -1
            if kind < 0 or not (a is None or a.flags.aligned):
                return
            weights += [0 if a is None else id(a), kind]
        if not targets.flags.aligned:
            return
        self.odd = False
        self.direct = (
            where is None and temperature == 1.0 and softcap is None and not smoothing
            and (labels >= 0 or (targets.dtype == x.dtype and weight is None))
        )  # fmt: skip
        self.targets = id(targets), labels
        self.mask = floats, 0 if where is None else id(where)
        self.row = (*weights, ignore_index or 0, ignores)
        self.numbers = float(z_loss), self.reduction
        self.transform = float(smoothing), float(temperature), 0.0 if softcap is None else float(softcap)


def scalar(value: float, like: Array) -> Any:
    """As NumPy's; a cast that overflows or underflows would warn."""
    if _LEAST <= value <= _MOST:
        return like.dtype.type(value)
    with np.errstate(all="ignore"):
        return like.dtype.type(value)


def result_like(out: Array | None, x: Array, *others: Array | None) -> Array | None:
    """Where a result goes; None: `out` needs a closer look."""
    if out is None:
        return np.empty_like(x)
    alike = type(out) is np.ndarray and out.dtype == x.dtype and out.shape == x.shape and out.flags.carray
    if not alike:
        return None
    for a in (x, *others):
        if a is not None and a is not out and np.may_share_memory(a, out):
            return None
    return out
