"""What a mean over blocks divides by: from labels and weights alone, before the blocks or beside their losses."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from ... import weights
from ...calls.records import Array
from ...libraries.arrays import array_namespace
from .blockwise import alone, blockwise
from .leaves import Leaf, row_indices, with_blocks

_FAN_IN = 16  # numbers that are added at a time; a task costs more than they do


def known(call: Any, found: dict[str, Leaf]) -> tuple[int, ...] | None:
    """`totals` where the shapes tell them."""
    if call.problem.labels or call.sample_weight is not None:
        return None
    sizes = [found["x"].array.shape[found["x"].axes.index(i)] for i in row_indices(call)]
    return None if any(math.isnan(n) for n in sizes) else (math.prod(sizes),) * 2


def may_divide_after(call: Any) -> bool:
    """Whether one division of the sum of the losses does; a gradient is rounded before; lse² has its own divisor."""
    p = call.problem
    return p.wants == ("loss",) and not (p.z_loss and p.labels and call.weight is not None)


def totals_before(call: Any, record: Any, found: dict[str, Leaf]) -> Leaf:
    """`totals`, by a sweep over the labels and weights: two numbers where Dask sees one, which has no axis."""
    rows = row_indices(call)
    names: list[str] = ["x"]
    if call.problem.labels:
        names = [name for name in ("targets", "sample_weight", "weight") if name in found]
    elif call.sample_weight is not None:
        names = ["sample_weight"]
    if math.isnan(call.classes) and "x" not in names:
        names.append("x")
    place = new_axis(found)
    counts = blockwise(
        partial(_total_of_block, record=record, names=tuple(names), rows=len(rows)),
        (*rows, place),
        [part for name in names for part in found[name]],
        call.problem.compute,
        f"{call.problem.verb}-counts",
        adjust_chunks=dict.fromkeys(rows, 1),
        new_axes={place: 2},
    )
    pair = [summed(counts, len(rows)), (place,)]
    return Leaf(blockwise(alone, (), pair, call.problem.compute, f"{call.problem.verb}-totals"), ())


def new_axis(found: dict[str, Leaf]) -> int:
    return max((i for leaf in found.values() for i in leaf.axes), default=-1) + 1


def summed(parts: Array, axes: int) -> Array:
    """Over the first axes, along which each block has 1."""
    several = sum(count > 1 for count in parts.numblocks[:axes])
    some = max(2, round(_FAN_IN ** (1 / max(several, 1))))
    return parts.sum(axis=tuple(range(axes)), split_every=dict.fromkeys(range(axes), some)) if axes else parts


def _total_of_block(*blocks: Any, record: Any, names: tuple[str, ...], rows: int) -> Array:
    call = with_blocks(record, dict(zip(names, map(alone, blocks), strict=True)))
    return _pair(*_totals(call), call, rows)


def share_and_divisor(loss: Array, call: Any) -> Array:
    """Beside each other along a new axis; the loss has one of length 1 for each axis that is summed over."""
    _, divisor = _totals(call)
    return _pair(loss, divisor, call, loss.ndim)


def _totals(call: Any) -> tuple[Array | int, Array | int]:
    label, absent, bad = weights.marked(call)
    return weights.totals(call, label, weights.counted(call, absent, bad))


def _pair(a: Any, b: Any, call: Any, ones: int) -> Array:
    xp = call.xp
    pair = [xp.asarray(n, dtype=getattr(xp, call.problem.compute), device=call.device) for n in (a, b)]
    return xp.reshape(xp.stack([xp.reshape(n, ()) for n in pair]), (1,) * ones + (2,))


def quotient(pair: Array, place: int, dtype: Any, verb: str) -> Array:
    return blockwise(_quotient, (), [pair, (place,)], dtype, f"{verb}-mean")


def _quotient(pair: Any) -> Array:
    pair = alone(pair)
    return weights.mean_of(pair[0], pair[1], array_namespace(pair))
