"""The arrays of a checked call on Dask arrays, with the indices of their axes, and the same call on a block of them.

An index is the number of an axis of the logits; those of a linear loss have one more for what is summed over in the
product, and any may have more for what stands beside.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from ...calls.records import Array, ArrayCall, LossCall
from ...libraries.arrays import (
    HALF,
    array_namespace,
    cast,
    container_of,
    device_of,
    device_type,
    dtype_name,
    library_of,
)

Index = tuple[int, ...]
Call = ArrayCall | LossCall
_OF_LOGITS: tuple[str, ...] = ("arrays", "where")
_OF_LOSS = ("x", "targets", "raw_targets", "where", "weight", "sample_weight", "v", "linear", "totals")


def without_empty_blocks(call: Call) -> Any:
    """Dask broadcasts no axis of length 1 that has more than one block."""
    return type(call)(*map(_without_empty, call))


def _without_empty(a: Any) -> Any:
    if type(a) is tuple:
        return tuple(map(_without_empty, a))
    chunks = getattr(a, "chunks", ())
    full = {axis: tuple(n for n in sizes if n) or (0,) for axis, sizes in enumerate(chunks) if 0 in sizes}
    return a.rechunk(full) if any(full[axis] != chunks[axis] for axis in full) else a


class Leaf(NamedTuple):
    array: Array
    axes: Index


def leaves(call: Call) -> dict[str, Leaf]:
    """The logits, or what takes their place, first."""
    return _of_loss(call) if isinstance(call, LossCall) else _of_logits(call)


def class_indices(call: Call) -> set[int]:
    n = _ndim(call)
    return {n + axis for axis in call.problem.axes}


def row_indices(call: Call) -> list[int]:
    return [i for i in range(_ndim(call)) if i not in class_indices(call)]


def without_arrays(call: Call) -> Any:
    """What is left of the call, to be sent along with a block."""
    arrays = _OF_LOSS if isinstance(call, LossCall) else _OF_LOGITS
    nothing: dict[str, Any] = dict.fromkeys(("xp", "device", *arrays))
    return call._replace(**nothing)


def with_blocks(call: Call, blocks: dict[str, Array]) -> Any:
    """The call on blocks, of whatever library."""
    first = next(iter(blocks.values()))
    xp = array_namespace(first)
    library = library_of(xp)
    container, device = container_of(first, library), device_type(first, library)
    problem = replace(call.problem, library=library, container=container, device=device)
    call = call._replace(problem=problem, xp=xp, device=device_of(first), where=blocks.get("where"))
    if not isinstance(call, LossCall):
        return call._replace(arrays=tuple(array for name, array in blocks.items() if name != "where"))
    named: dict[str, Any] = {name: blocks.get(name) for name in ("x", "targets", "weight", "sample_weight", "v")}
    call = call._replace(raw_targets=blocks.get("targets"), **named)
    if "factor" not in blocks:
        return call._replace(classes=call.classes if call.x is None else call.x.shape[problem.axes[0]])
    return call._replace(linear=(blocks["factor"], blocks.get("bias")), classes=blocks["factor"].shape[0])


def with_wide_factors(call: Call) -> Any:
    if not isinstance(call, LossCall) or call.linear is None:
        return call
    factor, bias = call.linear
    return call._replace(linear=(_wide(factor, call.xp), _wide(bias, call.xp)))


def _wide(a: Array | None, xp: Any) -> Array | None:
    """Half precision as float32, so that the shares of a gradient are added before they are rounded."""
    return a if a is None or dtype_name(a) not in HALF else cast(a, "float32", xp)


def _ndim(call: Call) -> int:
    return call.x.ndim if isinstance(call, LossCall) else call.arrays[0].ndim


def _of_logits(call: Call) -> dict[str, Leaf]:
    n = _ndim(call)
    found = {f"array{i}": right_aligned(a, n) for i, a in enumerate(call.arrays)}
    return found if call.where is None else found | {"where": right_aligned(call.where, n)}


def _of_loss(call: Call) -> dict[str, Leaf]:
    n, rows = _ndim(call), tuple(row_indices(call))
    found = {}
    if call.linear is None:
        found["x"] = Leaf(call.x, tuple(range(n)))
    else:
        factor, bias = call.linear
        found |= {"x": Leaf(call.x, (*rows, n)), "factor": Leaf(factor, (n - 1, n))}
        if bias is not None:
            found["bias"] = Leaf(bias, (n - 1,))
    found["targets"] = Leaf(call.targets, rows) if call.problem.labels else right_aligned(call.targets, n)
    for name in ("where", "weight", "sample_weight", "v"):
        if (a := getattr(call, name)) is not None:
            found[name] = right_aligned(a, n)
    return found


def right_aligned(a: Array, n: int) -> Leaf:
    return Leaf(a, tuple(range(n - a.ndim, n)))
