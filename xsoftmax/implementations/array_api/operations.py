"""The formulas on any namespace; takes every problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ... import formulas
from ...calls.records import Array, Problem, Rows
from ...formulas import Axes, State
from ...libraries import facts
from ...libraries.arrays import cast, rounded
from ...libraries.sums import Pair, maximum, total
from .linear import linear_cross_entropy


def refuses(problem: Problem) -> list[str]:
    return []


def program(p: Problem, call: Any, verb: Any, *options: Any, xp: Any, run: Any) -> Any:
    """A verb behind its checks; an implementation may have a way to run it as one."""
    if not facts.of(p.library).warns:
        return verb(call._replace(problem=p), *options, run=run)
    with np.errstate(all="ignore"):  # theirs is NumPy's arithmetic: infinite and 0 are results as others
        return verb(call._replace(problem=p), *options, run=run)


def softmax(p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    y = formulas.softmax(logits(p, x, where, p.axes, xp), p.axes, xp=xp)
    return cast(masked(y, where, 0.0, xp), p.result, xp)


def log_softmax(p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    log_y = formulas.log_softmax(logits(p, x, where, p.axes, xp), p.axes, xp=xp)
    return rounded(masked(log_y, where, -math.inf, xp), p.result, xp)


def logsumexp(p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    x = masked(cast(x, p.compute, xp), where, -math.inf, xp)
    z = formulas.capped(x, p.softcap, p.temperature, p.axes, xp=xp)
    return cast(_lifted(p, formulas.logsumexp(z, p.axes, xp=xp), x, xp), p.result, xp)


def signed_logsumexp(p: Problem, x: Array, b: Array, where: Array | None, *, xp: Any, run: Any) -> tuple[Array, Array]:
    b = masked(cast(b, p.compute, xp), where, 0.0, xp)
    value, sign = formulas.signed_logsumexp(logits(p, x, where, p.axes, xp), b, p.axes, xp=xp)
    return cast(value, p.result, xp), cast(sign, p.result, xp)


def softmax_product(p: Problem, y: Array, v: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    y, v = _product_rows(p, y, v, where, xp)
    return cast(masked(formulas.softmax_product(y, v, p.axes, xp=xp), where, 0.0, xp), p.result, xp)


def _product_rows(p: Problem, y: Array, v: Array, where: Array | None, xp: Any) -> tuple[Array, Array]:
    return masked(cast(y, p.compute, xp), where, 0.0, xp), masked(cast(v, p.compute, xp), where, 0.0, xp)


def softmax_gradient(p: Problem, x: Array, v: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    """y (v − Σ y v) / temperature at y = softmax(x), which is not rounded in between"""
    inner = replace(p, dtype=p.compute, result=p.compute)
    y = run("softmax", inner, cast(x, p.compute, xp), where, xp=xp)
    product = run("softmax_product", replace(inner, temperature=1.0), y, cast(v, p.compute, xp), where, xp=xp)
    return rounded(formulas.over(product, p.temperature, xp=xp), p.result, xp)


def softmax_jacobian(p: Problem, y: Array, *, xp: Any, run: Any) -> Array:
    return cast(formulas.softmax_jacobian(cast(y, p.compute, xp), xp=xp), p.result, xp)


def log_softmax_vjp(p: Problem, log_y: Array, dy: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    return _log_product(formulas.log_softmax_vjp, p, log_y, dy, where, xp)


def log_softmax_jvp(p: Problem, log_y: Array, dx: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
    return _log_product(formulas.log_softmax_jvp, p, log_y, dx, where, xp)


def _log_product(
    formula: Any,
    p: Problem,
    log_y: Array,
    v: Array,
    where: Array | None,
    xp: Any,
    state: formulas.LogProductState | None = None,
) -> Array:
    log_y, v = _log_rows(p, log_y, v, where, xp)
    return cast(masked(formula(log_y, v, p.axes, state, xp=xp), where, 0.0, xp), p.result, xp)


def _log_rows(p: Problem, log_y: Array, v: Array, where: Array | None, xp: Any) -> tuple[Array, Array]:
    return masked(cast(log_y, p.compute, xp), where, -math.inf, xp), masked(cast(v, p.compute, xp), where, 0.0, xp)


def cross_entropy(
    p: Problem, x: Array, targets: Array, rows: Rows, *, xp: Any, run: Any
) -> tuple[Array | None, Array | None]:
    """Loss of each row in the compute dtype, not scaled; gradient in the result dtype, scaled by `rows.scale`."""
    x, z = _capped(p, x, rows, xp)
    t = target_rows(p, targets, rows, z, xp)
    e = formulas.exponentials(z, p.axes, xp=xp)
    lse_in = partial(_lifted, p, e.m + e.log_sum(xp=xp), x, xp)
    loss = grad = None
    if "loss" in p.wants:
        lse = lse_in(1.0) if _has_zeta(rows) else None
        loss = formulas.cross_entropy(e, t, _far(p, x, z, e.m, t, xp), rows.zeta, lse, p.axes, xp=xp)
        loss = formulas.of_kept(loss, rows.where, p.axes, xp=xp)
    if "grad" in p.wants:
        rows, lse, _, t = _in_units(rows, lse_in, t, xp=xp)
        grad = formulas.cross_entropy_grad(e.softmax(), e.complement(xp=xp), t, rows.zeta, lse, p.axes, True, xp=xp)
        grad = _of_logits(p, grad, x, rows, xp)
    return loss, grad


def _far(p: Problem, x: Array, z: Array, top: Array, t: Array, xp: Any) -> Array:
    """Σ t (top − z)"""
    m = top
    if formulas.is_cold(p.temperature):
        x = formulas.softcapped(x, p.softcap, xp=xp)
        m = maximum(x, p.axes, xp=xp)
    return total(formulas.times_distance(t, z, top, x, m, p.temperature, xp=xp), p.axes, xp=xp)


# of rows that are read part by part


def class_state(
    p: Problem, x: Array, targets: Array | None, rows: Rows, part: formulas.Part, *, xp: Any, run: Any
) -> State:
    """What some classes of the rows tell of their loss; of their logits alone without targets."""
    _, x = part_of_logits(p, x, rows.where, xp)
    t = None if targets is None else target_rows(p, targets, rows, x, xp, part)
    return formulas.state(x, t, rows.where, part.classes, p.axes, p.temperature, xp=xp)


def class_grad(
    p: Problem,
    x: Array,
    targets: Array,
    rows: Rows,
    part: formulas.Part,
    own: State,
    state: State,
    *,
    xp: Any,
    run: Any,
) -> Array:
    """The gradient at some classes, scaled by `rows.scale`, from their own state and that of the whole rows."""
    x, softcapped = part_of_logits(p, x, rows.where, xp)
    t = target_rows(p, targets, rows, x, xp, part)
    lse_in = partial(formulas.logsumexp_of_state, state, p.temperature, xp=xp)
    rows, _, unit, t, top, others = _in_units(rows, lse_in, t, state.top, state.others, xp=xp)
    state = state._replace(top=top, others=others)
    numbers = rows.zeta, part.classes, p.temperature, unit, True
    grad = formulas.cross_entropy_grad_of_part(softcapped, state, t, *numbers, xp=xp)
    return _of_logits(p, grad, x, rows, xp)


def class_softmax(
    p: Problem, x: Array, where: Array | None, part: formulas.Part, own: State, state: State, *, xp: Any, run: Any
) -> Array:
    _, x = part_of_logits(p, x, where, xp)
    y = formulas.softmax_of_part(x, state, part.classes, p.temperature, xp=xp)
    return cast(masked(y, where, 0.0, xp), p.result, xp)


def class_log_softmax(p: Problem, x: Array, where: Array | None, state: State, *, xp: Any, run: Any) -> Array:
    _, x = part_of_logits(p, x, where, xp)
    log_y = formulas.log_softmax_of_part(x, state, p.temperature, xp=xp)
    return rounded(masked(log_y, where, -math.inf, xp), p.result, xp)


def class_product_state(
    p: Problem, y: Array, v: Array, where: Array | None, *, xp: Any, run: Any
) -> formulas.ProductState:
    y, v = _product_rows(p, y, v, where, xp)
    return formulas.product_state(y, v, p.axes, xp=xp)


def class_softmax_product(
    p: Problem, y: Array, v: Array, where: Array | None, state: formulas.ProductState, *, xp: Any, run: Any
) -> Array:
    y, v = _product_rows(p, y, v, where, xp)
    return cast(masked(formulas.softmax_product_of_part(y, v, state, xp=xp), where, 0.0, xp), p.result, xp)


def class_vjp_state(
    p: Problem, log_y: Array, dy: Array, where: Array | None, *, xp: Any, run: Any
) -> formulas.LogProductState:
    return formulas.vjp_state(*_log_rows(p, log_y, dy, where, xp), p.axes, xp=xp)


def class_jvp_state(
    p: Problem, log_y: Array, dx: Array, where: Array | None, *, xp: Any, run: Any
) -> formulas.LogProductState:
    return formulas.jvp_state(*_log_rows(p, log_y, dx, where, xp), p.axes, xp=xp)


def class_log_softmax_vjp(
    p: Problem, log_y: Array, dy: Array, where: Array | None, state: formulas.LogProductState, *, xp: Any, run: Any
) -> Array:
    return _log_product(formulas.log_softmax_vjp, p, log_y, dy, where, xp, state)


def class_log_softmax_jvp(
    p: Problem, log_y: Array, dx: Array, where: Array | None, state: formulas.LogProductState, *, xp: Any, run: Any
) -> Array:
    return _log_product(formulas.log_softmax_jvp, p, log_y, dx, where, xp, state)


def cross_entropy_hvp(p: Problem, x: Array, targets: Array, rows: Rows, v: Array, *, xp: Any, run: Any) -> Array:
    """Σ_j ∂²L/∂x_i∂x_j v_j = z′_i Σ_j ∂²L/∂z_i∂z_j z′_j v_j + ∂L/∂z_i z″_i v_i"""
    x, z, of, in_units = _second_order(p, x, targets, rows, xp, run)
    slope, curvature = formulas.capped_derivatives(x, p.softcap, xp=xp)
    v = masked(cast(v, p.compute, xp), rows.where, 0.0, xp)
    product, later = formulas.hessian_product(of, v if slope is None else slope * v, p.axes, xp=xp)
    product = formulas.over(product if slope is None else slope * product, p.temperature, xp=xp)
    if curvature is not None:
        later = in_units.scale
        product = product + _gradient(p, z, targets, rows, of, xp) * curvature * v
    return scaled(p, formulas.over(product, p.temperature, xp=xp), in_units._replace(scale=later), xp)


def cross_entropy_hessian_diag(p: Problem, x: Array, targets: Array, rows: Rows, *, xp: Any, run: Any) -> Array:
    """∂²L/∂x_i² = z′_i² ∂²L/∂z_i² + ∂L/∂z_i z″_i"""
    x, z, of, in_units = _second_order(p, x, targets, rows, xp, run)
    slope, curvature = formulas.capped_derivatives(x, p.softcap, xp=xp)
    diag, later = formulas.hessian_diag(of, p.axes, xp=xp)
    diag = formulas.over(diag if slope is None else slope * slope * diag, p.temperature, xp=xp)
    if curvature is not None:
        later = in_units.scale
        diag = diag + _gradient(p, z, targets, rows, of, xp) * curvature
    return scaled(p, formulas.over(diag, p.temperature, xp=xp), in_units._replace(scale=later), xp)


def _gradient(p: Problem, z: Array, targets: Array, rows: Rows, of: formulas.Curvature, xp: Any) -> Array:
    t, not_y = target_rows(p, targets, rows, z, xp), formulas.complement(of.y, p.axes, xp=xp)
    return formulas.cross_entropy_grad(of.y, not_y, t * of.unit, rows.zeta, of.lse, p.axes, xp=xp)


def _has_zeta(rows: Rows) -> bool:
    return not isinstance(rows.zeta, float) or rows.zeta != 0.0


def _in_units(rows: Rows, lse_in: Callable[[Array | float], Array], *of_t: Array | float, xp: Any) -> tuple[Any, ...]:
    """Rows whose scale takes `formulas.unit` back; logsumexp and what is linear in the targets times it, and itself."""
    if not _has_zeta(rows):
        return rows, None, 1.0, *of_t
    unit = formulas.unit(lse_in(1.0), xp=xp)
    scale = (1.0 if rows.scale is None else rows.scale) / unit
    return rows._replace(scale=scale), lse_in(unit), unit, *(a * unit for a in of_t)


def cross_entropy_from_probs(p: Problem, probs: Array, targets: Array, rows: Rows, *, xp: Any, run: Any) -> Array:
    probs = cast(probs, p.compute, xp)
    return formulas.cross_entropy_from_probs(probs, target_rows(p, targets, rows, probs, xp), p.axes, xp=xp)


def entropy(p: Problem, probs: Array, *, xp: Any, run: Any) -> Array:
    return cast(formulas.entropy(cast(probs, p.compute, xp), p.axes, xp=xp), p.result, xp)


def kl_divergence(p: Problem, a: Array, b: Array, *, xp: Any, run: Any) -> Array:
    a, b = cast(a, p.compute, xp), cast(b, p.compute, xp)
    return cast(formulas.kl_divergence(a, b, p.axes, xp=xp), p.result, xp)


def logits(p: Problem, x: Array, where: Array | None, axes: Axes, xp: Any) -> Array:
    """Of whole rows, as `formulas.capped` has them."""
    x = masked(cast(x, p.compute, xp), where, -math.inf, xp)
    return formulas.capped(x, p.softcap, p.temperature, axes, xp=xp)


def part_of_logits(p: Problem, x: Array, where: Array | None, xp: Any) -> tuple[Array, Array]:
    """Without and with the cap; the temperature is the formulas'."""
    x = masked(cast(x, p.compute, xp), where, -math.inf, xp)
    return x, formulas.softcapped(x, p.softcap, xp=xp)


