"""Random problems: verbs of a family with arrays and options, that depend on a seed and a number alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from fuzz_values import FRACTIONS, labels, logits, probabilities, target_probabilities, vectors

from xsoftmax.verify.cases import FLOATS, INTEGERS, LABELS
from xsoftmax.verify.cases import POSITIONAL as BY_POSITION
from xsoftmax.verify.exact import Exact
from xsoftmax.verify.formats import promoted
from xsoftmax.verify.inputs import numpy_dtype
from xsoftmax.verify.oracle import FAMILIES, expected
from xsoftmax.verify.rows import AsRows

LINEAR = ("linear_cross_entropy", "linear_cross_entropy_and_grad")
VERBS = {family: LINEAR if family == "linear" else verbs for family, verbs in FAMILIES.items()}
SHARES = {
    "softmax": 0.22,
    "jacobian": 0.03,
    "softmax product": 0.09,
    "log_softmax product": 0.09,
    "cross_entropy": 0.37,
    "linear": 0.08,
    "from_probs": 0.05,
    "entropy": 0.02,
    "kl_divergence": 0.05,
}
# What compiles for each shape anew is given these, by one problem in four.
POOL = ((5,), (1, 1), (3, 4), (2, 33), (2, 3, 4))
TRANSFORMED = 30  # elements at most under a temperature or cap, whose allowance takes the oracle long
ORDINARY = 1e-6  # temperatures below make logits overflow
WITH_OUT = ("softmax", "log_softmax", "cross_entropy_grad", "cross_entropy_and_grad")
POSITIONAL = {**BY_POSITION, LINEAR[1]: BY_POSITION[LINEAR[0]]}


@dataclass(frozen=True)
class Head:
    """What a problem is about; cheap, so that those which nobody asked for cost nothing."""

    seed: int
    number: int

    @cached_property
    def _drawn(self) -> tuple[str, str]:
        rng = np.random.default_rng([self.seed, self.number, 0])
        family = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        dtype = str(rng.choice([*FLOATS, "integer"], p=[0.2, 0.2, 0.24, 0.32, 0.04]))
        return family, dtype

    @property
    def family(self) -> str:
        return self._drawn[0]

    @property
    def dtype(self) -> str:
        return self._drawn[1]

    @property
    def pooled(self) -> bool:
        return self.number % 4 == 0


@dataclass(eq=False)
class Problem:
    """Arrays and options as NumPy's; ``raises`` as in ``verify.cases.Case.error``, ``into`` what ``out`` is to be."""

    head: Head
    verbs: tuple[str, ...]
    arrays: dict[str, np.ndarray]
    options: dict[str, Any]
    raises: str = "never"
    into: str | None = None
    answers: dict[str, dict] = field(default_factory=dict)

    def exact(self, default_float: str) -> dict[str, tuple[Exact | None, ...]]:
        """The oracle's answers; where no array is an integer one they are the same whatever the default."""
        key = default_float if any(a.dtype.kind in "biu" for a in self.floats) else "float64"
        if key not in self.answers:
            family = self.head.family
            if family != "linear":
                self.answers[key] = expected(self.verbs, self.arrays, self.options, key)
            else:
                found = expected(FAMILIES[family], self.arrays, self.options, key)
                parts = [found[name][0] for name in FAMILIES[family]]
                bias = parts.pop() if "linear_bias" in self.options else None
                self.answers[key] = {LINEAR[0]: (parts[0],), LINEAR[1]: (*parts[:3], bias)}
        return self.answers[key]

    @property
    def floats(self) -> list[np.ndarray]:
        """What the dtype of the result follows from."""
        names = {"cross_entropy": ("logits",), "from_probs": ("probs",), "linear": ("input", "linear_weight")}
        chosen = [self.arrays[name] for name in names.get(self.head.family, tuple(self.arrays))]
        return chosen + [self.options[name] for name in ("b", "linear_bias") if self.options.get(name) is not None]

    def result_dtype(self, default_float: str) -> str:
        kinds = [default_float if a.dtype.kind in "biu" else a.dtype.name for a in self.floats]
        return promoted(*kinds)


def draw(head: Head) -> Problem:
    """The problem of a seed and a number."""
    rng = np.random.default_rng([head.seed, head.number, 1])
    make = {
        "softmax": _softmax,
        "jacobian": _jacobian,
        "softmax product": _product,
        "log_softmax product": _product,
        "cross_entropy": _loss,
        "linear": _linear,
        "from_probs": _from_probs,
        "entropy": _divergence,
        "kl_divergence": _divergence,
    }[head.family]
    with np.errstate(all="ignore"):
        return make(rng, head)


