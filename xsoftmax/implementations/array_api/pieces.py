"""Blocks of the logits of a linear loss, and results that are put together from them."""

from __future__ import annotations

from typing import Any

from ...libraries import facts
from ...libraries.arrays import device_of

Array = Any


def blocks(start: int, stop: Any, size: int | None) -> list[slice]:
    """From start to stop, the last one shorter; without a size, or where the end is not known, one."""
    if not isinstance(stop, int):
        return [slice(None)]
    if size is None:
        return [slice(start, stop)]
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]


def taken(a: Array, block: slice, axis: int = 0, start: int = 0) -> Array:
    """A block of an array whose first index is `start`; all of it as it is, lest a traced shape be lost."""
    n = a.shape[axis]
    if block == slice(None) or (block.start, block.stop) == (start, start + n):
        return a
    return a[(*(slice(None),) * axis, slice(block.start - start, block.stop - start), ...)]


def of_rows(a: Any, block: slice) -> Any:
    """The rows of a block, of an option that has one for all or one for each."""
    return a if getattr(a, "ndim", 0) < 2 or a.shape[0] == 1 else taken(a, block)


def of_classes(a: Array | None, block: slice) -> Array | None:
    return a if a is None or a.shape[-1] == 1 else a[..., block]


class Pieces:
    """An array of n rows, put together from blocks of them; a block that comes again is added."""

    def __init__(self, n: Any, library: str) -> None:
        self.n = n
        self.in_place = facts.of(library).views
        self.whole: Array | None = None
        self.parts: dict[int, Array] = {}

    def add(self, block: slice, part: Array, xp: Any) -> None:
        if (old := self.parts.get(block.start)) is not None:
            if self.in_place:
                old += part
            else:
                self.parts[block.start] = old + part
            return
        if self.in_place and (block.start, block.stop) != (0, self.n):
            if self.whole is None:
                self.whole = xp.empty((self.n, *part.shape[1:]), dtype=part.dtype, device=device_of(part))
            self.whole[block] = part
            part = self.whole[block]
        self.parts[block.start] = part

    def array(self, xp: Any) -> Array:
        if self.whole is not None:
            return self.whole
        parts = list(self.parts.values())
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)


class Halved:
    """Σ of arrays that come one after the other, by halving: sums of as many are added to each other, in their place.

    log₂ of their number are kept.
    """

    def __init__(self) -> None:
        self.sums: list[tuple[int, Array]] = []

    def add(self, a: Array) -> None:
        n = 1
        while self.sums and self.sums[-1][0] == n:
            _, older = self.sums.pop()
            older += a
            a, n = older, 2 * n
        self.sums.append((n, a))

    def total(self) -> Array:
        _, a = self.sums.pop()
        while self.sums:
            _, older = self.sums.pop()
            older += a
            a = older
        return a