def masked(x: Array, where: Array | None, value: float, xp: Any) -> Array:
    return x if where is None else xp.where(where, x, xp.full_like(x, value))


def _capped(p: Problem, x: Array, rows: Rows, xp: Any) -> tuple[Array, Array]:
    """Logits, and what cap and temperature make of them, in the compute dtype."""
    x = masked(cast(x, p.compute, xp), rows.where, -math.inf, xp)
    return x, formulas.capped(x, p.softcap, p.temperature, p.axes, xp=xp)


def _lifted(p: Problem, lse: Array, x: Array, xp: Any, unit: Array | float = 1.0) -> Array:
    return formulas.lifted(lse, x, p.softcap, p.temperature, p.axes, unit, xp=xp)


def _of_logits(p: Problem, grad: Array, x: Array, rows: Rows, xp: Any) -> Array:
    """z′ ∂L/∂z, scaled"""
    slope, _ = formulas.capped_derivatives(x, p.softcap, xp=xp)
    grad = grad if slope is None else grad * slope
    if rows.scale is None or not formulas.is_cold(p.temperature):
        return scaled(p, formulas.over(grad, p.temperature, xp=xp), rows, xp)
    # the scale first, which may be as small; with as large a factor, so that nothing is lost
    large = 2.0 ** min(900 if p.compute == "float64" else 64, -math.frexp(p.temperature)[1])
    grad = large * grad
    if not isinstance(rows.scale, float):
        grad = xp.where(rows.scale == 0.0, xp.zeros_like(grad), grad)
    grad = formulas.over(grad * rows.scale, large * p.temperature, xp=xp)
    return scaled(p, grad, rows._replace(scale=None), xp)


