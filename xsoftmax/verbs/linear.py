"""Cross-entropy of the logits of a linear layer, which are never in memory as a whole."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..calls import checks
from ..calls.arguments import on_linear_loss
from ..calls.plan import plan
from ..calls.records import Array, LossCall, Options, Plan, Rows
from ..choose import perform
from ..libraries.arrays import HALF, is_distributed
from .graphs import one_node
from .means import reduce_rows, weigh
from .results import scalar

__all__ = ["LinearLossAndGrad", "linear_cross_entropy", "linear_cross_entropy_and_grad"]


class LinearLossAndGrad(NamedTuple):
    """What `linear_cross_entropy_and_grad` returns."""

    loss: Array
    grad_input: Array
    grad_linear_weight: Array
    grad_linear_bias: Array | None


@one_node
def linear_cross_entropy(
    input: Array,
    linear_weight: Array,
    targets: Array,
    /,
    *,
    linear_bias: Array | None = None,
    chunk_size: int | tuple[int | None, int | None] | None = None,
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
    """Cross-entropy of ``logits = input @ linear_weight.T + linear_bias``, a block of which is in memory at a time.

    Rows are independent, and worked some at a time. Where rows are too long, so are their classes: of parts of a row
    with maxima ``m_k``, ``wm_k = exp(m_k - c_k)`` and sums ``q_k`` of the other exponentials, the row has
    ``q = Σ (w_k + q_k w_k / wm_k)`` with ``w_k = exp(m_k - c)``, less that of its own maximum: one copy stays out of
    the sum, the loss is that of `cross_entropy`, and no error grows with the number of parts.

    Parameters
    ----------
    input : array, shape ``(..., D)``
        Floating, integers or bools; the last axis is multiplied.
    linear_weight : array, shape ``(V, D)``
        A row for each class.
    targets : array
        Labels, shape ``(...)``, or probabilities, shape ``(..., V)``, as in `cross_entropy`.
    linear_bias : array, shape ``(V,)``, optional
        Added to the logits.
    chunk_size : int or tuple (rows, classes), optional
        Rows, or rows and classes, whose logits are made at a time, at most. By default so many rows that their logits
        have a twelfth of the memory of all (NumPy, and PyTorch on the CPU) or a forty-eighth (elsewhere, where the
        formulas have temporaries), 16 or 4 MiB at least and 128 MiB at most, whatever memory is free; where fewer than
        64 whole rows would fit, 256 rows and some of their classes. dask, cubed and ndonnx arrays, which have blocks of
        their own or none, are cut only as asked for.
    where : bool array, optional
        Broadcastable to the logits ``(..., V)``.
    weight, sample_weight, ignore_index, label_smoothing, temperature, softcap, z_loss, reduction
        As in `cross_entropy`.

    Returns
    -------
    array
        The loss, as from `cross_entropy` of the logits.

    Raises
    ------
    TypeError
        If an argument is not an array of the one library and device, or of an unsupported dtype.
    ValueError
        As `cross_entropy`, and if `linear_weight` is not a matrix with the width of `input`, or `chunk_size` is none of
        the above.
    NotImplementedError
        If a derivative of PyTorch asks for more than those with respect to `input`, `linear_weight`, `linear_bias` and
        `sample_weight`; or if `chunk_size` is given for a DTensor, whose logits are made as one block.

    Notes
    -----
    The logits are those of the library's own ``matmul``, in the promoted dtype of `input`, `linear_weight` and
    `linear_bias`; float16 and bfloat16 are multiplied as float32, block by block, and not rounded in between. From
    there on errors are those of `cross_entropy`, whatever the `chunk_size`; but products of other shapes may round
    otherwise.

    PyTorch makes the gradients of a mean or sum with the loss, where they are going to be asked for (but for float16,
    whose gradients a scaled loss is to keep from underflow), and keeps them; autocast does not touch the products.
    For other derivatives, and under JAX, the blocks are made again. Under PyTorch these are derivatives with respect
    to `input`, `linear_weight`, `linear_bias` and `sample_weight`, of any order and in both modes.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> x, w = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[0.5, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> xs.linear_cross_entropy(x, w, np.array([2, 1])).round(12)
    np.float64(0.616766917955)
    """
    arrays = {"input": input, "linear_weight": linear_weight, "targets": targets, "linear_bias": linear_bias}
    options = Options(
        where, weight, sample_weight, ignore_index, label_smoothing, temperature, softcap, z_loss, reduction
    )  # fmt: skip
    return _linear_loss("linear_cross_entropy", arrays, options, chunk_size, wants=("loss",)).loss


@one_node
def linear_cross_entropy_and_grad(
    input: Array,
    linear_weight: Array,
    targets: Array,
    /,
    *,
    linear_bias: Array | None = None,
    chunk_size: int | tuple[int | None, int | None] | None = None,
    where: Array | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> LinearLossAndGrad:
    """Loss of a linear layer with its gradients, in one sweep over blocks of the logits.

    With ``g = ŷ - y`` the gradient of the logits, as from `cross_entropy_grad`: ``g @ linear_weight``, ``g.T @ input``
    and ``Σ g``. Each block of ``g`` takes the place of its logits. Blocks that are cut by classes are made twice.

    Parameters
    ----------
    input, linear_weight, targets, linear_bias, chunk_size, where, weight, sample_weight, ignore_index
        As in `linear_cross_entropy`.
    label_smoothing, temperature, softcap, z_loss, reduction
        As in `linear_cross_entropy`; with "none" the gradients are those of the sum of the rows.

    Returns
    -------
    LinearLossAndGrad
        Named tuple ``(loss, grad_input, grad_linear_weight, grad_linear_bias)``: each gradient has the shape and dtype
        of what it belongs to; without `linear_bias` the last one is None.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `linear_cross_entropy`.

    Notes
    -----
    The block's gradient ``g`` keeps the bounds of `cross_entropy_grad`; the products with it are the library's own
    ``matmul``, and the blocks' shares are added in its dtype: float32 for float16 and bfloat16, which are rounded once
    at the end. Rows that are absent, and classes that are masked, add nothing, whatever they hold.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> x, w = np.array([[1.0, 2.0]]), np.array([[0.0, 0.0], [0.0, 0.0]])
    >>> loss, grad_input, grad_linear_weight, _ = xs.linear_cross_entropy_and_grad(x, w, np.array([1]))
    >>> grad_linear_weight
    array([[ 0.5,  1. ],
           [-0.5, -1. ]])
    """
    arrays = {"input": input, "linear_weight": linear_weight, "targets": targets, "linear_bias": linear_bias}
    options = Options(
        where, weight, sample_weight, ignore_index, label_smoothing, temperature, softcap, z_loss, reduction
    )  # fmt: skip
    return _linear_loss("linear_cross_entropy_and_grad", arrays, options, chunk_size, wants=("loss", "grad"))


def _linear_loss(
    verb: str, arrays: dict[str, Array], options: Options, chunk_size: Any, *, wants: tuple[str, ...]
) -> LinearLossAndGrad:
    call = on_linear_loss(verb, arrays, options, wants=wants)
    return LinearLossAndGrad(*perform(_swept, call, *checks.chunk_sizes(verb, chunk_size)))


def _plan(call: LossCall, rows: int | None, classes: int | None) -> Plan:
    if is_distributed(call.x):
        if (rows, classes) != (None, None):
            raise NotImplementedError(
                f"{call.problem.verb}: chunk_size is given for a DTensor, expected None: its blocks would lie on some "
                "processes only; cut what input.to_local() holds, where its rows are sharded"
            )
        return Plan(None, None, None)
    *batch, width = call.x.shape
    n = math.prod(batch) if all(isinstance(size, int) for size in batch) else None
    dtype = "float32" if call.problem.dtype in HALF else call.problem.dtype
    itemsize = 4 if dtype == "float32" else 8
    on_cpu = call.problem.device == "cpu"
    return plan(n, call.classes, width, itemsize, call.problem.library, rows, classes, on_cpu=on_cpu)


def _swept(call: LossCall, some_rows: int | None, some_classes: int | None, *, run: Any) -> tuple[Array | None, ...]:
    p, xp, (factor, bias) = call.problem, call.xp, call.linear or (None, None)
    batch = tuple(call.x.shape[:-1])
    w = weigh(call)
    where, weight, scale, zeta = (_flat(a, batch, xp) for a in w.rows)
    where = xp.reshape(where, (1,)) if getattr(where, "ndim", None) == 0 else where
    targets = _joined(w.targets, 0 if p.labels else 1, xp)
    loss, grad, grad_factor, grad_bias = run(
        "linear_cross_entropy",
        p,
        _joined(call.x, 1, xp),
        factor,
        bias,
        targets,
        Rows(where, weight, scale, zeta),
        _plan(call, some_rows, some_classes),
        xp=xp,
    )
    loss = reduce_rows(call, loss if len(batch) == 1 else xp.reshape(loss, (*batch, 1)), w)
    if grad is not None and len(batch) != 1:
        grad = xp.reshape(grad, tuple(call.x.shape))
    return scalar(loss, xp), grad, grad_factor, grad_bias


def _joined(a: Array, kept: int, xp: Any) -> Array:
    """All rows along one axis, in front of those that are kept."""
    rows = a.ndim - kept
    return a if rows == 1 else xp.reshape(a, (-1, *a.shape[rows:]))


def _flat(a: Any, batch: tuple[Any, ...], xp: Any) -> Any:
    """An option of the rows, as one for each row or one for all."""
    if getattr(a, "ndim", 0) < 2:
        return a
    if all(size == 1 for size in a.shape[:-1]):
        return xp.reshape(a, (1, a.shape[-1]))
    return a if len(batch) == 1 else _joined(xp.broadcast_to(a, (*batch, a.shape[-1])), 1, xp)
