"""PyTorch tensors on the CPU as NumPy arrays of the same memory, for NumPy's implementations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from ...calls.records import Array, Problem, Rows
from ...libraries.arrays import wrapped
from ...libraries.quiet import quietly
from . import small
from .memory import PLAIN, are_plain, have_tangents

_NUMPY = wrapped("numpy")


def refuses(problem: Problem) -> list[str]:
    if problem.device != "cpu" or problem.container not in PLAIN:
        return [f"a {problem.array} is not plain memory"]
    if "bfloat16" in (problem.dtype, problem.result) and find_spec("ml_dtypes") is None:
        return ["ml_dtypes, NumPy's bfloat16, is not installed: pip install ml_dtypes"]
    return []


def _as_numpy(operation: str) -> Callable[..., Any]:
    @quietly
    def run_as_numpy(p: Problem, *arrays: Any, xp: Any, run: Any, out: Array | None = None) -> Any:
        if not are_plain("cpu", *arrays, out):
            return run.behind(operation, p, *arrays, xp=xp)
        into = _to_numpy(out)
        result = run(operation, _of_numpy(p), *map(_to_numpy, arrays), xp=_NUMPY, out=into)
        if into is None:
            return _to_torch(result)
        if isinstance(result, tuple):
            return tuple(out if part is into else _to_torch(part) for part in result)
        return out if result is into else _to_torch(result)

    return run_as_numpy


_cross_entropy = _as_numpy("cross_entropy")


def cross_entropy(
    p: Problem, x: Array, targets: Array, rows: Rows, *, xp: Any, run: Any, out: Array | None = None
) -> Any:
    """Labels that were not looked at, under a transform, may be no class: the formulas have nan for these."""
    if p.labels and are_plain("cpu", x, targets) and targets.numel():
        least, most = torch.aminmax(targets)
        if least < 0 or most >= x.shape[p.axes[0]]:
            return run.behind("cross_entropy", p, x, targets, rows, xp=xp)
    return _cross_entropy(p, x, targets, rows, xp=xp, run=run, out=out)


def _without_rule(operation: str) -> Callable[..., Any]:
    """Of an operation that no rule stands in front of: what forward mode differentiates goes by ruled ones."""
    run_as_numpy = _as_numpy(operation)

    def run_plainly(p: Problem, x: Array, targets: Array, rows: Rows, *vectors: Array, xp: Any, run: Any) -> Any:
        arrays = x, targets, *rows, *vectors
        if are_plain("cpu", *arrays) and have_tangents(*arrays):
            return run.behind(operation, p, x, targets, rows, *vectors, xp=xp)
        return run_as_numpy(p, x, targets, rows, *vectors, xp=xp, run=run)

    return run_plainly


def _of_numpy(p: Problem) -> Problem:
    return replace(p, library="numpy", container="ndarray")


def _to_numpy(value: Any) -> Any:
    if isinstance(value, Rows):
        return Rows(*map(_to_numpy, value))
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    return value.view(torch.int16).numpy().view(_bfloat16()) if value.dtype == torch.bfloat16 else value.numpy()


@lru_cache(maxsize=1)
def _bfloat16() -> Any:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _to_torch(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_to_torch, value))
    if value is None:
        return None
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


_LIKE_LOGITS = ("softmax", "log_softmax", "logsumexp")
_PRODUCTS = ("softmax_product", "softmax_gradient", "log_softmax_vjp", "log_softmax_jvp")
_HESSIANS = ("cross_entropy_hvp", "cross_entropy_hessian_diag")  # which look at labels themselves
OPERATIONS = {
    "cross_entropy": cross_entropy,
    **{operation: _as_numpy(operation) for operation in (*_LIKE_LOGITS, *_PRODUCTS)},
    **{operation: _without_rule(operation) for operation in _HESSIANS},
}
INTO = frozenset({"softmax", "log_softmax", "cross_entropy"})
ENTRIES = small.ENTRIES
