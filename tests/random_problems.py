"""Random verbs, dtypes, shapes, memory and options, judged by the exact oracle."""

import importlib.util
import sys
from functools import partial
from pathlib import Path

import numpy as np

from xsoftmax.verbs import functions, losses
from xsoftmax.verify.cases import FLOATS, POSITIONAL
from xsoftmax.verify.compare import Arithmetic, judge
from xsoftmax.verify.inputs import numpy_dtype
from xsoftmax.verify.oracle import expected

_PATH = Path(__file__).parents[1] / "benchmarks" / "stress.py"
_SPEC = importlib.util.spec_from_file_location("stress", _PATH)
stress = sys.modules["stress"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(stress)

LIKE_LOGITS = ("softmax", "log_softmax", "logsumexp")
PRODUCTS = ("softmax_vjp", "log_softmax_vjp", "log_softmax_jvp")
LOSSES = ("cross_entropy", "cross_entropy_grad", "cross_entropy_and_grad")
ELEMENTS = 2000
FEW = 40  # classes whose derivatives by the logits, which a transformed row needs, take the oracle no second


def failures(xb, seed, place=None):
    """What is wrong with one random call on a backend; `place(rng, a)` makes its arrays of NumPy's."""
    place = place or partial(arranged, xb)
    rng = np.random.default_rng(seed)
    verb, dtype = str(rng.choice((*LIKE_LOGITS, *PRODUCTS, *LOSSES))), str(rng.choice(FLOATS))
    shape, axis = _shape(rng)
    arrays, options = _problem(rng, verb, dtype, shape, axis)
    if verb not in LOSSES and rng.random() < 0.2 and "where" not in options:
        options["axis"] = None if rng.random() < 0.3 else tuple({axis, int(rng.integers(-len(shape), 0))})
    placed = {name: place(rng, a) for name, a in arrays.items()}
    masks = {name: place(rng, options[name]) for name in ("where",) if name in options}
    numbers = {name: place(rng, options[name]) for name in ("weight", "sample_weight") if name in options}
    function = getattr(losses if verb in LOSSES else functions, verb)
    result = function(*(placed[name] for name in POSITIONAL[verb]), **options | masks | numbers)
    found = [xb.to_numpy(part) for part in (result if isinstance(result, tuple) else (result,))]
    arithmetic = Arithmetic(dtype, xb.float64, xb.flushes_subnormals)
    wrong = []
    for got, exact in zip(found, expected((verb,), arrays, options)[verb], strict=True):
        wrong += judge(got, exact, arithmetic).failures
    told = {name: value for name, value in options.items() if not isinstance(value, np.ndarray)}
    return [f"seed {seed}, {verb} {dtype} {shape} {told}: {failure}" for failure in wrong]


def _shape(rng):
    ndim = int(rng.integers(1, 5))
    axis = int(rng.integers(-ndim, 0)) if rng.random() < 0.5 else -1
    classes = int(2 ** rng.uniform(0, 11))
    left = max(1, ELEMENTS // classes)
    sizes = []
    for _ in range(ndim - 1):
        sizes.append(int(rng.integers(1, max(2, min(9, left) + 1))))
        left //= sizes[-1]
    sizes.insert(ndim + axis, classes)
    return tuple(sizes), axis


def _problem(rng, verb, dtype, shape, axis):
    """Arrays and options as NumPy's."""
    rows, classes = max(1, int(np.prod(shape)) // shape[axis]), shape[axis]
    moved = [n for i, n in enumerate(shape, start=-len(shape)) if i != axis]
    options = {"axis": axis}

    def in_place(a):
        return np.moveaxis(a.reshape(*moved, classes), -1, axis)

    def draw(name):
        x = stress.logits(rng, dtype, rows, classes)
        return {
            "y": lambda: stress.probabilities(x, dtype),
            "log_y": lambda: stress.Row(x).log_y.astype(numpy_dtype(dtype)),
            "v": lambda: (rng.normal(size=x.shape) * 10.0 ** rng.uniform(-2, 2, (rows, 1))).astype(x.dtype),
            "targets": lambda: stress.targets(rng, x),
        }.get(name, lambda: x)()

    arrays = {name: draw(name) for name in POSITIONAL[verb]}
    if verb in LOSSES:
        _add_loss_options(rng, arrays, options, dtype, moved)
    elif (
        verb != "logsumexp"
        and verb in LIKE_LOGITS
        and rng.random() < 0.2
        and classes <= FEW
        and _are_moderate(arrays["x"])
    ):
        options["temperature"] = float(rng.choice([0.5, 0.7, 3.0]))
    arrays = {name: a.reshape(moved) if a.ndim == 1 else in_place(a) for name, a in arrays.items()}
    if rng.random() < 0.3:
        mask = in_place(rng.random((rows, classes)) < 0.8)
        options["where"] = mask[:1] if len(shape) > 1 and axis != -len(shape) and rng.random() < 0.3 else mask
    return arrays, options


def _are_moderate(x):
    """Beyond, the oracle's transformed logits differ from those rounded to the dtype of the arithmetic."""
    finite = np.abs(x[np.isfinite(x)].astype(np.float64))
    return finite.max(initial=0.0) < 1e15


def _add_loss_options(rng, arrays, options, dtype, moved):
    labels = arrays["targets"].ndim == 1
    classes = arrays["logits"].shape[1]
    options["reduction"] = str(rng.choice(["none", "sum", "mean"]))
    for name, size in (("weight", (classes,)), ("sample_weight", moved)):
        if rng.random() < 0.2:
            options[name] = rng.choice([0.0, 0.5, 1.0, 1.75], size, p=[0.1, 0.3, 0.3, 0.3]).astype(numpy_dtype(dtype))
    for name, value in {"label_smoothing": 0.1, "temperature": 0.7, "softcap": 30.0, "z_loss": 0.01}.items():
        if rng.random() < 0.12 and (
            name in ("label_smoothing", "z_loss") or (classes <= FEW and _are_moderate(arrays["logits"]))
        ):
            options[name] = value
    if labels and rng.random() < 0.2:
        options["ignore_index"] = int(rng.choice([-100, 0]))
        arrays["targets"] = np.where(
            rng.random(len(arrays["targets"])) < 0.2, options["ignore_index"], arrays["targets"]
        )


def arranged(xb, rng, a):
    """The values of `a` in memory with steps, gaps, another order of axes and a start anywhere."""
    kind = rng.random()
    if kind < 0.4 or a.ndim == 0:
        return xb.asarray(a)
    order = rng.permutation(a.ndim) if kind > 0.7 else np.arange(a.ndim)
    steps = rng.choice([1, 1, 1, 2, -1], a.ndim)
    starts = rng.integers(0, 4, a.ndim)
    sizes = [int(n * abs(step) + start) for n, step, start in zip(a.shape, steps, starts, strict=True)]
    base = xb.xp.zeros(tuple(sizes[i] for i in order), dtype=xb.asarray(a.reshape(-1)[:1]).dtype)
    view = xb.xp.permute_dims(base, tuple(int(i) for i in np.argsort(order)))
    view = view[tuple(slice(int(start), None, int(abs(step))) for start, step in zip(starts, steps, strict=True))]
    view = view[tuple(slice(0, n) for n in a.shape)]
    view = view[tuple(slice(None, None, -1 if step < 0 else 1) for step in steps)]
    view[...] = xb.asarray(a)
    return view
