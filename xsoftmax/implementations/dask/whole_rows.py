"""Verbs on Dask arrays whose rows are whole in each block: the verb itself on each block, by its own library.

A mean of losses is divided after its sums. Where there is a gradient, what it divides by is found in a sweep before,
over labels and weights alone.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ... import threads
from ...calls.records import Array, LossCall
from ...libraries.arrays import array_namespace, loss_dtype
from .blockwise import alone, blockwise, narrowed
from .leaves import (
    Call,
    Index,
    Leaf,
    class_indices,
    leaves,
    row_indices,
    with_blocks,
    with_wide_factors,
    without_arrays,
)
from .weights import known, may_divide_after, new_axis, quotient, share_and_divisor, summed, totals_before


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
    rows: Index
    every: Index
    is_one_of_many: bool
    divides_after: bool


def splits_classes(call: Call) -> bool:
    """Whether blocks hold parts of rows; nothing has no parts."""
    found, classes = leaves(call), class_indices(call)
    logits = next(iter(found.values()))
    if 0 in logits.array.shape:
        return False
    first = found.get("factor", logits)
    return any(count > 1 for i, count in zip(first.axes, first.array.numblocks, strict=True) if i in classes)


def on_blocks(call: Call, verb: Any, options: tuple[Any, ...], run: Any) -> Any:
    found, rows = leaves(call), row_indices(call)
    found = {name: _with_whole_axes(leaf, rows) for name, leaf in found.items()}
    results = _results(call, found)
    record, divides_after = without_arrays(call), False
    if isinstance(call, LossCall):
        record = record._replace(totals=())
        if call.reduction == "mean":
            if (totals := known(call, found)) is not None:
                record = record._replace(totals=totals)
            elif divides_after := may_divide_after(call):
                record = record._replace(reduction="sum")
            else:
                found["totals"] = totals_before(call, record, found)
    every = tuple(sorted({i for leaf in found.values() for i in leaf.axes}))
    is_one_of_many = any(count > 1 for leaf in found.values() for count in leaf.array.numblocks)
    task = _Task(tuple(found), record, verb, options, run, results, tuple(rows), every, is_one_of_many, divides_after)
    outputs = _outputs(task, found, call.problem.verb)
    return tuple(outputs) if len(outputs) > 1 else outputs[0]


def _with_whole_axes(leaf: Leaf, rows: list[int]) -> Leaf:
    """A block has in full what are no rows: the classes, and what a product sums over."""
    split = {
        axis: -1
        for axis, (i, count) in enumerate(zip(leaf.axes, leaf.array.numblocks, strict=True))
        if i not in rows and count > 1
    }
    return leaf._replace(array=leaf.array.rechunk(split)) if split else leaf


# ---------------------------------------------------------------------------------------------------------------------
# what comes out


def _results(call: Call, found: dict[str, Leaf]) -> tuple[_Result | None, ...]:
    """Of a linear loss always the gradients too, None where they are not asked for."""
    results = tuple(_result(a, call, found) for a in call.returns)
    nothing = (None,) * (4 - len(results))
    return results + nothing if isinstance(call, LossCall) and call.linear is not None else results


def _result(returned: str, call: Call, found: dict[str, Leaf]) -> _Result | None:
    rows, classes = tuple(row_indices(call)), tuple(sorted(class_indices(call)))
    every = tuple(sorted((*rows, *classes)))
    dtype = _dtype_of(call.problem.result, found)
    if returned in _OPERANDS:
        leaf = found.get(_OPERANDS[returned])
        summed = returned != "input"
        return None if leaf is None else _Result(leaf.axes, (), None, summed, leaf.array.dtype)
    if isinstance(call, LossCall) and returned in ("rows", "number"):
        dtype = np.dtype(loss_dtype(call.problem.dtype))
    match returned:
        case "rows":
            return _Result(rows, (), None, False, dtype)
        case "kept rows":
            return _Result(every, classes, None, False, dtype)
        case "number":
            return _Result((), (), None, True, dtype)
        case "matrix":
            return _Result((*rows, *classes, new_axis(found)), (), classes[0], False, dtype)
    return _Result(every, (), None, False, dtype)


_OPERANDS = {"input": "x", "linear_weight": "factor", "linear_bias": "bias"}


def _dtype_of(name: str, found: dict[str, Leaf]) -> Any:
    """NumPy knows no bfloat16 by name."""
    given = (leaf.array.dtype for leaf in found.values())
    return next((dtype for dtype in given if str(dtype) == name), None) or np.dtype(name)


# ---------------------------------------------------------------------------------------------------------------------
# the blocks


def _outputs(task: _Task, found: dict[str, Leaf], verb: str) -> list[Array | None]:
    arrays = [part for leaf in found.values() for part in leaf]
    kept = [result for result in task.results if result is not None]
    if len(kept) == 1:
        whole = _only_result(task, kept[0], found, arrays, verb)
        return [None if about is None else whole for about in task.results]
    together = blockwise(partial(_on_block, task=task), task.every, arrays, kept[0].dtype, f"{verb}-blocks")
    taken = []
    for number, about in enumerate(kept):
        index, ones = _place(about, task)
        part = blockwise(
            partial(_taken, number=number), index, [together, task.every], _dtype(task, about), verb, adjust_chunks=ones
        )
        taken.append(_joined(part, about, task))
    results = iter(taken)
    return [None if about is None else next(results) for about in task.results]


def _only_result(task: _Task, result: _Result, found: dict[str, Leaf], arrays: list[Any], verb: str) -> Array:
    index, ones = _place(result, task)
    new = {} if result.twice is None else {result.axes[-1]: _length(found, result.twice)}
    place = new_axis(found)
    if task.divides_after:
        index, new = (*index, place), {place: 2}
    parts = blockwise(
        partial(_on_block, task=task), index, arrays, _dtype(task, result), verb, adjust_chunks=ones, new_axes=new
    )
    if not task.divides_after:
        return _joined(parts, result, task)
    return narrowed(quotient(summed(parts, len(task.every)), place, parts.dtype, verb), result.dtype)


def _on_block(*blocks: Any, task: _Task) -> Any:
    named = dict(zip(task.names, map(alone, blocks), strict=True))
    totals = named.pop("totals", None)
    call = with_wide_factors(with_blocks(task.record, named))
    if totals is not None:
        call = call._replace(totals=(totals[0], totals[1]))
    with threads.alone() if task.is_one_of_many else nullcontext():
        found = task.verb(call, *task.options, run=task.run)
    results = found if isinstance(found, tuple) else (found,)
    shaped = [_in_place(r, about, task) for r, about in zip(results, task.results, strict=True) if about is not None]
    if task.divides_after:
        return share_and_divisor(shaped[0], call)
    return tuple(shaped) if len(shaped) > 1 else shaped[0]


def _in_place(result: Array, about: _Result, task: _Task) -> Array:
    """With an axis of 1 for each axis that shares of it are added along; an array, where it is NumPy's scalar."""
    xp = array_namespace(result)
    return xp.reshape(result, (1,) * len(_summed_over(about, task)) + tuple(result.shape))


