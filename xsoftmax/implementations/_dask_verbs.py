"""Verbs on Dask arrays whose rows are whole in each block: the verb itself on each block, by its own library.

A mean takes two sweeps: what it divides by, from labels and weights alone, then the blocks, whose shares are added.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from .. import threads, weighing
from ..problem import Array
from ._dask_blocks import blockwise, narrowed
from ._dask_records import (
    Index,
    Leaf,
    class_indices,
    leaves,
    row_indices,
    with_blocks,
    with_wide_factors,
    without_arrays,
)

_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)
_FAN_IN = 16  # numbers that are added at a time; a task costs more than they do
_BROADCAST = ("where", "weight", "sample_weight")


class _Result(NamedTuple):
    """Indices of the axes, and dtype, of an array that a verb returns.

    `ones`: indices of which 1 is left. `twice`: the index that stands for its last axis as well, whose own index is
    new. `summed`: it has no rows; the blocks have shares of it.
    """

    axes: Index
    ones: Index
    twice: int | None
    summed: bool
    dtype: Any


class _Task(NamedTuple):
    """What is sent along with the blocks."""

    names: tuple[str, ...]
    record: Any
    verb: Any
    options: tuple[Any, ...]
    run: Any
    results: tuple[_Result | None, ...]
    rows: int
    is_one_of_many: bool


def splits_classes(given: Any) -> bool:
    found, classes = leaves(given), class_indices(given)
    first = found.get("factor", next(iter(found.values())))
    return any(count > 1 for i, count in zip(first.axes, first.array.numblocks, strict=True) if i in classes)


def on_blocks(given: Any, verb: Any, options: tuple[Any, ...], run: Any) -> Any:
    found, rows = leaves(given), row_indices(given)
    found = {name: _with_whole_axes(leaf, rows) for name, leaf in found.items()}
    results, container = _results(given, found, verb, options, run)
    record = without_arrays(given)
    if hasattr(given, "totals"):
        record, found = _with_totals(given, record, found, options)
    is_one_of_many = any(count > 1 for count in found[next(iter(found))].array.numblocks)
    task = _Task(tuple(found), record, verb, options, run, results, len(rows), is_one_of_many)
    return container(_outputs(task, found, rows, given.problem.verb))


def _with_whole_axes(leaf: Leaf, rows: list[int]) -> Leaf:
    """A block has in full what are no rows: the classes, and what a product sums over."""
    split = {
        axis: -1
        for axis, (i, count) in enumerate(zip(leaf.axes, leaf.array.numblocks, strict=True))
        if i not in rows and count > 1
    }
    return leaf._replace(array=leaf.array.rechunk(split)) if split else leaf


# ---------------------------------------------------------------------------------------------------------------------
# what comes out, told by the verb on a block of a few zeros, whose axes are told apart by their lengths


def _results(
    given: Any, found: dict[str, Leaf], verb: Any, options: tuple[Any, ...], run: Any
) -> tuple[tuple[_Result | None, ...], Any]:
    blocks = {name: _small(name, *leaf) for name, leaf in found.items()}
    result = verb(with_blocks(without_arrays(given), blocks), *options, run=run)
    if not isinstance(result, tuple):
        return (_described(result, given),), lambda arrays: arrays[0]
    container = type(result)
    return tuple(None if r is None else _described(r, given) for r in result), (
        container._make if hasattr(container, "_make") else container
    )


def _small(name: str, array: Array, index: Index) -> Array:
    shape = tuple(1 if n == 1 and name in _BROADCAST else _PRIMES[i] for n, i in zip(array.shape, index, strict=True))
    return np.zeros_like(array._meta, shape=shape)


def _described(result: Array, given: Any) -> _Result:
    index: list[int] = []
    twice = None
    for axis, n in enumerate(result.shape):
        i = axis if n == 1 else _PRIMES.index(n)
        if i in index:
            i, twice = len(_PRIMES), i
        index.append(i)
    ones = tuple(i for i, n in zip(index, result.shape, strict=True) if n == 1)
    summed = hasattr(given, "totals") and not set(index) & set(row_indices(given))
    return _Result(tuple(index), ones, twice, summed, result.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# what a mean divides by


def _with_totals(
    given: Any, record: Any, found: dict[str, Leaf], options: tuple[Any, ...]
) -> tuple[Any, dict[str, Leaf]]:
    """`totals` as numbers where the shapes tell them, else as an array of two."""
    if "mean" not in options:
        return record._replace(totals=()), found
    rows = row_indices(given)
    names: list[str] = ["x"]
    if given.problem.labels:
        names = [name for name in ("targets", "sample_weight", "weight") if name in found]
    elif given.sample_weight is not None:
        names = ["sample_weight"]
    else:
        sizes = [found["x"].array.shape[found["x"].axes.index(i)] for i in rows]
        if not any(math.isnan(n) for n in sizes):
            return record._replace(totals=(math.prod(sizes),) * 2), found
    if math.isnan(given.classes) and "x" not in names:
        names.append("x")
    place = max(i for leaf in found.values() for i in leaf.axes) + 1
    arrays = [part for name in names for part in found[name]]
    counts = blockwise(
        partial(_total_of_block, record=record, names=tuple(names), rows=len(rows)),
        (*rows, place),
        arrays,
        given.problem.compute,
        f"{given.problem.verb}-counts",
        adjust_chunks=dict.fromkeys(rows, 1),
        new_axes={place: 2},
    )
    totals = counts.sum(axis=tuple(range(len(rows))), split_every=_FAN_IN) if rows else counts
    return record, found | {"totals": Leaf(totals, (place,))}


def _total_of_block(*blocks: Any, record: Any, names: tuple[str, ...], rows: int) -> Array:
    given = with_blocks(record, dict(zip(names, map(_alone, blocks), strict=True)))
    xp, dtype = given.xp, given.problem.compute
    label, absent, bad = weighing.marked(given)
    totals = weighing.totals(given, label, weighing.counted(given, absent, bad), partial(weighing.total_of, xp=xp))
    pair = [xp.asarray(n, dtype=getattr(xp, dtype), device=given.device) for n in totals]
    return xp.reshape(xp.stack(pair), (1,) * rows + (2,))


# ---------------------------------------------------------------------------------------------------------------------
# the blocks


def _outputs(task: _Task, found: dict[str, Leaf], rows: list[int], verb: str) -> list[Array | None]:
    arrays = [part for leaf in found.values() for part in leaf]
    kept = [result for result in task.results if result is not None]
    new = {result.axes[-1]: _length(found, result.twice) for result in kept if result.twice is not None}
    if len(task.results) == 1:
        (result,) = kept
        index, ones = _place(result, rows)
        whole = blockwise(
            partial(_on_block, task=task), index, arrays, _dtype(task, result), verb, adjust_chunks=ones, new_axes=new
        )
        return [_joined(whole, result, rows)]
    every = sorted({*rows, *(i for result in kept for i in result.axes)})
    together = blockwise(partial(_on_block, task=task), every, arrays, kept[0].dtype, f"{verb}-blocks")
    results: list[Array | None] = []
    for number, about in enumerate(task.results):
        if about is None:
            results.append(None)
            continue
        index, ones = _place(about, rows)
        part = blockwise(
            partial(_taken, number=number), index, [together, every], _dtype(task, about), verb, adjust_chunks=ones
        )
        results.append(_joined(part, about, rows))
    return results


def _on_block(*blocks: Any, task: _Task) -> Any:
    named = dict(zip(task.names, map(_alone, blocks), strict=True))
    totals = named.pop("totals", None)
    given = with_wide_factors(with_blocks(task.record, named))
    if totals is not None:
        given = given._replace(totals=(totals[0], totals[1]))
    with threads.alone() if task.is_one_of_many else nullcontext():
        found = task.verb(given, *task.options, run=task.run)
    results = found if isinstance(found, tuple) else (found,)
    shaped = tuple(
        None if about is None else _in_place(r, about, task.rows)
        for r, about in zip(results, task.results, strict=True)
    )
    return shaped if len(shaped) > 1 else shaped[0]


def _in_place(result: Array, about: _Result, rows: int) -> Array:
    """With an axis of 1 for each axis of the rows that it is a share of; an array, where it is NumPy's scalar."""
    xp = array_namespace(result)
    return xp.reshape(result, (1,) * (rows if about.summed else 0) + tuple(result.shape))


