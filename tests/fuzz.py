"""Random problems for every verb, judged by the exact oracle under the accuracy contract.

``python tests/fuzz.py --problems 100000 --backend numpy torch`` draws inputs from a seed and a number alone, calls
verbs on them by every implementation that was asked for, and judges each call: values, dtype, shape and library of the
results, warnings, errors, inputs left as they were, the same bits again. What fails is listed with the command that
repeats it; the exit status is then 1. A problem is one judged call; several of them share an input and its oracle.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest import mock

if __name__ == "__main__":  # before anything imports it
    os.environ.setdefault("JAX_ENABLE_X64", "1")

import numpy as np
from fuzz_memory import placed, root
from fuzz_problems import POSITIONAL, VERBS, WITH_OUT, Head, Problem, draw
from rich.console import Console
from rich.progress import Progress, TextColumn

from xsoftmax import choose, use_implementation
from xsoftmax.implementations import REGISTRY
from xsoftmax.libraries.backends import NAMES, Backend, backend
from xsoftmax.threads import get_num_threads, set_num_threads
from xsoftmax.verbs import functions, linear, losses
from xsoftmax.verify.cases import DTYPES
from xsoftmax.verify.compare import Arithmetic, judge

IMPLEMENTATIONS = {
    "numpy": ("numpy_numba", "numpy_blocked", "array_api"),
    "torch": ("torch_cpu", "array_api"),
    "jax": ("array_api", "jax_jit"),
    "dask": ("dask_chunked",),
}
WITH_ENTRIES = ("numpy_numba", "numpy_blocked", "torch_cpu")
ARRAYS = ("where", "weight", "sample_weight", "b", "linear_bias")
WRITEABLE = ("numpy", "torch", "array-api-strict")
SLOW = {"dask": 10, "jax_jit": 40, "cubed": 40, "ndonnx": 10, "marray": 5}  # one number of so many
AGAIN = 0.25  # the share of calls that are made a second time, for the same bits
BATCH = 20  # inputs of a task
LONGEST = 300  # characters of a failure


@dataclass(frozen=True)
class Way:
    """An implementation of a backend; JAX's formulas run operation by operation, or they would compile for minutes."""

    backend: Backend
    implementation: str
    by_entry: bool = False  # small arrays, which then miss the operations

    @property
    def name(self) -> str:
        return f"{self.backend.name} {self.implementation}{' by entry' if self.by_entry else ''}"

    @property
    def library(self) -> str:
        return self.backend.name.partition(":")[0]

    def takes(self, head: Head) -> bool:
        if head.dtype != "integer" and head.dtype not in self.backend.dtypes():
            return False
        every = SLOW.get(self.implementation if self.library == "jax" else self.library, 1)
        return head.number % every == 0 and (self.library != "jax" or head.pooled)

    @contextlib.contextmanager
    def chosen(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(use_implementation(self.implementation))
            stack.enter_context(mock.patch.object(choose, "_SMALL", choose._SMALL if self.by_entry else 0))
            if self.library == "jax" and self.implementation != "jax_jit":
                import jax

                stack.enter_context(jax.disable_jit())
            if self.library == "dask":
                import dask

                stack.enter_context(dask.config.set(scheduler="synchronous"))
            yield


@dataclass
class Report:
    """What came of some problems."""

    inputs: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # kind, what, how to repeat it
    seconds: float = 0.0
    oracle: float = 0.0

    def merge(self, other: Report) -> None:
        self.inputs += other.inputs
        self.calls += other.calls
        self.refused += other.refused
        self.failures += other.failures
        self.seconds += other.seconds
        self.oracle += other.oracle


class Refused(Exception):
    """The backend has no such dtype or holds no such value, or the implementation does not take the problem."""


def ways(backends: Sequence[str], implementations: Sequence[str] | None = None) -> list[Way]:
    found = []
    for name in backends:
        xb, library = backend(name), name.partition(":")[0]
        found += [
            Way(xb, implementation, by_entry)
            for implementation in IMPLEMENTATIONS.get(library, ("array_api",))
            if implementations is None or implementation in implementations
            for by_entry in (False, True)[: 1 + (implementation in WITH_ENTRIES)]
        ]
    return found


def fuzz(numbers: Sequence[int], seed: int, ways: Sequence[Way], verbs=None, dtypes=None) -> Report:
    """Judge the problems of these numbers by every way."""
    report, begun = Report(), time.process_time()
    for number in numbers:
        head = Head(seed, number)
        if verbs is not None and not set(VERBS[head.family]) & set(verbs):
            continue
        takers = [way for way in ways if way.takes(head)]
        if not takers or (dtypes is not None and head.dtype not in dtypes):
            continue
        problem = draw(head)
        report.inputs += 1
        for verb in problem.verbs:
            if verbs is None or verb in verbs:
                for way in takers:
                    _try(report, problem, way, verb)
    report.seconds = time.process_time() - begun
    return report


def _try(report: Report, problem: Problem, way: Way, verb: str) -> None:
    try:
        wrong = failures(problem, way, verb, report)
    except Refused as refusal:
        report.refused[f"{way.name}: {refusal}"] += 1
        return
    report.calls[f"{way.name} {verb}"] += 1
    head = problem.head
    repeat = (
        f"python tests/fuzz.py --replay {head.seed}:{head.number} --backend {way.backend.name} "
        f"--implementation {way.implementation} --verb {verb}"
    )
    report.failures += [(f"{way.name} {verb}", what, repeat) for what in wrong]


def failures(problem: Problem, way: Way, verb: str, report: Report | None = None) -> list[str]:
    """What is wrong with one call."""
    complaints: list[str] = []
    xb = way.backend
    expected = problem.raises == "always" or (problem.raises == "checked" and xb.checks_labels)
    try:
        results = _called(problem, way, verb, complaints)
    except ValueError as error:
        return complaints if expected else [*complaints, f"ValueError: {error}"]
    except Refused:
        raise
    except Exception as error:
        return [*complaints, f"{type(error).__name__}: {error}"]
    if expected:
        return [*complaints, "no error, expected ValueError"]
    begun = time.process_time()
    try:
        exact = problem.exact(_default_float(xb))[verb]
    except Exception as error:
        return [f"the oracle: {type(error).__name__}: {error}"]
    if report is not None:
        report.oracle += time.process_time() - begun
    if [r is None for r in results] != [e is None for e in exact]:
        return [*complaints, f"{len(results)} results, expected {len(exact)}"]
    arithmetic = Arithmetic(problem.result_dtype(_default_float(xb)), xb.float64, xb.flushes_subnormals)
    for got, reference in zip(results, exact, strict=True):
        if reference is not None:
            complaints += [f"{reference.kind} {failure}" for failure in judge(got, reference, arithmetic).failures]
    rng = _generator(problem, way, verb, "again")
    if rng.random() < AGAIN:
        complaints += _compared_again(problem, way, verb, results)
    return complaints


def _generator(problem: Problem, way: Way, verb: str, what: str) -> np.random.Generator:
    return np.random.default_rng(
        [problem.head.seed, problem.head.number, zlib.crc32(f"{way.name} {verb} {what}".encode())]
    )


def _compared_again(problem: Problem, way: Way, verb: str, results: list) -> list[str]:
    threads = get_num_threads()
    set_num_threads(1 if threads > 1 else 2)
    try:
        again = _called(problem, way, verb, [])
    finally:
        set_num_threads(threads)
    same = all(a is b is None or a.tobytes() == b.tobytes() for a, b in zip(results, again, strict=True))
    return [] if same else ["other bits the second time, with another number of threads"]


def _called(problem: Problem, way: Way, verb: str, complaints: list[str]) -> list[np.ndarray | None]:
    """The results as NumPy arrays; without the strictness about warnings if one was complained about."""
    try:
        with np.errstate(all="raise"), warnings.catch_warnings():
            warnings.simplefilter("error")
            return _call(problem, way, verb, complaints)
    except (FloatingPointError, Warning) as warning:
        complaints.append(f"{type(warning).__name__}: {warning}")
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _call(problem, way, verb, complaints)


def _call(problem: Problem, way: Way, verb: str, complaints: list[str]) -> list[np.ndarray | None]:
    rng, xb = _generator(problem, way, verb, "memory"), way.backend
    static = {name: value for name, value in problem.options.items() if name not in ARRAYS}
    positional = POSITIONAL[verb]
    inputs = {name: problem.arrays[name] for name in positional}
    inputs |= {name: np.asarray(problem.options[name]) for name in ARRAYS if name in problem.options}
    with np.errstate(all="ignore"):
        arrays = {name: _placed(xb, rng, a) for name, a in inputs.items()}
    into = problem.into if verb in WITH_OUT and way.library in WRITEABLE else None
    first = arrays[positional[0]]
    if into == "new" or (into == "input" and not _can_be_written(first)):
        static["out"] = _out(xb, rng, problem, first)
    elif into == "input":
        static["out"] = first
    kept = arrays if way.library in WRITEABLE else {}
    before = {name: _bytes(xb, a) for name, a in kept.items() if a is not static.get("out")}
    with way.chosen():
        try:
            named = {name: arrays[name] for name in inputs if name not in positional}
            result = _verb(verb)(*(arrays[name] for name in positional), **named, **static)
            results = tuple(result) if isinstance(result, tuple) else (result,)
            found = [None if part is None else xb.to_numpy(part) for part in results]
        except NotImplementedError as refusal:
            raise Refused(str(refusal)) from refusal
        except ValueError as refusal:
            if "was asked for but refuses" in str(refusal):
                raise Refused(str(refusal)) from refusal
            raise
    complaints += [f"{name} was changed" for name, old in before.items() if _bytes(xb, arrays[name]) != old]
    complaints += [f"result is a {type(part)}" for part in results if part is not None and not _is_native(part, first)]
    if "out" in static and results[-1] is not static["out"]:
        complaints.append("out is not what was returned")
    return [None if part is None else np.array(part) for part in found]


def _placed(xb: Backend, rng: np.random.Generator, a: np.ndarray) -> Any:
    if a.dtype.name == "float64" and not xb.float64:
        raise Refused("no float64")
    try:
        xb.asarray(a)
    except (OverflowError, TypeError, NotImplementedError) as unfit:
        raise Refused(str(unfit)) from unfit
    return placed(xb, rng, a)


def _out(xb: Backend, rng: np.random.Generator, problem: Problem, first: Any) -> Any:
    """Memory for the result, as odd as an input's."""
    (x, *_) = problem.arrays.values()
    zeros = np.zeros(x.shape, _default_float(xb) if x.dtype.kind in "biu" else x.dtype)
    while not _can_be_written(out := placed(xb, rng, zeros)):
        pass
    return out


def _can_be_written(x: Any) -> bool:
    return not isinstance(x, np.ndarray) or (x.flags.writeable and x.dtype.isnative)


def _bytes(xb: Backend, x: Any) -> bytes:
    return root(x).tobytes() if isinstance(x, np.ndarray) else xb.to_numpy(x).tobytes()


def _is_native(part: Any, first: Any) -> bool:
    """Of the same library; NumPy's scalars may come from a library of dtypes."""
    of_first, of_part = (type(a).__module__.partition(".")[0] for a in (first, part))
    return of_part == of_first or (of_first == "numpy" and isinstance(part, np.generic))


@cache
def _default_float(xb: Backend) -> str:
    default = xb.xp.__array_namespace_info__().default_dtypes(device=xb.device)["real floating"]
    return xb.to_numpy(xb.xp.zeros(1, dtype=default)).dtype.name


def _verb(name: str) -> Callable:
    module = next(module for module in (losses, linear, functions) if name in module.__all__)
    return getattr(module, name)


# ---------------------------------------------------------------------------------------------------------------------


def _task(task: tuple) -> Report:
    first, seed, backends, implementations, verbs, dtypes = task
    return fuzz(range(first, first + BATCH), seed, _ways(backends, implementations), verbs, dtypes)


@cache
def _ways(backends: tuple, implementations: tuple | None) -> list[Way]:
    return ways(backends, implementations)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge random problems; return 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [entry.name for entry in REGISTRY]
    every = sorted({verb for verbs in VERBS.values() for verb in verbs})
    parser.add_argument("--problems", type=int, default=1000, help="judged calls, at least; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--backend", nargs="+", choices=NAMES, default=["numpy"], help="default: numpy", metavar="NAME")
    parser.add_argument("--implementation", nargs="+", choices=names, help="default: all of the backends", metavar="N")
    parser.add_argument("--verb", nargs="+", choices=every, help="default: all", metavar="VERB")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="of the logits; default: all", metavar="DTYPE")
    parser.add_argument("--jobs", type=int, default=1, help="processes; default: %(default)s")
    parser.add_argument("--show", type=int, default=20, help="failures listed of a verb; default: %(default)s")
    parser.add_argument("--replay", metavar="SEED:NUMBER", help="the problem of a failure alone")
    options = parser.parse_args(arguments)

    chosen = tuple(options.backend), tuple(options.implementation) if options.implementation else None
    if not ways(*chosen):
        parser.error("none of the implementations belongs to one of the backends")
    if options.replay:
        seed, _, number = options.replay.partition(":")
        report = fuzz([int(number)], int(seed), ways(*chosen), options.verb, options.dtype)
        print(_described(draw(Head(int(seed), int(number)))))
    else:
        report = _run(options, chosen)
    return _told(report, options.show)