def target_rows(
    p: Problem, targets: Array, rows: Rows, like: Array, xp: Any, part: formulas.Part | None = None
) -> Array:
    given = targets if p.labels else cast(targets, p.compute, xp)
    return formulas.targets(
        given,
        rows.where,
        rows.weight,
        labels=p.labels,
        label_smoothing=p.label_smoothing,
        like=like,
        axis=p.axes[0],
        xp=xp,
        part=part,
    )


def _second_order(
    p: Problem, x: Array, targets: Array, rows: Rows, xp: Any, run: Any
) -> tuple[Array, Array, formulas.Curvature, Rows]:
    """What Hessian products are made of: softmax and logsumexp through the chooser, so that they have their rules."""
    x, z = _capped(p, x, rows, xp)
    sum_t = formulas.sum_of_targets(
        targets if p.labels else cast(targets, p.compute, xp),
        rows.where,
        rows.weight,
        labels=p.labels,
        label_smoothing=p.label_smoothing,
        like=z,
        axes=p.axes,
        xp=xp,
    )
    inner = replace(p, dtype=p.compute, result=p.compute, temperature=1.0, softcap=None, wants=())
    y = run("softmax", inner, z, rows.where, xp=xp)
    r = formulas.excess(y, p.axes, xp=xp) if p.result == p.compute else 0.0  # a wider y has digits enough
    lse = run("logsumexp", inner, z, rows.where, xp=xp) if p.z_loss else None

    def lse_in(unit: Array | float) -> Array:
        return formulas.of_kept(_lifted(p, lse, x, xp, unit), rows.where, p.axes, xp=xp)  # −∞ · 0 would be nan

    in_units, lse_in_units, unit, high, low = _in_units(rows, lse_in, *sum_t, xp=xp)
    scale = in_units.scale if p.softcap is None else None  # the gradient that a cap asks for is scaled at the end
    return x, z, formulas.Curvature(y, r, Pair(high, low), rows.zeta, lse_in_units, scale, unit), in_units


