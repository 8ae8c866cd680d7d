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
from collections.abc import Sequence
from pathlib import Path

import report

from xsoftmax.bench.measure import Plan, measure
from xsoftmax.bench.options import DTYPES, QUICK, VERBS, add_options
from xsoftmax.bench.rows import Row, failed

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
FULL = {"shape": SHAPES, "dtype": DTYPES, "repeats": 15}


def parsed(arguments: Sequence[str] | None) -> tuple[Plan, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--quick", action="store_true", help="four shapes, float32, 5 runs, where not told otherwise")
    parser.add_argument("--name", default="cpu", help="a short name of the machine, for the files")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.set_defaults(verb=VERBS)
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    try:
        return Plan.of(options), options
    except ValueError as error:
        parser.error(str(error))


def main(arguments: Sequence[str] | None = None) -> int:
    plan, options = parsed(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    target = options.output / f"{options.name}.json"
    for document in measure(plan, options.name):
        document["summary"] = report.summary(document["rows"])
        target.write_text(json.dumps(document, indent=1, allow_nan=False))  # what is done survives an interruption
    target.with_suffix(".md").write_text(report.markdown(document))
    print(report.summary_text(document["summary"]))
    for path in (target, target.with_suffix(".md"), *_drawn(document["rows"], options)):
        print(path)
    return int(failed(document["rows"]))


def _drawn(rows: list[Row], options: argparse.Namespace) -> list[Path]:
    try:
        from plots import draw
    except ImportError as error:
        print(f"no plots: {error}")
        return []
    return draw(rows, options.output, options.name)


if __name__ == "__main__":
    raise SystemExit(main())
