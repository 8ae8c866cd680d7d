"""What a call is made of: hashable problems, and checked arrays on their way to an implementation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Array = Any
Axis = int | Sequence[int] | None


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked, without the arrays: hashable, so that the choice of an implementation is cached.

    `dtype` is that of the logits, `compute` that of the arithmetic, `result` that of the arrays returned; `axes` are
    negative. `wants` says which of "loss" and "grad" a cross-entropy returns; `device` is "cpu", "cuda" and the like.
    """

    verb: str
    library: str
    container: str
    dtype: str
    compute: str
    result: str
    axes: tuple[int, ...]
    masked: bool = False
    temperature: float = 1.0
    softcap: float | None = None
    labels: bool = False
    class_weighted: bool = False
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    wants: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def array(self) -> str:
        """The kind of array, in a word."""
        return self.container if self.device == "cpu" else f"{self.device}.{self.container}"


class Rows(NamedTuple):
    """The row options that are arrays, each broadcastable to the logits or None.

    `scale` multiplies a row's gradient, 0 for a row that is absent; `zeta` is the factor of the squared logsumexp.
    """

    where: Array | None = None
    weight: Array | None = None
    scale: Array | float | None = None
    zeta: Array | float = 0.0


class Options(NamedTuple):
    """The options of a loss, as they are given."""

    where: Array | None = None
    weight: Array | None = None
    sample_weight: Array | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    temperature: float = 1.0
    softcap: float | None = None
    z_loss: float = 0.0
    reduction: str = "mean"


class ArrayCall(NamedTuple):
    """Checked arrays on their way to an implementation, in floating dtypes and native byte order.

    `returns` is what the verb returns, in the words of the verb table.
    """

    problem: Problem
    xp: Any
    device: Any
    arrays: tuple[Array | None, ...]
    where: Array | None
    returns: tuple[str, ...] = ()


class LossCall(NamedTuple):
    """Checked arguments of a loss; `targets` are labels in the widest integer dtype, or probabilities as given.

    `x` are the logits; with `linear`, (linear_weight, linear_bias), what is multiplied to become them. `totals` is
    given where these are some rows of a larger batch: what `weights.totals` tells of all, empty if no mean is asked
    for.
    """

    problem: Problem
    xp: Any
    device: Any
    x: Array
    classes: int
    targets: Array
    raw_targets: Array
    where: Array | None
    weight: Array | None
    sample_weight: Array | None
    ignore_index: int | None
    reduction: str
    v: Array | None = None
    linear: tuple[Array, Array | None] | None = None
    totals: tuple[Array | int, ...] | None = None
    returns: tuple[str, ...] = ()


class Plan(NamedTuple):
    """Rows and classes whose logits are made at a time, and classes whose part of the weight is; None: all."""

    rows: int | None
    classes: int | None
    factors: int | None
