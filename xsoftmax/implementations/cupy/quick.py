"""The short way to the CUDA kernels: matrices side by side in memory, along the last axis, without options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from ...calls.records import Array, Options, Problem
from ...libraries.arrays import dtype_name
from .operations import Layout, LikeLogits, Operations, label_kind
from .weights import Weighings


@dataclass(frozen=True, slots=True)
class ShortCuts:
    """Entries of an implementation, for arrays that were looked at no further; None: the long way."""

    operations: Operations
    weighings: Weighings
    library_name: str

    def entries(self) -> dict[str, Callable[..., Any]]:
        """By verb, as `choose.entry` asks for them."""
        own: dict[str, Callable[..., Any]] = {
            "softmax": self._like_logits,
            "log_softmax": self._like_logits,
            "logsumexp": self._logsumexp,
            "cross_entropy": self._cross_entropy,
            "cross_entropy_and_grad": self._cross_entropy_and_grad,
        }
        return {verb: partial(_of_matrices, entry) for verb, entry in own.items()}

    def _like_logits(
        self, verb: str, x: Array, where: Array | None, temperature: float, out: Array | None, again: Any
    ) -> Array | None:
        if where is not None or not _is(temperature, 1.0) or not x.flags.c_contiguous:
            return None
        if (y := self._result(x, out)) is not None:
            self._launch(verb, LikeLogits(x, y), {})
        return y

    def _logsumexp(self, verb: str, x: Array, where: Array | None, keepdims: bool, again: Any) -> Array | None:
        if where is not None or keepdims or not x.flags.c_contiguous:
            return None
        library = self.operations.library
        value = library.empty(x.shape[:1], dtype_name(x), x)
        self._launch(verb, LikeLogits(x), {"value": library.pointer(value)})
        return value

    def _cross_entropy(
        self, verb: str, x: Array, labels: Array, options: tuple[Any, ...], out: Array | None, again: Any
    ) -> Array | None:
        if not _are_usual(options) or not _are_labels(labels, x):
            return None
        return self._mean(x, self._losses(x, labels, None, {}), len(x))

    def _cross_entropy_and_grad(
        self, verb: str, x: Array, labels: Array, options: tuple[Any, ...], out: Array | None, again: Any
    ) -> tuple[Array, Array] | None:
        if not _are_usual(options) or not _are_labels(labels, x) or (grad := self._result(x, out, labels)) is None:
            return None
        library = self.operations.library
        scale = library.empty(x.shape[:1], "float64", x)
        self.weighings.scaled_for_a_mean(labels, x.shape[1], scale)
        loss = self._losses(x, labels, grad, {"scale": library.pointer(scale), "scale_step": 1})
        return self._mean(x, loss, len(x)), grad

    def _losses(self, x: Array, labels: Array, grad: Array | None, numbers: dict[str, Any]) -> Array:
        library = self.operations.library
        loss = library.empty(x.shape[:1], "float64", x)
        numbers |= {
            "value": library.pointer(loss),
            "labels": library.pointer(labels),
            "label_kind": label_kind(labels),
        }
        self._launch("label_loss", LikeLogits(x, grad), numbers)
        return loss

    def _mean(self, x: Array, loss: Array, rows: int) -> Array:
        dtype = "float64" if dtype_name(x) == "float64" else "float32"
        return self.weighings.reduced(loss, rows, dtype, is_mean=True)

    def _launch(self, verb: str, given: LikeLogits, numbers: dict[str, Any]) -> None:
        rows, classes = given.x.shape
        count = 1 if given.y is None else 2
        p = _problem(verb, self.library_name, dtype_name(given.x))
        self.operations.launch_on(_layout(rows, classes, count), verb, p, given, numbers)

    def _result(self, x: Array, out: Array | None, *others: Array) -> Array | None:
        """Where a result goes; None: `out` needs a closer look."""
        if out is None:
            return self.operations.library.empty_like(x)
        alike = type(out) is type(x) and out.dtype == x.dtype and out.shape == x.shape and out.flags.c_contiguous
        apart = alike and all(a is out or self._are_apart(a, out) for a in (x, *others))
        return out if apart else None

    def _are_apart(self, a: Array, b: Array) -> bool:
        start, other = self.operations.library.pointer(a), self.operations.library.pointer(b)
        return start + a.nbytes <= other or other + b.nbytes <= start


def _of_matrices(entry: Callable[..., Any], p: Problem, ndim: int, entry_of: Any) -> Any:
    return partial(entry, p.verb) if p.axes == (-1,) and ndim == 2 else None


def _is(option: Any, number: Any) -> bool:
    return type(option) is type(number) and option == number


def _are_usual(options: tuple[Any, ...]) -> bool:
    return all(map(_is, options, Options()))


def _are_labels(labels: Array, x: Array) -> bool:
    return (
        x.flags.c_contiguous
        and type(labels) is type(x)
        and labels.dtype.kind in "iu"
        and labels.shape == x.shape[:1]
        and labels.flags.c_contiguous
        and labels.device == x.device
    )


@lru_cache(maxsize=64)
def _problem(verb: str, library: str, dtype: str) -> Problem:
    return Problem(verb, library, "ndarray", dtype, "float64", dtype, (-1,))


@lru_cache(maxsize=1024)
def _layout(rows: int, classes: int, arrays: int) -> Layout:
    return Layout(rows, 1, classes, arrays * ((classes, 0, 1),))
