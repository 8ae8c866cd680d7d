"""CUDA kernels on PyTorch's CUDA tensors, launched by CuPy: on PyTorch's stream, with PyTorch's allocator."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from ...calls.records import Array, LossCall, Problem
from ...kernels.cuda import launch as cuda
from ..cupy.operations import WRITES, Library, Operations
from ..cupy.weights import Weighings
from .memory import PLAIN, are_plain, have_tangents


def refuses(problem: Problem) -> list[str]:
    if problem.device != "cuda" or problem.container not in PLAIN:
        return [f"a {problem.array} is not plain memory of a CUDA device"]
    if find_spec("cupy") is None:
        return ['CuPy, which launches the kernels, is not installed: pip install "xsoftmax[cuda13x]"']
    return _launcher().refusals()


def _launcher() -> Any:
    from ..cupy import launch

    return launch


class _Torch:
    def pointer(self, x: Array) -> int:
        return x.data_ptr()

    def strides(self, x: Array) -> tuple[int, ...]:
        return x.stride()

    def empty_like(self, x: Array) -> Array:
        return torch.empty_like(x)

    def empty(self, shape: tuple[int, ...], dtype: str, like: Array) -> Array:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)

    def contiguous(self, x: Array) -> Array:
        return x.contiguous()

    def device(self, x: Array) -> cuda.Device:
        return _launcher().device(x.device.index)

    def launch(self, x: Array, launch: cuda.Launch, blocks: int, arguments: Any) -> None:
        launcher = _launcher()
        stream = launcher.Stream(torch.cuda.current_stream(x.device).cuda_stream)
        launcher.run(x.device.index, launch, blocks, arguments, stream)


_library: Library = _Torch()
_operations = Operations(_library)
_weighings = Weighings(_library)


def _on_memory(operation: str) -> Callable[..., Any]:
    def run_on_memory(p: Problem, *arrays: Any, xp: Any, run: Any, **out: Array | None) -> Any:
        if not are_plain("cuda", *arrays, *out.values()):
            return run.behind(operation, p, *arrays, xp=xp)
        return _operations.declared()[operation](p, *arrays, xp=xp, run=run, **out)

    return run_on_memory


def weigh(p: Problem, call: LossCall) -> Any:
    arrays = (call.targets, call.sample_weight, call.weight, call.where)
    return _weighings.weigh(p, call) if _are_numbers(*arrays) else None


def reduce_rows(p: Problem, loss: Array, w: Any, reduction: str, dtype: str) -> Array | None:
    numbers = _are_numbers(loss, w.s, w.absent, w.divisor)
    return _weighings.reduce_rows(p, loss, w, reduction, dtype) if numbers else None


def _are_numbers(*arrays: Array | None) -> bool:
    """These stand in front of the derivative rules."""
    return are_plain("cuda", *arrays) and not have_tangents(*arrays)


OPERATIONS = {
    **{operation: _on_memory(operation) for operation in _operations.declared()},
    "weigh": weigh,
    "reduce_rows": reduce_rows,
}
INTO = WRITES