def scaled(p: Problem, grad: Array, rows: Rows, xp: Any) -> Array:
    """Row scale; a row with scale 0 is absent, whatever it holds, and so are classes that are masked."""
    if isinstance(rows.scale, float):
        grad = grad * rows.scale
    elif rows.scale is not None:
        grad = xp.where(rows.scale == 0.0, xp.zeros_like(grad), grad) * rows.scale
    return cast(masked(grad, rows.where, 0.0, xp), p.result, xp)


OPERATIONS: dict[str, Any] = {
    "program": program,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "logsumexp": logsumexp,
    "signed_logsumexp": signed_logsumexp,
    "softmax_jacobian": softmax_jacobian,
    "softmax_product": softmax_product,
    "softmax_gradient": softmax_gradient,
    "log_softmax_vjp": log_softmax_vjp,
    "log_softmax_jvp": log_softmax_jvp,
    "cross_entropy": cross_entropy,
    "cross_entropy_hvp": cross_entropy_hvp,
    "cross_entropy_hessian_diag": cross_entropy_hessian_diag,
    "cross_entropy_from_probs": cross_entropy_from_probs,
    "entropy": entropy,
    "kl_divergence": kl_divergence,
    "linear_cross_entropy": linear_cross_entropy,
    "class_state": class_state,
    "class_grad": class_grad,
    "class_softmax": class_softmax,
    "class_log_softmax": class_log_softmax,
    "class_product_state": class_product_state,
    "class_softmax_product": class_softmax_product,
    "class_vjp_state": class_vjp_state,
    "class_jvp_state": class_jvp_state,
    "class_log_softmax_vjp": class_log_softmax_vjp,
    "class_log_softmax_jvp": class_log_softmax_jvp,
}
