"""Dask blocks against the same kernels called directly on the same cores, and both against a model.

Each block of rows goes through the verb twice: by a plain pool of threads, and by Dask's scheduler with as many; the
results are dropped as they come. They are compared before they are timed, and take turns. The model is made of three
measured times: to read a block, to copy one to new memory, and of a Dask task that does nothing.

    python benchmarks/scaling.py                       # 16 blocks of 32 MiB, six times each, two threads
    python benchmarks/scaling.py --megabytes 8 --blocks 64
    python benchmarks/scaling.py --cluster             # a LocalCluster of as many processes as well
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import xsoftmax as xs


class Case(NamedTuple):
    """A verb of logits, labels, probabilities and a direction; how often it reads and copies a block.

    Where the classes are split it reads oftener.
    """

    call: Callable[[Any, Any, Any, Any], Any]
    reads: int
    copies: int
    reads_of_split: int


CASES = {
    "softmax": Case(lambda x, t, y, v: xs.softmax(x), 0, 1, 1),
    "log_softmax": Case(lambda x, t, y, v: xs.log_softmax(x), 0, 1, 1),
    "logsumexp": Case(lambda x, t, y, v: xs.logsumexp(x), 1, 0, 1),
    "cross_entropy": Case(lambda x, t, y, v: xs.cross_entropy(x, t), 1, 0, 1),
    "cross_entropy_and_grad": Case(lambda x, t, y, v: xs.cross_entropy_and_grad(x, t), 0, 1, 1),
    "softmax_vjp": Case(lambda x, t, y, v: xs.softmax_vjp(y, v), 1, 1, 3),
}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--times", type=int, default=6, help="how often each block is there: memory holds it once")
    parser.add_argument("--megabytes", type=int, default=32, help="MiB of float32 in a block")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--split", type=int, default=4, help="blocks of classes, where these are split too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--verb", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--cluster", action="store_true", help="time a LocalCluster of one process a thread as well")
    return parser.parse_args()


def parts(results: Any) -> list[Any]:
    return list(results) if isinstance(results, tuple) else [results]


def dropped(block: np.ndarray) -> np.ndarray:
    return np.zeros((1,) * block.ndim, np.int8)


def kept_nowhere(result: Any) -> Any:
    """A result whose blocks are dropped where they were made."""
    if result.ndim == 0:
        return result
    return da.map_blocks(dropped, result, dtype=np.int8, chunks=tuple((1,) * n for n in result.numblocks))


class Bench:
    """The arrays in blocks, and the ways of running a verb on them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        rows = (options.megabytes << 20) // (4 * options.classes)
        rng = np.random.default_rng(0)
        shape = (options.blocks * rows, options.classes)
        self.x, self.v = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
        self.y = xs.softmax(self.x)
        self.labels = rng.integers(options.classes, size=shape[0])
        self.slices = [slice(i, i + rows) for i in range(0, shape[0], rows)]
        self.pool = ThreadPoolExecutor(options.threads)
        self.whole = self._in_dask((rows, options.classes))
        self.split = self._in_dask((rows * options.split, -(-options.classes // options.split)))

    def _in_dask(self, chunks: tuple[int, int]) -> tuple[Any, ...]:
        arrays = (self.x, self.labels, self.y, self.v)
        return tuple(
            da.from_array(
                np.broadcast_to(a, (self.options.times, *a.shape)), chunks=(1, *chunks[: a.ndim]), inline_array=True
            )
            for a in arrays
        )

    def on_pool(self, work: Callable[[slice], Any]) -> None:
        for _ in self.pool.map(work, self.slices * self.options.times):
            pass

    def directly(self, case: Case) -> None:
        def work(rows: slice) -> None:
            case.call(self.x[rows], self.labels[rows], self.y[rows], self.v[rows])

        self.on_pool(work)

    def by_dask(self, case: Case, arrays: tuple[Any, ...]) -> None:
        dask.compute(*map(kept_nowhere, parts(case.call(*arrays))), **self._scheduler())

    def _scheduler(self) -> dict[str, Any]:
        return {"scheduler": "threads", "num_workers": self.options.threads}

    def check(self, case: Case) -> None:
        expected = parts(case.call(self.x, self.labels, self.y, self.v))
        for arrays in (self.whole, self.split):
            once = case.call(*(a[0] for a in arrays))
            for a, b in zip(dask.compute(*parts(once), **self._scheduler()), expected, strict=True):
                # a sum over other blocks differs in its last digit, a product in those that it has lost
                largest = max(abs(np.max(b)), abs(np.min(b)))
                for rows in self.slices if a.ndim else [()]:  # a comparison of all at once takes ten times their memory
                    np.testing.assert_allclose(a[rows], b[rows], rtol=1e-6, atol=1e-6 * largest)

    def read(self) -> None:
        self.on_pool(lambda rows: self.x[rows].max())

    def copy(self) -> None:
        self.on_pool(lambda rows: self.x[rows].copy())

    def tasks(self) -> None:
        dask.compute(da.map_blocks(dropped, da.zeros(1000, chunks=1, dtype=np.int8)), **self._scheduler())


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def number_of_tasks(call: Callable[[], Any]) -> int:
    ran = itertools.count()
    with dask.callbacks.Callback(pretask=lambda *_: next(ran)):
        call()
    return next(ran)


def median(values: list[float]) -> float:
    return statistics.median(values)


def main() -> None:
    options = parsed()
    console = Console()
    xs.set_num_threads(1)
    bench = Bench(options)
    chosen = {name: CASES[name] for name in options.verb}
    for case in track(chosen.values(), "comparing", console=console):
        bench.check(case)
    ways: dict[tuple[str, str], Callable[[], Any]] = {
        ("", "read"): bench.read,
        ("", "copy"): bench.copy,
        ("", "tasks"): bench.tasks,
    }
    for name, case in chosen.items():
        ways[name, "direct"] = lambda case=case: bench.directly(case)
        ways[name, "rows"] = lambda case=case: bench.by_dask(case, bench.whole)
        ways[name, "classes"] = lambda case=case: bench.by_dask(case, bench.split)
    times: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for _, way in track(list(itertools.product(range(options.runs), ways)), "timing", console=console):
        times[way].append(seconds(ways[way]))
    read, copy, a_task = (median(times["", what]) for what in ("read", "copy", "tasks"))
    a_task /= 1000
    console.print(
        f"{options.blocks} blocks of {options.megabytes} MiB {options.times} times, {options.classes} classes, float32,"
        f" {options.threads} threads: to read {read:.3f} s, to copy {copy:.3f} s, a task {a_task * 1e6:.0f} µs;"
        f" medians of {options.runs}"
    )
    table = Table("verb", "cut", "tasks", "s", "direct / Dask", "model / measured")
    for name, case in chosen.items():
        for cut, reads in (("rows", case.reads), ("classes", case.reads_of_split)):
            n = number_of_tasks(ways[name, cut])
            found = times[name, cut]
            ratio = median([a / b for a, b in zip(times[name, "direct"], found, strict=True)])
            model = reads * read + case.copies * copy + n * a_task
            table.add_row(name, cut, str(n), f"{median(found):.3f}", f"{ratio:.2f}", f"{model / median(found):.2f}")
    console.print(table)
    if options.cluster:
        on_cluster(options, console, chosen)


def on_cluster(options: argparse.Namespace, console: Console, chosen: dict[str, Case]) -> None:
    """Arrays that the processes make and hold."""
    import distributed

    rows = (options.megabytes << 20) // (4 * options.classes)
    shape = (options.blocks * rows, options.classes)
    with (
        distributed.LocalCluster(n_workers=options.threads, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        rng = da.random.default_rng(0)
        table = Table("verb on a cluster", "cut", "s")
        for cut, chunks in (
            ("rows", (rows, options.classes)),
            ("classes", (rows * options.split, -(-options.classes // options.split))),
        ):
            x, v = (rng.standard_normal(shape, chunks=chunks, dtype=np.float32).persist() for _ in range(2))
            t = rng.integers(options.classes, size=shape[0], chunks=chunks[0]).persist()
            y = xs.softmax(x).persist()
            distributed.wait([x, y, v, t])
            for name, case in chosen.items():
                call = lambda case=case: dask.compute(*map(kept_nowhere, parts(case.call(x, t, y, v))))  # noqa: E731, B023
                table.add_row(name, cut, f"{median([seconds(call) for _ in range(options.runs)]):.3f}")
    console.print(table)


if __name__ == "__main__":
    main()
