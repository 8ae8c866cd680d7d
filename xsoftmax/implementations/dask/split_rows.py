"""The inner operations on Dask arrays whose classes are split."""

from __future__ import annotations

from functools import partial
from typing import Any

from ... import formulas
from ...calls.records import Array, Problem, Rows
from ...formulas import Part
from ...libraries import sums
from .parts import Parts

Blocks = dict[str, Any]


def softmax(p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    parts = Parts(p, run, x=x, where=where)
    own, state = _states(parts)
    return parts.each(_softmax, own, state, dtype=p.result, kept=True, name="blocks")


def log_softmax(p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    parts = Parts(p, run, x=x, where=where)
    _, state = _states(parts)
    return parts.each(_log_softmax, state, dtype=p.result, kept=True, name="blocks")


def logsumexp(p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    parts = Parts(p, run, x=x, where=where)
    _, state = _states(parts)
    of_row = partial(formulas.logsumexp_of_state, temperature=p.temperature)
    return parts.of_rows(of_row, state, p.compute).astype(p.result)


def softmax_product(p: Problem, y: Array, v: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    parts = Parts(p, run, x=y, v=v, where=where)
    states = parts.each(_product_state, dtype=p.compute, kept=False, name="states")
    state = parts.merged(states, formulas.merged_products)
    return parts.each(_softmax_product, state, dtype=p.result, kept=True, name="blocks")


def log_softmax_vjp(p: Problem, log_y: Array, dy: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    return _log_product("class_vjp_state", "class_log_softmax_vjp", p, log_y, dy, where, run)


def log_softmax_jvp(p: Problem, log_y: Array, dx: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    return _log_product("class_jvp_state", "class_log_softmax_jvp", p, log_y, dx, where, run)


def _log_product(first: str, second: str, p: Problem, log_y: Array, v: Array, where: Array | None, run: Any) -> Array:
    parts = Parts(p, run, x=log_y, v=v, where=where)
    states = parts.each(partial(_operation, first), dtype=p.compute, kept=False, name="states")
    state = parts.merged(states, formulas.merged_log_products)
    return parts.each(partial(_operation, second), state, dtype=p.result, kept=True, name="blocks")


def cross_entropy(
    p: Problem, x: Array, targets: Array, rows: Rows, *, xp: Any, run: Any
) -> tuple[Array | None, Array | None]:
    where, weight, scale, zeta = rows
    parts = Parts(p, run, x=x, targets=targets, where=where, weight=weight, scale=scale, zeta=zeta)
    if where is not None and p.label_smoothing:
        parts.add("number", parts.merged(parts.each(_kept, dtype=p.compute, kept=False, name="kept"), sums.total))
    states = parts.each(_state, dtype=p.compute, kept=False, name="states")
    state = _merged(parts, states)
    loss = grad = None
    if "loss" in p.wants:
        of_row = partial(formulas.cross_entropy_of_state, temperature=p.temperature)
        loss = parts.of_rows(of_row, state, p.compute, zeta=parts.row_option("zeta"))
    if "grad" in p.wants:
        grad = parts.each(_grad, states, state, dtype=p.result, kept=True, name="blocks")
    return loss, grad


# ---------------------------------------------------------------------------------------------------------------------
# on a block


def _states(parts: Parts) -> tuple[Array, Array]:
    states = parts.each(_state, dtype=parts.p.compute, kept=False, name="states")
    return states, _merged(parts, states)


def _merged(parts: Parts, states: Array) -> Array:
    return parts.merged(states, partial(_merged_states, classes=parts.classes, temperature=parts.p.temperature))


def _rows_of(b: Blocks) -> Rows:
    return Rows(b.get("where"), b.get("weight"), b.get("scale"), b.get("zeta", 0.0))


def _kept(p: Problem, b: Blocks, part: Part, *, xp: Any, run: Any) -> Array:
    return sums.count(b["where"], p.axes, getattr(xp, p.compute), xp=xp)


def _state(p: Problem, b: Blocks, part: Part, *, xp: Any, run: Any) -> Any:
    return run("class_state", p, b["x"], b.get("targets"), _rows_of(b), part, xp=xp)


def _merged_states(states: Any, axes: Any, classes: int, temperature: float, *, xp: Any) -> Any:
    return formulas.merged(states, classes, axes, temperature, xp=xp)


def _softmax(p: Problem, b: Blocks, part: Part, own: Any, state: Any, *, xp: Any, run: Any) -> Array:
    return run("class_softmax", p, b["x"], b.get("where"), part, own, state, xp=xp)


def _log_softmax(p: Problem, b: Blocks, part: Part, state: Any, *, xp: Any, run: Any) -> Array:
    return run("class_log_softmax", p, b["x"], b.get("where"), state, xp=xp)


def _product_state(p: Problem, b: Blocks, part: Part, *, xp: Any, run: Any) -> Any:
    return run("class_product_state", p, b["x"], b["v"], b.get("where"), xp=xp)


def _softmax_product(p: Problem, b: Blocks, part: Part, state: Any, *, xp: Any, run: Any) -> Array:
    return run("class_softmax_product", p, b["x"], b["v"], b.get("where"), state, xp=xp)


def _operation(name: str, p: Problem, b: Blocks, part: Part, *sums: Array, xp: Any, run: Any) -> Array:
    return run(name, p, b["x"], b["v"], b.get("where"), *sums, xp=xp)


def _grad(p: Problem, b: Blocks, part: Part, own: Any, state: Any, *, xp: Any, run: Any) -> Array:
    return run("class_grad", p, b["x"], b["targets"], _rows_of(b), part, own, state, xp=xp)


OPERATIONS = {
    "softmax": softmax,
    "log_softmax": log_softmax,
    "logsumexp": logsumexp,
    "cross_entropy": cross_entropy,
    "softmax_product": softmax_product,
    "log_softmax_vjp": log_softmax_vjp,
    "log_softmax_jvp": log_softmax_jvp,
}
