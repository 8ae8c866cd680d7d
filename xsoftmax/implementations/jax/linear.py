"""A loss of linear logits as loops of one program over their blocks, which are made again for a derivative.

L is the loss of a row, z its logits, ℓ = logsumexp(z), T = Σ t and g = ∂L/∂z. A first sweep makes the states of
the blocks, which are merged and tell L, ℓ and T. The rules of these are sweeps as well, with v a direction of z:
dL = Σ g v + Σ (ℓ − z) dt + ℓ² dζ, dℓ = Σ y v and dT = Σ dt. With those of a block's y and g every order is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ... import formulas
from ...calls.records import Array, Plan, Problem, Rows
from ...formulas import State
from ...libraries import sums
from ...libraries.arrays import HALF, cast, dtype_name, rounded
from ..array_api.linear import Results, finite, of_nothing
from .sweep import of_blocks, sweep
from .times import times

_ruled = partial(jax.custom_jvp, nondiff_argnums=(0,))
_made_again = partial(jax.checkpoint, prevent_cse=False)
_WIDE = ("targets", "d_targets", "where")  # of rows, those that have all classes


class _Operands(NamedTuple):
    """What the loops read: x, targets, where and scale by rows; factor, bias, weight and where by classes."""

    rows: dict[str, Array]
    classes: dict[str, Array]
    zeta: Array | None


class _Context(NamedTuple):
    """What there is besides arrays; `zeta` where it is a number."""

    p: Problem
    run: Any
    height: int | None
    width: int | None
    classes: int
    zeta: float

    @property
    def dtype(self) -> str:
        return "float32" if self.p.dtype in HALF else self.p.dtype

    def sweep(self, step: Callable[[dict[str, Any], Any], Any], rows: Any, classes: Any, found: Any) -> Any:
        """`step(block, found)` of what the rows and the classes of a block have, by name."""

        def of_block(rows: Any, classes: Any, found: Any) -> Any:
            return step(_block(rows, classes), found)

        return sweep(of_block, rows, self._placed(classes), found, self.height, self.width)

    def of_blocks(self, step: Callable[[dict[str, Any]], Any], rows: Any, classes: Any) -> Any:
        """`step(block)`, numbers of the rows of a block, of each, side by side."""
        return of_blocks(lambda *some: step(_block(*some)), rows, self._placed(classes), self.height, self.width)

    def _placed(self, classes: Any) -> Any:
        return {**classes, "start": jnp.arange(self.classes)}

    def total(self, a: Array) -> Array:
        return sums.total(a, (-1,), xp=jnp)


def _block(rows: Any, classes: Any) -> dict[str, Any]:
    start, width = classes["start"][0], len(classes["start"])
    wide = (k for k in _WIDE if k in rows and rows[k].ndim == 2 and rows[k].shape[1] != 1)
    cut = {k: jax.lax.dynamic_slice_in_dim(rows[k], start, width, 1) for k in wide}
    return {**classes, **rows, **cut, "start": start}


def linear_cross_entropy(
    p: Problem,
    x: Array,
    factor: Array,
    bias: Array | None,
    targets: Array,
    rows: Rows,
    plan: Plan,
    *,
    xp: Any,
    run: Any,
) -> Results:
    if x.shape[0] == 0:
        return of_nothing(p, x, factor, bias, xp)
    given = _operands(p, x, factor, bias, targets, rows)
    zeta = rows.zeta if isinstance(rows.zeta, float) else 0.0
    context = _Context(p, run, plan.rows, plan.classes, factor.shape[0], zeta)
    if "grad" in p.wants and (plan.classes is None or plan.classes >= factor.shape[0]):
        return _of_whole_rows(context, given)
    state = _state(context, jax.lax.stop_gradient(given))
    loss = _loss(context, state, given)
    return (loss, *_gradients(context, state, given)) if "grad" in p.wants else (loss, None, None, None)


def _operands(p: Problem, x: Array, factor: Array, bias: Array | None, targets: Array, rows: Rows) -> _Operands:
    """Rows that are absent hold zeros: 0 times the derivative of whatever they hold would be nan."""
    by_row: dict[str, Any] = {"x": x, "targets": targets}
    n, by_class = x.shape[0], {"factor": factor, "bias": bias, "weight": rows.weight}
    if rows.scale is not None:
        scale = jnp.broadcast_to(jnp.asarray(rows.scale, p.compute), (n, 1))
        by_row |= {"x": jnp.where(scale == 0.0, 0.0, x), "scale": scale}
        if not p.labels:
            by_row["targets"] = jnp.where(scale == 0.0, 0, targets)
    if (where := rows.where) is not None:
        if where.ndim == 2 and where.shape[0] == n:
            by_row["where"] = where
        else:
            by_class["where"] = jnp.broadcast_to(where, (1, factor.shape[0]))[0]
        if p.label_smoothing:
            kept = jnp.sum(where, axis=-1, keepdims=True, dtype=p.compute) * (factor.shape[0] // where.shape[-1])
            by_row["kept"] = jnp.broadcast_to(kept, (n, 1))
    zeta = None if isinstance(rows.zeta, float) else rows.zeta
    return _Operands(by_row, {name: a for name, a in by_class.items() if a is not None}, zeta)


# ---------------------------------------------------------------------------------------------------------------------
# a block


def _logits(context: _Context, block: dict[str, Any]) -> Array:
    x, factor = block["x"], block["factor"]
    if dtype_name(x) == dtype_name(factor):  # halves as they are, but for the sums
        z = jnp.matmul(x, factor.T, preferred_element_type=context.dtype)
    else:
        z = jnp.matmul(cast(x, context.dtype, jnp), cast(factor, context.dtype, jnp).T)
    return z if "bias" not in block else z + cast(block["bias"], context.dtype, jnp)


def _masked(a: Array, block: dict[str, Any], value: float) -> Array:
    return jnp.where(block["where"], a, value) if "where" in block else a


def _capped(context: _Context, block: dict[str, Any]) -> tuple[Array, Array | float]:
    """z times the temperature and ∂z / ∂(x @ factor.T), in the compute dtype."""
    p, z = context.p, _masked(cast(_logits(context, block), context.p.compute, jnp), block, -math.inf)
    slope, _ = formulas.capped_derivatives(z, p.softcap, xp=jnp)
    slope = formulas.over(jnp.ones_like(z) if slope is None else slope, p.temperature, xp=jnp)
    return formulas.softcapped(z, p.softcap, xp=jnp), slope


def _targets(context: _Context, block: dict[str, Any]) -> tuple[Array, Array | None]:
    """t and, where something that it is made of has a direction, its own."""
    given = {name: block[name] for name in ("targets", "weight") if name in block}
    d = {name: block[f"d_{name}"] for name in given if f"d_{name}" in block}
    constants = {name: a for name, a in given.items() if name not in d}

    def formula(varying: dict[str, Array]) -> Array:
        return _target_rows(context, block, **constants, **varying)

    if not d:
        return formula({}), None
    return jax.jvp(formula, ({name: given[name] for name in d},), (d,))


def _target_rows(context: _Context, block: dict[str, Any], targets: Array, weight: Array | None = None) -> Array:
    p = context.p
    return formulas.targets(
        targets if p.labels else cast(targets, p.compute, jnp),
        block.get("where"),
        weight,
        labels=p.labels,
        label_smoothing=p.label_smoothing,
        like=jnp.empty((len(block["x"]), len(block["factor"])), p.compute),
        axis=-1,
        xp=jnp,
        part=formulas.Part(block["start"], context.classes, block.get("kept", context.classes)),
    )


def _zeta(context: _Context, zeta: Array | None) -> Array | float:
    return context.zeta if zeta is None else zeta


@_ruled
def _share(context: _Context, state: State, lse: Array, z: Array) -> Array:
    """y, of the classes of a block"""
    return formulas.softmax_of_part(z, state, context.classes, context.p.temperature, xp=jnp)


def _share_jvp(context: _Context, primals: Any, tangents: Any) -> Any:
    y = _share(context, *primals)
    return y, y * (tangents[2] - tangents[1])


_share.defjvp(_share_jvp)


@_ruled
def _gradient(
    context: _Context, state: State, lse: Array, sum_t: Array, z: Array, t: Array, zeta: Array | None
) -> Array:
    """g = T y − t + 2 ζ ℓ y, of the classes of a block"""
    zeta, temperature = _zeta(context, zeta), context.p.temperature
    return formulas.cross_entropy_grad_of_part(z, state, t, zeta, context.classes, temperature, xp=jnp)


def _gradient_jvp(context: _Context, primals: Any, tangents: Any) -> Any:
    (state, lse, sum_t, z, _, zeta), (_, d_lse, d_sum_t, dz, dt, d_zeta) = primals, tangents
    y, dy = jax.jvp(partial(_share, context, state), (lse, z), (d_lse, dz))
    d = sum_t * dy + d_sum_t * y - dt
    if zeta is not None or context.zeta:
        d = d + 2.0 * _zeta(context, zeta) * (d_lse * y + lse * dy)
    if zeta is not None:
        d = d + 2.0 * d_zeta * (lse * y)
    return _gradient(context, *primals), d


_gradient.defjvp(_gradient_jvp)


# ---------------------------------------------------------------------------------------------------------------------
# rows


def _state(context: _Context, given: _Operands) -> State:
    def step(block: dict[str, Any]) -> State:
        (z, _), (t, _) = _capped(context, block), _targets(context, block)
        return formulas.state(z, t, block.get("where"), context.classes, (-1,), context.p.temperature, xp=jnp)

    side_by_side = jax.tree.map(lambda a: a[:, 0, :], context.of_blocks(step, given.rows, given.classes))
    return formulas.merged(side_by_side, context.classes, (-1,), context.p.temperature, xp=jnp)


@_ruled
def _loss(context: _Context, state: State, given: _Operands) -> Array:
    return formulas.cross_entropy_of_state(state, _zeta(context, given.zeta), context.p.temperature, xp=jnp)


@partial(_loss.defjvp, symbolic_zeros=True)
def _loss_jvp(context: _Context, primals: Any, tangents: Any) -> Any:
    (state, given), (_, d) = primals, tangents
    lse, sum_t = _lse(context, state, given), _sum_t(context, state, given)

    def of_block(b: dict[str, Any], z: Array, t: Array, v: Array | None, dt: Array | None) -> Array | None:
        parts = []
        if v is not None:
            parts.append(times(_gradient(context, b["state"], b["lse"], b["sum_t"], z, t, given.zeta), v))
        if dt is not None:
            absent = ((t == 0.0) & (z == -math.inf)) | b["state"].is_empty
            parts.append(times(jnp.where(absent, 0.0, b["lse"] - z), dt))
        return sum(parts[1:], parts[0]) if parts else None

    change = _along(context, given, d, {"state": state, "lse": lse, "sum_t": sum_t}, of_block)
    if _varies(d.zeta):
        change = change + lse * (lse * d.zeta)
    return _loss(context, *primals), change


@_ruled
def _lse(context: _Context, state: State, given: _Operands) -> Array:
    lse = formulas.logsumexp_of_state(state, context.p.temperature, xp=jnp)
    return jnp.where(state.is_empty, 0.0, lse)


@partial(_lse.defjvp, symbolic_zeros=True)
def _lse_jvp(context: _Context, primals: Any, tangents: Any) -> Any:
    (state, given), (_, d) = primals, tangents
    lse = _lse(context, *primals)

    def of_block(b: dict[str, Any], z: Array, t: Array, v: Array | None, dt: Array | None) -> Array | None:
        return None if v is None else times(_share(context, b["state"], b["lse"], z), v)

    return lse, _along(context, given, d, {"state": state, "lse": lse}, of_block)


@_ruled
def _sum_t(context: _Context, state: State, given: _Operands) -> Array:
    return state.sum_t


@partial(_sum_t.defjvp, symbolic_zeros=True)
def _sum_t_jvp(context: _Context, primals: Any, tangents: Any) -> Any:
    def of_block(b: dict[str, Any], z: Array, t: Array, v: Array | None, dt: Array | None) -> Array | None:
        return dt

    (_, given), (_, d) = primals, tangents
    return _sum_t(context, *primals), _along(context, given, d, {}, of_block)


def _along(context: _Context, given: _Operands, d: _Operands, known: dict[str, Any], of_block: Any) -> Array:
    """Σ of_block(block, z, t, v, dt) in each row, v and dt the directions of its logits and targets, or None.

    What a product is linear in is widened out here, so that its transpose adds up in the wider dtype.
    """

    def step(block: dict[str, Any], found: Array) -> tuple[Array, None]:
        (z, slope), (t, dt) = _capped(context, block), _targets(context, block)
        if (v := _direction(context, block)) is not None:
            v = slope * _masked(cast(v, context.p.compute, jnp), block, 0.0)
        terms = of_block(block, z, t, v, dt)
        return found if terms is None else found + context.total(terms), None

    rows, classes = ({f"d_{k}": a for k, a in some.items() if _varies(a)} for some in (d.rows, d.classes))
    for some in (rows, classes):
        some |= {k: cast(a, context.dtype, jnp) for k, a in some.items() if k in _FACTORS}
    zeros = jnp.zeros((len(given.rows["x"]), 1), context.p.compute)
    return context.sweep(_made_again(step), given.rows | known | rows, given.classes | classes, zeros)[0]


_FACTORS = ("d_x", "d_factor", "d_bias")


def _varies(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero | None) and tangent.dtype != jax.dtypes.float0


def _direction(context: _Context, block: dict[str, Any]) -> Array | None:
    """v = dx @ factor.T + x @ dfactor.T + dbias"""
    x, factor = (cast(block[name], context.dtype, jnp) for name in ("x", "factor"))
    parts = []
    if "d_x" in block:
        parts.append(jnp.matmul(block["d_x"], factor.T))
    if "d_factor" in block:
        parts.append(jnp.matmul(x, block["d_factor"].T))
    if "d_bias" in block:
        parts.append(jnp.broadcast_to(block["d_bias"], (len(x), len(factor))))
    return sum(parts[1:], parts[0]) if parts else None


# ---------------------------------------------------------------------------------------------------------------------
# gradients of input, weight and bias


def _of_whole_rows(context: _Context, given: _Operands) -> Results:
    """Blocks of all classes: each is made once."""
    p = replace(context.p, dtype=context.dtype, result=context.dtype)

    def step(block: dict[str, Any], found: Any) -> Any:
        zeta = _zeta(context, given.zeta)
        rows = Rows(block.get("where"), block.get("weight"), block.get("scale"), zeta)
        loss, g = context.run("cross_entropy", p, _logits(context, block), block["targets"], rows, xp=jnp)
        grad_x, shares = _back(context, block, g)
        return (loss, grad_x), shares

    x = given.rows["x"]
    nothing = jnp.zeros((len(x), 1), p.compute), jnp.zeros(x.shape, context.dtype)
    (loss, grad_x), shares = context.sweep(_made_again(step), given.rows, given.classes, nothing)
    return loss, *_rounded(given, grad_x, shares)


def _gradients(context: _Context, state: State, given: _Operands) -> tuple[Array, Array, Array | None]:
    known = {"state": state, "lse": _lse(context, state, given), "sum_t": _sum_t(context, state, given)}

    def step(block: dict[str, Any], found: Array) -> Any:
        (z, slope), (t, _) = _capped(context, block), _targets(context, block)
        g = slope * _gradient(context, block["state"], block["lse"], block["sum_t"], z, t, given.zeta)
        g = _masked(g, block, 0.0)
        if "scale" in block:
            g = jnp.where(block["scale"] == 0.0, 0.0, g * block["scale"])
        grad_x, shares = _back(context, block, cast(g, context.dtype, jnp))
        return found + grad_x, shares

    nothing = jnp.zeros(given.rows["x"].shape, context.dtype)
    return _rounded(given, *context.sweep(_made_again(step), given.rows | known, given.classes, nothing))


def _back(context: _Context, block: dict[str, Any], g: Array) -> tuple[Array, Any]:
    """g @ factor, and g.T @ x and Σ g; what is absent has gradient 0, and may hold anything."""
    x, factor = (cast(block[name], context.dtype, jnp) for name in ("x", "factor"))
    grad_bias = sums.total(g, (-2,), xp=jnp)[0] if "bias" in block else None
    grad_x = jnp.matmul(g, finite(factor, jnp) if context.p.masked else factor)
    return grad_x, (jnp.matmul(g.T, finite(x, jnp)), grad_bias)


def _rounded(given: _Operands, grad_x: Array, shares: Any) -> tuple[Array, Array, Array | None]:
    factor, bias = shares
    return (
        rounded(grad_x, dtype_name(given.rows["x"]), jnp),
        rounded(factor, dtype_name(given.classes["factor"]), jnp),
        None if bias is None else rounded(bias, dtype_name(given.classes["bias"]), jnp),
    )