# ---------------------------------------------------------------------------------------------------------------------
# shapes


@dataclass(frozen=True)
class _Frame:
    """A shape with its class axes, as rows of classes."""

    shape: tuple[int, ...]
    axis: Any

    @property
    def by_rows(self) -> AsRows:
        return AsRows.of(self.shape, self.axis)

    @property
    def rows(self) -> int:
        return math.prod(self.by_rows.outer_shape)

    @property
    def classes(self) -> int:
        return math.prod(self.shape[a] for a in self.by_rows.axes)

    def join(self, rows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.by_rows.join(rows))

    def of_rows(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(self.by_rows.outer_shape)


def _frame(rng, head: Head, *, several: bool = False, most: int = 300, empty: bool = True) -> _Frame:
    """Mostly small; now and then empty, or with a long row."""
    if head.pooled:
        shape = POOL[rng.integers(len(POOL))]
        axis = int(rng.integers(-len(shape), len(shape))) if rng.random() < 0.3 else -1
        return _Frame(shape, axis)
    ndim = int(rng.choice([1, 2, 3, 4, 5], p=[0.15, 0.45, 0.2, 0.12, 0.08]))
    left = 10.0 ** rng.uniform(0, math.log10(most))
    axis = -1 if rng.random() < 0.5 else int(rng.integers(-ndim, 0))
    classes = _classes(rng, left)
    left /= classes
    sizes = []
    for _ in range(ndim - 1):
        sizes.append(int(rng.integers(1, max(1, min(9, int(left))) + 1)))
        left /= sizes[-1]
    sizes.insert(ndim + axis, classes)
    if empty and rng.random() < 0.03:
        sizes[rng.integers(ndim)] = 0
    if rng.random() < 0.5:
        axis += ndim
    if several and rng.random() < 0.25:
        axis = None if rng.random() < 0.3 else tuple(map(int, rng.permutation(ndim)[: rng.integers(0, ndim + 1)]))
        if isinstance(axis, tuple):
            axis = tuple(a - ndim if rng.random() < 0.5 else a for a in axis)
    return _Frame(tuple(sizes), axis)


def _classes(rng, left: float) -> int:
    kind = rng.random()
    if kind < 0.07:
        return 1
    if kind < 0.2:
        return 2
    return max(1, min(int(left), int(2 ** rng.uniform(1, 8.5))))


# ---------------------------------------------------------------------------------------------------------------------
# families


def _softmax(rng, head: Head) -> Problem:
    kind = rng.random()
    frame = _frame(rng, head, several=True, most=TRANSFORMED if 0.6 <= kind < 0.8 else 300)
    x = frame.join(logits(rng, head.dtype, frame.rows, frame.classes))
    options: dict[str, Any] = {"axis": frame.axis}
    if kind < 0.6:
        verbs: tuple[str, ...] = VERBS["softmax"]
    elif kind < 0.8:
        verbs = ("softmax", "log_softmax")
        options["temperature"] = _temperature(rng)
    else:
        verbs = ("logsumexp",)
        if rng.random() < 0.5:
            options["keepdims"] = bool(rng.random() < 0.5)
        if rng.random() < 0.5:
            options["return_sign"] = bool(rng.random() < 0.7)
        if rng.random() < 0.7 and x.size:
            x, options["b"], options["axis"] = _factors(rng, head, frame, x)
    if rng.random() < 0.3:
        whole = np.broadcast_shapes(x.shape, np.shape(options.get("b", 0)))
        options["where"] = _mask(rng, frame) if whole == frame.shape else _narrowed(rng, rng.random(whole) < 0.8)
    problem = Problem(head, _some(rng, verbs), {"x": x}, options)
    _into(rng, problem, x)
    return problem


def _factors(rng, head: Head, frame: _Frame, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
    """`x` and `b` that broadcast to the frame's shape, one of them or both in part."""
    shapes = [frame.shape, frame.shape]
    which = rng.integers(4)
    if which < 2:
        ones = tuple(1 if rng.random() < 0.4 else n for n in frame.shape)
        shapes[which] = ones[int(rng.integers(0, len(ones))) :] if rng.random() < 0.4 else ones
    index = tuple(slice(0, 1) if n == 1 else slice(None) for n in ((1,) * x.ndim + shapes[0])[-x.ndim :])
    x = x[index].reshape(shapes[0])
    axis = frame.axis if len(np.broadcast_shapes(*shapes)) == len(frame.shape) else None
    kind = rng.choice(["signed", "positive", "whole", "near"])
    size = shapes[1]
    if kind == "whole":
        b = rng.integers(-3, 4, size).astype(rng.choice(["int8", "int32", "int64"]))
    else:
        b = rng.normal(size=size) * 10.0 ** rng.uniform(-2, 2)
        b = np.abs(b) if kind == "positive" else np.sign(b) if kind == "near" else b
        b = np.where(rng.random(size) < 0.15, 0, b)
        own = head.dtype if head.dtype != "integer" and rng.random() < 0.8 else str(rng.choice(FLOATS))
        b = np.asarray(b).astype(numpy_dtype(own))
    if _cancels(x, b, axis):
        b = np.abs(b)
    return np.asarray(x), np.asarray(b), axis


def _cancels(x: np.ndarray, b: np.ndarray, axis: Any) -> bool:
    """Whether rounding decides on the sign of a sum."""
    x, b = np.broadcast_arrays(x.astype(np.longdouble), b.astype(np.longdouble))
    x = np.where(np.isfinite(x), x, -np.inf)
    terms = b * np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-1e4))
    return bool(np.any(np.abs(terms.sum(axis=axis)) < 1e-9 * np.abs(terms).sum(axis=axis)))


