"""What a small call costs: every verb, axis, layout and option, as multiples of NumPy's plain formula for the same job.

Each result is compared with that of the formula before it is timed; both take turns in one process, and the shortest of
many runs counts. PyTorch tensors are told as multiples of PyTorch's own call. Beside the times: how many Python
functions a call enters, which no noise touches.

    python benchmarks/small.py                          # 32 x 10, every implementation that is here, a minute
    python benchmarks/small.py --shape 4 100 --who numpy_numba
"""

from __future__ import annotations

import argparse
import sys
import timeit
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import xsoftmax as xs

NUMPY = ("numpy_numba", "numpy_blocked")
WHO = (*NUMPY, "torch")
BATCH, RUNS = 200, 25
Arrays = dict[str, Any]


class Case(NamedTuple):
    """A call, and the same by the plain formula."""

    name: str
    ours: Callable[[], Any]
    plain: Callable[[], Any]


def _logits(x: Any, axis: Any = -1, where: Any = None, temperature: float = 1.0, softcap: float | None = None) -> Any:
    """Less their maximum."""
    if softcap is not None:
        x = softcap * np.tanh(x / softcap)
    if temperature != 1.0:
        x = x / temperature
    if where is not None:
        x = np.where(where, x, -np.inf)
    return x - x.max(axis=axis, keepdims=True)


def softmax(x: Any, axis: Any = -1, **options: Any) -> Any:
    e = np.exp(_logits(x, axis, **options))
    return e / e.sum(axis=axis, keepdims=True)


def log_softmax(x: Any, axis: Any = -1, **options: Any) -> Any:
    z = _logits(x, axis, **options)
    return z - np.log(np.exp(z).sum(axis=axis, keepdims=True))


def logsumexp(x: Any, axis: Any = -1, where: Any = None) -> Any:
    x = x if where is None else np.where(where, x, -np.inf)
    m = x.max(axis=axis, keepdims=True)
    return (m + np.log(np.exp(x - m).sum(axis=axis, keepdims=True))).squeeze(axis=axis)


class Loss:
    """L and ∂L/∂x of a batch of rows, with what an option asks for and no more."""

    def __init__(self, x: Any, t: Any, **options: Any) -> None:
        self.x, self.t, self.options = x, t, options

    def _parts(self) -> tuple[Any, Any, Any, Any]:
        o, x, t = self.options, self.x, self.t
        z = _logits(x, where=o.get("where"), temperature=o.get("temperature", 1.0), softcap=o.get("softcap"))
        log_y = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        classes, s = x.shape[-1], o.get("sample_weight")
        if t.ndim == 1:
            kept = t != o["ignore_index"] if "ignore_index" in o else None
            s = s if kept is None else kept * (1.0 if s is None else s)
            q = np.zeros(x.shape, x.dtype)
            q[np.arange(len(t)), t] = 1.0
        else:
            q = t
        if "label_smoothing" in o:
            q = (1 - o["label_smoothing"]) * q + o["label_smoothing"] / classes
        if "weight" in o:
            q = q * o["weight"]
        return log_y, q, s, self._divisor(s)

    def _divisor(self, s: Any) -> Any:
        if "weight" in self.options:
            w = self.options["weight"][self.t]
            return w.sum() if s is None else (w * s).sum()
        return len(self.x) if s is None else s.sum()

    def loss(self) -> Any:
        log_y, q, s, divisor = self._parts()
        rows = -np.where(q == 0.0, 0.0, q * log_y).sum(axis=-1)
        rows = rows if s is None else rows * s
        return rows if self.options.get("reduction") == "none" else rows.sum() / divisor

    def _slope(self) -> Any:
        c, temperature = self.options.get("softcap"), self.options.get("temperature", 1.0)
        return (1.0 if c is None else 1.0 - np.tanh(self.x / c) ** 2) / temperature

    def grad(self) -> Any:
        log_y, q, s, divisor = self._parts()
        g = (np.exp(log_y) * q.sum(axis=-1, keepdims=True) - q) * self._slope()
        g = g if s is None else g * s[:, None]
        return g if self.options.get("reduction") == "none" else g / divisor

    def both(self) -> Any:
        return self.loss(), self.grad()


def arrays(rows: int, classes: int) -> Arrays:
    rng = np.random.default_rng(0)
    labels, where = rng.integers(0, classes, rows), rng.random((rows, classes)) < 0.8
    where[np.arange(rows), labels] = True
    return {
        "x": rng.normal(size=(rows, classes)).astype(np.float32),
        "labels": labels,
        "targets": rng.dirichlet(np.ones(classes), rows).astype(np.float32),
        "where": where,
        "weight": rng.random(classes).astype(np.float32),
        "sample_weight": rng.random(rows).astype(np.float32),
    }


