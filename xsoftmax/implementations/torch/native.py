"""PyTorch's derivative rules; the arithmetic is left to the implementations behind.

Every operation goes through `torch.autograd.Function`, and every rule is made of such operations and of PyTorch's own,
so that any order is right, in reverse and forward mode and under `torch.func`.

u cotangent of a result · dx, dy, dt, … cotangent or tangent of x, y, t, …
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._guards import TracingContext
from torch.autograd import forward_ad

from ... import formulas
from ...calls.records import Array, ArrayCall, LossCall, Problem, Rows
from ...libraries.arrays import cast, dtype_name, is_lazy
from . import linear

Arrays = tuple[Array | None, ...]


def refuses(problem: Problem) -> list[str]:
    """Subclasses, traced and compiled code need the rules too: formulas differentiated as written are wrong at ties."""
    return []


@dataclass(frozen=True, slots=True)
class _Context:
    """What a rule computes with; `needs` tells which arrays ask for a cotangent, `run` remembers the choice."""

    p: Problem
    xp: Any
    run: Any
    needs: tuple[bool, ...] = ()

    def __call__(self, operation: Callable[..., Any], *arrays: Any, **changes: Any) -> Any:
        return operation(replace(self.p, **changes), *arrays, xp=self.xp, run=self.run)

    def wide(self, x: Array, where: Array | None = None) -> Array:
        return _masked(cast(x, self.p.compute, self.xp), where)

    def narrow(self, x: Array, where: Array | None = None) -> Array:
        return cast(_masked(x, where), self.p.result, self.xp)

    def sum(self, x: Array) -> Array:
        return torch.sum(x, dim=self.p.axes, keepdim=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Rule:
    """Derivatives of an operation: `vjp(call, kept, cotangents)` of the arrays, `jvp(call, kept, tangents)` of results.

    `kept` are the arrays, the first one replaced by the result where `keeps_result` is true of the problem.
    """

    operation: str
    vjp: Callable[[_Context, list[Any], Arrays], Arrays]
    jvp: Callable[[_Context, list[Any], Arrays], Any]
    keeps_result: Callable[[Problem], bool] = lambda p: False
    constant_results: tuple[int, ...] = ()
    arguments: Callable[..., tuple[Any, ...]] = lambda *arrays: arrays

    def __call__(self, p: Problem, *arrays: Any, xp: Any, run: Any, out: Array | None = None) -> Any:
        if out is not None:  # given only while no gradients are recorded
            return run.behind(self.operation, p, *self.arguments(*arrays), xp=xp, out=out)
        return _Ruled.apply(self, _Context(p, xp, run), *arrays)


class _Ruled(torch.autograd.Function):
    @staticmethod
    def forward(rule: _Rule, call: _Context, *arrays: Any) -> Any:
        results = call.run.behind(rule.operation, call.p, *rule.arguments(*arrays), xp=call.xp)
        return tuple(r for r in results if r is not None) if isinstance(results, tuple) else results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.rule, ctx.call, *kept = inputs
        if ctx.rule.keeps_result(ctx.call.p):
            kept[0] = output
        ctx.constants = [None if isinstance(a, torch.Tensor) else a for a in kept]
        tensors = [a if isinstance(a, torch.Tensor) else None for a in kept]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.mark_non_differentiable(*(output[i] for i in ctx.rule.constant_results))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Arrays:
        call = replace(ctx.call, needs=ctx.needs_input_grad[2:])
        return None, None, *ctx.rule.vjp(call, _kept(ctx), cotangents)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        kept = [forward_ad.unpack_dual(a).primal if isinstance(a, torch.Tensor) else a for a in _kept(ctx)]
        # PyTorch turns it off, for transforms further out too; none of them traces a graph, where duals stay whole
        with forward_ad._set_fwd_grad_enabled(TracingContext.try_get() is None):
            return ctx.rule.jvp(ctx.call, kept, tangents[2:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], rule: _Rule, call: _Context, *arrays: Any) -> tuple[Any, int]:
        """The batch goes in front: class axes are negative, and shapes broadcast from behind."""
        ndim = arrays[0].ndim - (in_dims[2] is not None)
        batched = []
        for i, (a, d) in enumerate(zip(arrays, in_dims[2:], strict=True)):
            labels = call.p.labels and i == 1
            if d is not None:
                a = torch.movedim(a, d, 0)
                missing = 0 if labels else ndim - (a.ndim - 1)
                a = torch.reshape(a, (a.shape[0], *(1,) * missing, *a.shape[1:]))
            elif isinstance(a, torch.Tensor) and (labels or a.ndim == ndim):
                a = a.expand(info.batch_size, *a.shape)
            batched.append(a)
        return rule(call.p, *batched, xp=call.xp, run=call.run), 0


def _kept(ctx: Any) -> list[Any]:
    return [c if t is None else t for t, c in zip(ctx.saved_tensors, ctx.constants, strict=True)]


def _masked(x: Array, where: Array | None, value: float = 0.0) -> Array:
    return x if where is None else torch.where(where, x, torch.full_like(x, value))


def _settled(p: Problem, x: Array, u: Array, where: Array | None = None) -> Array:
    """`x`, but 0 in rows of nan or ∞ that no cotangent reaches: their derivatives are 0, not nan."""
    if not x.is_floating_point():
        return x
    lost = ~torch.isfinite(torch.amax(_masked(x, where, -torch.inf), dim=p.axes, keepdim=True))
    if not is_lazy(x, p.library) and not bool(lost.any()):
        return x
    return torch.where(lost & (torch.amax(torch.abs(u), dim=p.axes, keepdim=True) == 0.0), torch.zeros_like(x), x)


def _times(a: Array | float, b: Array | float) -> Array:
    """a · b, where a = 0 outweighs a b that is not finite."""
    if isinstance(b, float):
        return a * b
    return a * torch.where((a == 0.0) & ~torch.isfinite(b), torch.zeros_like(b), b)


def _total(*parts: Array | None) -> Array | None:
    given = [part for part in parts if part is not None]
    return sum(given[1:], given[0]) if given else None


# ---------------------------------------------------------------------------------------------------------------------
# products: linear in v, with vectors transposed by another product


def _product_rule(operation: str, transposed: Callable[[], _Rule], back: Any, forth: Any) -> _Rule:
    """`back` and `forth`: the derivative with respect to the first array, times a cotangent and times a tangent."""

    def vjp(c: _Context, kept: list[Any], cotangents: Arrays) -> Arrays:
        (a, v, where), (u,) = kept, cotangents
        if u is None:
            return None, None, None
        a, v = _settled(c.p, a, u, where), _settled(c.p, v, u, where)
        da = _masked(back(c, *(c.wide(x, where) for x in (a, v, u))), where).to(a.dtype) if c.needs[0] else None
        return da, c(transposed(), a, u, where) if c.needs[1] else None, None

    def jvp(c: _Context, kept: list[Any], tangents: Arrays) -> Array | None:
        (a, v, where), (da, dv, _) = kept, tangents
        return _total(
            None if da is None else c.narrow(forth(c, *(c.wide(x, where) for x in (a, v, da))), where),
            None if dv is None else c(rule, a, dv, where),
        )

    rule = _Rule(operation, vjp, jvp)
    return rule


softmax_product: _Rule = _product_rule(
    "softmax_product",
    lambda: softmax_product,
    lambda c, y, v, u: u * (v - c.sum(y * v)) - v * c.sum(y * u),
    lambda c, y, v, dy: dy * (v - c.sum(y * v)) - y * c.sum(dy * v),
)
log_softmax_vjp = _product_rule(
    "log_softmax_vjp",
    lambda: log_softmax_jvp,
    lambda c, log_y, v, u: -torch.exp(log_y) * u * c.sum(v),
    lambda c, log_y, v, dlog_y: -torch.exp(log_y) * dlog_y * c.sum(v),
)
log_softmax_jvp: _Rule = _product_rule(
    "log_softmax_jvp",
    lambda: log_softmax_vjp,
    lambda c, log_y, v, u: -torch.exp(log_y) * v * c.sum(u),
    lambda c, log_y, v, dlog_y: (-c.sum(torch.exp(log_y) * v * dlog_y)).expand_as(v),
)


# ---------------------------------------------------------------------------------------------------------------------
# softmax, log_softmax, logsumexp


def _is_exact(p: Problem) -> bool:
    """Whether results have the digits that were computed, for a rule to use."""
    return p.result == p.compute


def _is_plain(p: Problem) -> bool:
    return isinstance(p.temperature, float) and p.temperature == 1.0


def _probabilities(c: _Context, x: Array, where: Array | None) -> Array:
    """softmax(x), in the compute dtype"""
    return c(softmax, c.wide(x, where), where, dtype=c.p.compute, result=c.p.compute)


def _gradient_of_softmax_vjp(c: _Context, kept: list[Any], cotangents: Arrays) -> Arrays:
    """Of y (v − Σ y v) / T: the same product of u, and of its derivative by y."""
    (x, v, where), (u,) = kept, cotangents
    if u is None:
        return None, None, None
    x, v = _settled(c.p, x, u, where), _settled(c.p, v, u, where)
    dx = None
    if c.needs[0]:
        y, wide_v, wide_u = _probabilities(c, x, where), c.wide(v, where), c.wide(u, where)
        dy = wide_u * (wide_v - c.sum(y * wide_v)) - wide_v * c.sum(y * wide_u)
        dx = c(softmax_gradient, x, _over(c, dy), where, result=dtype_name(x))
    return dx, c(softmax_gradient, x, u, where, result=dtype_name(v)) if c.needs[1] else None, None


def _gradient_of_softmax_jvp(c: _Context, kept: list[Any], tangents: Arrays) -> Array | None:
    (x, v, where), (dx, dv, _) = kept, tangents
    by_x = None
    if dx is not None:
        y, dy = _probabilities(c, x, where), c(softmax_gradient, x, dx, where, result=c.p.compute)
        wide_v = c.wide(v, where)
        by_x = c.narrow(_over(c, dy * (wide_v - c.sum(y * wide_v)) - y * c.sum(dy * wide_v)), where)
    return _total(by_x, None if dv is None else c(softmax_gradient, x, dv, where))


def _over(c: _Context, a: Array) -> Array:
    return formulas.over(a, c.p.temperature, xp=c.xp)


softmax_gradient: _Rule = _Rule("softmax_gradient", _gradient_of_softmax_vjp, _gradient_of_softmax_jvp)


def _softmax_product(c: _Context, a: Array, v: Array, where: Array | None) -> Array:
    """`a` is y, or x where y is rounded."""
    if not _is_exact(c.p):
        return c(softmax_gradient, a, v, where)
    if _is_plain(c.p):
        return c(softmax_product, a, v, where)
    return c.narrow(_over(c, c(softmax_product, a, v, where, temperature=1.0, result=c.p.compute)))


def _softmax_vjp(c: _Context, kept: list[Any], cotangents: Arrays) -> Arrays:
    (a, where), (u,) = kept, cotangents
    return None if u is None else _softmax_product(c, _settled(c.p, a, u, where), u, where), None


def _softmax_jvp(c: _Context, kept: list[Any], tangents: Arrays) -> Array | None:
    (a, where), (dx, _) = kept, tangents
    return None if dx is None else _softmax_product(c, a, dx, where)


def _log_softmax_vjp(c: _Context, kept: list[Any], cotangents: Arrays) -> Arrays:
    """u − y Σ u, minus the gradient of Σ u (logsumexp(x) − x)"""
    (x, where), (u,) = kept, cotangents
    if u is None:
        return None, None
    of_loss = {"labels": False, "class_weighted": False, "label_smoothing": 0.0, "z_loss": 0.0, "wants": ("grad",)}
    return c(cross_entropy, _settled(c.p, x, u, where), u, Rows(where, scale=-1.0), **of_loss)[1], None


def _log_softmax_jvp(c: _Context, kept: list[Any], tangents: Arrays) -> Array | None:
    (x, where), (dx, _) = kept, tangents
    if dx is None:
        return None
    d = formulas.centred(_probabilities(c, x, where), c.wide(dx, where), c.p.axes, xp=c.xp)
    return c.narrow(_over(c, d), where)


softmax: _Rule = _Rule("softmax", _softmax_vjp, _softmax_jvp, keeps_result=_is_exact)
log_softmax = _Rule("log_softmax", _log_softmax_vjp, _log_softmax_jvp)


def _logsumexp_gradient(c: _Context, x: Array, where: Array | None) -> Array:
    def softmax_of(x: Array, _: Any, *, xp: Any) -> Array:
        return c(softmax, x, where, dtype=c.p.compute, result=c.p.compute)

    return formulas.logsumexp_gradient(c.wide(x, where), c.p.axes, softmax=softmax_of, xp=c.xp)


def _logsumexp_vjp(c: _Context, kept: list[Any], cotangents: Arrays) -> Arrays:
    (x, where), (u,) = kept, cotangents
    return None if u is None else c.narrow(c.wide(u) * _logsumexp_gradient(c, _settled(c.p, x, u, where), where)), None


def _logsumexp_jvp(c: _Context, kept: list[Any], tangents: Arrays) -> Array | None:
    (x, where), (dx, _) = kept, tangents
    return None if dx is None else c.narrow(c.sum(_logsumexp_gradient(c, x, where) * c.wide(dx, where)))


logsumexp = _Rule("logsumexp", _logsumexp_vjp, _logsumexp_jvp)


def _signed_gradient(
    c: _Context, x: Array, b: Array, where: Array | None, u: Array | None = None
) -> tuple[Array, Array]:
    """∂ log |Σ b exp(x)| / ∂x_i = b_i r_i and / ∂b_i = r_i, r_i = y_i / Σ b y. A class at −∞ has none.

    y is relative to the classes with b ≠ 0, so that no rounding of a large logsumexp is one of an exponent.
    """
    if u is not None:
        x, b = _settled(c.p, x, u, where), _settled(c.p, b, u, where)
    x, b = _masked(c.wide(x), where, -torch.inf), c.wide(b, where)
    hidden = b == 0.0
    shown = torch.where(hidden, torch.full_like(x, -torch.inf), x)
    m = torch.amax(shown, dim=c.p.axes, keepdim=True)
    empty = m == -torch.inf
    y = _masked(_probabilities(c, _masked(shown, ~empty), where), ~(shown == -torch.inf))
    # b = 0 hides x, not ∂/∂b
    above = torch.where(hidden & torch.isfinite(x) & ~empty, x - _masked(m, ~empty), torch.full_like(x, -torch.inf))
    y = torch.where(hidden, _exp(above) * torch.amax(y, dim=c.p.axes, keepdim=True), y)
    r = _masked(y / _masked(c.sum(_times(b, y)), ~empty, 1.0), ~empty)
    return _times(b, r), r


def _signed_logsumexp_vjp(c: _Context, kept: list[Any], cotangents: Arrays) -> Arrays:
    (x, b, where), (u, _) = kept, cotangents
    if u is None:
        return None, None, None
    dx, db = _signed_gradient(c, x, b, where, u)
    return c.narrow(c.wide(u) * dx), c.narrow(c.wide(u) * db), None


def _signed_logsumexp_jvp(c: _Context, kept: list[Any], tangents: Arrays) -> tuple[Array | None, None]:
    (x, b, where), (dx, db, _) = kept, tangents
    parts = zip(_signed_gradient(c, x, b, where), (dx, db), strict=True)
    value = _total(*(None if v is None else c.sum(_times(c.wide(v, where), factor)) for factor, v in parts))
    return None if value is None else c.narrow(value), None


def _exp(x: Array) -> Array:
    """∞ where it overflows, with derivative 0: 0 · ∞ would be nan"""
    most = math.log(torch.finfo(x.dtype).max) - 2.0**-7
    return torch.where(x > most, torch.inf, torch.exp(torch.clamp(x, max=most)))


signed_logsumexp = _Rule("signed_logsumexp", _signed_logsumexp_vjp, _signed_logsumexp_jvp, constant_results=(1,))


# ---------------------------------------------------------------------------------------------------------------------
# cross-entropy: L the loss of a row, G = ∂L/∂x, H = ∂G/∂x, z′ = ∂z/∂x; the gradient that is returned is scale · G


def cross_entropy(
    p: Problem, x: Array, targets: Array, rows: Rows, *, xp: Any, run: Any, out: Array | None = None
) -> tuple[Array | None, Array | None]:
    if out is not None:
        return run.behind("cross_entropy", p, x, targets, rows, xp=xp, out=out)
    given = dict(zip(p.wants, _CROSS_ENTROPY(p, x, targets, *rows, xp=xp, run=run), strict=True))
    return given.get("loss"), given.get("grad")


@dataclass(frozen=True, slots=True)
class _Row:
    """What the rules are made of, in the compute dtype where no other is asked for."""

    c: _Context
    x: Array
    targets: Array
    rows: Rows

    def gradient(self, scale: Array | None, result: str) -> Array:
        rows = self.rows._replace(scale=scale)
        return self.c(cross_entropy, self.x, self.targets, rows, wants=("grad",), result=result)[1]

    def hessian_product(self, v: Array, result: str) -> Array:
        p, rows = replace(self.c.p, wants=(), result=result), self.rows._replace(scale=None)
        return self.c.run("cross_entropy_hvp", p, self.x, self.targets, rows, v, xp=self.c.xp)

    def of_z(self, operation: Callable[..., Array]) -> Array:
        p, where = self.c.p, self.rows.where
        plain = {"dtype": p.compute, "result": p.compute, "temperature": 1.0, "softcap": None, "wants": ()}
        z = formulas.capped(self.c.wide(self.x, where), p.softcap, p.temperature, p.axes, xp=self.c.xp)
        return self.c(operation, z, where, **plain)

    def centred(self, v: Array) -> Array:
        """v − Σ y v"""
        return _masked(formulas.centred(self.of_z(softmax), v, self.c.p.axes, xp=self.c.xp), self.rows.where)

    def gradient_at(self, t: Array) -> Array:
        """∂L/∂z for targets t alone: y Σ t − t"""
        y, axes, xp = self.of_z(softmax), self.c.p.axes, self.c.xp
        not_y = formulas.complement(y, axes, xp=xp)
        return _masked(formulas.cross_entropy_grad(y, not_y, t, 0.0, y, axes, xp=xp), self.rows.where)

    def log_normaliser(self) -> Array:
        """logsumexp, 0 where nothing is kept"""
        p, xp, x = self.c.p, self.c.xp, self.c.wide(self.x, self.rows.where)
        lse = formulas.lifted(self.of_z(logsumexp), x, p.softcap, p.temperature, p.axes, xp=xp)
        return formulas.of_kept(lse, self.rows.where, p.axes, xp=xp)

    def share_of_lse(self) -> Array:
        """logsumexp y"""
        return formulas.times_or_zero(self.log_normaliser(), self.of_z(softmax), xp=self.c.xp)

    def surprise(self) -> Array:
        """∂L/∂t_i = logsumexp(z) − z_i"""
        return _masked(-self.of_z(log_softmax), self.rows.where)

    def times_slope(self, v: Array) -> Array:
        """z′ v"""
        p, where = self.c.p, self.rows.where
        slope, _ = formulas.capped_derivatives(self.c.wide(self.x, where), p.softcap, xp=self.c.xp)
        return formulas.over(v if slope is None else slope * v, p.temperature, xp=self.c.xp)

    def target_factors(self) -> tuple[Array | float, Array]:
        """t = weight · ((1 − ε) target + ε / K): ∂t/∂target and ∂t/∂weight"""
        p, weight = self.c.p, self.rows.weight
        given = self.targets if p.labels else self.c.wide(self.targets)
        per_weight = formulas.targets(
            given,
            self.rows.where,
            None,
            labels=p.labels,
            label_smoothing=p.label_smoothing,
            like=self.c.wide(self.x),
            axis=p.axes[0],
            xp=self.c.xp,
        )
        return (1.0 - p.label_smoothing) * (1.0 if weight is None else weight), per_weight

    def back_from_t(self, u: Array | float, dt: Array) -> tuple[Array | None, Array | None]:
        """Cotangents of targets and weight from u · dt."""
        per_target, per_weight = self.target_factors()
        return (
            _times(_times(u, per_target), dt) if self.c.needs[1] else None,
            _times(u * per_weight, dt).sum_to_size(self.rows.weight.shape) if self.c.needs[3] else None,
        )

    def forth_to_t(self, dtargets: Array | None, dweight: Array | None) -> Array | None:
        if dtargets is None and dweight is None:
            return None
        per_target, per_weight = self.target_factors()
        return _total(
            None if dtargets is None else _times(self.c.wide(dtargets, self.rows.where), per_target),
            None if dweight is None else per_weight * dweight,
        )


def _settled_row(c: _Context, kept: list[Any], u: Array) -> _Row:
    x, targets, *rows = kept
    if not c.p.labels:
        targets = _settled(c.p, targets, u, rows[0])
    return _Row(c, _settled(c.p, x, u, rows[0]), targets, Rows(*rows))


def _cross_entropy_vjp(c: _Context, kept: list[Any], cotangents: Arrays) -> Arrays:
    given = dict(zip(c.p.wants, cotangents, strict=True))
    parts = [back(c, kept, u) for key, back in _BACK.items() if (u := given.get(key)) is not None]
    return tuple(map(_total, *parts, [None] * len(kept)))


def _loss_back(c: _Context, kept: list[Any], u: Array) -> Arrays:
    """of Σ u L"""
    row = _settled_row(c, kept, u)
    dx = row.gradient(u, c.p.dtype) if c.needs[0] else None
    dtargets = dweight = dzeta = None
    if c.needs[1] or c.needs[3]:
        dtargets, dweight = row.back_from_t(u, row.surprise())
    if c.needs[5]:
        lse = row.log_normaliser()
        dzeta = (u * lse * lse).sum_to_size(row.rows.zeta.shape)
    return dx, dtargets, None, dweight, None, dzeta


def _gradient_back(c: _Context, kept: list[Any], u: Array) -> Arrays:
    """of Σ u_i scale z′_i (T y_i − t_i + 2 ζ logsumexp y_i)"""
    scale = kept[4]
    u = c.wide(u, kept[2])
    scaled = u if scale is None else u * scale
    row = _settled_row(c, kept, scaled)
    dx = row.hessian_product(scaled, c.p.dtype) if c.needs[0] else None
    dtargets = dweight = dscale = dzeta = None
    if c.needs[1] or c.needs[3]:
        dtargets, dweight = row.back_from_t(1.0, -row.centred(row.times_slope(scaled)))
    if c.needs[4]:
        dscale = c.sum(u * row.gradient(None, c.p.compute)).sum_to_size(scale.shape)
    if c.needs[5]:
        y_v = c.sum(row.of_z(softmax) * row.times_slope(scaled))
        dzeta = (2.0 * formulas.times_or_zero(row.log_normaliser(), y_v, xp=c.xp)).sum_to_size(row.rows.zeta.shape)
    return dx, dtargets, None, dweight, dscale, dzeta


_BACK = {"loss": _loss_back, "grad": _gradient_back}


def _cross_entropy_jvp(c: _Context, kept: list[Any], tangents: Arrays) -> Arrays:
    x, targets, *rows = kept
    row = _Row(c, x, targets, Rows(*rows))
    return tuple(_FORTH[key](row, tangents) for key in c.p.wants)


def _loss_forth(row: _Row, tangents: Arrays) -> Array:
    c, (dx, dtargets, _, dweight, _, dzeta) = row.c, tangents
    dt = row.forth_to_t(dtargets, dweight)
    return _total(
        c.wide(torch.zeros_like(torch.narrow(row.x, c.p.axes[0], 0, 1))),  # a scale alone doesn't touch the loss
        None if dx is None else c.sum(row.gradient(None, c.p.compute) * c.wide(dx, row.rows.where)),
        None if dt is None else c.sum(_times(dt, row.surprise())),
        None if dzeta is None else dzeta * (lse := row.log_normaliser()) * lse,
    )


def _gradient_forth(row: _Row, tangents: Arrays) -> Array | None:
    c, scale, (dx, dtargets, _, dweight, dscale, dzeta) = row.c, row.rows.scale, tangents
    dt = row.forth_to_t(dtargets, dweight)
    parts = [
        None if dx is None else row.hessian_product(c.wide(dx, row.rows.where), c.p.compute),
        None if dt is None else row.times_slope(row.gradient_at(dt)),
        None if dzeta is None else row.times_slope(row.share_of_lse()) * (2.0 * dzeta),
    ]
    if (total := _total(*parts)) is not None and scale is not None:
        total = _times(scale, total)
    if dscale is not None:
        total = _total(total, _times(dscale, row.gradient(None, c.p.compute)))
    return None if total is None else c.narrow(total)


_FORTH = {"loss": _loss_forth, "grad": _gradient_forth}
_CROSS_ENTROPY = _Rule(
    "cross_entropy",
    _cross_entropy_vjp,
    _cross_entropy_jvp,
    arguments=lambda x, targets, *rows: (x, targets, Rows(*rows)),
)


# ---------------------------------------------------------------------------------------------------------------------
# a loss of linear logits, by blocks


def program(p: Problem, call: ArrayCall | LossCall, verb: Any, *options: Any, xp: Any, run: Any) -> Any:
    if isinstance(call, ArrayCall) or call.linear is None:
        return verb(call, *options, run=run)
    return linear.together(call, verb, *options, run=run)


# ---------------------------------------------------------------------------------------------------------------------
# verbs that are composed of ruled operations; rows of scale 0 may hold anything, to every order


def cross_entropy_hvp(p: Problem, x: Array, targets: Array, rows: Rows, v: Array, *, xp: Any, run: Any) -> Array:
    x, targets, v = _present(p, rows, x, targets, v)
    return run.behind("cross_entropy_hvp", p, x, targets, rows, v, xp=xp)


def cross_entropy_hessian_diag(p: Problem, x: Array, targets: Array, rows: Rows, *, xp: Any, run: Any) -> Array:
    x, targets = _present(p, rows, x, targets)
    return run.behind("cross_entropy_hessian_diag", p, x, targets, rows, xp=xp)


def cross_entropy_from_probs(p: Problem, probs: Array, targets: Array, rows: Rows, *, xp: Any, run: Any) -> Array:
    probs, targets = _present(p, rows, probs, targets)
    return run.behind("cross_entropy_from_probs", p, probs, targets, rows, xp=xp)


def _present(p: Problem, rows: Rows, x: Array, targets: Array, *vectors: Array) -> list[Array]:
    s = rows.scale
    if not isinstance(s, torch.Tensor) or s.ndim == 0:
        return [x, targets, *vectors]
    return [a if p.labels and a is targets else _settled(p, a, s, rows.where) for a in (x, targets, *vectors)]


OPERATIONS = {
    "program": program,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "logsumexp": logsumexp,
    "signed_logsumexp": signed_logsumexp,
    "softmax_product": softmax_product,
    "log_softmax_vjp": log_softmax_vjp,
    "log_softmax_jvp": log_softmax_jvp,
    "cross_entropy": cross_entropy,
    "cross_entropy_hvp": cross_entropy_hvp,
    "cross_entropy_hessian_diag": cross_entropy_hessian_diag,
    "cross_entropy_from_probs": cross_entropy_from_probs,
    "linear_cross_entropy": linear.linear_cross_entropy,
}
INTO = frozenset({"softmax", "log_softmax", "cross_entropy"})