def _jacobian(rng, head: Head) -> Problem:
    frame = _frame(rng, head, most=24)
    y = frame.join(probabilities(rng, head.dtype, frame.rows, frame.classes))
    return Problem(head, VERBS["jacobian"], {"y": y}, {"axis": frame.axis})


def _product(rng, head: Head) -> Problem:
    frame = _frame(rng, head, several=True)
    name = "y" if head.family == "softmax product" else "log_y"
    y = frame.join(probabilities(rng, head.dtype, frame.rows, frame.classes, log=name == "log_y"))
    options: dict[str, Any] = {"axis": frame.axis}
    v = frame.join(vectors(rng, _like(rng, head), frame.rows, frame.classes))
    if rng.random() < 0.3:
        options["where"] = _mask(rng, frame)
        if rng.random() < 0.5 and v.dtype.kind not in "biu":
            v = np.where(np.broadcast_to(options["where"], v.shape), v, np.array(np.nan, v.dtype))
    return Problem(head, VERBS[head.family], {name: y, "v": v}, options)


def _loss(rng, head: Head) -> Problem:
    transforms = _transforms(rng)
    frame = _frame(rng, head, most=TRANSFORMED if transforms else 300)
    x = logits(rng, head.dtype, frame.rows, frame.classes)
    v = vectors(rng, _like(rng, head), frame.rows, frame.classes)
    arrays = {"logits": frame.join(x), "v": frame.join(v)}
    problem = Problem(head, _some(rng, VERBS["cross_entropy"], most=3), arrays, {"axis": frame.axis})
    _add_targets(rng, problem, frame, x)
    _add_loss_options(rng, problem, frame)
    problem.options |= transforms
    _into(rng, problem, arrays["logits"])
    return problem


def _from_probs(rng, head: Head) -> Problem:
    frame = _frame(rng, head)
    p = probabilities(rng, head.dtype, frame.rows, frame.classes)
    problem = Problem(head, VERBS["from_probs"], {"probs": frame.join(p)}, {"axis": frame.axis})
    _add_targets(rng, problem, frame, p)
    _add_loss_options(rng, problem, frame, of_logits=False)
    return problem


def _divergence(rng, head: Head) -> Problem:
    frame = _frame(rng, head)
    arrays = {"p": frame.join(probabilities(rng, head.dtype, frame.rows, frame.classes))}
    if head.family == "kl_divergence":
        dtype = _like(rng, head)
        if rng.random() < 0.3 and dtype != "integer":
            near = arrays["p"].astype(np.float64) * rng.uniform(0.45, 1.6, arrays["p"].shape)
            arrays["q"] = near.astype(numpy_dtype(dtype))
        else:
            arrays["q"] = frame.join(probabilities(rng, dtype, frame.rows, frame.classes))
    return Problem(head, VERBS[head.family], arrays, {"axis": frame.axis})


