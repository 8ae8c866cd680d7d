"""Time and memory of linear_cross_entropy_and_grad against its logits as a whole, and against PyTorch's own.

All take turns in one process, and are compared with the first before they are timed; times are the least of the runs,
memory is what NumPy, or PyTorch's profiler, saw allocated at once, without the results.

    python benchmarks/linear.py                               # 2048 rows, width 512, 32,000 classes
    python benchmarks/linear.py --rows 1024 --classes 128256 --runs 3
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

import xsoftmax as xs

Call = Callable[[], tuple[Any, ...]]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 2048), ("width", 512), ("classes", 32_000), ("runs", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def on_numpy(x: np.ndarray, factor: np.ndarray, labels: np.ndarray) -> dict[str, Call]:
    def whole() -> tuple[Any, ...]:
        z = x @ factor.T
        loss, g = xs.cross_entropy_and_grad(z, labels, out=z)
        return loss, g @ factor, g.T @ x

    def chunked(chunk_size: Any) -> Call:
        return lambda: xs.linear_cross_entropy_and_grad(x, factor, labels, chunk_size=chunk_size)[:3]

    n, classes = len(x), len(factor)
    sizes = {
        "rows, chosen": None,
        f"{n // 4} rows": n // 4,
        f"{n // 2} rows, {classes // 8} classes": (n // 2, classes // 8),
    }
    return {"whole": whole, **{name: chunked(size) for name, size in sizes.items()}}


def on_torch(x: np.ndarray, factor: np.ndarray, labels: np.ndarray) -> dict[str, Call]:
    import torch
    from torch.nn import functional

    t = torch.from_numpy(labels)

    def graded(loss: Callable[..., Any]) -> Call:
        def call() -> tuple[Any, ...]:
            leaves = [torch.from_numpy(a).requires_grad_() for a in (x, factor)]
            value = loss(*leaves)
            return value.detach(), *torch.autograd.grad(value, leaves)

        return call

    def of_xsoftmax(a: Any, b: Any) -> Any:
        return xs.linear_cross_entropy(a, b, t)

    calls = {
        "torch, whole, F.cross_entropy": graded(lambda a, b: functional.cross_entropy(a @ b.T, t)),
        "torch, linear_cross_entropy": graded(of_xsoftmax),
        "torch, linear_cross_entropy_and_grad": lambda: xs.linear_cross_entropy_and_grad(
            torch.from_numpy(x), torch.from_numpy(factor), t
        )[:3],
    }
    if hasattr(functional, "linear_cross_entropy"):
        calls["torch, F.linear_cross_entropy"] = graded(lambda a, b: functional.linear_cross_entropy(a, b, t))
        options = torch.nn.LinearCrossEntropyOptions()
        calls["torch, F.linear_cross_entropy, chunked"] = graded(
            lambda a, b: functional.linear_cross_entropy(a, b, t, options=options)
        )
    return calls


def memory(call: Call, torch_too: bool) -> int:
    """Bytes at once, the results left out."""
    if not torch_too:
        tracemalloc.start()
        results = call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak - sum(a.nbytes for a in results)
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = call()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak - sum(a.nbytes for a in results)


def main() -> None:
    options = parsed()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((options.rows, options.width), np.float32)
    factor = rng.standard_normal((options.classes, options.width), np.float32) / np.sqrt(np.float32(options.width))
    labels = rng.integers(options.classes, size=options.rows)
    calls = on_numpy(x, factor, labels)
    try:
        calls |= on_torch(x, factor, labels)
    except ImportError:
        print("without PyTorch, which is not installed")
    expected = calls["whole"]()
    for name, call in calls.items():
        for a, b in zip(call(), expected, strict=True):
            np.testing.assert_allclose(np.asarray(a), b, rtol=1e-3, atol=1e-7, err_msg=name)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    logits = 4 * options.rows * options.classes
    base = min(times["whole"])
    shape = f"{options.rows} x {options.width}, {options.classes} classes"
    print(f"{shape}: whole {base:.3f} s, logits {logits / 2**20:.0f} MiB")
    for name, call in calls.items():
        share = memory(call, name.startswith("torch")) / logits
        print(f"{name:40} time {min(times[name]) / base:5.2f}   memory over logits {share:6.3f}")


if __name__ == "__main__":
    main()
