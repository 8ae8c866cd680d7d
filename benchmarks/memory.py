"""Memory that a call takes beside its arguments and results: every verb and option, by each implementation.

The peak of the process above what it held before, less the results, in arrays of the logits' size; Linux keeps that
peak, whoever allocates. A call on few rows goes before, so that nothing is compiled or loaded in the one that counts.

    python benchmarks/memory.py                                       # all that are here, 64 MiB of float32 logits
    python benchmarks/memory.py --who torch numpy_numba --classes 32000 --dtype float16
"""

from __future__ import annotations

import argparse
import ctypes
import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import xsoftmax as xs

NUMPY = ("numpy_numba", "numpy_blocked", "array_api")
WHO = (*NUMPY, "torch", "jax")
FEW = 8  # rows of the call that goes before

# calls of logits x, labels t, probabilities y, a direction v, weights of rows s and of classes w, and a mask
Call = Callable[..., Any]
LOSSES: dict[str, Call] = {
    "cross_entropy": xs.cross_entropy,
    "cross_entropy_and_grad": xs.cross_entropy_and_grad,
    "grad_and_hessian_diag": xs.cross_entropy_grad_and_hessian_diag,
    "cross_entropy_hvp": lambda x, t, v, **o: xs.cross_entropy_hvp(x, t, v, **o),
}
LOSS_OPTIONS: dict[str, Callable[[dict], dict]] = {
    "plain": lambda a: {},
    "axis": lambda a: {"axis": 0},
    "where": lambda a: {"where": a["mask"]},
    "weight": lambda a: {"weight": a["w"]},
    "sample_weight": lambda a: {"sample_weight": a["s"]},
    "ignore_index": lambda a: {"ignore_index": 0},
    "label_smoothing": lambda a: {"label_smoothing": 0.1},
    "temperature": lambda a: {"temperature": 0.7},
    "softcap": lambda a: {"softcap": 30.0},
    "z_loss": lambda a: {"z_loss": 1e-3},
    "probabilities": lambda a: {"targets": a["y"]},
    "reduction none": lambda a: {"reduction": "none"},
}
OTHERS: dict[str, Callable[[dict], Any]] = {
    "softmax": lambda a: xs.softmax(a["x"]),
    "softmax axis": lambda a: xs.softmax(a["x"], axis=0),
    "softmax axes": lambda a: xs.softmax(a["x"], axis=None),
    "softmax where": lambda a: xs.softmax(a["x"], where=a["mask"]),
    "softmax temperature": lambda a: xs.softmax(a["x"], temperature=0.7),
    "log_softmax": lambda a: xs.log_softmax(a["x"]),
    "logsumexp": lambda a: xs.logsumexp(a["x"]),
    "logsumexp b": lambda a: xs.logsumexp(a["x"], b=a["v"], return_sign=True),
    "softmax_vjp": lambda a: xs.softmax_vjp(a["y"], a["v"]),
    "log_softmax_vjp": lambda a: xs.log_softmax_vjp(a["x"], a["v"]),
    "log_softmax_jvp": lambda a: xs.log_softmax_jvp(a["x"], a["v"]),
    "cross_entropy_from_probs": lambda a: xs.cross_entropy_from_probs(a["y"], a["t"]),
    "entropy": lambda a: xs.entropy(a["y"]),
    "kl_divergence": lambda a: xs.kl_divergence(a["y"], a["q"]),
}


def _loss(verb: str, option: str) -> Callable[[dict], Any]:
    def call(a: dict) -> Any:
        options = LOSS_OPTIONS[option](a)
        targets = options.pop("targets", a["t"])
        x, v = a["x"], (a["v"],) if verb.endswith("hvp") else ()
        if "axis" in options:
            x, v = x.T, tuple(one.T for one in v)
        return LOSSES[verb](x, targets, *v, **options)

    return call


def calls() -> dict[str, Callable[[dict], Any]]:
    losses = {
        f"{verb} {option}".removesuffix(" plain"): _loss(verb, option) for verb in LOSSES for option in LOSS_OPTIONS
    }
    return OTHERS | losses


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--who", nargs="+", choices=WHO, default=WHO, help="implementations for NumPy, or libraries")
    parser.add_argument("--megabytes", type=int, default=64, help="MiB of logits; default: %(default)s")
    parser.add_argument("--classes", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", help="default: %(default)s")
    parser.add_argument("--call", nargs="+", help="only calls whose name begins so")
    options = parser.parse_args(arguments)
    chosen = {n: f for n, f in calls().items() if options.call is None or n.startswith(tuple(options.call))}
    found: dict[str, dict[str, float]] = {name: {} for name in chosen}
    for who in options.who:
        backend = xs.backend("numpy" if who in NUMPY else who)
        whole, few = (arrays(backend, options, rows) for rows in (None, FEW))
        with xs.use_implementation(who) if who in NUMPY else nullcontext():
            for name, call in track(chosen.items(), who, console=Console(stderr=True), transient=True):
                call(few)
                found[name][who] = extra(backend, call, whole) / nbytes(whole["x"])
    table = Table("call", *options.who)
    for name, row in found.items():
        table.add_row(name, *(f"{row[who]:.2f}" for who in options.who))
    Console().print(table)
    return 0


def arrays(backend: xs.Backend, options: argparse.Namespace, rows: int | None) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    size = backend.asarray(np.zeros(1, "float32"), dtype=options.dtype).itemsize
    n, classes = rows or max(FEW, (options.megabytes << 20) // (size * options.classes)), options.classes
    x, v = (rng.standard_normal((n, classes), np.float32) for _ in range(2))
    y, q = (np.full((n, classes), 1.0 / classes, np.float32) for _ in range(2))
    floats = {"x": x, "v": v, "y": y, "q": q, "s": np.ones(n, np.float32), "w": np.ones(classes, np.float32)}
    placed = {name: backend.asarray(a, dtype=options.dtype) for name, a in floats.items()}
    placed["t"] = backend.asarray(rng.integers(0, classes, n))
    placed["mask"] = backend.asarray(rng.random((n, classes)) < 0.9)
    return placed


def extra(backend: xs.Backend, call: Callable[[dict], Any], a: dict) -> int:
    """Bytes of the peak beside what was there and what is returned."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what has been freed, but was kept for the next array
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    results = call(a)
    results = [r for r in (results if isinstance(results, tuple) else (results,)) if hasattr(r, "dtype")]
    backend.synchronize()
    return _status("VmHWM") - before - sum(map(nbytes, results))


def _status(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


def nbytes(a: Any) -> int:
    return int(np.prod(tuple(a.shape), dtype=np.int64)) * a.dtype.itemsize


if __name__ == "__main__":
    raise SystemExit(main())
