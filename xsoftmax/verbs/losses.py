"""Cross-entropy with its exact derivatives, entropy and divergence."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..calls import checks
from ..calls.arguments import on_arrays, on_loss
from ..calls.records import Array, ArrayCall, LossCall, Options
from ..choose import entry, perform
from ..libraries.arrays import cast
from ..weights import RowWeights
from .graphs import one_node
from .means import reduce_rows, weigh
from .results import reduced, scalar, untouched, written

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
    """Cross-entropy of logits, in nats: ``H(t, y) = -Σ_i t_i log y_i`` with ``y = softmax(x)``, averaged over the rows.

    For a label ``t`` a row's loss is ``logsumexp(x) - x_t``, computed as ``log1p(q / wm) + (m - x_t)``: two terms that
    are not negative, so that a confident, right row keeps all its digits.

    Parameters
    ----------
    logits : array, shape ``(..., C, ...)``
        As `x` in `softmax`.
    targets : array
        Class indices of any integer dtype, shape of `logits` without `axis`; or probabilities (integer one-hot rows
        too), shape of `logits`. The number of dimensions decides.
    axis : int, default -1
        The axis that holds the classes; 1 for PyTorch's and ONNX's ``(N, C, d1, ...)``.
    where : bool array, optional
        Broadcastable to `logits`. Where False, a class is absent whatever `logits` holds there; a row with no class
        left has loss 0, and counts in a mean.
    weight : array, shape ``(C,)``, optional
        Factors of the classes. That of a class which no row names may be anything, inf and nan too.
    sample_weight : array, shape of `logits` without `axis`, optional
        Factors of the rows. A row of weight 0 is absent, whatever it holds.
    ignore_index : int, optional
        Rows with this label have loss 0 and gradient 0, and are left out of the mean. Labels only.
    label_smoothing : float, default 0.0
        ε from 0 to 1: targets become ``(1 - ε) target + ε / C``, over the classes kept by `where`.
    temperature : float, default 1.0
        Divides the logits; finite and > 0.
    softcap : float, optional
        Logits become ``softcap * tanh(logits / softcap)`` before `temperature` divides them; finite and > 0. A logit
        of -inf stays -inf.
    z_loss : float, default 0.0
        Adds ``z_loss * logsumexp(x)²`` to each kept row, not weighted by class; finite and ≥ 0. Elsewhere known as
        ``lse_square_scale``.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean of labels divides by ``Σ sample_weight_i weight[label_i]`` over the rows kept (the squared logsumexp
        by ``Σ sample_weight_i``), that of probabilities by ``Σ sample_weight_i``.

    Returns
    -------
    array
        The loss, in the dtype of `logits`, float32 for float16 and bfloat16; of the rows' shape for "none", else what
        the library's own ``sum`` returns.

    Raises
    ------
    TypeError
        If an argument is not an array of the one library and device, or of an unsupported dtype.
    ValueError
        If shapes don't fit, there is no class, an option is out of its range, `ignore_index` meets probability
        targets, or, where values can be looked at (NumPy and eager libraries on the CPU), a label is out of range. On
        a GPU, under JAX and for lazy arrays such a row's loss is nan.
    NotImplementedError
        If `targets` are labels and the library has no ``arange`` (sparse).

    Notes
    -----
    Error of a row's loss in ulps of the exact result: float16, bfloat16 (in ulps of float32) and float32 ≤ 1 (float32
    without float64 on the device ≤ 8), float64 ≤ 6; sum and mean add at most 2 ulps of the sum of absolute terms. A
    loss is never negative, and 0 only if the true loss rounds to 0. With `softcap`, or a `temperature` that is not a
    power of two, the bound holds for the transformed logits as rounded to the dtype of the arithmetic.

    A target at a logit of -inf costs inf, unless its probability is 0, which contributes 0 whatever the logit. A row
    with nan or +inf, or nothing but -inf, is nan. The mean of no row is nan, the sum 0.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> logits = np.array([[0.0, 1.0, -0.4], [17.0, 0.0, 0.0]])
    >>> xs.cross_entropy(logits, np.array([1, 0]), reduction="none")
    array([4.79010697e-01, 8.27987509e-08])
    >>> xs.cross_entropy(logits, np.array([1, -100]), ignore_index=-100).round(12)
    np.float64(0.479010696748)
    """
    options = where, weight, sample_weight, ignore_index, label_smoothing, temperature, softcap, z_loss, reduction
    run = entry("cross_entropy", logits, axis)
    if run is not None and (loss := run(logits, targets, options, None, _any_cross_entropy)) is not None:
        return loss
    return _any_cross_entropy(logits, targets, axis, *options)


@one_node
def _any_cross_entropy(logits: Array, targets: Array, axis: int, *options: Any) -> Array:
    arrays = {"logits": logits, "targets": targets}
    return perform(_cross_entropy, on_loss("cross_entropy", arrays, Options(*options), axis=axis, wants=("loss",)))


def _cross_entropy(call: LossCall, *, run: Any) -> Array:
    w = weigh(call)
    rows, _ = _rows(call, w, run=run)
    return _loss(rows, w, call)


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
    """Gradient of `cross_entropy` with respect to the logits: ``ŷ - y``, scaled for the reduction.

    For a row with targets ``t``, ``T = Σ t``: ``T softmax(x)_i - t_i``. At a class with more than half of the
    probability it is formed from sums that leave that class out, so that the gradient at a confident target,
    ``-(1 - softmax(x)_t)``, keeps all its digits.

    Parameters
    ----------
    logits, targets, axis, where, weight, sample_weight, ignore_index
        As in `cross_entropy`.
    label_smoothing, temperature, softcap, z_loss, reduction
        As in `cross_entropy`; with "none" the gradient is that of each row, the same as for "sum".
    out : array, optional
        Receives the gradient: shape and dtype of `logits`, writeable; may be `logits` itself.

    Returns
    -------
    array, shape of `logits`
        The gradient, in the dtype of `logits`; 0 where `where` masks a class.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy` and, for `out`, `softmax`.

    Notes
    -----
    Error in ulps of the exact result, the target's entry included, for labels and one-hot targets: float16, bfloat16
    and float32 ≤ 1 (float32 without float64 on the device ≤ 8), float64 ≤ 6; for general probabilities in ulps of
    ``max(T softmax(x)_i, t_i)``. Rows that are ignored or have weight 0 are 0, and so is the mean over no row; a label
    out of range that can't raise makes its row nan.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.cross_entropy_grad(np.array([[0.0, 0.0], [40.0, 0.0]]), np.array([1, 0]), reduction="sum")
    array([[ 5.00000000e-01, -5.00000000e-01],
           [-4.24835426e-18,  4.24835426e-18]])
    """
    options = where, weight, sample_weight, ignore_index, label_smoothing, temperature, softcap, z_loss, reduction
    run = entry("cross_entropy_grad", logits, axis)
    if run is not None and (grad := run(logits, targets, options, out, _any_cross_entropy_grad)) is not None:
        return grad
    return _any_cross_entropy_grad(logits, targets, axis, *options, out=out)


@one_node
def _any_cross_entropy_grad(logits: Array, targets: Array, axis: int, *options: Any, out: Array | None = None) -> Array:
    arrays = {"logits": logits, "targets": targets}
    call = on_loss("cross_entropy_grad", arrays, Options(*options), axis=axis, wants=("grad",), out=out)
    return perform(_cross_entropy_grad, call, out)


def _cross_entropy_grad(call: LossCall, out: Array | None, *, run: Any) -> Array:
    _, grad = _rows(call, weigh(call), out, run=run)
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
    """Loss and gradient in one pass over the logits.

    Parameters
    ----------
    logits, targets, axis, where, weight, sample_weight, ignore_index
        As in `cross_entropy`.
    label_smoothing, temperature, softcap, z_loss, reduction
        As in `cross_entropy`.
    out : array, optional
        Receives the gradient, as in `cross_entropy_grad`; may be `logits` itself.

    Returns
    -------
    LossAndGrad
        Named tuple ``(loss, grad)``: what `cross_entropy` and `cross_entropy_grad` return.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy_grad`.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> loss, grad = xs.cross_entropy_and_grad(np.array([[2.0, 0.0]]), np.array([0]))
    >>> loss.round(12), grad
    (np.float64(0.126928011043), array([[-0.11920292,  0.11920292]]))
    """
    options = where, weight, sample_weight, ignore_index, label_smoothing, temperature, softcap, z_loss, reduction
    run = entry("cross_entropy_and_grad", logits, axis)
    if run is not None and (found := run(logits, targets, options, out, _any_cross_entropy_and_grad)) is not None:
        return LossAndGrad(*found)
    return _any_cross_entropy_and_grad(logits, targets, axis, *options, out=out)


@one_node
def _any_cross_entropy_and_grad(
    logits: Array, targets: Array, axis: int, *options: Any, out: Array | None = None
) -> LossAndGrad:
    arrays, wants = {"logits": logits, "targets": targets}, ("loss", "grad")
    call = on_loss("cross_entropy_and_grad", arrays, Options(*options), axis=axis, wants=wants, out=out)
    return LossAndGrad(*perform(_cross_entropy_and_grad, call, out))


def _cross_entropy_and_grad(call: LossCall, out: Array | None, *, run: Any) -> tuple[Array, Array]:
    w = weigh(call)
    rows, grad = _rows(call, w, out, run=run)
    return _loss(rows, w, call), written(grad, out)


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
    """Hessian of `cross_entropy` with respect to the logits, times a vector.

    For a row with targets ``t``, ``T = Σ t``, ``y = softmax(x)``: ``T y_i (v_i - Σ_j y_j v_j)``, scaled for the
    reduction; O(C) memory, never the C × C matrix.

    Parameters
    ----------
    logits, targets
        As in `cross_entropy`.
    v : array, shape of `logits`
        What the Hessian multiplies.
    axis, where, weight, sample_weight, ignore_index, label_smoothing, temperature, softcap, z_loss, reduction
        As in `cross_entropy`; with "none" the product is that of each row, the same as for "sum".

    Returns
    -------
    array, shape of `logits`
        In the dtype of `logits`.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Notes
    -----
    Error in ulps of ``T y_i (|v_i| + Σ y |v|)``: float16, bfloat16 and float32 ≤ 1 (float32 without float64 on the
    device ≤ 8), float64 ≤ 6. With `softcap` the product includes the second derivative of the cap.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.cross_entropy_hvp(np.array([[0.0, 0.0]]), np.array([0]), np.array([[1.0, 0.0]]))
    array([[ 0.25, -0.25]])
    """
    options = where, weight, sample_weight, ignore_index, label_smoothing, temperature, softcap, z_loss, reduction
    run = entry("cross_entropy_hvp", logits, axis)
    if run is not None and (product := run(logits, targets, v, options, _any_cross_entropy_hvp)) is not None:
        return product
    return _any_cross_entropy_hvp(logits, targets, v, axis, *options)


@one_node
def _any_cross_entropy_hvp(logits: Array, targets: Array, v: Array, axis: int, *options: Any) -> Array:
    arrays = {"logits": logits, "targets": targets, "v": v}
    return perform(_cross_entropy_hvp, on_loss("cross_entropy_hvp", arrays, Options(*options), axis=axis))


def _cross_entropy_hvp(call: LossCall, *, run: Any) -> Array:
    if checks.is_empty(call.x):
        return untouched(call.x, call.xp, call.problem.result)
    w = weigh(call)
    return run("cross_entropy_hvp", call.problem, call.x, w.targets, w.rows, call.v, xp=call.xp)


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
    """Gradient of `cross_entropy` and the diagonal of its Hessian, as gradient boosting asks for.

    For a row with targets ``t``, ``T = Σ t``, ``y = softmax(x)``: ``T y_i - t_i`` and ``T y_i (1 - y_i)``, scaled for
    the reduction.

    Parameters
    ----------
    logits, targets, axis, where, weight, sample_weight, ignore_index
        As in `cross_entropy`.
    label_smoothing, temperature, softcap, z_loss, reduction
        As in `cross_entropy`; boosting libraries want "none".

    Returns
    -------
    GradAndHessianDiag
        Named tuple ``(grad, hessian_diag)``, each of the shape and dtype of `logits`.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Notes
    -----
    Error in ulps of the exact result, also where ``1 - y_i`` is tiny: float16, bfloat16 and float32 ≤ 1 (float32
    without float64 on the device ≤ 8), float64 ≤ 6.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.cross_entropy_grad_and_hessian_diag(np.array([[0.0, 0.0]]), np.array([0]), reduction="none")
    GradAndHessianDiag(grad=array([[-0.5,  0.5]]), hessian_diag=array([[0.25, 0.25]]))
    """
    options = where, weight, sample_weight, ignore_index, label_smoothing, temperature, softcap, z_loss, reduction
    run = entry("cross_entropy_grad_and_hessian_diag", logits, axis)
    again = _any_cross_entropy_grad_and_hessian_diag
    if run is not None and (found := run(logits, targets, options, again)) is not None:
        return GradAndHessianDiag(*found)
    return _any_cross_entropy_grad_and_hessian_diag(logits, targets, axis, *options)


@one_node
def _any_cross_entropy_grad_and_hessian_diag(
    logits: Array, targets: Array, axis: int, *options: Any
) -> GradAndHessianDiag:
    arrays, verb = {"logits": logits, "targets": targets}, "cross_entropy_grad_and_hessian_diag"
    call = on_loss(verb, arrays, Options(*options), axis=axis, wants=("grad",))
    return GradAndHessianDiag(*perform(_cross_entropy_grad_and_hessian_diag, call))


def _cross_entropy_grad_and_hessian_diag(call: LossCall, *, run: Any) -> tuple[Array, Array]:
    w = weigh(call)
    _, grad = _rows(call, w, run=run)
    if checks.is_empty(call.x):
        return grad, grad
    diag = run("cross_entropy_hessian_diag", call.problem, call.x, w.targets, w.rows, xp=call.xp)
    return grad, diag


@one_node
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
    """Cross-entropy of probabilities against labels or probabilities, in nats: ``H(t, p) = -Σ_i t_i log p_i``.

    From logits, `cross_entropy` is the accurate way: a probability near 1 has lost the digits that matter.

    Parameters
    ----------
    probs : array, shape ``(..., C, ...)``
        Predicted probabilities. Neither their range nor their sum is checked.
    targets, axis, weight, sample_weight, ignore_index, reduction
        As in `cross_entropy`.

    Returns
    -------
    array
        The loss, as from `cross_entropy`.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Notes
    -----
    ``0 log 0 = 0``: a target of 0 contributes 0 whatever the probability; a target above 0 at a probability of 0 costs
    inf. The loss is never -0.0.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.cross_entropy_from_probs(np.array([[0.228, 0.619, 0.153]]), np.array([[0, 1, 0]])).round(12)
    np.float64(0.479650006298)
    """
    arrays = {"probs": probs, "targets": targets}
    options = Options(weight=weight, sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction)
    call = on_loss("cross_entropy_from_probs", arrays, options, axis=axis, wants=("loss",))
    return perform(_cross_entropy_from_probs, call)


def _cross_entropy_from_probs(call: LossCall, *, run: Any) -> Array:
    w = weigh(call)
    if checks.is_empty(call.x):
        rows, _ = _no_rows(call)
    else:
        rows = run("cross_entropy_from_probs", call.problem, call.x, w.targets, w.rows, xp=call.xp)
    return _loss(rows, w, call)


@one_node
def entropy(p: Array, /, *, axis: int = -1) -> Array:
    """Entropy of probabilities, in nats: ``H(p) = -Σ_i p_i log p_i``.

    Parameters
    ----------
    p : array, shape ``(..., C, ...)``
        Probabilities. Neither their range nor their sum is checked.
    axis : int, default -1
        The axis that holds the classes.

    Returns
    -------
    array, shape of `p` without `axis`
        In the dtype of `p`. ``0 log 0 = 0``; -inf where a probability is negative.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.entropy(np.array([0.5, 0.5, 0.0])).round(12)
    np.float64(0.69314718056)
    """
    return _on_probs("entropy", {"p": p}, axis)


@one_node
def kl_divergence(p: Array, q: Array, /, *, axis: int = -1) -> Array:
    """Kullback–Leibler divergence of `q` from `p`, in nats: ``KL(p‖q) = Σ_i p_i log(p_i / q_i)``.

    Parameters
    ----------
    p, q : array, shape ``(..., C, ...)``
        Probabilities, of the same shape. Neither their range nor their sum is checked.
    axis : int, default -1
        The axis that holds the classes.

    Returns
    -------
    array, shape of `p` without `axis`
        In the promoted dtype of `p` and `q`. A class with ``p_i = 0`` contributes 0; inf where ``q_i = 0 < p_i`` or a
        probability is negative.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.kl_divergence(np.array([0.5, 0.5]), np.array([0.25, 0.75])).round(12)
    np.float64(0.143841036226)
    """
    return _on_probs("kl_divergence", {"p": p, "q": q}, axis)


def _on_probs(verb: str, arrays: dict[str, Array], axis: int) -> Array:
    return perform(_row_sums, on_arrays(verb, arrays, axis=axis, one=True))


def _row_sums(call: ArrayCall, *, run: Any) -> Array:
    p, xp = call.problem, call.xp
    if checks.is_empty(call.arrays[0]):
        return reduced(xp.sum(cast(call.arrays[0], p.result, xp), axis=p.axes, keepdims=True), p.axes, xp)
    return reduced(run(p.verb, p, *call.arrays, xp=xp), p.axes, xp)


def _rows(call: LossCall, w: RowWeights, out: Array | None = None, *, run: Any) -> tuple[Array | None, Array | None]:
    if checks.is_empty(call.x):
        return _no_rows(call)
    return run("cross_entropy", call.problem, call.x, w.targets, w.rows, xp=call.xp, out=out)


def _no_rows(call: LossCall) -> tuple[Array, Array]:
    p, xp = call.problem, call.xp
    return xp.sum(cast(call.x, p.compute, xp), axis=p.axes, keepdims=True), untouched(call.x, xp, p.result)


def _loss(rows: Array, w: RowWeights, call: LossCall) -> Array:
    return scalar(reduce_rows(call, rows, w), call.xp)