def cases(a: Arrays) -> list[Case]:
    """Of NumPy arrays."""
    x, rows = a["x"], a["x"].shape[0]
    deep = x.reshape(rows // 4, 4, -1)
    calls: list[tuple[str, Any, dict[str, Any]]] = [
        *((f"axis {axis}", x, {"axis": axis}) for axis in (-1, 0, None)),
        *((f"3-d, axis {axis}", deep, {"axis": axis}) for axis in (-1, 1, (0, 2))),
        ("columns", np.asfortranarray(x), {}),
        ("where", x, {"where": a["where"]}),
        ("temperature", x, {"temperature": 0.7}),
    ]
    formulas = {xs.softmax: softmax, xs.log_softmax: log_softmax, xs.logsumexp: logsumexp}
    found = [
        Case(f"{verb.__name__} {name}", lambda v=verb, g=given, o=o: v(g, **o), lambda f=f, g=given, o=o: f(g, **o))
        for verb, f in formulas.items()
        for name, given, o in calls
        if not (verb is xs.logsumexp and name == "temperature")
    ]
    y, v = softmax(x), x[::-1].copy()
    found.append(
        Case("softmax_vjp", lambda: xs.softmax_vjp(y, v), lambda: y * (v - (y * v).sum(axis=-1, keepdims=True)))
    )
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        **{name: {name: a[name]} for name in ("where", "weight", "sample_weight")},
        "ignore_index": {"ignore_index": 1},
        "label_smoothing": {"label_smoothing": 0.1},
        "temperature": {"temperature": 0.7},
        "softcap": {"softcap": 5.0},
        "reduction none": {"reduction": "none"},
    }
    verbs = {xs.cross_entropy: Loss.loss, xs.cross_entropy_grad: Loss.grad, xs.cross_entropy_and_grad: Loss.both}
    for verb, formula in verbs.items():
        for name, o in options.items():
            loss = Loss(x, a["labels"], **o)
            ours = lambda v=verb, o=o: v(x, a["labels"], **o)  # noqa: E731
            found.append(Case(f"{verb.__name__} {name}", ours, lambda f=formula, loss=loss: f(loss)))
        of_targets = Loss(x, a["targets"])
        ours = lambda v=verb: v(x, a["targets"])  # noqa: E731
        found.append(Case(f"{verb.__name__} probabilities", ours, lambda f=formula, loss=of_targets: f(loss)))
    return found


def torch_cases(a: Arrays) -> list[Case]:
    import torch

    functional = torch.nn.functional
    t = {name: torch.from_numpy(array) for name, array in a.items()}
    x, labels = t["x"], t["labels"]
    leaf = x.clone().requires_grad_()

    def backward(f: Callable[[], Any]) -> Callable[[], Any]:
        def step() -> Any:
            leaf.grad = None
            f().backward()
            return leaf.grad

        return step

    found = [
        Case("softmax", lambda: xs.softmax(x), lambda: torch.softmax(x, -1)),
        Case("softmax axis 0", lambda: xs.softmax(x, axis=0), lambda: torch.softmax(x, 0)),
        Case("softmax temperature", lambda: xs.softmax(x, temperature=0.7), lambda: torch.softmax(x / 0.7, -1)),
        Case("log_softmax", lambda: xs.log_softmax(x), lambda: torch.log_softmax(x, -1)),
        Case("logsumexp", lambda: xs.logsumexp(x), lambda: torch.logsumexp(x, -1)),
        Case("cross_entropy", lambda: xs.cross_entropy(x, labels), lambda: functional.cross_entropy(x, labels)),
        Case(
            "cross_entropy, backward",
            backward(lambda: xs.cross_entropy(leaf, labels)),
            backward(lambda: functional.cross_entropy(leaf, labels)),
        ),
        Case(
            "cross_entropy smoothed, backward",
            backward(lambda: xs.cross_entropy(leaf, labels, label_smoothing=0.1)),
            backward(lambda: functional.cross_entropy(leaf, labels, label_smoothing=0.1)),
        ),
    ]
    weights = torch.ones_like(x)
    for verb, own in ((xs.softmax, torch.softmax), (xs.log_softmax, torch.log_softmax)):
        found.append(
            Case(
                f"{verb.__name__}, backward",
                backward(lambda v=verb: (v(leaf) * weights).sum()),
                backward(lambda own=own: (own(leaf, -1) * weights).sum()),
            )
        )
    return found


def check(case: Case) -> None:
    """The formula is off by some float32 ulps itself."""
    for found, expected in zip(_parts(case.ours()), _parts(case.plain()), strict=True):
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=2e-4, atol=2e-6, err_msg=case.name)


def _parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def functions(call: Callable[[], Any]) -> int:
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count - 1


def times(case: Case, runs: int) -> tuple[float, float]:
    """Microseconds of a call and of the formula, in turns."""
    best = [float("inf"), float("inf")]
    for _ in range(runs):
        for i, call in enumerate((case.ours, case.plain)):
            best[i] = min(best[i], timeit.timeit(call, number=BATCH) / BATCH * 1e6)
    return best[0], best[1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=2, type=int, default=(32, 10), metavar=("ROWS", "CLASSES"))
    parser.add_argument("--who", nargs="+", choices=WHO, help="default: all that are here")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of {BATCH} calls each, of which the shortest counts")
    options = parser.parse_args(arguments)
    here = {"numpy_numba": "numba", "numpy_blocked": "numpy", "torch": "torch"}
    given, console = arrays(*options.shape), Console(width=100)
    for who in options.who or [name for name, module in here.items() if find_spec(module)]:
        table = Table("call", "µs", "formula", "ratio", "functions", title=who)
        for column in table.columns[1:]:
            column.justify = "right"
        ratios = []
        with xs.use_implementation(who) if who in NUMPY else nullcontext():
            for case in track(
                torch_cases(given) if who == "torch" else cases(given), who, console=console, transient=True
            ):
                check(case)
                ours, plain = times(case, options.runs)
                ratios.append(ours / plain)
                table.add_row(
                    case.name, f"{ours:.1f}", f"{plain:.1f}", f"{ours / plain:.2f}", str(functions(case.ours))
                )
        console.print(table)
        console.print(f"{who}: geometric mean {np.exp(np.mean(np.log(ratios))):.2f}, worst {max(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
