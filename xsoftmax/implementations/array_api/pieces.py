"""Blocks of the logits of a linear loss, and results that are put together from them."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...libraries.arrays import device_of

Array = Any

_SHARE = 12  # of all logits: with what else a block needs, at most an eighth of them
_LEAST, _MOST = 1 << 24, 1 << 27  # bytes of the logits of a block; 8 MiB take 1.2 to 1.4 times as long as 128
_FLAT = 64  # rows; a product of fewer waits for the memory of the weight
_TALL = 256  # rows of a block that is cut by classes too
_FORMULAS = 4  # of that, where the formulas have temporaries of a block's size: 3 to 7 under JAX
_PART = 4  # of such a block: the linear weight, or its gradient, in one product

_IN_PLACE = frozenset({"cupy", "numpy", "torch"})  # a slice is a view
_KERNELS = frozenset({"numpy", "torch"})
_OWN_BLOCKS = frozenset({"cubed", "dask", "ndonnx"})  # lazy: blocks of their own, or none


class Plan(NamedTuple):
    """Rows and classes whose logits are made at a time, and classes whose part of the weight is; None: all."""

    rows: int | None
    classes: int | None
    factors: int | None


def plan(
    n: Any,
    classes: int,
    width: Any,
    itemsize: int,
    library: str,
    rows: int | None,
    some: int | None,
    *,
    on_cpu: bool = True,
) -> Plan:
    """`rows` and `some` classes as asked for, else so many that a block's logits have their share, up to 128 MiB.

    The free memory of a device is not asked for: the same call is to give the same bits.
    """
    if not isinstance(n, int) or not isinstance(width, int):
        return Plan(None, some, None)
    budget = max(n * classes * itemsize // _SHARE, _LEAST)
    if library not in _KERNELS or not on_cpu:
        budget //= _FORMULAS
    budget = min(budget, _MOST) // itemsize
    if rows is None and library not in _OWN_BLOCKS:
        rows = max(1, budget // (some or classes))
        if some is None and rows < min(n, _FLAT):
            rows = _TALL
            some = max(1, budget // rows)
    factors = max(_TALL, budget // (_PART * max(width, 1))) if library in _IN_PLACE else None
    return Plan(rows, some, factors)


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


def overwrites(library: str) -> bool:
    """Whether arrays of the library can be written to, through slices of them."""
    return library in _IN_PLACE


class Pieces:
    """An array of n rows, put together from blocks of them; a block that comes again is added."""

    def __init__(self, n: Any, library: str) -> None:
        self.n = n
        self.in_place = overwrites(library)
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
