"""JAX's derivative rules; the arithmetic is left to the implementations behind.

Each rule is written with other ruled operations, so that derivatives of every order are right, in forward and in
reverse mode. Inside, arrays have the compute dtype and masked logits are −∞; results are rounded once, outside.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ... import formulas
from ...calls.records import Array, Problem, Rows
from ...libraries import sums
from ...libraries.arrays import cast
from . import linear
from .times import times, times_or_zero


def refuses(problem: Problem) -> list[str]:
    return []


class _Context(NamedTuple):
    """What a rule knows besides arrays; `zeta` where it is a number."""

    problem: Problem
    run: Any
    zeta: float = 0.0

    def behind(self, operation: str, *arrays: Any) -> Any:
        return self.run.behind(operation, self.problem, *arrays, xp=jnp)

    def total(self, x: Array) -> Array:
        return sums.total(x, self.problem.axes, xp=jnp)


_ruled = partial(jax.custom_jvp, nondiff_argnums=(0,))


# ---------------------------------------------------------------------------------------------------------------------
# softmax


def softmax(p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    return cast(_softmax(_call(p, run), _logits(p, x, where), where), p.result, xp)


@_ruled
def _softmax(call: _Context, x: Array, where: Array | None) -> Array:
    return call.behind("softmax", x, where)


@_softmax.defjvp
def _softmax_jvp(call: _Context, primals: Any, tangents: Any) -> Any:
    """dy = y (dz − Σ y dz)"""
    (x, where), (dx, _) = primals, tangents
    y = _softmax(call, x, where)
    return y, call.behind("softmax_product", y, _dz(call, x, dx), where)


def softmax_product(p: Problem, y: Array, v: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    """y (v − Σ y v) = y (v − c − Σ y (v − c)) + c y (1 − Σ y), c as in the formula: v at a class with more than half"""
    call = _call(p, run)
    y, v = (_masked(cast(a, p.compute, xp), where, 0.0) for a in (y, v))
    one = call.total(y)
    c = call.total(xp.where((y > 0.5) & formulas._sums_to_one(one, xp=xp), v, 0.0))
    return cast(call.behind("softmax_product", y, v, where) + c * y * _one_minus(one), p.result, xp)


@jax.custom_jvp
def _one_minus(one: Array) -> Array:
    """0 for a sum that is 1 but for rounding; its derivative is not."""
    return jnp.zeros_like(one)


@_one_minus.defjvp
def _one_minus_jvp(primals: Any, tangents: Any) -> Any:
    return _one_minus(*primals), -tangents[0]


def softmax_jacobian(p: Problem, y: Array, *, xp: Any, run: Any) -> Array:
    return cast(_softmax_jacobian(_call(p, run), cast(y, p.compute, xp)), p.result, xp)


@_ruled
def _softmax_jacobian(call: _Context, y: Array) -> Array:
    return call.behind("softmax_jacobian", y)


@_softmax_jacobian.defjvp
def _softmax_jacobian_jvp(call: _Context, primals: Any, tangents: Any) -> Any:
    """δ_ij dy_i − dy_i y_j − y_i dy_j, also for a y that does not sum to 1"""
    (y,), (dy,) = primals, tangents
    diagonal = jnp.where(jnp.eye(y.shape[-1], dtype=bool), dy[..., None], 0.0)
    return _softmax_jacobian(call, y), diagonal - dy[..., None] * y[..., None, :] - y[..., None] * dy[..., None, :]


# ---------------------------------------------------------------------------------------------------------------------
# log_softmax and logsumexp; the formulas of log_softmax_vjp and log_softmax_jvp are their own rules, transposed too


def log_softmax(p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    return cast(_log_softmax(_call(p, run), _logits(p, x, where), where), p.result, xp)


@_ruled
def _log_softmax(call: _Context, x: Array, where: Array | None) -> Array:
    return call.behind("log_softmax", x, where)


@_log_softmax.defjvp
def _log_softmax_jvp(call: _Context, primals: Any, tangents: Any) -> Any:
    """d log y = dz − Σ y dz; y from x, since log y is rounded: by 30 ulp of y at −60"""
    (x, where), (dx, _) = primals, tangents
    d = formulas.centred(_softmax(call, x, where), _dz(call, x, dx), call.problem.axes, xp=jnp)
    return _log_softmax(call, x, where), _masked(d, where, 0.0)


def logsumexp(p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    return cast(_logsumexp(_call(p, run), _logits(p, x, where), where), p.result, xp)


@_ruled
def _logsumexp(call: _Context, x: Array, where: Array | None) -> Array:
    return call.behind("logsumexp", x, where)


@_logsumexp.defjvp
def _logsumexp_jvp(call: _Context, primals: Any, tangents: Any) -> Any:
    """Σ y dz"""
    (x, where), (dx, _) = primals, tangents
    return _logsumexp(call, x, where), call.total(times(_softmax_or_zero(call, x, where), _dz(call, x, dx)))


def signed_logsumexp(p: Problem, x: Array, b: Array, where: Array | None, *, xp: Any, run: Any) -> tuple[Array, Array]:
    b = _masked(cast(b, p.compute, xp), where, 0.0)
    value, sign = _signed_logsumexp(_call(p, run), _logits(p, x, where), b, where)
    return cast(value, p.result, xp), cast(sign, p.result, xp)


@_ruled
def _signed_logsumexp(call: _Context, x: Array, b: Array, where: Array | None) -> tuple[Array, Array]:
    return call.behind("signed_logsumexp", x, b, where)


@partial(_signed_logsumexp.defjvp, symbolic_zeros=True)
def _signed_logsumexp_jvp(call: _Context, primals: Any, tangents: Any) -> Any:
    """Σ (b dx + db) y / Σ b y, where y is relative to the classes with b ≠ 0"""
    (x, b, where), (dx, db, _) = primals, tangents
    hidden = b == 0.0
    shown = jnp.where(hidden, -math.inf, x)
    y, m, empty = _softmax_or_zero(call, shown, where), _max(call, shown), _empty(call, shown)
    # b = 0 hides x, not ∂/∂b = eˣ / Σ b eˣ; m and not logsumexp, whose rounding would be one of an exponent
    finite = hidden & jnp.isfinite(x) & ~empty
    above = jnp.where(finite, x - jnp.where(empty, 0.0, m), 0.0)
    y = jnp.where(finite, _exp(above) * _max(call, y), y)
    share = jnp.where(empty, 0.0, y / jnp.where(empty, 1.0, call.total(_finite_times(b, y))))
    d = []
    if _varies(dx):
        d.append(call.total(times(_finite_times(b, share), jnp.where(hidden & ~finite, 0.0, dx))))
    if _varies(db):
        d.append(call.total(times_or_zero(share, db)))
    value, sign = _signed_logsumexp(call, x, b, where)
    return (value, sign), (sum(d), jnp.zeros_like(sign))


def _softmax_or_zero(call: _Context, x: Array, where: Array | None) -> Array:
    def softmax(x: Array, *_: Any, **__: Any) -> Array:
        return _softmax(call, jnp.where(_empty(call, x), 0.0, x), where)

    return formulas.logsumexp_gradient(x, call.problem.axes, softmax=softmax, xp=jnp)


def _exp(x: Array) -> Array:
    """∞ where it overflows, with derivative 0: 0 · ∞ would be nan"""
    most = math.log(jnp.finfo(x.dtype).max) - 2.0**-7
    return jnp.where(x > most, math.inf, jnp.exp(jnp.minimum(x, most)))


def _finite_times(b: Array, a: Array) -> Array:
    """b a, where b = 0 outweighs an a that is not finite"""
    return b * jnp.where((b == 0.0) & ~jnp.isfinite(a), 0.0, a)


def _max(call: _Context, x: Array) -> Array:
    return jnp.max(x, axis=call.problem.axes, keepdims=True)


def _empty(call: _Context, x: Array) -> Array:
    return _max(call, x) == -math.inf


# ---------------------------------------------------------------------------------------------------------------------
# cross-entropy; the rules are those of rows that are not scaled


def cross_entropy(
    p: Problem, x: Array, targets: Array, rows: Rows, *, xp: Any, run: Any
) -> tuple[Array | None, Array | None]:
    x, targets = _present(p, rows, x, targets)
    if not p.labels:
        targets = _masked(cast(targets, p.compute, xp), rows.where, 0.0)
    zeta, zetas = (rows.zeta, None) if isinstance(rows.zeta, float) else (0.0, rows.zeta)
    call = _call(p, run)._replace(zeta=zeta)
    loss, grad = _cross_entropy(call, _logits(p, x, rows.where), targets, rows.where, rows.weight, zetas)
    if grad is not None:
        if rows.scale is not None:
            grad = xp.where(rows.scale == 0.0, 0.0, grad * rows.scale)
        grad = cast(grad, p.result, xp)
    return loss, grad


@_ruled
def _cross_entropy(
    call: _Context, x: Array, targets: Array, where: Array | None, weight: Array | None, zetas: Array | None
) -> tuple[Array | None, Array | None]:
    return call.behind("cross_entropy", x, targets, _rows(call, where, weight, zetas))


@partial(_cross_entropy.defjvp, symbolic_zeros=True)
def _cross_entropy_jvp(call: _Context, primals: Any, tangents: Any) -> Any:
    wants = call.problem.wants
    needed = ("loss", "grad") if "loss" in wants else wants
    loss, grad = _cross_entropy(call._replace(problem=replace(call.problem, wants=needed)), *primals)
    t, dt = _targets(call, primals, tangents)
    d_loss = _loss_tangent(call, primals, tangents, grad, t, dt) if "loss" in wants else None
    if "grad" not in wants:
        return (loss, None), (d_loss, None)
    return (loss, grad), (d_loss, _grad_tangent(call, primals, tangents, dt))


def _loss_tangent(call: _Context, primals: Any, tangents: Any, grad: Array, t: Array, dt: Array | None) -> Array:
    """Σ ∂L/∂x dx + Σ (logsumexp − z) dt + logsumexp² dζ, where a class with t = 0 at z = −∞ counts for nothing"""
    x, _, where, *_ = primals
    dx, *_, d_zetas = tangents
    d = []
    if _varies(dx):
        d.append(call.total(times(grad, dx)))
    if dt is not None:
        log_y = _log_softmax(call, x, where)
        log_y = jnp.where((t == 0.0) & (log_y == -math.inf), 0.0, _of_kept(call, log_y, where))
        d.append(call.total(times(-log_y, dt)))
    if _varies(d_zetas):
        lse = _of_kept(call, _logsumexp(call, x, where), where)
        d.append(lse * (lse * d_zetas))
    return sum(d)


def _grad_tangent(call: _Context, primals: Any, tangents: Any, dt: Array | None) -> Array:
    """Σ ∂²L/∂x∂x dx + z′ (y Σ dt − dt) + z′ 2 logsumexp y dζ"""
    x, targets, where, weight, zetas = primals
    dx, *_, d_zetas = tangents
    d = []
    if _varies(dx):
        d.append(call.behind("cross_entropy_hvp", x, targets, _rows(call, where, weight, zetas), dx))
    if dt is not None or _varies(d_zetas):
        axes = call.problem.axes
        y = _softmax(call, x, where)
        dt = jnp.zeros_like(x) if dt is None else dt
        zeta, lse = (d_zetas, _of_kept(call, _logsumexp(call, x, where), where)) if _varies(d_zetas) else (0.0, None)
        not_y = formulas.complement(y, axes, xp=jnp)
        d.append(_dz(call, x, formulas.cross_entropy_grad(y, not_y, dt, zeta, lse, axes, xp=jnp)))
    return _masked(sum(d), where, 0.0)


def _targets(call: _Context, primals: Any, tangents: Any) -> tuple[Array, Array | None]:
    """t = weight · ((1 − ε) target + ε / K) and its tangent"""
    p, (x, targets, where, weight, _) = call.problem, primals
    _, d_targets, _, d_weight, _ = tangents

    def formula(targets: Array, weight: Array | None) -> Array:
        return formulas.targets(
            targets, where, weight, labels=p.labels, label_smoothing=p.label_smoothing, like=x, axis=p.axes[0], xp=jnp
        )

    if not (_varies(d_targets) or _varies(d_weight)):
        return formula(targets, weight), None
    d_weight = d_weight if _varies(d_weight) or weight is None else jnp.zeros_like(weight)
    if p.labels:
        return jax.jvp(partial(formula, targets), (weight,), (d_weight,))
    d_targets = d_targets if _varies(d_targets) else jnp.zeros_like(targets)
    return jax.jvp(formula, (targets, weight), (d_targets, d_weight))


def _rows(call: _Context, where: Array | None, weight: Array | None, zetas: Array | None) -> Rows:
    return Rows(where, weight, None, call.zeta if zetas is None else zetas)


def cross_entropy_hvp(p: Problem, x: Array, targets: Array, rows: Rows, v: Array, *, xp: Any, run: Any) -> Array:
    x, targets, v = _present(p, rows, x, targets, v)
    return run.behind("cross_entropy_hvp", p, x, targets, rows, v, xp=xp)


def cross_entropy_hessian_diag(p: Problem, x: Array, targets: Array, rows: Rows, *, xp: Any, run: Any) -> Array:
    x, targets = _present(p, rows, x, targets)
    return run.behind("cross_entropy_hessian_diag", p, x, targets, rows, xp=xp)


def cross_entropy_from_probs(p: Problem, probs: Array, targets: Array, rows: Rows, *, xp: Any, run: Any) -> Array:
    probs, targets = _present(p, rows, probs, targets)
    return run.behind("cross_entropy_from_probs", p, probs, targets, rows, xp=xp)


def _present(p: Problem, rows: Rows, x: Array, targets: Array, *more: Array) -> tuple[Array, ...]:
    """Zeros for rows that are absent: 0 times the derivative of whatever they hold would be nan."""
    if rows.scale is None or isinstance(rows.scale, float):
        return x, targets, *more
    x, *others = (jnp.where(rows.scale == 0.0, 0.0, a) for a in (x, *more))
    return x, targets if p.labels else jnp.where(rows.scale == 0.0, 0, targets), *others


# ---------------------------------------------------------------------------------------------------------------------
# what they share


def _call(p: Problem, run: Any) -> _Context:
    return _Context(replace(p, dtype=p.compute, result=p.compute), run)


def _logits(p: Problem, x: Array, where: Array | None) -> Array:
    return _masked(cast(x, p.compute, jnp), where, -math.inf)


def _masked(x: Array, where: Array | None, value: float) -> Array:
    return x if where is None else jnp.where(where, x, value)


def _of_kept(call: _Context, a: Array, where: Array | None) -> Array:
    return formulas.of_kept(a, where, call.problem.axes, xp=jnp)


def _dz(call: _Context, x: Array, dx: Array) -> Array:
    slope, _ = formulas.capped_derivatives(x, call.problem.softcap, xp=jnp)
    return formulas.over(dx if slope is None else slope * dx, call.problem.temperature, xp=jnp)


def _varies(tangent: Any) -> bool:
    return tangent is not None and not isinstance(tangent, SymbolicZero)


OPERATIONS = {
    "softmax": softmax,
    "log_softmax": log_softmax,
    "logsumexp": logsumexp,
    "signed_logsumexp": signed_logsumexp,
    "softmax_product": softmax_product,
    "softmax_jacobian": softmax_jacobian,
    "cross_entropy": cross_entropy,
    "cross_entropy_hvp": cross_entropy_hvp,
    "cross_entropy_hessian_diag": cross_entropy_hessian_diag,
    "cross_entropy_from_probs": cross_entropy_from_probs,
    "linear_cross_entropy": linear.linear_cross_entropy,
}
