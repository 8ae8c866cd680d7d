"""Hessian products and diagonals by Numba's kernel, some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from ...calls.records import Array, Problem, Rows
from ...kernels.cpu.numbers import FLOATS, INTEGERS
from ...libraries.quiet import quietly
from ...threads import each
from .addresses import TYPES, are_readable, bits, identity, kernel

_T = TypeVar("_T")
_SOME = 1 << 15  # elements at once, of which there are some float64 copies


def cross_entropy_hvp(p: Problem, x: Array, targets: Array, rows: Rows, v: Array, *, xp: Any, run: Any) -> Array:
    product = _hessian(p, x, targets, rows, _readable(v))
    return run.behind("cross_entropy_hvp", p, x, targets, rows, v, xp=xp) if product is None else product


def cross_entropy_hessian_diag(p: Problem, x: Array, targets: Array, rows: Rows, *, xp: Any, run: Any) -> Array:
    diag = _hessian(p, x, targets, rows, None)
    return run.behind("cross_entropy_hessian_diag", p, x, targets, rows, xp=xp) if diag is None else diag


def _hessian(p: Problem, x: Array, targets: Array, rows: Rows, v: Array | None) -> Array | None:
    """None: left to the formulas."""
    if x.dtype not in TYPES or len(p.axes) != 1 or np.size(rows.zeta) != 1 or not are_readable():
        return None
    if p.result == "float64" and x.dtype != np.float64:
        x = x.astype(np.float64)
    if x.dtype != np.dtype(p.result) or not x.flags.aligned:
        return None
    targets = np.ascontiguousarray(targets, np.int64) if p.labels else _readable(targets)
    labels, floats = (INTEGERS[targets.dtype], -1) if p.labels else (-1, FLOATS[targets.dtype])
    weight = None if rows.weight is None else np.ascontiguousarray(rows.weight, np.float64).reshape(-1)
    if weight is not None and weight.size != x.shape[p.axes[0]]:
        return None
    (class_axis,) = p.axes
    scale = np.ones(_without(x.shape, class_axis))
    if rows.scale is not None:
        scale *= rows.scale if np.ndim(rows.scale) == 0 else np.squeeze(rows.scale, axis=class_axis)
    where = None if rows.where is None else np.broadcast_to(rows.where, x.shape)
    to = np.empty_like(x, subok=False)
    numbers = (
        float(np.reshape(rows.zeta, ())), p.label_smoothing, p.temperature, 0.0 if p.softcap is None else p.softcap
    )  # fmt: skip
    blocks = list(_blocks(x.shape, class_axis))
    like, axes, fine = TYPES[x.dtype], bits(p.axes), [True] * len(blocks)

    def work(i: int) -> None:
        full, of_rows = blocks[i]
        part, s = x[full], scale[of_rows]
        t, kept = targets[of_rows if p.labels else full], None if where is None else where[full]
        u, into = None if v is None else v[full], to[full]
        fine[i] = kernel("small_hessians", "of_block")(
            id(part), id(t), labels, floats, identity(kept), identity(weight), id(s), *numbers, identity(u),
            0 if u is None else FLOATS[u.dtype], id(into), axes, like,
        )  # fmt: skip

    each(quietly(work), len(blocks))
    return to if all(fine) else None


def _readable(a: Array) -> Array:
    return a if a.dtype in FLOATS and a.flags.aligned else a.astype(np.float64)


def _without(shape: tuple[_T, ...], axis: int) -> tuple[_T, ...]:
    return shape[:axis] + shape[len(shape) + axis + 1 :]


def _blocks(shape: tuple[int, ...], class_axis: int) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Slices of the longest of the other axes: of the logits, and of what has a number for each row."""
    others = [axis for axis in range(-len(shape), 0) if axis != class_axis]
    if not others:
        yield (slice(None),), (...,)  # without, a number that is no array
        return
    cut = max(others, key=lambda axis: shape[axis])
    some = max(1, _SOME * shape[cut] // math.prod(shape))
    for start in range(0, shape[cut], some):
        full = [slice(None)] * len(shape)
        full[cut] = slice(start, start + some)
        yield tuple(full), _without(tuple(full), class_axis)


OPERATIONS = {
    "cross_entropy_hvp": cross_entropy_hvp,
    "cross_entropy_hessian_diag": cross_entropy_hessian_diag,
}