def _taken(blocks: Any, number: int) -> Array:
    return _alone(blocks)[number]


def _alone(block: Any) -> Any:
    """Blocks come in lists along axes that the result hasn't; these have one."""
    while isinstance(block, list):
        (block,) = block
    return block


def _place(result: _Result, rows: list[int]) -> tuple[Index, dict[int, int]]:
    """Axes of the blocks of a result, and those of length 1."""
    if result.summed:
        return (*rows, *result.axes), dict.fromkeys(rows, 1)
    return result.axes, dict.fromkeys(result.ones, 1)


def _dtype(task: _Task, result: _Result) -> Any:
    """Shares of a loss are not rounded yet, nor those of a gradient in half precision."""
    if not result.summed:
        return result.dtype
    return np.dtype(task.record.problem.compute if not result.axes else np.promote_types(result.dtype, np.float32))


def _joined(parts: Array, result: _Result, rows: list[int]) -> Array:
    if not result.summed:
        return parts
    fan_in = None if result.axes else _FAN_IN
    whole = parts.sum(axis=tuple(range(len(rows))), split_every=fan_in) if rows else parts
    return narrowed(whole, result.dtype)


def _length(found: dict[str, Leaf], i: int | None) -> Any:
    return next(leaf.array.shape[leaf.axes.index(i)] for leaf in found.values() if i in leaf.axes)
