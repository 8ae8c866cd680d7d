"""Search for counter-examples: random rows by the million, screened in extended precision, the worst judged exactly.

Scales from 1e-3 to 300, offsets up to where only ties remain, 2 to 10 000 classes, ties, confident classes at every
margin, tails that underflow. ``python benchmarks/stress.py --backend numpy --elements 1000000``
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from xsoftmax.libraries.backends import Backend, backend
from xsoftmax.verbs import functions, losses
from xsoftmax.verify.cases import FLOATS, POSITIONAL
from xsoftmax.verify.compare import Arithmetic, Verdict, judge
from xsoftmax.verify.extended import REFERENCES, Long, Row, screen
from xsoftmax.verify.formats import FORMATS
from xsoftmax.verify.inputs import numpy_dtype
from xsoftmax.verify.oracle import expected

CLASSES = (2, 2, 3, 5, 10, 33, 100, 1000, 10_000)
BATCH = 40_000  # elements


@dataclass
class Found:
    """The worst of a verb and dtype; ``screened`` elements went through extended precision."""

    verb: str
    dtype: str
    screened: int = 0
    rows: int = 0
    worst_sum: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)


def search(backend: Backend, verb: str, dtype: str, elements: int, seed: int = 0) -> Iterator[Found]:
    """Yield the state of the search after every batch."""
    rng = np.random.default_rng([seed, *f"{verb} {dtype}".encode()])
    arithmetic = Arithmetic(dtype, backend.float64, backend.flushes_subnormals)
    found = Found(verb, dtype)
    while found.screened < elements:
        arrays = draw(rng, verb, dtype, int(rng.choice(CLASSES)))
        options = {"reduction": "none"} if "logits" in arrays or "probs" in arrays else {}
        results = call(backend, verb, arrays, options)
        errors = [screen(got, *reference) for got, reference in zip(results, REFERENCES[verb](arrays), strict=True)]
        found.screened += sum(e.size for e in errors)
        suspects = {int(np.argmax(e.reshape(len(e), -1).max(axis=1))) for e in errors if e.max() > found.verdict.worst}
        sums = row_sums(verb, arrays, results)
        if sums.max() > found.worst_sum:
            found.worst_sum = float(sums.max())
            suspects.add(int(sums.argmax()))
        for i in suspects:
            row = slice(i, i + 1)
            exact = expected((verb,), {name: a[row] for name, a in arrays.items()}, options)[verb]
            for got, reference in zip(results, exact, strict=True):
                found.verdict.merge(judge(got[row], reference, arithmetic))
            found.rows += 1
        yield found


def call(backend: Backend, verb: str, arrays: dict[str, np.ndarray], options: dict) -> list[np.ndarray]:
    """The results of a verb as NumPy arrays."""
    function = getattr(losses if hasattr(losses, verb) else functions, verb)
    result = function(*(backend.asarray(arrays[name]) for name in POSITIONAL[verb]), **options)
    return [backend.to_numpy(part) for part in (result if isinstance(result, tuple) else (result,))]


GRADIENTS = {"cross_entropy_grad": 0, "cross_entropy_and_grad": 1, "cross_entropy_grad_and_hessian_diag": 0}


def row_sums(verb: str, arrays: dict[str, np.ndarray], results: list[np.ndarray]) -> np.ndarray:
    """How far rows are from their sum: softmax in eps, one-hot gradients in ulp(max |g|), others in eps·Q."""
    if verb == "softmax":
        y = results[0].astype(Long)
        return np.abs(y.sum(axis=1) - 1) * 2 ** (FORMATS[results[0].dtype.name].digits - 1)
    if verb not in GRADIENTS:
        return np.zeros(1)
    g = results[GRADIENTS[verb]].astype(Long)
    form = FORMATS[results[GRADIENTS[verb]].dtype.name]
    largest, t = np.abs(g).max(axis=1), arrays["targets"]
    _, exponent = np.frexp(largest)
    unit = np.ldexp(Long(1), exponent - form.digits)
    if t.ndim == 2:
        general = np.count_nonzero(t, axis=1) > 1
        unit = np.where(general, t.astype(Long).sum(axis=1) * Long(2) ** (1 - form.digits), unit)
    # below, entries are rounded to multiples of the smallest subnormal
    return np.where(largest > form.tiny * 2**form.digits, np.abs(g.sum(axis=1)) / unit, 0)


# ---------------------------------------------------------------------------------------------------------------------
# inputs


def draw(rng: np.random.Generator, verb: str, dtype: str, classes: int) -> dict[str, np.ndarray]:
    """Random inputs of a verb, by the names of its positional arrays."""
    rows = max(BATCH // classes, 2)
    x = logits(rng, dtype, rows, classes)
    names = POSITIONAL[verb]
    kind = numpy_dtype(dtype)
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        if name in ("x", "logits"):
            arrays[name] = x
        elif name in ("y", "p", "probs"):
            arrays[name] = probabilities(x, dtype)
        elif name == "q":
            arrays[name] = probabilities(logits(rng, dtype, rows, classes), dtype)
        elif name == "log_y":
            arrays[name] = Row(x).log_y.astype(kind)
        elif name == "v":
            arrays[name] = (rng.normal(size=x.shape) * 10.0 ** rng.uniform(-2, 2, (rows, 1))).astype(kind)
        elif name == "targets":
            arrays[name] = targets(rng, x)
    return arrays


def logits(rng: np.random.Generator, dtype: str, rows: int, classes: int) -> np.ndarray:
    """Rows that differ in scale, offset, ties, margin and tail."""
    underflow = {"float16": 17.0, "float64": 746.0}.get(dtype, 104.0)
    overflow = 709.0 if dtype == "float64" else 88.0
    x = rng.normal(size=(rows, classes)) * 10.0 ** rng.uniform(-3, 2.5, (rows, 1))
    tied = rng.random(rows) < 0.15
    x[tied] = np.round(x[tied])
    tail = rng.random(rows) < 0.15
    x[tail] = x[tail].clip(-3, 3) - underflow
    confident = np.flatnonzero((rng.random(rows) < 0.3) | tail)
    others = np.where(tail[confident], 0.0, x[confident].max(axis=1))
    margin = np.where(tail[confident], 0.0, rng.uniform(0, 1.05 * underflow, len(confident)))
    x[confident, rng.integers(0, classes, len(confident))] = others + margin
    zones = rng.choice([0.0, overflow - 8, overflow, 2 * overflow, 2 * underflow], rows)
    offset = np.select(
        [rng.random(rows) < 0.4, rng.random(rows) < 0.4, rng.random(rows) < 0.7],
        [0.0, rng.choice([-1, 1], rows) * 10.0 ** rng.uniform(0, 5, rows), zones - x.max(axis=1)],
        rng.choice([-1, 1], rows) * 10.0 ** rng.uniform(5, 30, rows),
    )
    limit = 60_000.0 if dtype == "float16" else math.inf
    return np.clip(x + offset[:, None], -limit, limit).astype(numpy_dtype(dtype))


def probabilities(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded probabilities, without subnormal numbers."""
    y = Row(x).y
    return np.where(y < FORMATS[dtype].tiny, 0, y).astype(x.dtype)


