"""Test and time CuPy on a machine with a GPU, in stages that each report and go on.

Output and exit status of each stage go to a folder. The exit status is the worst one; a stage that cannot run says why
and counts as failed. Arguments after -- are those of benchmarks/gpu.py.

    python benchmarks/on_gpu.py --output /tmp/gpu --minutes 9 --name h200 -- --dtype bfloat16 float32
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which

ROOT = Path(__file__).parents[1]
CANNOT, LATE = 127, 124  # as a shell and `timeout` say it
TAIL = 15  # lines
TOLD = 0.85  # of its time; the rest is for the last contender, tables and plots

PYTEST = (sys.executable, "-m", "pytest", "-q", "--backend", "cupy")
# without CuPy's pool, in which an access out of bounds hits the neighbour's memory
UNPOOLED = "import sys, cupy, pytest; cupy.cuda.set_allocator(None); sys.exit(pytest.main(sys.argv[1:]))"
REDUCED = [f"-{verb}-{dtype}" for verb in ("softmax", "cross_entropy_and_grad") for dtype in ("float32", "bfloat16")]
MATRIX = "tests/test_contract.py"


@dataclass(frozen=True)
class Stage:
    """A command, what it needs, and its share of the time that is left; `told` if it takes that time as --minutes."""

    name: str
    command: tuple[str, ...]
    share: float
    programs: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    told: bool = False
    modules: tuple[str, ...] = ("cupy", "array_api_compat", "pytest")

    def missing(self) -> list[str]:
        return [
            *(f"{name} is not on the PATH" for name in self.programs if which(name) is None),
            *(f"{path} is not in this checkout" for path in self.paths if not (ROOT / path).exists()),
            *(f"{module} is not installed" for module in self.modules if find_spec(module) is None),
        ]


@dataclass(frozen=True)
class Outcome:
    stage: str
    seconds: float
    status: int
    tail: list[str]

    def __str__(self) -> str:
        last = "\n".join(f"    {line}" for line in self.tail)
        return f"{'✗' if self.status else '✓'} {self.stage}: status {self.status}, {self.seconds:.0f} s\n{last}"


def stages(output: Path, name: str, benchmark: Sequence[str]) -> dict[str, Stage]:
    found = (
        Stage(
            "contract",
            (*PYTEST, *_parallel(), "tests/implementations", MATRIX, "tests/test_accuracy_cases.py"),
            share=0.3,
        ),
        Stage("gpu", (*PYTEST, "-m", "not slow", "tests/gpu"), share=0.3, paths=("tests/gpu",)),
        Stage(
            "torch",
            (*PYTEST[:-1], "torch:cuda", "tests/gpu"),
            share=0.2,
            paths=("tests/gpu",),
            modules=("cupy", "torch", "array_api_compat", "pytest"),
        ),
        Stage("random", (*PYTEST, *_parallel(), "-m", "slow", "tests/gpu"), share=0.5, paths=("tests/gpu",)),
        *(_sanitized(tool, share) for tool, share in (("memcheck", 0.25), ("racecheck", 0.3))),
        Stage(
            "bench",
            (sys.executable, "benchmarks/gpu.py", "--name", name, "--output", str(output), *benchmark),
            share=1.0,
            told=True,
            modules=("cupy", "array_api_compat", "rich", "mpmath", "ml_dtypes"),
        ),
    )
    return {stage.name: stage for stage in found}


def _parallel() -> tuple[str, ...]:
    return ("--numprocesses=auto", "--maxprocesses=8") if find_spec("xdist") else ()


def _sanitized(tool: str, share: float) -> Stage:
    program = "compute-sanitizer"
    options = ("-q", "--backend", "cupy", "-o", "timeout=0", MATRIX, "-k", " or ".join(REDUCED))
    command = (program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", UNPOOLED, *options)
    return Stage(tool, command, share, programs=(program,), paths=(MATRIX,))


def run(stage: Stage, log: Path, seconds: float) -> Outcome:
    """Run a stage for at most so long; its output goes to the log."""
    start = time.monotonic()
    if missing := stage.missing():
        status, text = CANNOT, f"cannot run: {'; '.join(missing)}\n"
        log.write_text(text)
    else:
        with log.open("w") as file:
            minutes = ("--minutes", f"{TOLD * seconds / 60:.2f}") if stage.told else ()
            status = _status((*stage.command, *minutes), file, seconds)
            if status == LATE:
                file.write(f"\nstopped: its {seconds:.0f} s were over\n")
        text = log.read_text(errors="replace")
    return Outcome(stage.name, time.monotonic() - start, status, text.splitlines()[-TAIL:])


def _status(command: Sequence[str], file, seconds: float) -> int:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its workers too
        process.wait()
        return LATE
    return status if status >= 0 else 128 - status  # ended by a signal: as a shell says it


def main(arguments: Sequence[str] | None = None) -> int:
    names = list(stages(Path(), "", ()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="for all stages; default: %(default)g")
    parser.add_argument("--stages", nargs="+", choices=names, default=names, help="default: all, in this order")
    parser.add_argument("--output", type=Path, default=Path("on_gpu"), help="folder; default: %(default)s")
    parser.add_argument("--name", default="gpu", help="a short name of the device, for the benchmark's files")
    parser.add_argument("benchmark", nargs="*", help="options of benchmarks/gpu.py, after --")
    options = parser.parse_args(arguments)
    output = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    found = stages(output, options.name, options.benchmark)
    end = time.monotonic() + 60 * options.minutes
    outcomes = []
    for name in options.stages:
        left = max(0.0, end - time.monotonic())
        last = name == options.stages[-1]
        outcomes.append(run(found[name], output / f"{name}.log", left if last else found[name].share * left))
        print(outcomes[-1], flush=True)
        (output / "summary.txt").write_text("\n".join(map(str, outcomes)) + "\n")
        (output / "summary.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return max(outcome.status for outcome in outcomes)


if __name__ == "__main__":
    raise SystemExit(main())