def _taken(blocks: Any, number: int) -> Array:
    return alone(blocks)[number]


def _summed_over(result: _Result, task: _Task) -> Index:
    """A number keeps all axes: Dask fuses no task with one that has fewer."""
    if not result.summed:
        return ()
    return task.rows if result.axes else task.every


def _place(result: _Result, task: _Task) -> tuple[Index, dict[int, int]]:
    """Axes of the blocks of a result, and those of length 1."""
    over = _summed_over(result, task)
    return (*over, *result.axes), dict.fromkeys((*over, *result.ones), 1)


def _dtype(task: _Task, result: _Result) -> Any:
    """Shares of a loss are not rounded yet, nor those of a gradient in half precision."""
    if not result.summed:
        return result.dtype
    return np.dtype(task.record.problem.compute if not result.axes else np.promote_types(result.dtype, np.float32))


def _joined(parts: Array, result: _Result, task: _Task) -> Array:
    over = _summed_over(result, task)
    if over:
        # gradients of a weight are large: Dask's own number of them at a time
        parts = parts.sum(axis=tuple(range(len(over)))) if result.axes else summed(parts, len(over))
    return narrowed(parts, result.dtype)


def _length(found: dict[str, Leaf], i: int | None) -> Any:
    return next(leaf.array.shape[leaf.axes.index(i)] for leaf in found.values() if i in leaf.axes)
