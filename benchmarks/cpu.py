"""Time softmax and cross-entropy on the CPU: xsoftmax beside NumPy, SciPy, PyTorch, JAX, ONNX Runtime and scikit-learn.

Every result is compared with the exact one before it is timed. All contenders take turns in one process, and times are
medians, told as multiples of a single-threaded np.copyto of the same array that took its turns among them.

    python benchmarks/cpu.py --quick                         # two minutes
    python benchmarks/cpu.py --name mymachine                # everything, some hours
    python benchmarks/cpu.py --verb softmax --shape 1000000,10 65536,128 --contender torch xsoftmax:numpy_numba
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import report
from contenders import CONTENDERS, COPY, VERBS, WITH_OUT, Call, Contender, Inputs, Unavailable, copy
from machine import describe
from reference import Reference, Wrong
from rich.console import Console
from rich.progress import Progress
from timing import interleaved

import xsoftmax as xs

SHAPES = (
    (4, 10),
    (1000, 10),
    (1_000_000, 10),
    (700_000, 16),
    (65_536, 128),
    (8_192, 1_000),
    (65_536, 1_000),
    (1_024, 32_768),
    (256, 50_257),
    (64, 262_144),
    (8, 21, 512, 512),
)
DTYPES = ("float32", "float64", "bfloat16")
QUICK = {"shape": ((4, 10), (1000, 10), (65_536, 128), (8_192, 1_000)), "dtype": ("float32",), "repeats": 5}
FULL = {"shape": SHAPES, "dtype": DTYPES, "repeats": 15}
GIGABYTE = 1e9
BUSY = 0.5  # load, before anything is run

Row = dict[str, Any]


class Group:
    """All contenders on one verb, shape and dtype."""

    def __init__(self, verb: str, inputs: Inputs, memory: float, held: int):
        self.verb, self.inputs, self.memory, self.held = verb, inputs, memory, held
        self.reference = Reference(verb, inputs)
        self.calls: dict[tuple[str, bool], Call] = {(COPY, False): copy(inputs)}
        self.rows: dict[tuple[str, bool], Row] = {}

    def admit(self, name: str, contender: Contender | str, *, out: bool) -> None:
        """Run a contender once and compare its result; a str is the reason why there is none."""
        row = self.rows[name, out] = {
            "verb": self.verb,
            "shape": list(self.inputs.x.shape),
            "axis": self.inputs.axis,
            "dtype": self.inputs.x.dtype.name,
            "contender": name,
            "out": out,
        }
        try:
            if isinstance(contender, str):
                raise Unavailable(contender)
            call, row["ulps"] = self._checked(contender, out=out)
        except Wrong as error:
            row.update(status="wrong", reason=str(error))
        except Unavailable as error:
            row.update(status="skipped", reason=str(error))
        except Exception as error:  # each library has its own for what it can't do
            first, _, _ = str(error).partition("\n")
            row.update(status="skipped", reason=f"{type(error).__name__}: {first}")
        else:
            row["status"] = "timed"
            self.calls[name, out] = call

    def _checked(self, contender: Contender, *, out: bool) -> tuple[Call, float]:
        x, buffer = self.inputs.x, self.inputs.buffer
        call = contender.call(self.verb, self.inputs, out=out)
        needed = self.held * x.nbytes + contender.needs(self.verb, x)
        if needed > self.memory:
            raise Unavailable(f"needs {needed / GIGABYTE:.1f} GB, allowed are {self.memory / GIGABYTE:.1f}")
        buffer.fill(np.nan)  # what another contender wrote there would pass for the result
        with call.context():
            result = call.run()
        results = tuple(contender.to_numpy(a) for a in (result if isinstance(result, tuple) else (result,)))
        if out and not np.may_share_memory(results[-1], buffer):
            raise Wrong("did not write to out")
        return call, self.reference.ulps(results)

    def time(self, repeats: int, pause: float) -> None:
        """Add the times to the rows."""
        runs, batches = interleaved(self.calls, repeats, pause)
        copied = float(np.median(runs[COPY, False]))
        for key, times in runs.items():
            if key in self.rows:
                low, middle, high = map(float, np.percentile(times, (25, 50, 75)))
                figures = {"seconds": middle, "quartiles": [low, high], "best": min(times), "batch": batches[key]}
                self.rows[key].update(figures, copy_seconds=copied, over_copy=middle / copied)


def groups(options: argparse.Namespace, found: dict[str, Contender | str]) -> Iterator[tuple[str, list[Row]]]:
    """Time one group after the other."""
    memory = options.memory * GIGABYTE
    held = 3 if isinstance(found.get("jax"), Contender) else 2  # logits, what copies write to, JAX's own logits
    for dtype in options.dtype:
        for shape in options.shape:
            size = math.prod(shape) * (8 if dtype == "float64" else 4)
            if held * size > memory:
                reason = f"logits and copies need {held * size / GIGABYTE:.1f} GB, allowed are {options.memory:.1f}"
                yield from ((verb, _all_skipped(verb, shape, dtype, list(found), reason)) for verb in options.verb)
                continue
            inputs = Inputs.random(shape, dtype, options.threads)
            for verb in options.verb:
                group = Group(verb, inputs, memory, held)
                for name, contender in found.items():
                    for out in (False, True) if verb in WITH_OUT else (False,):
                        group.admit(name, contender, out=out)
                group.time(options.repeats, options.pause / 1e3)
                yield f"{verb} {dtype} {report.dimensions(shape)}", list(group.rows.values())


def _all_skipped(verb: str, shape: Sequence[int], dtype: str, names: Sequence[str], reason: str) -> list[Row]:
    row = {"verb": verb, "shape": list(shape), "axis": -1 if len(shape) == 2 else 1, "dtype": dtype}
    return [row | {"contender": name, "out": False, "status": "skipped", "reason": reason} for name in names]


def made(names: Sequence[str]) -> dict[str, Contender | str]:
    """The contenders, or why they are not here."""
    found: dict[str, Contender | str] = {}
    for name in names:
        try:
            found[name] = CONTENDERS[name]()
        except ImportError as error:
            found[name] = f"not installed: {error}"
    return found


def limit_threads(stack: ExitStack, threads: int) -> None:
    """For XLA, which counts the processors it may use, and for pools of OpenMP and BLAS."""
    stack.callback(xs.set_num_threads, xs.get_num_threads())
    xs.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(allowed)[:threads])
        stack.callback(os.sched_setaffinity, 0, allowed)
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return
    stack.enter_context(threadpool_limits(threads))


def warn_of_others(machine: dict[str, Any]) -> None:
    """PyTorch's 1.2 µs for 4 × 10 on one thread became 8 ms on two, both processors being in use."""
    if machine["load"] is not None and machine["load"] > BUSY:
        print(
            f"the load of this machine is {machine['load']:.1f}: threads that wait for each other will be slow",
            file=sys.stderr,
        )


