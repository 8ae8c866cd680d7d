"""The arrays of a checked call on Dask arrays, with the indices of their axes, and the same call on a block of them.

An index is the number of an axis of the logits; those of a linear loss have one more for what is summed over in the
product, and any may have more for what stands beside.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from ...calls.arguments import Array
from ...libraries.arrays import HALF, cast, container_of, device_of, dtype_name, library_of

Index = tuple[int, ...]
_OF_LOGITS: tuple[str, ...] = ("arrays", "where")
_OF_LOSS = ("x", "targets", "raw_targets", "where", "weight", "sample_weight", "v", "linear", "totals")


def without_empty_blocks(given: Any) -> Any:
    """Dask broadcasts no axis of length 1 that has more than one block."""
    return type(given)(*map(_without_empty, given))


def _without_empty(a: Any) -> Any:
    if type(a) is tuple:
        return tuple(map(_without_empty, a))
    chunks = getattr(a, "chunks", ())
    full = {axis: tuple(n for n in sizes if n) or (0,) for axis, sizes in enumerate(chunks) if 0 in sizes}
    return a.rechunk(full) if any(full[axis] != chunks[axis] for axis in full) else a


class Leaf(NamedTuple):
    array: Array
    axes: Index


def leaves(given: Any) -> dict[str, Leaf]:
    """The logits, or what takes their place, first."""
    return _of_loss(given) if hasattr(given, "targets") else _of_logits(given)


def class_indices(given: Any) -> set[int]:
    n = _ndim(given)
    return {n + axis for axis in given.problem.axes}


def row_indices(given: Any) -> list[int]:
    return [i for i in range(_ndim(given)) if i not in class_indices(given)]


def without_arrays(given: Any) -> Any:
    """What is left of the call, to be sent along with a block."""
    arrays = _OF_LOSS if hasattr(given, "targets") else _OF_LOGITS
    return given._replace(**dict.fromkeys(("xp", "device", *arrays)))


def with_blocks(given: Any, blocks: dict[str, Array]) -> Any:
    """The call on blocks, of whatever library."""
    first = next(iter(blocks.values()))
    xp = array_namespace(first)
    library = library_of(xp)
    problem = replace(given.problem, library=library, container=container_of(first, library))
    given = given._replace(problem=problem, xp=xp, device=device_of(first), where=blocks.get("where"))
    if not hasattr(given, "targets"):
        return given._replace(arrays=tuple(array for name, array in blocks.items() if name != "where"))
    named = {name: blocks.get(name) for name in ("x", "targets", "weight", "sample_weight", "v")}
    given = given._replace(raw_targets=blocks.get("targets"), **named)
    if "factor" not in blocks:
        return given._replace(classes=given.classes if given.x is None else given.x.shape[problem.axes[0]])
    return given._replace(linear=(blocks["factor"], blocks.get("bias")), classes=blocks["factor"].shape[0])


def with_wide_factors(given: Any) -> Any:
    if getattr(given, "linear", None) is None:
        return given
    return given._replace(linear=tuple(_wide(a, given.xp) for a in given.linear))


def _wide(a: Array | None, xp: Any) -> Array | None:
    """Half precision as float32, so that the shares of a gradient are added before they are rounded."""
    return a if a is None or dtype_name(a) not in HALF else cast(a, "float32", xp)


def _ndim(given: Any) -> int:
    return given.x.ndim if hasattr(given, "targets") else given.arrays[0].ndim


def _of_logits(given: Any) -> dict[str, Leaf]:
    n = _ndim(given)
    found = {f"array{i}": right_aligned(a, n) for i, a in enumerate(given.arrays)}
    return found if given.where is None else found | {"where": right_aligned(given.where, n)}


def _of_loss(given: Any) -> dict[str, Leaf]:
    n, rows = _ndim(given), tuple(row_indices(given))
    found = {}
    if given.linear is None:
        found["x"] = Leaf(given.x, tuple(range(n)))
    else:
        factor, bias = given.linear
        found |= {"x": Leaf(given.x, (*rows, n)), "factor": Leaf(factor, (n - 1, n))}
        if bias is not None:
            found["bias"] = Leaf(bias, (n - 1,))
    found["targets"] = Leaf(given.targets, rows) if given.problem.labels else right_aligned(given.targets, n)
    for name in ("where", "weight", "sample_weight", "v"):
        if (a := getattr(given, name)) is not None:
            found[name] = right_aligned(a, n)
    return found


def right_aligned(a: Array, n: int) -> Leaf:
    return Leaf(a, tuple(range(n - a.ndim, n)))
