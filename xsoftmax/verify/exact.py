"""An exact result: arbitrary-precision values, and for each the magnitude in whose ulps an error is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .formats import FORMATS, MP


@dataclass(frozen=True, eq=False)
class Total:
    """What a row of the result adds up to: ``|Σ row − value|`` is measured in ``eps·unit`` or in ``ulp(unit)``."""

    kind: str
    value: Any
    unit: Any


class Later:
    """Allowances that few errors ask for: what ``compute()`` gives at a precision, computed at the first question."""

    def __init__(self, compute: Callable[[], list], bits: int):
        self._compute, self._bits = compute, bits

    @cached_property
    def values(self) -> list:
        with MP.workprec(self._bits):
            return self._compute()

    def __getitem__(self, j: int) -> Callable[[], Any]:
        return lambda: self.values[j]


def amount(allowance) -> Any:
    """The number that an allowance is."""
    return allowance() if callable(allowance) else allowance


@dataclass(eq=False)
class Exact:
    """One exact array, by distinct entries: entry ``i`` of the result is ``values[index[i]]``.

    Equal entries of ``index`` come from equal inputs of one row, so a computed result must be bit-equal there.
    """

    kind: str  # row of compare.CONTRACT
    dtype: str
    axes: tuple[int, ...] = ()
    index: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    values: list = field(default_factory=list)
    units: list = field(default_factory=list)
    slack: list = field(default_factory=list)  # one dict per value: name of an exception → absolute allowance
    totals: list[Total | None] = field(default_factory=list)

    def add(self, value, unit=None, **slack) -> int:
        """Append a distinct value and return its code."""
        self.values.append(value)
        self.units.append(abs(value) if unit is None else max(abs(value), unit))
        self.slack.append(slack)
        return len(self.values) - 1

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The values as float64 pairs, ``near`` and the rest in ulps, and the ulps; ±inf where the dtype overflows."""
        target = FORMATS[self.dtype]
        near, rest, ulp = (np.zeros(len(self.values)) for _ in range(3))
        for k, (value, unit) in enumerate(zip(self.values, self.units, strict=True)):
            ulp[k] = target.ulp(unit)
            near[k] = float(value)
            if abs(value) >= target.overflow:
                near[k] = math.copysign(math.inf, near[k])
            elif MP.isfinite(value):
                with MP.workprec(200):
                    rest[k] = float((value - near[k]) / ulp[k])
        return near, rest, ulp