def shape_of(text: str) -> tuple[int, ...]:
    shape = tuple(int(part) for part in text.split(","))
    if len(shape) < 2 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has to be two or more sizes, such as 1000,10")
    return shape


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verb", nargs="+", choices=VERBS, default=VERBS, help="default: all")
    parser.add_argument(
        "--shape", nargs="+", type=shape_of, metavar="N,C", help="of the logits; classes on axis 1 of more than two"
    )
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="default: all")
    parser.add_argument("--contender", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="default: all")
    parser.add_argument("--repeats", type=int, help="runs of each; default: 15")
    parser.add_argument("--quick", action="store_true", help="four shapes, float32, 5 runs, where not told otherwise")
    parser.add_argument("--threads", type=int, help="of every contender; default: the processors there are")
    parser.add_argument("--memory", type=float, default=3.0, help="gigabytes of arrays; default: %(default)g")
    parser.add_argument("--pause", type=float, default=5.0, help="milliseconds before each run; default: %(default)g")
    parser.add_argument("--name", default="cpu", help="a short name of the machine, for the files")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.repeats < 1 or (options.threads is not None and options.threads < 1):
        parser.error("--repeats and --threads have to be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    target = options.output / f"{options.name}.json"
    rows: list[Row] = []
    with ExitStack() as stack:
        if options.threads is None:
            options.threads = xs.get_num_threads()
        else:
            limit_threads(stack, options.threads)
        document = {
            "machine": describe(options.name, options.threads),
            "repeats": options.repeats,
            "rows": rows,
            "summary": {},
        }
        warn_of_others(document["machine"])
        found = made(options.contender)
        progress = stack.enter_context(Progress(console=Console(stderr=True)))
        task = progress.add_task("", total=len(options.dtype) * len(options.shape) * len(options.verb))
        for name, measured in groups(options, found):
            rows += measured
            document["summary"] = report.summary(rows)
            target.write_text(json.dumps(document, indent=1, allow_nan=False))  # what is done survives an interruption
            progress.update(task, advance=1, description=name)
    target.with_suffix(".md").write_text(report.markdown(document))
    print(report.summary_text(document["summary"]))
    for path in (target, target.with_suffix(".md"), *_drawn(rows, options)):
        print(path)
    return 0


def _drawn(rows: list[Row], options: argparse.Namespace) -> list[Path]:
    try:
        from plots import draw
    except ImportError as error:
        print(f"no plots: {error}")
        return []
    return draw(rows, options.output, options.name)


if __name__ == "__main__":
    raise SystemExit(main())