def targets(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Labels, likely or not; or one-hot and general probabilities."""
    rows, classes = x.shape
    labels = np.where(rng.random(rows) < 0.5, x.argmax(axis=1), rng.integers(0, classes, rows))
    if rng.random() < 0.5:
        return labels
    q = rng.dirichlet(np.full(min(classes, 50), 0.3), rows) * rng.uniform(0.2, 3, (rows, 1))
    q = np.pad(q, ((0, 0), (0, classes - q.shape[1])))
    q[rng.random(rows) < 0.3] *= 0
    q[np.arange(rows), labels] += ~q.any(axis=1)
    return q.astype(x.dtype)


# ---------------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Search, print the worst, and return 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description="Search for results outside the accuracy contract.")
    parser.add_argument("--backend", default="numpy", help="default: %(default)s")
    parser.add_argument("--dtype", nargs="+", choices=FLOATS, help="default: all of the backend")
    parser.add_argument("--verb", nargs="+", choices=tuple(REFERENCES), default=tuple(REFERENCES), help="default: all")
    parser.add_argument("--elements", type=int, default=1_000_000, help="of each verb and dtype; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if np.finfo(Long).nmant < 63:
        parser.error("this machine's long double is no wider than float64, which it would have to screen")

    chosen = backend(options.backend)
    dtypes = options.dtype or chosen.dtypes()
    worst = []
    with Progress(console=Console(stderr=True)) as progress:
        for dtype in dtypes:
            for verb in options.verb:
                task = progress.add_task(f"{verb} {dtype}", total=options.elements)
                for found in search(chosen, verb, dtype, options.elements, options.seed):
                    progress.update(task, completed=found.screened)
                progress.remove_task(task)
                worst.append(found)
    table = Table("verb", "dtype", "elements", "rows judged", "worst ulp", "contract", "exempted", title=chosen.name)
    for found in worst:
        verdict = found.verdict
        exempted = ", ".join(f"{count} {name}" for name, count in verdict.exempted.items())
        style = "red" if verdict.failures else ""
        figures = f"{found.screened}", f"{found.rows}", f"{verdict.worst:.3f}", f"{verdict.bound:g}", exempted
        table.add_row(found.verb, found.dtype, *figures, style=style)
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
    for found in worst:
        for failure in found.verdict.failures[:5]:
            print(f"{found.verb} {found.dtype}: {failure}")
    return int(any(found.verdict.failures for found in worst))


if __name__ == "__main__":
    raise SystemExit(main())
