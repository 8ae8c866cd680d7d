"""Operations on Dask arrays whose classes are split: states of the blocks, merged by a tree, then a pass over blocks.

Only states travel, O(rows) each; no block of logits leaves the worker that has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import dask.array as da
import numpy as np

from ... import threads
from ...calls.records import Array, Problem
from ...formulas import Part
from ...libraries.arrays import array_namespace, container_of, device_type, library_of
from .blockwise import blockwise
from .leaves import Leaf, right_aligned

_FAN_IN = 8  # states merged at a time, along each axis
_QUIETLY = np.errstate(all="ignore")  # as the kernels do whole rows


class Parts:
    """Arrays of one problem in common chunks, by name; each index is the number of an axis of the logits."""

    def __init__(self, p: Problem, run: Any, **arrays: Any) -> None:
        self.p, self.run = p, run
        x = next(a for a in arrays.values() if a is not None)
        self.n = x.ndim
        self.axes = tuple(sorted(self.n + axis for axis in p.axes))
        given = {name: a for name, a in arrays.items() if isinstance(a, da.Array)}
        self.numbers = {name: a for name, a in arrays.items() if a is not None and name not in given}
        self.leaves = self._unified({name: self._leaf(name, a) for name, a in given.items()})
        self.classes = math.prod(x.shape[axis] for axis in self.axes)

    def _leaf(self, name: str, a: Array) -> Leaf:
        if name == "targets" and self.p.labels:
            return Leaf(a, tuple(i for i in range(self.n) if i not in self.axes))
        return right_aligned(a, self.n)

    def _unified(self, leaves: dict[str, Leaf]) -> dict[str, Leaf]:
        for name, (a, index) in leaves.items():
            for axis, i in enumerate(index):
                if i in self.axes and any(math.isnan(n) for n in a.chunks[axis]):
                    raise ValueError(
                        f"{self.p.verb}: {name} has chunks of unknown size along the split class axis {i - self.n},"
                        " expected known ones: compute_chunk_sizes() finds them"
                    )
        _, arrays = da.core.unify_chunks(*(part for leaf in leaves.values() for part in leaf))
        return {name: leaf._replace(array=a) for (name, leaf), a in zip(leaves.items(), arrays, strict=True)}

    def add(self, name: str, rows: Array) -> None:
        """An array of a number a row, as `merged` returns it."""
        self.leaves[name] = right_aligned(rows, self.n)

    # -----------------------------------------------------------------------------------------------------------------
    # passes

    def each(self, work: Callable[..., Any], *states: Array, dtype: str, kept: bool, name: str) -> Array:
        """`work(p, blocks, part, *states)` on each block in the form (rows, classes); `kept`: the class axes stay."""
        x = self._first()
        index = tuple(range(self.n))
        arrays = [part for leaf in self.leaves.values() for part in leaf]
        names: list[str | None] = list(self.leaves)
        if len(self.axes) == 1:
            names.append("at")
            starts = np.cumsum((0, *x.chunks[self.axes[0]][:-1]))
            arrays += [da.from_array(starts, chunks=1, inline_array=True), self.axes]
        for state in states:
            arrays += [state, index]
        names += [None] * len(states)
        order = [i for i in index if i not in self.axes] + list(self.axes)
        task = partial(
            _on_block, work=work, p=self.p, run=self.run, names=tuple(names), order=order, numbers=self.numbers,
            classes=self.classes, kept=kept,
        )  # fmt: skip
        ones = {} if kept else dict.fromkeys(self.axes, 1)
        return blockwise(task, index, arrays, dtype, f"{self.p.verb}-{name}", adjust_chunks=ones, align_arrays=False)

    def merged(self, states: Array, merge: Callable[..., Any]) -> Array:
        """The states of all classes of a row, by a tree; `merge(states, axes=…, xp=…)` those that are side by side."""
        step = partial(_merged, merge=merge)
        return da.reduction(
            states, chunk=_as_it_is, combine=step, aggregate=step, axis=self.axes, keepdims=True,
            dtype=states.dtype, meta=states._meta, concatenate=False, split_every=_FAN_IN ** len(self.axes),
        )  # fmt: skip

    def of_rows(self, work: Callable[..., Array], state: Array, dtype: str, **numbers: Any) -> Array:
        """What the merged state tells of the rows."""
        index = tuple(range(self.n))
        arrays, names = [state, index], []
        for name, a in numbers.items():
            if isinstance(a, da.Array):
                names.append(name)
                arrays += right_aligned(a, self.n)
        fixed = {name: a for name, a in numbers.items() if name not in names}
        task = partial(_of_state, work=work, names=tuple(names), fixed=fixed)
        return blockwise(task, index, arrays, dtype, f"{self.p.verb}-rows", align_arrays=False)

    def row_option(self, name: str) -> Any:
        return self.leaves[name].array if name in self.leaves else self.numbers.get(name, 0.0)

    def _first(self) -> Array:
        return next(iter(self.leaves.values())).array


def _as_it_is(block: Any, axis: Any, keepdims: bool) -> Any:
    return block


@_QUIETLY
def _merged(states: Any, axis: Any, keepdims: bool, merge: Callable[..., Any]) -> Any:
    def flat(nested: Any) -> list[Any]:
        return [one for some in nested for one in flat(some)] if isinstance(nested, list) else [nested]

    first, *others = found = flat(states)
    if not others:
        return first
    if not isinstance(first, tuple):
        xp = array_namespace(first)
        return xp.squeeze(merge(xp.stack(found, axis=-1), axes=(-1,), xp=xp), axis=-1)
    xp = array_namespace(first[0])
    whole = merge(type(first)(*(xp.stack(a, axis=-1) for a in zip(*found, strict=True))), axes=(-1,), xp=xp)
    return type(first)(*(xp.squeeze(a, axis=-1) for a in whole))


@_QUIETLY
def _of_state(state: Any, *arrays: Any, work: Callable[..., Array], names: tuple[str, ...], fixed: Any) -> Array:
    xp = array_namespace(state if not isinstance(state, tuple) else state[0])
    return work(state, **dict(zip(names, arrays, strict=True)), **fixed, xp=xp)


# ---------------------------------------------------------------------------------------------------------------------
# a block, as rows of classes


@_QUIETLY
def _on_block(
    *arrays: Any,
    work: Callable[..., Any],
    p: Problem,
    run: Any,
    names: tuple[str | None, ...],
    order: list[int],
    numbers: dict[str, Any],
    classes: int,
    kept: bool,
) -> Any:
    x = arrays[0]
    xp = array_namespace(x)
    library = library_of(xp)
    shape = [x.shape[i] for i in order]
    rows = len(order) - len(p.axes)
    turn = _Turn(order, shape, rows, xp)
    blocks, states, start = dict(numbers), [], 0
    for name, a in zip(names, arrays, strict=True):
        if name is None:
            states.append(type(a)(*map(turn.rows_of, a)) if isinstance(a, tuple) else turn.rows_of(a))
        elif name == "at":
            start = int(a[0])
        elif name == "weight" or (name == "targets" and p.labels):
            blocks[name] = xp.reshape(a, (-1,))
        else:
            blocks[name] = turn.all_of(a) if name in ("where", "targets", "x", "v") else turn.rows_of(a)
    container, device = container_of(x, library), device_type(x, library)
    p = replace(p, library=library, container=container, device=device, axes=(-1,))
    with threads.alone():
        found = work(p, blocks, Part(start, classes, blocks.get("number", classes)), *states, xp=xp, run=run)
    if isinstance(found, tuple):
        return type(found)(*(turn.back(a, 1) for a in found))
    return turn.back(found, None if kept else 1)


class _Turn:
    """Between a block as it is and as (rows, classes)."""

    def __init__(self, order: list[int], shape: list[int], rows: int, xp: Any) -> None:
        self.order, self.shape, self.rows, self.xp = order, shape, rows, xp

    def all_of(self, a: Array) -> Array:
        """An array that broadcasts to the logits, in full."""
        xp, n = self.xp, len(self.order)
        a = xp.reshape(a, (1,) * (n - a.ndim) + tuple(a.shape))
        if self.order != list(range(n)):
            a = xp.permute_dims(a, self.order)
        if tuple(a.shape) != tuple(self.shape):
            a = xp.broadcast_to(a, tuple(self.shape))
        return xp.reshape(a, (self._rows(), math.prod(self.shape[self.rows :])))

    def rows_of(self, a: Array) -> Array:
        """One number for each row, (rows, 1); or for all."""
        xp, n = self.xp, len(self.order)
        if a.ndim == 0:
            return a
        a = xp.permute_dims(xp.reshape(a, (1,) * (n - a.ndim) + tuple(a.shape)), self.order)
        return xp.reshape(xp.broadcast_to(a, (*self.shape[: self.rows], *(1,) * (n - self.rows))), (self._rows(), 1))

    def back(self, a: Array, classes: int | None) -> Array:
        xp, n = self.xp, len(self.order)
        last = self.shape[self.rows :] if classes is None else [classes] * (n - self.rows)
        a = xp.reshape(a, (*self.shape[: self.rows], *last))
        if self.order == list(range(n)):
            return a
        return xp.permute_dims(a, [self.order.index(i) for i in range(n)])

    def _rows(self) -> int:
        return math.prod(self.shape[: self.rows])
