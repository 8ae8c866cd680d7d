"""Dask arrays, block by block with the kernels of the blocks' own library; nothing is computed here.

Rows that are whole in each block: the verb on each block. Classes that are split: one tree of the rows' states, then a
pass over the blocks; what has no such states is left to the formulas on the whole arrays.
"""

from __future__ import annotations

from typing import Any

from ...calls.records import Problem
from ...libraries.quiet import quietly
from ..array_api import operations as array_api
from . import split_rows
from .leaves import without_empty_blocks
from .whole_rows import on_blocks, splits_classes


def refuses(problem: Problem) -> list[str]:
    return []


@quietly
def together(p: Problem, call: Any, verb: Any, *options: Any, xp: Any, run: Any) -> Any:
    call = without_empty_blocks(call._replace(problem=p))
    if splits_classes(call):
        return run("together", p, call, verb, *options, xp=xp, after="dask_chunked")
    return on_blocks(call, verb, options, run)


softmax = split_rows.softmax
log_softmax = split_rows.log_softmax
logsumexp = split_rows.logsumexp
softmax_product = split_rows.softmax_product
log_softmax_vjp = split_rows.log_softmax_vjp
log_softmax_jvp = split_rows.log_softmax_jvp
cross_entropy = split_rows.cross_entropy

signed_logsumexp = array_api.signed_logsumexp
softmax_jacobian = array_api.softmax_jacobian
cross_entropy_hvp = array_api.cross_entropy_hvp
cross_entropy_hessian_diag = array_api.cross_entropy_hessian_diag
cross_entropy_from_probs = array_api.cross_entropy_from_probs
entropy = array_api.entropy
kl_divergence = array_api.kl_divergence
linear_cross_entropy = array_api.linear_cross_entropy
