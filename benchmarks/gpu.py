"""Time softmax and cross-entropy on a GPU: xsoftmax on CuPy and PyTorch beside cupyx, PyTorch, Triton, JAX and others.

Every result is compared with the exact one before it is timed, and a copy on the device takes its turns with each
contender. A run ends when its time is up, and keeps what it has; with --resume, another goes on from there.

    python benchmarks/gpu.py --quick                         # some minutes
    python benchmarks/gpu.py --name h200 --dtype bfloat16 float32 --minutes 9 --resume
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_report

from xsoftmax.bench.gpu.device import CuPyDevice, Device
from xsoftmax.bench.gpu.measure import LATE, Plan, measure
from xsoftmax.bench.options import SMALL, VERBS, add_choices
from xsoftmax.bench.rows import Row, failed

DTYPES = ("bfloat16", "float16", "float32", "float64")
QUICK = {"shape": (SMALL, (65_536, 4_096), (8_192, 50_257)), "dtype": ("bfloat16", "float32"), "repeats": 10}
FULL = {"shape": None, "dtype": DTYPES, "repeats": 20}


def parsed(arguments: Sequence[str] | None) -> tuple[Plan, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_choices(parser, DTYPES, "torch, xsoftmax:cupy_cuda")
    parser.add_argument("--minutes", type=float, default=60, help="after which nothing more is begun; default: 60")
    parser.add_argument("--quick", action="store_true", help="three shapes, bfloat16 and float32, 10 runs")
    parser.add_argument("--name", default="gpu", help="a short name of the device, for the files")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="keep the rows of that name's last run")
    parser.set_defaults(verb=VERBS)
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    try:
        return Plan.of(options), options
    except ValueError as error:
        parser.error(str(error))


def main(arguments: Sequence[str] | None = None, device: Device | None = None) -> int:
    plan, options = parsed(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    target = options.output / f"{options.name}.json"
    device = device or CuPyDevice()
    before = _before(target, device) if options.resume else []
    document: dict[str, Any] = {"rows": []}
    shown = len(before)
    for document in measure(plan, device, options.name, before):
        document["summary"] = gpu_report.summary(document["rows"])
        target.write_text(json.dumps(document, indent=1, allow_nan=False))  # what is done survives an interruption
        for row in document["rows"][shown:]:
            print(gpu_report.line(row), flush=True)
        shown = len(document["rows"])
    if not document["rows"]:
        print("everything was measured before")
        return 0
    target.with_suffix(".md").write_text(gpu_report.markdown(document))
    print(gpu_report.summary_text(document["summary"]))
    for path in (target, target.with_suffix(".md"), *_drawn(document["rows"], options)):
        print(path)
    return int(failed(document["rows"]))


def _before(target: Path, device: Device) -> list[Row]:
    """What the last run had the time for, if there was one; on another device it would not compare."""
    if not target.exists():
        return []
    document = json.loads(target.read_text())
    then, now = document["machine"]["device"], device.describe()["device"]
    if then != now:
        raise SystemExit(f"{target} is of {then}, this is {now}: give it another --name")
    return [row for row in document["rows"] if row.get("reason") != LATE]


def _drawn(rows: list[Row], options: argparse.Namespace) -> list[Path]:
    try:
        from gpu_plots import draw
    except ImportError as error:
        print(f"no plots: {error}")
        return []
    return draw(rows, options.output, options.name)


if __name__ == "__main__":
    raise SystemExit(main())
