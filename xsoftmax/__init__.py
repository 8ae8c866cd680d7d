"""Softmax and cross-entropy with exact derivatives, for any array-API array."""

from .choose import use_implementation
from .libraries.backends import Backend, backend, backends
from .threads import get_num_threads, set_num_threads
from .verbs.explain import explain
from .verbs.functions import (
    log_softmax,
    log_softmax_jvp,
    log_softmax_vjp,
    logsumexp,
    softmax,
    softmax_jacobian,
    softmax_jvp,
    softmax_vjp,
)
from .verbs.linear import LinearLossAndGrad, linear_cross_entropy, linear_cross_entropy_and_grad
from .verbs.losses import (
    GradAndHessianDiag,
    LossAndGrad,
    cross_entropy,
    cross_entropy_and_grad,
    cross_entropy_from_probs,
    cross_entropy_grad,
    cross_entropy_grad_and_hessian_diag,
    cross_entropy_hvp,
    entropy,
    kl_divergence,
)

__all__ = [
    "Backend",
    "GradAndHessianDiag",
    "LinearLossAndGrad",
    "LossAndGrad",
    "backend",
    "backends",
    "cross_entropy",
    "cross_entropy_and_grad",
    "cross_entropy_from_probs",
    "cross_entropy_grad",
    "cross_entropy_grad_and_hessian_diag",
    "cross_entropy_hvp",
    "entropy",
    "explain",
    "get_num_threads",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_cross_entropy_and_grad",
    "log_softmax",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "logsumexp",
    "set_num_threads",
    "softmax",
    "softmax_jacobian",
    "softmax_jvp",
    "softmax_vjp",
    "use_implementation",
]
