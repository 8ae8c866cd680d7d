"""One call of every verb, and arrays to call it with."""

from typing import Any, NamedTuple

import numpy as np

import xsoftmax as xs

SHAPE = ROWS, CLASSES = 4, 6
_RNG = np.random.default_rng(3)


class Arrays(NamedTuple):
    """Logits, a direction, probabilities and others, labels, weights of rows and of classes, a mask, and a matrix."""

    x: Any
    v: Any
    q: Any
    p: Any
    labels: Any
    s: Any
    w: Any
    mask: Any
    factor: Any


ARRAYS = Arrays(
    _RNG.normal(scale=3.0, size=SHAPE).astype(np.float32),
    _RNG.normal(size=SHAPE).astype(np.float32),
    _RNG.dirichlet(np.ones(CLASSES), size=ROWS).astype(np.float32),
    _RNG.dirichlet(np.ones(CLASSES), size=ROWS).astype(np.float32),
    _RNG.integers(CLASSES, size=ROWS),
    np.array([1.0, 2.0, 0.5, 1.0], np.float32),
    np.array([1.0, 2.0, 0.5, 1.0, 3.0, 0.25], np.float32),
    _RNG.random(SHAPE) < 0.8,
    np.eye(CLASSES, dtype=np.float32)[::-1] / 2,  # no product for the logits rounds
)

CALLS = {
    "softmax": lambda a: xs.softmax(a.x, where=a.mask),
    "log_softmax": lambda a: xs.log_softmax(a.x, where=a.mask),
    "logsumexp": lambda a: xs.logsumexp(a.x, b=a.v, where=a.mask, return_sign=True),
    "softmax_jacobian": lambda a: xs.softmax_jacobian(a.q),
    "softmax_vjp": lambda a: xs.softmax_vjp(a.q, a.v, where=a.mask),
    "softmax_jvp": lambda a: xs.softmax_jvp(a.q, a.v),
    "log_softmax_vjp": lambda a: xs.log_softmax_vjp(a.x, a.v, where=a.mask),
    "log_softmax_jvp": lambda a: xs.log_softmax_jvp(a.x, a.v),
    "cross_entropy": lambda a: xs.cross_entropy(a.x, a.labels, sample_weight=a.s, where=a.mask),
    "cross_entropy_grad": lambda a: xs.cross_entropy_grad(a.x, a.q, sample_weight=a.s),
    "cross_entropy_and_grad": lambda a: xs.cross_entropy_and_grad(a.x, a.labels, weight=a.w, z_loss=0.1),
    "cross_entropy_hvp": lambda a: xs.cross_entropy_hvp(a.x, a.labels, a.v, softcap=9.0),
    "cross_entropy_grad_and_hessian_diag": lambda a: xs.cross_entropy_grad_and_hessian_diag(a.x, a.q, weight=a.w),
    "linear_cross_entropy": lambda a: xs.linear_cross_entropy(a.x, a.factor, a.labels),
    "linear_cross_entropy_and_grad": lambda a: xs.linear_cross_entropy_and_grad(
        a.v, a.factor, a.labels, linear_bias=a.w, sample_weight=a.s
    ),
    "cross_entropy_from_probs": lambda a: xs.cross_entropy_from_probs(a.q, a.labels, sample_weight=a.s),
    "entropy": lambda a: xs.entropy(a.q),
    "kl_divergence": lambda a: xs.kl_divergence(a.q, a.p),
}


def parts(result):
    return result if isinstance(result, tuple) else (result,)