def _linear(rng, head: Head) -> Problem:
    """Logits that are exact in their dtype: whole numbers, or one factor a class that is a power of two."""
    dtype = "float32" if head.dtype == "integer" else head.dtype
    rows, width = int(rng.integers(0 if rng.random() < 0.1 else 1, 9)), int(rng.integers(1, 6))
    classes = int(2 ** rng.uniform(0, 5)) if rng.random() < 0.9 else int(rng.integers(100, 260))
    if head.pooled:
        rows, width, classes = 3, 2, 4
    whole = rng.random() < 0.5
    if whole:
        x, factor = rng.integers(-4, 5, (rows, width)), rng.integers(-3, 4, (classes, width))
    else:
        x = logits(rng, dtype, rows, width, calm=True).astype(np.float64)
        x = np.clip(x, -1e3, 1e3).astype(numpy_dtype(dtype)).astype(np.float64)
        factor = np.eye(width)[rng.integers(0, width, classes)] * 2.0 ** rng.integers(0, 3, (classes, 1))
    arrays = {"input": x, "linear_weight": factor}
    arrays = {name: a.astype(numpy_dtype(dtype)) for name, a in arrays.items()}
    options: dict[str, Any] = {"axis": -1}
    if rng.random() < 0.6:
        bias = rng.integers(-5, 6, classes) if whole else np.zeros(classes)
        options["linear_bias"] = bias.astype(numpy_dtype(dtype))
    sizes = [None, int(rng.integers(1, rows + 2)), int(rng.integers(1, classes + 2))]
    options["chunk_size"] = (None, sizes[1], (sizes[1], sizes[2]), (None, sizes[2]))[rng.integers(4)]
    frame = _Frame((rows, classes), -1)
    problem = Problem(head, LINEAR, arrays, options)
    z = arrays["input"].astype(np.float64) @ arrays["linear_weight"].astype(np.float64).T
    _add_targets(rng, problem, frame, z)
    _add_loss_options(rng, problem, frame)
    transforms = _transforms(rng) if classes < TRANSFORMED else {}
    options |= transforms
    if transforms.get("temperature", 1.0) < ORDINARY:  # an infinite gradient of logits is none of the input
        problem.verbs = LINEAR[:1]
    del options["axis"]
    return problem


# ---------------------------------------------------------------------------------------------------------------------
# options


def _some(rng, verbs: tuple[str, ...], most: int = 9) -> tuple[str, ...]:
    if len(verbs) <= most and rng.random() < 0.5:
        return verbs
    chosen = rng.choice(len(verbs), size=int(rng.integers(1, min(most, len(verbs)) + 1)), replace=False)
    return tuple(verb for i, verb in enumerate(verbs) if i in chosen)


def _like(rng, head: Head) -> str:
    """The dtype of a second array: mostly the first one's."""
    return head.dtype if rng.random() < 0.7 else str(rng.choice(FLOATS))


def _temperature(rng) -> float:
    kind = rng.random()
    if kind < 0.4:
        return float(rng.choice([0.25, 0.5, 2.0, 2.0**-20, 64.0]))
    if kind < 0.75:
        return float(rng.choice([0.7, 3.0, 1e-3, 1.5, 12.345]))
    return float(rng.choice([5e-324, 1e-310, 1e-300, 1e-45, 1e-38, 1e30, 2.0**1000, 1.7e308]))


def _transforms(rng) -> dict[str, float]:
    options = {}
    if rng.random() < 0.1:
        options["temperature"] = _temperature(rng)
    if rng.random() < 0.06 and options.get("temperature", 1.0) >= ORDINARY:  # the cap's rounding would overflow
        options["softcap"] = float(rng.choice([30.0, 1.0, 50.0, 0.125, 300.0, 1e4]))
    return options


def _mask(rng, frame: _Frame) -> np.ndarray:
    kept = rng.random((frame.rows, frame.classes)) < rng.choice([0.3, 0.8, 0.95])
    if rng.random() < 0.3 and kept.size:
        kept[rng.integers(frame.rows)] = False
    return _narrowed(rng, frame.join(kept))


def _narrowed(rng, mask: np.ndarray) -> np.ndarray:
    """Whole, or what broadcasts to it: fewer dimensions, ones, none."""
    kind = rng.random()
    if kind < 0.6 or 0 in mask.shape:
        return mask
    if kind < 0.7:
        return np.asarray(bool(rng.random() < 0.7))
    index = tuple(slice(0, 1) if rng.random() < 0.5 else slice(None) for _ in mask.shape)
    mask = mask[index]
    while mask.ndim and mask.shape[0] == 1 and rng.random() < 0.5:
        mask = mask[0]
    return np.array(mask)


