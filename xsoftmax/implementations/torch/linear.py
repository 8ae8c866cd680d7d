"""PyTorch's derivative rules of a loss of linear logits.

A mean or sum whose gradient is going to be asked for has it made in the same sweep, to be multiplied by its cotangent
in the end. Every other derivative sweeps over the blocks of the logits again.

With G the gradient of the logits, H their Hessian, v = dx @ factor.T + x @ dfactor.T + dbias a direction of them, and
s the scale of a row: the loss has the derivative Σ G v, and the gradients (s G @ factor, (s G).T @ x, Σ s G) have
(s H v @ factor + s G @ dfactor, (s H v).T @ x + (s G).T @ dx, Σ s H v), which is its own transpose.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd import forward_ad

from ...calls.records import Array, LossCall, Plan, Problem, Rows
from ...libraries.arrays import cast
from ..array_api.linear import Linear, Results, rows_of
from ..array_api.pieces import blocks
from .memory import are_plain, have_tangents

Arrays = tuple[Array | None, ...]
_RULED = 3  # input, factor and bias; of the others only the scale, which stands here among them
_SCALE = 6


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
    found = iter(_Swept.apply(_Context(p, plan, xp, run), x, factor, bias, targets, *rows))
    loss = next(found) if "loss" in p.wants else None
    return loss, next(found, None), next(found, None), next(found, None)


def together(call: LossCall, verb: Any, *options: Any, run: Any) -> Any:
    """A verb behind its checks; its loss has the gradients with it, where these are going to be asked for.

    Autocast would round the logits to half precision.
    """

    def of(x: Array, factor: Array, bias: Array | None, *wants: str) -> Any:
        p = replace(call.problem, wants=wants)
        return verb(call._replace(problem=p, x=x, linear=(factor, bias)), *options, run=run)

    factor, bias = call.linear or (None, None)
    ruled = (call.x, factor, bias)
    with _without_autocast(call.x.device.type):
        if not _is_graded(call, ruled):
            return of(*ruled, *call.problem.wants)
        with torch.no_grad():
            found = of(*ruled, "loss", "grad")
    return _Graded.apply(of, found, *ruled), None, None, None


def _without_autocast(device: str) -> Any:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _is_graded(call: LossCall, ruled: Arrays) -> bool:
    """Whether plain tensors ask for the gradient of a mean or sum, and nothing else asks for a derivative."""
    p = call.problem
    if p.wants != ("loss",) or call.reduction == "none" or p.container == "compiled" or not torch.is_grad_enabled():
        return False
    if p.dtype == "float16":  # a cotangent such as 2¹⁶ keeps gradients from underflow only where they are not there yet
        return False
    others = (call.targets, call.where, call.weight, call.sample_weight)
    if not any(map(_asks, ruled)) or any(map(_asks, others)):
        return False
    with torch.no_grad():
        return are_plain(call.x.device.type, *ruled, *others) and not have_tangents(*ruled, *others)


def _asks(a: Array | None) -> bool:
    return a is not None and a.requires_grad


class _Graded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, of: Any, found: Any, *ruled: Array | None) -> Array:
        loss, *gradients = found
        ctx.of = of
        ctx.save_for_backward(*ruled, *gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, u: Array) -> Arrays:
        needs = ctx.needs_input_grad[2:]
        ruled, gradients = ctx.saved_tensors[:_RULED], ctx.saved_tensors[_RULED:]
        if not torch.is_grad_enabled():
            return None, None, *(g * u if needed else None for g, needed in zip(gradients, needs, strict=True))
        asked = [a for a, needed in zip(ruled, needs, strict=True) if needed]
        loss, *_ = ctx.of(*ruled, "loss")
        back = iter(torch.autograd.grad(loss, asked, u, create_graph=True))
        return None, None, *(next(back) if needed else None for needed in needs)


@dataclass(frozen=True, slots=True)
class _Context:
    p: Problem
    plan: Plan
    xp: Any
    run: Any

    def gradients(self, arrays: list[Any], scale: Array) -> Results:
        x, factor, bias, targets, *rows = arrays
        p = replace(self.p, wants=("grad",))
        scaled = Rows(*rows)._replace(scale=scale)
        return linear_cross_entropy(p, x, factor, bias, targets, scaled, self.plan, xp=self.xp, run=self.run)

    def along(self, arrays: list[Any], direction: Arrays, dscale: Array | None = None) -> tuple[Array, Arrays]:
        """Σ G v of each row, and the derivatives of the gradients."""
        x, factor, bias, targets, *options = arrays
        linear = Linear(self.p, factor, bias, self.plan, self.xp, self.run)
        dx, dfactor, dbias = direction
        height = self.plan.rows
        if height is not None and self.plan.classes is not None:
            height = max(1, height * self.plan.classes // factor.shape[0])
        parts = []
        for block in blocks(0, x.shape[0], height):
            some = None if dx is None else dx[block]
            change = None if dscale is None else dscale[block]
            given = (x[block], targets[block], rows_of(Rows(*options), block))
            parts.append(self._along_block(linear, given, (some, dfactor, dbias), change))
        rowwise, back_x, back_factor, back_bias = zip(*parts, strict=True)
        return torch.cat(rowwise), (torch.cat(back_x), sum(back_factor), sum(back_bias))

    def _along_block(self, linear: Linear, given: Any, direction: Arrays, dscale: Array | None) -> Arrays:
        x, targets, rows = given
        dx, dfactor, dbias = direction
        dtype = linear.dtype
        wide = [None if a is None else cast(a, dtype, self.xp) for a in (x, linear.factor, dx, dfactor, dbias)]
        x, factor, dx, dfactor, dbias = wide
        x, dx = _present(rows.scale, x), _present(rows.scale, dx)
        z = linear.logits(x, slice(0, factor.shape[0]))
        v = torch.zeros_like(z)
        if dx is not None:
            v = v + dx @ factor.T
        if dfactor is not None:
            v = v + x @ dfactor.T
        if dbias is not None:
            v = v + dbias
        p = replace(self.p, dtype=dtype, result=dtype, wants=("grad",))
        _, g = self.run("cross_entropy", p, z, targets, rows._replace(scale=None), xp=self.xp)
        hv = self.run("cross_entropy_hvp", replace(p, wants=()), z, targets, rows, v, xp=self.xp)
        rowwise = torch.sum(cast(g, self.p.compute, self.xp) * v, dim=-1, keepdim=True)
        if dscale is not None:
            hv = hv + _times(cast(dscale, dtype, self.xp), g)
        scaled = g if rows.scale is None else _times(rows.scale, g).to(g.dtype)
        back_x, back_factor = hv @ factor, hv.T @ x
        if dfactor is not None:
            back_x = back_x + scaled @ dfactor
        if dx is not None:
            back_factor = back_factor + scaled.T @ dx
        return rowwise, back_x, back_factor, torch.sum(hv, dim=0)


class _Swept(torch.autograd.Function):
    @staticmethod
    def forward(context: _Context, x: Array, factor: Array, bias: Array | None, targets: Array, *rows: Any) -> Any:
        given = (x, factor, bias, targets, Rows(*rows), context.plan)
        results = context.run.behind("linear_cross_entropy", context.p, *given, xp=context.xp)
        return tuple(r for r in results if r is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.context, *kept = inputs
        ctx.constants = [None if isinstance(a, torch.Tensor) else a for a in kept]
        tensors = [a if isinstance(a, torch.Tensor) else None for a in kept]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Array | None) -> Any:
        context, arrays, needs = ctx.context, _kept(ctx), ctx.needs_input_grad[1:]
        _refuse(context.p, needs)
        rest = list(cotangents)
        u = rest.pop(0) if "loss" in context.p.wants else None
        back: list[Any] = [None] * len(arrays)
        if u is not None:
            _, *back[:_RULED] = context.gradients(arrays, u)
        if any(a is not None for a in rest):
            rowwise, second = context.along(arrays, (*rest, *[None] * (_RULED - len(rest))))
            for i, value in enumerate(second):
                if arrays[i] is not None:
                    value = value.to(arrays[i].dtype)
                    back[i] = value if back[i] is None else back[i] + value
            if needs[_SCALE]:
                back[_SCALE] = rowwise.sum_to_size(arrays[_SCALE].shape)
        return None, *back

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Array | None) -> Any:
        context = ctx.context
        _refuse(context.p, [a is not None for a in tangents])
        arrays = [forward_ad.unpack_dual(a).primal if isinstance(a, torch.Tensor) else a for a in _kept(ctx)]
        with forward_ad._set_fwd_grad_enabled(True):
            rowwise, second = context.along(arrays, tangents[:_RULED], tangents[_SCALE])
        changes = [rowwise] if "loss" in context.p.wants else []
        if "grad" in context.p.wants:
            changes += [d.to(a.dtype) for d, a in zip(second, arrays, strict=False) if a is not None]
        return tuple(changes)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], context: _Context, *arrays: Any) -> Any:
        """One after the other: each has logits of its own."""
        each = [
            _Swept.apply(
                context, *(a if d is None else a.select(d, i) for a, d in zip(arrays, in_dims[1:], strict=True))
            )
            for i in range(info.batch_size)
        ]
        stacked = tuple(map(torch.stack, zip(*each, strict=True)))
        return stacked, (0,) * len(stacked)


def _kept(ctx: Any) -> list[Any]:
    return [c if t is None else t for t, c in zip(ctx.saved_tensors, ctx.constants, strict=True)]


def _refuse(p: Problem, asked: Any) -> None:
    names = ("targets", "where", "weight", "sample_weight", "z_loss with weights")
    for i, (name, needed) in enumerate(zip(names, asked[_RULED:], strict=True), start=_RULED):
        if needed and i != _SCALE:
            raise NotImplementedError(f"{p.verb}: no derivative with respect to {name} is there; detach it")


def _present(scale: Array | float | None, x: Array | None) -> Array | None:
    """Zeros for rows that are absent: 0 times the derivative of whatever they hold would be nan."""
    if x is None or getattr(scale, "ndim", 0) < 2:
        return x
    return torch.where(scale == 0.0, torch.zeros_like(x), x)


def _times(scale: Array | float, g: Array) -> Array:
    """A row of scale 0 is absent, whatever it holds."""
    if isinstance(scale, float):
        return scale * g
    return torch.where(scale == 0.0, torch.zeros_like(g), g) * scale
