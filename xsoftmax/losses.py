"""Cross-entropy with its exact derivatives, entropy and divergence."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import checks
from .choose import run
from .functions import reduced, scalar, written
from .arrays import cast
from .problem import Array, GivenLoss, loss_dtype, on_arrays, on_loss
from .reductions import Weighing, reduce_rows, weigh

__all__ = [
    "GradAndHessianDiag",
    "LossAndGrad",
    "cross_entropy",
    "cross_entropy_and_grad",
    "cross_entropy_from_probs",
    "cross_entropy_grad",
    "cross_entropy_grad_and_hessian_diag",
    "cross_entropy_hvp",
    "entropy",
    "kl_divergence",
]


class LossAndGrad(NamedTuple):
    """What `cross_entropy_and_grad` returns."""

    loss: Array
    grad: Array


class GradAndHessianDiag(NamedTuple):
    """What `cross_entropy_grad_and_hessian_diag` returns."""

    grad: Array
    hessian_diag: Array


def cross_entropy(
    logits: Array,
    targets: Array,
    /,
    *,
    axis: int = -1,
    where: Array | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> Array:
    """cross_entropy"""
    given = on_loss(
        "cross_entropy", logits, targets, axis, where, weight, sample_weight, ignore_index,
        label_smoothing, temperature, softcap, z_loss, reduction, wants=("loss",)
    )  # fmt: skip
    w = weigh(given, reduction)
    rows, _ = _rows(given, w)
    return _loss(rows, w, given)


def cross_entropy_grad(
    logits: Array,
    targets: Array,
    /,
    *,
    axis: int = -1,
    where: Array | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
    out: Array | None = None,
) -> Array:
    """cross_entropy_grad"""
    given = on_loss(
        "cross_entropy_grad", logits, targets, axis, where, weight, sample_weight, ignore_index,
        label_smoothing, temperature, softcap, z_loss, reduction, wants=("grad",), out=out
    )  # fmt: skip
    _, grad = _rows(given, weigh(given, reduction))
    return written(grad, out)


def cross_entropy_and_grad(
    logits: Array,
    targets: Array,
    /,
    *,
    axis: int = -1,
    where: Array | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
    out: Array | None = None,
) -> LossAndGrad:
    """cross_entropy_and_grad"""
    given = on_loss(
        "cross_entropy_and_grad", logits, targets, axis, where, weight, sample_weight, ignore_index,
        label_smoothing, temperature, softcap, z_loss, reduction, wants=("loss", "grad"), out=out
    )  # fmt: skip
    w = weigh(given, reduction)
    rows, grad = _rows(given, w)
    return LossAndGrad(_loss(rows, w, given), written(grad, out))


def cross_entropy_hvp(
    logits: Array,
    targets: Array,
    v: Array,
    /,
    *,
    axis: int = -1,
    where: Array | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> Array:
    """cross_entropy_hvp"""
    given = on_loss(
        "cross_entropy_hvp", logits, targets, axis, where, weight, sample_weight, ignore_index,
        label_smoothing, temperature, softcap, z_loss, reduction, v=v
    )  # fmt: skip
    if checks.is_empty(given.x):
        return given.x * 1.0
    w = weigh(given, reduction)
    return run("cross_entropy_hvp", given.problem, given.x, w.targets, w.rows, given.v, xp=given.xp)


def cross_entropy_grad_and_hessian_diag(
    logits: Array,
    targets: Array,
    /,
    *,
    axis: int = -1,
    where: Array | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> GradAndHessianDiag:
    """cross_entropy_grad_and_hessian_diag"""
    given = on_loss(
        "cross_entropy_grad_and_hessian_diag", logits, targets, axis, where, weight, sample_weight, ignore_index,
        label_smoothing, temperature, softcap, z_loss, reduction, wants=("grad",)
    )  # fmt: skip
    w = weigh(given, reduction)
    _, grad = _rows(given, w)
    if checks.is_empty(given.x):
        return GradAndHessianDiag(grad, grad)
    diag = run("cross_entropy_hessian_diag", given.problem, given.x, w.targets, w.rows, xp=given.xp)
    return GradAndHessianDiag(grad, diag)


def cross_entropy_from_probs(
    probs: Array,
    targets: Array,
    /,
    *,
    axis: int = -1,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Array:
    """cross_entropy_from_probs"""
    given = on_loss(
        "cross_entropy_from_probs", probs, targets, axis, None, weight, sample_weight, ignore_index,
        0.0, 1.0, None, 0.0, reduction, wants=("loss",), name="probs"
    )  # fmt: skip
    w = weigh(given, reduction)
    if checks.is_empty(given.x):
        rows, _ = _no_rows(given)
    else:
        rows = run("cross_entropy_from_probs", given.problem, given.x, w.targets, w.rows, xp=given.xp)
    return _loss(rows, w, given)


def entropy(p: Array, /, *, axis: int = -1) -> Array:
    """entropy"""
    return _on_probs("entropy", {"p": p}, axis)


def kl_divergence(p: Array, q: Array, /, *, axis: int = -1) -> Array:
    """kl_divergence"""
    return _on_probs("kl_divergence", {"p": p, "q": q}, axis)


def _on_probs(verb: str, arrays: dict[str, Array], axis: int) -> Array:
    given = on_arrays(verb, arrays, axis=axis, one=True)
    p, xp = given.problem, given.xp
    if checks.is_empty(given.arrays[0]):
        return reduced(xp.sum(given.arrays[0], axis=p.axes, keepdims=True), p.axes, xp)
    return reduced(run(verb, p, *given.arrays, xp=xp), p.axes, xp)


def _rows(given: GivenLoss, w: Weighing) -> tuple[Array | None, Array | None]:
    if checks.is_empty(given.x):
        return _no_rows(given)
    return run("cross_entropy", given.problem, given.x, w.targets, w.rows, xp=given.xp)


def _no_rows(given: GivenLoss) -> tuple[Array, Array]:
    p, xp = given.problem, given.xp
    return xp.sum(cast(given.x, p.compute, xp), axis=p.axes, keepdims=True), given.x * 1.0


def _loss(rows: Array, w: Weighing, given: GivenLoss) -> Array:
    p, xp = given.problem, given.xp
    loss = reduce_rows(rows, w, p.axes[0], xp=xp)
    return scalar(cast(loss, loss_dtype(p.dtype), xp), xp)