def _run(options: argparse.Namespace, chosen: tuple) -> Report:
    tasks = ((i, options.seed, *chosen, options.verb, options.dtype) for i in range(0, sys.maxsize, BATCH))
    report = Report()
    columns = *Progress.get_default_columns(), TextColumn("{task.fields[failed]} failed")
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
        bar = progress.add_task("problems", total=options.problems, failed=0)
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))  # tells what was found so far
        for part in _parts(stack, tasks, options.jobs):
            report.merge(part)
            progress.update(bar, completed=report.calls.total(), failed=len(report.failures))
            if report.calls.total() >= options.problems:
                break
    return report


def _parts(stack: contextlib.ExitStack, tasks: Iterator[tuple], jobs: int) -> Iterator[Report]:
    if jobs == 1:
        yield from map(_task, tasks)
        return
    pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(jobs))
    waiting = [pool.apply_async(_task, (next(tasks),)) for _ in range(2 * jobs)]
    while True:
        yield waiting.pop(0).get()
        waiting.append(pool.apply_async(_task, (next(tasks),)))


def _described(problem: Problem) -> str:
    lines = [f"{problem.head}, raises {problem.raises}, out {problem.into}"]
    given = {**problem.arrays, **problem.options}
    with np.printoptions(threshold=400, linewidth=120, floatmode="unique"):
        lines += [
            f"{name} = {value!r}" + (f" {value.dtype} {value.shape}" if isinstance(value, np.ndarray) else "")
            for name, value in given.items()
        ]
    return "\n".join(lines)


def _told(report: Report, show: int) -> int:
    shown: Counter[str] = Counter()
    for verb, what, repeat in report.failures:
        kind = f"{verb}: {' '.join(re.findall('[A-Za-z_]+', what)[:4])}"
        shown[kind] += 1
        if shown[kind] <= show:
            print(f"{verb}: {what if len(what) < LONGEST else what[:LONGEST] + ' …'}\n    {repeat}")
    for kind, count in shown.most_common():
        print(f"{count} times {kind}")
    for reason, count in report.refused.most_common(10):
        print(f"refused {count} times: {reason}")
    calls = report.calls.total()
    rate, share = calls / max(report.seconds, 1e-9), report.oracle / max(report.seconds, 1e-9)
    print(
        f"{calls} problems on {report.inputs} inputs, {len(report.failures)} failures; "
        f"{rate:.0f} problems a second of CPU time, {share:.0%} of it in the oracle"
    )
    if not calls:
        print("nothing was judged, which is a failure")
    return int(bool(report.failures) or not calls)


if __name__ == "__main__":
    raise SystemExit(main())