def _add_targets(rng, problem: Problem, frame: _Frame, x: np.ndarray) -> None:
    """Labels of any integer dtype, one-hot rows of any dtype, probabilities."""
    kind = rng.random()
    dtype = "float32" if problem.head.dtype == "integer" else problem.head.dtype
    if kind < 0.55:
        values = labels(rng, x)
        fitting = [name for name in LABELS if np.iinfo(name).max >= max(frame.classes - 1, 0)]
        values = values.astype(rng.choice(fitting))
        problem.arrays["targets"] = frame.of_rows(values)
        return
    if kind < 0.7:
        one_hot = np.zeros((frame.rows, frame.classes))
        if frame.classes:
            one_hot[np.arange(frame.rows), labels(rng, x)] = 1
        name = str(rng.choice([*INTEGERS, *LABELS, dtype]))
        problem.arrays["targets"] = frame.join(one_hot.astype(numpy_dtype(name)))
        return
    problem.arrays["targets"] = frame.join(target_probabilities(rng, x, dtype))


def _happens(rng, often: float) -> bool:
    return bool(rng.random() < often)


def _add_loss_options(rng, problem: Problem, frame: _Frame, of_logits: bool = True) -> None:
    options, targets = problem.options, problem.arrays["targets"]
    often = float(rng.choice([0.0, 0.1, 0.3, 0.5]))
    options["reduction"] = str(rng.choice(["none", "sum", "mean"]))

    own = problem.head.dtype if problem.head.dtype != "integer" else "float32"
    kind = str(rng.choice([own, "float32", "float16"], p=[0.7, 0.2, 0.1]))
    if _happens(rng, often):
        options["sample_weight"] = frame.of_rows(
            rng.choice([0.0, -0.0, *FRACTIONS], frame.rows).astype(numpy_dtype(kind))
        )
    is_labels = targets.ndim < len(frame.shape)
    if of_logits and _happens(rng, often):
        options["label_smoothing"] = float(rng.choice([0.1, 0.25, 0.5, 0.9, 1e-3, 1.0]))
    if _happens(rng, often):
        weight = rng.choice([0.0, *FRACTIONS], frame.classes)
        if options.get("label_smoothing", 0.0) == 0 and frame.classes and rng.random() < 0.5:
            by_class = AsRows.of(frame.shape, frame.axis)
            named = np.zeros(frame.classes, bool)
            if is_labels:
                named[targets.reshape(-1)] = True
            else:
                named = (by_class.split(targets.astype(np.float64)) != 0).any(axis=0)
            weight = np.where(~named & (rng.random(frame.classes) < 0.7), rng.choice([np.inf, np.nan]), weight)
        options["weight"] = weight.astype(numpy_dtype(kind))
    if of_logits:
        if _happens(rng, often):
            options["where"] = _mask(rng, frame)
        if _happens(rng, often):
            options["z_loss"] = float(rng.choice([1e-4, 0.01, 0.5, 2.0]))
    if is_labels and _happens(rng, often) and targets.size:
        _ignore(rng, problem, frame)
    if is_labels and targets.size and rng.random() < 0.04:
        _put_out_of_range(rng, problem, frame)
    if frame.classes == 0:
        problem.raises = "always"


def _ignore(rng, problem: Problem, frame: _Frame) -> None:
    """A label of the dtype, or one that no label can be."""
    targets = problem.arrays["targets"]
    bounds = np.iinfo(targets.dtype)
    ignored = int(rng.choice([-100, 0, frame.classes - 1, 255]))
    if rng.random() < 0.2:
        ignored = int(rng.choice([2**31, -(2**31) - 1, 2**62])) * int(rng.choice([1, 2, 1000]))
    problem.options["ignore_index"] = ignored
    if bounds.min <= ignored <= bounds.max:
        targets[rng.random(targets.shape) < 0.3] = ignored


def _put_out_of_range(rng, problem: Problem, frame: _Frame) -> None:
    targets = problem.arrays["targets"]
    bounds = np.iinfo(targets.dtype)
    wrong = [v for v in (-1, frame.classes, -100, 2**63 + 1, bounds.max, bounds.min) if bounds.min <= v <= bounds.max]
    wrong = [v for v in wrong if not 0 <= v < frame.classes and v != problem.options.get("ignore_index")]
    if not wrong:
        return
    place = int(rng.integers(targets.size))
    targets.reshape(-1)[place] = wrong[rng.integers(len(wrong))]
    weight = problem.options.get("sample_weight")
    if weight is None or weight.reshape(-1)[place] != 0:
        problem.raises = "checked"


def _into(rng, problem: Problem, x: np.ndarray) -> None:
    if rng.random() < 0.25:
        problem.into = "input" if x.dtype.kind not in "biu" and rng.random() < 0.5 else "new"
