"""Which rows of a loss count, and the sum of their losses, in one to three launches each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...calls.records import Array, LossCall, Problem, Rows
from ...kernels.cuda import launch as cuda
from ...kernels.cuda.arguments import WeighingArguments
from ...libraries.arrays import dtype_name
from .operations import Library, label_kind, row_shape

_THREADS = 256
_AT_ONCE = 1 << 14  # rows of one block
_PARTS = 512
_INT64, _UNSIGNED = range(-(1 << 63), 1 << 63), range(1 << 63)


@dataclass(frozen=True, slots=True)
class Weighings:
    """What stands around the rows of a loss; None where the formulas are as good."""

    library: Library

    def declared(self) -> dict[str, Any]:
        return {"weigh": self.weigh, "reduce_rows": self.reduce_rows}

    def weigh(self, p: Problem, call: LossCall) -> tuple[Array, Rows, Array | None, Array | None] | None:
        """Targets, row options, absent rows and divisor; a label that is no class makes nan of its row's scale."""
        s, ignored, x = call.sample_weight, call.ignore_index, call.x
        shape = row_shape(p, x)
        rows = math.prod(shape)
        if not rows or not (p.labels or s is not None):
            return None
        # in int64 a label from 2⁶³ on would be taken for another
        given_labels = call.raw_targets if dtype_name(call.raw_targets) == "uint64" else call.targets
        ignores = ignored is not None and ignored in (_INT64 if given_labels is call.targets else _UNSIGNED)
        may_be_absent = s is not None or ignores
        is_mean = call.reduction == "mean"
        if not is_mean and not may_be_absent:
            return call.targets, Rows(call.where, call.weight, 1.0, p.z_loss), None, None
        pointer, empty, contiguous = self.library.pointer, self.library.empty, self.library.contiguous
        labels = contiguous(given_labels) if p.labels else None
        weights = None if s is None else contiguous(s)
        by_label = call.weight is not None and p.labels and is_mean
        w = contiguous(call.weight) if by_label else None
        scale = empty(shape, "float64", x)
        absent = empty(shape, "bool", x) if may_be_absent else None
        numbers = self._scaled(
            scale,
            labels,
            classes=call.classes,
            ignored=ignored if ignores else 0,
            s=0 if weights is None else pointer(weights),
            w=0 if w is None else pointer(w),
            absent=0 if absent is None else pointer(absent),
            z_loss=p.z_loss,
            ignores=int(ignores),
            is_mean=int(is_mean),
        )
        zeta = numbers[1] if by_label and p.z_loss else p.z_loss
        return call.targets, Rows(call.where, call.weight, scale, zeta), absent, numbers[0] if is_mean else None

    def reduce_rows(self, p: Problem, loss: Array, w: Any, reduction: str, dtype: str) -> Array | None:
        """The sum or mean of the losses of the rows."""
        if reduction == "none" or dtype_name(loss) != "float64" or dtype not in ("float32", "float64"):
            return None
        return self.reduced(loss, w.divisor, dtype, w.s, w.absent, is_mean=reduction == "mean")

    def reduced(
        self,
        loss: Array,
        divisor: Array | int | None,
        dtype: str,
        s: Array | None = None,
        absent: Array | None = None,
        *,
        is_mean: bool,
    ) -> Array:
        """Σ s L, for a mean over the divisor."""
        contiguous, pointer = self.library.contiguous, self.library.pointer
        result = self.library.empty((), dtype, loss)
        given = [None if a is None else contiguous(a) for a in (s, absent)]
        loss, number = contiguous(loss), divisor if isinstance(divisor, int) else None
        s_at, absent_at = (0 if a is None else pointer(a) for a in given)
        arguments = WeighingArguments(
            math.prod(loss.shape),
            loss=pointer(loss),
            s=s_at,
            absent=absent_at,
            divisor=0 if divisor is None or number is not None else pointer(divisor),
            divided_by=float(number or 0),
            result=pointer(result),
            is_mean=int(is_mean),
            is_float32=int(dtype == "float32"),
        )
        self._launch(loss, arguments, "sum_losses", "sum_part", "join_losses", joins_in_parts=False)
        return result

    def scaled_for_a_mean(self, labels: Array, classes: int, scale: Array) -> None:
        """1 over the number of labels that are classes, nan for the others."""
        self._scaled(scale, labels, classes=classes, is_mean=1)

    def _scaled(self, scale: Array, labels: Array | None, **fields: Any) -> Array:
        """Writes the scales of the rows; divisor and zeta."""
        numbers = self.library.empty((2,), "float64", scale)
        at = self.library.pointer(numbers)
        arguments = WeighingArguments(
            math.prod(scale.shape),
            labels=0 if labels is None else self.library.pointer(labels),
            scale=self.library.pointer(scale),
            divisor=at,
            zeta=at + 8,
            label_kind=0 if labels is None else label_kind(labels),
            **fields,
        )
        self._launch(scale, arguments, "weigh", "count_part", "scale_part", joins_in_parts=True)
        return numbers

    def _launch(
        self, x: Array, a: WeighingArguments, at_once: str, part: str, joined: str, *, joins_in_parts: bool
    ) -> None:
        if a.rows <= _AT_ONCE:
            self._launch_one(x, at_once, 1, a)
            return
        parts = min(_PARTS, -(-a.rows // (_AT_ONCE // 4)))
        partial = self.library.empty((2 * parts,), "float64", x)
        a = a._replace(partial=self.library.pointer(partial), parts=parts)
        self._launch_one(x, part, parts, a)
        self._launch_one(x, joined, parts if joins_in_parts else 1, a)

    def _launch_one(self, x: Array, kernel: str, blocks: int, a: WeighingArguments) -> None:
        self.library.launch(x, _launch_of(kernel), blocks, a.record())


@lru_cache(maxsize=8)
def _launch_of(kernel: str) -> cuda.Launch:
    return cuda.Launch((f"xsoftmax::{kernel}<{_THREADS}>",), _THREADS)
