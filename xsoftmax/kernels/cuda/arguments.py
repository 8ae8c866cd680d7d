"""What a CUDA kernel is told: places of arrays and numbers, as `Arguments` of view.cuh has them."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

_PLACE = np.dtype([("data", "u8"), ("outer", "i8"), ("inner", "i8"), ("step", "i8")])
ARGUMENTS = np.dtype(
    [
        *((name, "i8") for name in ("rows", "inner_rows", "classes")),
        *((name, _PLACE) for name in ("x", "y", "targets", "where")),
        *((name, "u8") for name in ("labels", "weight", "zeta", "scale", "value", "pieces")),
        *((name, "f8") for name in ("softcap", "temperature", "smoothing", "z_loss", "factor")),
        *((name, "i4") for name in ("label_kind", "zeta_step", "scale_step", "slices")),
    ]
)
_LAYOUT = struct.Struct("=3q" + 4 * "Q3q" + "6Q5d4i")  # 0.8 µs, fields of a record one by one 6
_WEIGHING = struct.Struct("=3q10Q2d5i4x")


class Place(NamedTuple):
    """An address, and steps in elements: of rows in two loops, and of classes."""

    data: int = 0
    outer: int = 0
    inner: int = 0
    step: int = 0


class Arguments(NamedTuple):
    """Addresses are 0 for what is not there; `z_loss` and `factor` stand for arrays zeta and scale that are not."""

    rows: int
    inner_rows: int
    classes: int
    x: Place
    y: Place = Place()
    targets: Place = Place()
    where: Place = Place()
    labels: int = 0
    weight: int = 0
    zeta: int = 0
    scale: int = 0
    value: int = 0
    pieces: int = 0
    softcap: float = 0.0
    temperature: float = 1.0
    smoothing: float = 0.0
    z_loss: float = 0.0
    factor: float = 1.0
    label_kind: int = 0
    zeta_step: int = 0
    scale_step: int = 0
    slices: int = 0

    def record(self) -> np.ndarray:
        """One element of `ARGUMENTS`, which CuPy passes by value."""
        sizes, places, rest = self[:3], self[3:7], self[7:]
        packed = _LAYOUT.pack(*sizes, *(number for place in places for number in place), *rest)
        return np.frombuffer(packed, ARGUMENTS)


class WeighingArguments(NamedTuple):
    """`Weighing` of weighing.cuh."""

    rows: int
    classes: int = 0
    ignored: int = 0
    labels: int = 0
    s: int = 0
    w: int = 0
    loss: int = 0
    partial: int = 0
    scale: int = 0
    zeta: int = 0
    divisor: int = 0
    absent: int = 0
    result: int = 0
    z_loss: float = 0.0
    divided_by: float = 0.0
    label_kind: int = 0
    ignores: int = 0
    is_mean: int = 0
    is_float32: int = 0
    parts: int = 0

    def record(self) -> np.ndarray:
        """One element, which CuPy passes by value."""
        return np.frombuffer(_WEIGHING.pack(*self), f"V{_WEIGHING.size}")
