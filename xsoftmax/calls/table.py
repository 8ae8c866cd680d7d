"""Every verb, by name: the arrays it takes by position, its family, and what it returns."""

from __future__ import annotations

from typing import Literal, NamedTuple

Returned = Literal["logits", "rows", "kept rows", "number", "matrix", "input", "linear_weight", "linear_bias"]


class Verb(NamedTuple):
    """What is returned is like an argument, or a number for each row, or two axes of the classes behind the rows.

    The rows of a loss may be reduced to one number, and the rows of others may keep their class axes. `operations`
    are the inner ones that the verb is made of, where that is not the one of its name.
    """

    arrays: tuple[str, ...]
    family: str
    returns: tuple[Returned, ...]
    operations: tuple[str, ...] = ()


_LOGITS, _PRODUCT, _LOG_PRODUCT = ("x",), ("y", "v"), ("log_y", "v")
_LOSS, _LINEAR = ("logits", "targets"), ("input", "linear_weight", "targets")

VERBS = {
    "softmax": Verb(_LOGITS, "softmax", ("logits",)),
    "log_softmax": Verb(_LOGITS, "softmax", ("logits",)),
    "logsumexp": Verb(_LOGITS, "softmax", ("rows",)),
    "softmax_jacobian": Verb(("y",), "jacobian", ("matrix",)),
    "softmax_vjp": Verb(_PRODUCT, "softmax product", ("logits",), ("softmax_product",)),
    "softmax_jvp": Verb(_PRODUCT, "softmax product", ("logits",), ("softmax_product",)),
    "log_softmax_vjp": Verb(_LOG_PRODUCT, "log_softmax product", ("logits",)),
    "log_softmax_jvp": Verb(_LOG_PRODUCT, "log_softmax product", ("logits",)),
    "cross_entropy": Verb(_LOSS, "cross_entropy", ("rows",)),
    "cross_entropy_grad": Verb(_LOSS, "cross_entropy", ("logits",), ("cross_entropy",)),
    "cross_entropy_and_grad": Verb(_LOSS, "cross_entropy", ("rows", "logits"), ("cross_entropy",)),
    "cross_entropy_hvp": Verb((*_LOSS, "v"), "cross_entropy", ("logits",)),
    "cross_entropy_grad_and_hessian_diag": Verb(
        _LOSS, "cross_entropy", ("logits", "logits"), ("cross_entropy", "cross_entropy_hessian_diag")
    ),
    "cross_entropy_from_probs": Verb(("probs", "targets"), "from_probs", ("rows",)),
    "entropy": Verb(("p",), "entropy", ("rows",)),
    "kl_divergence": Verb(("p", "q"), "kl_divergence", ("rows",)),
    "linear_cross_entropy": Verb(_LINEAR, "linear", ("rows",)),
    "linear_cross_entropy_and_grad": Verb(
        _LINEAR, "linear", ("rows", "input", "linear_weight", "linear_bias"), ("linear_cross_entropy",)
    ),
}
