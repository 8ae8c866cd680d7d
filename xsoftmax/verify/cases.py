"""Named inputs for every verb, option and corner. Cases are data: what to call, and with what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from ..calls.table import VERBS as TABLE
from .inputs import BLOCKS, CLASSES, ROWS, SHAPE, block, generator, numpy_dtype
from .oracle import FAMILIES

FLOATS = ("float16", "bfloat16", "float32", "float64")
DTYPES = (*FLOATS, "integer")
INTEGERS = ("bool", "int8", "uint8", "int16", "int32", "int64")
LABELS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
VERBS = tuple(verb for family in FAMILIES.values() for verb in family)
LOSSES = FAMILIES["cross_entropy"]

POSITIONAL = {verb: TABLE[verb.partition(".")[0]].arrays for verb in VERBS}


@dataclass(frozen=True, eq=False)
class Case:
    """Inputs on which verbs of one family are called.

    ``error`` says what must come instead of a result: ``"never"``, ``"always"`` a ValueError, or ``"checked"``: a
    ValueError where the backend checks labels, the results elsewhere.
    """

    name: str
    dtype: str
    verbs: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]
    options: Mapping[str, object] = field(default_factory=dict)
    error: str = "never"


@cache
def cases(dtype: str) -> tuple[Case, ...]:
    """All cases of a dtype; ``"integer"`` stands for every integer dtype and bool."""
    if dtype == "integer":
        return tuple(_integers())
    return (
        *_softmax(dtype),
        *_logsumexp(dtype),
        *_products(dtype),
        *_labels(dtype),
        *_losses(dtype),
        *_linear(dtype),
        *_probabilities(dtype),
        *_long(dtype),
    )


def _reals(name: str, dtype: str, shape=SHAPE, scale: float = 1.0) -> np.ndarray:
    return (scale * generator(f"{name} {dtype} {shape}").normal(size=shape)).astype(numpy_dtype(dtype))


def _mask(name: str, shape=SHAPE) -> np.ndarray:
    return generator(f"mask {name}").random(shape) < 0.7


def _softmax(dtype: str) -> Iterator[Case]:
    family = FAMILIES["softmax"]
    for name in BLOCKS:
        yield Case(name, dtype, family, {"x": block(name, dtype)})
    mask = _mask("softmax")
    mask[:3] = [False] * CLASSES, [True] * CLASSES, [True] + [False] * (CLASSES - 1)
    hidden = block("specials", dtype)
    yield Case("where", dtype, family, {"x": block("mixed", dtype)}, {"where": mask})
    # what is masked may hold anything: rows 0–5 lose their nan and +inf, row 6 is all −inf with some of it kept
    yield Case("where hides specials", dtype, family, {"x": hidden}, {"where": mask & ~np.isnan(hidden)})
    yield Case("where over classes", dtype, family, {"x": hidden}, {"where": mask[4]})
    flat, cube = _reals("flat", dtype, (CLASSES, ROWS), 4), _reals("cube", dtype, (2, 6, 12), 20)
    yield Case("axis 0", dtype, family, {"x": flat}, {"axis": 0})
    yield Case("axis 0 where", dtype, family, {"x": flat}, {"axis": 0, "where": mask.T})
    for axis in (1, -2, (0, 2), (-1, 0), None):
        yield Case(f"axis {axis}", dtype, family, {"x": cube}, {"axis": axis})
    yield Case("axis (0, 2) where", dtype, family, {"x": cube}, {"axis": (0, 2), "where": _mask("cube", cube.shape)})
    for value in (0.5, -np.inf, np.nan):
        yield Case(f"0-d {value}", dtype, ("logsumexp",), {"x": _scalar(value, dtype)}, {"axis": None})
    yield Case("0-d", dtype, family, {"x": _scalar(-3.25, dtype)}, {"axis": None})
    yield Case("one class", dtype, family, {"x": _reals("one", dtype, (ROWS, 1), 50)})
    yield Case("two classes", dtype, family, {"x": _reals("two", dtype, (ROWS, 2), 12)})
    yield Case("1000 classes", dtype, family, {"x": _reals("many", dtype, (6, 1000), 3)})
    yield Case("no rows", dtype, family, {"x": np.empty((0, CLASSES), numpy_dtype(dtype))})
    yield Case("no classes", dtype, family, {"x": np.empty((4, 0), numpy_dtype(dtype))})
    for temperature in (0.25, 2.0, 0.7, 3.0):
        options: dict[str, Any] = {"temperature": temperature}
        yield Case(f"temperature {temperature}", dtype, family[:2], {"x": block("mixed", dtype)}, options)
    yield Case("temperature specials", dtype, family[:2], {"x": hidden}, {"temperature": 0.7})
    options = {"temperature": 0.7, "where": mask}
    yield Case("temperature where", dtype, family[:2], {"x": block("mixed", dtype)}, options)


def _scalar(value: float, dtype: str) -> np.ndarray:
    return np.asarray(value, numpy_dtype(dtype))


def _logsumexp(dtype: str) -> Iterator[Case]:
    verbs = ("logsumexp",)
    x, specials, b = block("mixed", dtype), block("specials", dtype), np.abs(_reals("b", dtype))
    signed = _reals("signed b", dtype)
    yield Case("keepdims", dtype, verbs, {"x": x}, {"keepdims": True})
    yield Case("keepdims axis (0, 2)", dtype, verbs, {"x": _reals("cube", dtype, (2, 6, 12), 20)}, _cube_options())
    yield Case("return_sign", dtype, verbs, {"x": specials}, {"return_sign": True})
    # log S cancels the maximum: the bound is in ulps of the larger of the two
    uniform = np.full(SHAPE, -np.log(CLASSES)) + 1e-3 * generator("cancelling").normal(size=SHAPE)
    yield Case("cancelling", dtype, verbs, {"x": uniform.astype(numpy_dtype(dtype))})
    yield Case("b", dtype, verbs, {"x": x}, {"b": b})
    zeros = np.where(np.isfinite(specials), b, 0).astype(b.dtype)
    yield Case("b hides", dtype, verbs, {"x": specials}, {"b": zeros})
    yield Case("b specials", dtype, verbs, {"x": specials}, {"b": b, "return_sign": True})
    yield Case("b signed", dtype, verbs, {"x": block("ordinary", dtype)}, {"b": signed, "return_sign": True})
    yield Case("b signed, no sign", dtype, verbs, {"x": block("ordinary", dtype)}, {"b": signed})
    yield Case("b over classes", dtype, verbs, {"x": x}, {"b": b[0], "where": _mask("b")})
    yield Case("x over classes", dtype, verbs, {"x": x[0]}, {"b": b, "axis": -1, "keepdims": True})
    even = np.repeat(np.array([[1.0, -1, 2, -2, 0, 0]]), ROWS, axis=0).astype(b.dtype)
    yield Case("b adds up to 0", dtype, verbs, {"x": np.zeros(SHAPE, b.dtype)}, {"b": even, "return_sign": True})
    near = {"x": np.array([[0, -85], [0, -40], [0, 0], [-3, 0]], b.dtype)}
    signs = np.array([[-1, 1], [1, -1], [-2, 1], [1, -1]], b.dtype)
    yield Case("b near 1 and −1", dtype, verbs, near, {"b": signs, "return_sign": True})
    if dtype == "float64":
        yield Case("b integer", dtype, verbs, {"x": x}, {"b": np.arange(CLASSES, dtype=np.int32)})


def _cube_options() -> dict:
    return {"axis": (0, 2), "keepdims": True}


def _reference_log_softmax(x: np.ndarray) -> np.ndarray:
    """Log-probabilities as inputs: any rounding of them is as good an input."""
    x = x.astype(np.float64)
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def _products(dtype: str) -> Iterator[Case]:
    softmax, log_softmax = FAMILIES["softmax product"], FAMILIES["log_softmax product"]
    v = _reals("cotangent", dtype, scale=3)
    for name in ("ordinary", "margins", "wide", "ties"):
        log_y = _reference_log_softmax(block(name, dtype))
        with np.errstate(under="ignore"):
            y = _normal(np.exp(log_y), dtype)
        log_y = log_y.astype(y.dtype)
        yield Case(f"{name} products", dtype, softmax, {"y": y, "v": v})
        yield Case(f"{name} products", dtype, log_softmax, {"log_y": log_y, "v": v})
        yield Case(f"{name} jacobian", dtype, ("softmax_jacobian",), {"y": y})
    yield from _confident(dtype)
    mask = _mask("products")
    mask[:2] = [False] * CLASSES, [True] * CLASSES
    kept = np.where(mask, block("mixed", dtype).astype(np.float64), -np.inf)
    kept[0] = 0
    log_y = np.where(mask, _reference_log_softmax(kept), -np.inf)
    hidden = np.where(mask, v, np.nan).astype(v.dtype)
    options = {"where": mask}
    yield Case("products where", dtype, softmax, {"y": _normal(np.exp(log_y), dtype), "v": hidden}, options)
    yield Case("products where", dtype, log_softmax, {"log_y": log_y.astype(v.dtype), "v": hidden}, options)
    flat, w = _reference_log_softmax(_reals("flat", dtype, (ROWS, CLASSES), 4)).T, _reals("w", dtype, (CLASSES, ROWS))
    yield Case("products axis 0", dtype, softmax, {"y": _normal(np.exp(flat), dtype), "v": w}, {"axis": 0})
    yield Case("products axis 0", dtype, log_softmax, {"log_y": flat.astype(w.dtype), "v": w}, {"axis": 0})
    yield Case("jacobian axis 0", dtype, ("softmax_jacobian",), {"y": _normal(np.exp(flat), dtype)}, {"axis": 0})
    cube, u = _reals("cube", dtype, (12, 12), 4).astype(np.float64), _reals("u", dtype, (2, 6, 12))
    joint = _reference_log_softmax(cube).reshape(2, 6, 12)
    yield Case("products axis (0, 2)", dtype, softmax, *_joint("y", np.exp(joint), u, (0, 2)))
    yield Case("products axis None", dtype, log_softmax, *_joint("log_y", joint - np.log(12), u, None))


def _confident(dtype: str) -> Iterator[Case]:
    """One class at 1 but for e^−margin, to −∞ at the others; and log-probabilities whose sum is not 1."""
    verbs, rng = FAMILIES["log_softmax product"], generator("confident")
    x = rng.normal(size=SHAPE)
    x[np.arange(ROWS), rng.integers(CLASSES, size=ROWS)] += np.linspace(0, 100, ROWS)
    log_y = _reference_log_softmax(x).astype(numpy_dtype(dtype))
    for name, v in (
        ("confident", np.eye(CLASSES)[np.argmax(x, axis=1)]),
        ("confident, signed", rng.normal(size=SHAPE)),
    ):
        yield Case(f"{name} products", dtype, verbs, {"log_y": log_y, "v": v.astype(log_y.dtype)})
    off = np.array(
        [[-0.1, -0.2, -3, -30, -np.inf, -40], [0.25, -1, -2, -np.inf, -9, -9], [-1e-4, -0.7, -0.7, -1, -1, 0]]
    )
    arrays = {"log_y": off.astype(log_y.dtype), "v": rng.normal(size=off.shape).astype(log_y.dtype)}
    yield Case("products off the simplex", dtype, verbs, arrays)


def _joint(name: str, y: np.ndarray, v: np.ndarray, axis) -> tuple[dict, dict]:
    return {name: (y / 2 if name == "y" else y).astype(v.dtype), "v": v}, {"axis": axis}


def _normal(y: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded, without subnormal numbers: some backends read those as 0."""
    y = y.astype(numpy_dtype(dtype))
    tiny = {"float16": 2.0**-14, "float64": 2.0**-1022}.get(dtype, 2.0**-126)
    return np.where(y.astype(np.float64) < tiny, np.zeros((), y.dtype), y)


def _targets(name: str, x: np.ndarray) -> np.ndarray:
    """Labels: the argmax on even rows, any on odd ones."""
    labels = generator(f"labels {name}").integers(0, x.shape[-1], x.shape[0])
    return np.where(np.arange(x.shape[0]) % 2 == 0, np.argmax(x.astype(np.float64), axis=-1), labels)


def _losses(dtype: str) -> Iterator[Case]:
    """Losses of integer and of probability targets under every option."""
    none, v = {"reduction": "none"}, _reals("direction", dtype)
    for name in BLOCKS:
        x = block(name, dtype)
        yield Case(name, dtype, LOSSES, {"logits": x, "targets": _targets(name, x), "v": v}, none)
        if name != "offsets":
            for kind, targets in _soft_targets(name, x).items():
                yield Case(f"{name}, {kind}", dtype, LOSSES, {"logits": x, "targets": targets, "v": v}, none)
    x = block("mixed", dtype)
    labels, soft = _targets("mixed", x), _soft_targets("mixed", x)["probabilities"]
    for name, options in _loss_options(dtype).items():
        yield Case(name, dtype, LOSSES, {"logits": x, "targets": labels, "v": v}, options)
        if "ignore" not in name:
            yield Case(f"{name}, probabilities", dtype, LOSSES, {"logits": x, "targets": soft, "v": v}, options)
    one_hot = np.eye(CLASSES, dtype=np.int32)[labels]
    yield Case("integer one-hot", dtype, LOSSES, {"logits": x, "targets": one_hot, "v": v}, none)
    yield from _absent_rows(dtype, v)
    yield from _loss_shapes(dtype)


def _linear(dtype: str) -> Iterator[Case]:
    """Whole numbers, and one factor for each class that is a power of two: no product for the logits rounds."""
    verbs, rng = FAMILIES["linear"], generator("linear")
    whole = {"input": rng.integers(-4, 5, SHAPE), "linear_weight": rng.integers(-3, 4, (7, CLASSES))}
    whole = {name: a.astype(numpy_dtype(dtype)) for name, a in whole.items()}
    labels = {"targets": rng.integers(7, size=ROWS)}
    soft = {"targets": rng.dirichlet(np.ones(7), size=ROWS).astype(numpy_dtype(dtype))}
    bias, sample_weight = np.arange(7), np.resize([0.5, 1, 2, 0, 1.25], ROWS)
    options = {"linear_bias": bias.astype(numpy_dtype(dtype)), "chunk_size": (7, 3)}
    yield Case("linear, whole numbers", dtype, verbs, {**whole, **labels}, options)
    options = {**options, "sample_weight": sample_weight.astype(numpy_dtype(dtype)), "z_loss": 0.5}
    yield Case("linear, whole numbers, probabilities", dtype, verbs, {**whole, **soft}, options)
    x = block("margins", dtype)
    factor = np.eye(CLASSES)[::-1] * 2.0 ** np.array([0, 1, 0, 1, 0, 1])[:, None]
    single = {"input": x, "linear_weight": factor.astype(x.dtype), "targets": np.arange(ROWS) % CLASSES}
    for size in (None, (5, 1)):
        options = {"linear_bias": np.zeros(CLASSES, x.dtype), "chunk_size": size, "reduction": "none"}
        yield Case(f"linear, margins, chunks of {size}", dtype, verbs, single, options)


def _soft_targets(name: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """One-hot, and general ones with zeros at −inf logits."""
    labels = _targets(name, x)
    q = generator(f"targets {name}").dirichlet(np.full(CLASSES, 0.5), ROWS) * np.linspace(0.5, 2, ROWS)[:, None]
    q = np.where(np.isneginf(x.astype(np.float64)) | (q < 0.01), 0, q)
    return {"one-hot": np.eye(CLASSES)[labels].astype(x.dtype), "probabilities": q.astype(x.dtype)}


def _loss_options(dtype: str) -> dict[str, dict]:
    weight = np.linspace(0.25, 2, CLASSES).astype(numpy_dtype(dtype))
    partly = np.where(np.arange(CLASSES) == 2, 0, weight).astype(weight.dtype)
    sample_weight = np.resize([0.5, 1, 2, 0, 1.25], ROWS).astype(weight.dtype)
    mask = _mask("losses")
    mask[3] = False
    return {
        "mean": {},
        "sum": {"reduction": "sum"},
        "weight": {"weight": weight, "reduction": "none"},
        "weight mean": {"weight": partly},
        "sample_weight": {"sample_weight": sample_weight, "reduction": "none"},
        "weight sample_weight mean": {"weight": weight, "sample_weight": sample_weight},
        "ignore_index": {"ignore_index": 1, "reduction": "none"},
        "ignore_index weight mean": {"ignore_index": 4, "weight": weight},
        "label_smoothing": {"label_smoothing": 0.1, "reduction": "none"},
        "label_smoothing weight mean": {"label_smoothing": 0.25, "weight": partly},
        "where": {"where": mask, "reduction": "none"},
        "where label_smoothing sum": {"where": mask | _kept_targets(dtype), "label_smoothing": 0.1, "reduction": "sum"},
        "temperature": {"temperature": 2.0, "reduction": "none"},
        "temperature 0.7": {"temperature": 0.7, "reduction": "none"},
        "softcap": {"softcap": 30.0, "reduction": "none"},
        "z_loss": {"z_loss": 0.01, "reduction": "none"},
        "z_loss weight sample_weight mean": {"z_loss": 0.5, "weight": weight, "sample_weight": sample_weight},
        "everything": {
            "where": mask | _kept_targets(dtype),
            "weight": weight,
            "sample_weight": sample_weight,
            "label_smoothing": 0.1,
            "temperature": 0.7,
            "softcap": 20.0,
            "z_loss": 0.01,
        },
        "everything but ignore_index": {
            "ignore_index": 2,
            "weight": weight,
            "label_smoothing": 0.1,
            "softcap": 50.0,
            "z_loss": 0.01,
        },
    }


def _kept_targets(dtype: str) -> np.ndarray:
    return np.eye(CLASSES, dtype=bool)[_targets("mixed", block("mixed", dtype))]


def _absent_rows(dtype: str, v: np.ndarray) -> Iterator[Case]:
    """Rows of nan and infinities taken out of the mean; means of nothing."""
    x = block("specials", dtype)
    labels = _targets("specials", x)
    finite = np.isfinite(x.astype(np.float64)).all(axis=-1)
    ignored = {"logits": x, "targets": np.where(finite, labels, -100), "v": v}
    yield Case("ignored specials mean", dtype, LOSSES, ignored, {"ignore_index": -100})
    present = finite.astype(x.dtype)
    weightless = {"logits": x, "targets": np.where(finite, labels, CLASSES + 3), "v": v}
    yield Case("weightless specials mean", dtype, LOSSES, weightless, {"sample_weight": present})
    nothing = {"logits": x, "targets": np.full(ROWS, -100), "v": v}
    for reduction in ("mean", "sum"):
        options: dict[str, Any] = {"ignore_index": -100, "reduction": reduction}
        yield Case(f"all ignored {reduction}", dtype, LOSSES, nothing, options)
    inside = {"logits": x, "targets": labels, "v": v}
    options = {"where": ~np.isnan(x.astype(np.float64)), "reduction": "none"}
    yield Case("where hides nan", dtype, LOSSES, inside, options)
    smoothed = np.isfinite(x.astype(np.float64))
    options = {"where": smoothed, "label_smoothing": 0.1, "reduction": "none"}
    yield Case("where label_smoothing specials", dtype, LOSSES, inside, options)
    yield Case("label_smoothing specials", dtype, LOSSES, inside, {"label_smoothing": 0.1, "reduction": "none"})


def _loss_shapes(dtype: str) -> Iterator[Case]:
    none = {"reduction": "none"}
    weight = np.linspace(0.25, 2, CLASSES).astype(numpy_dtype(dtype))
    flat, cube = _reals("flat", dtype, (CLASSES, ROWS), 4), _reals("cube", dtype, (2, 6, 12), 10)
    directions = _reals("v", dtype, flat.shape), _reals("v", dtype, cube.shape)
    rng = generator("labels of shapes")
    labels = rng.integers(0, CLASSES, ROWS), rng.integers(0, CLASSES, (2, 12))
    arrays = {"logits": flat, "targets": labels[0], "v": directions[0]}
    yield Case("axis 0", dtype, LOSSES, arrays, {"axis": 0, **none})
    arrays = {"logits": cube, "targets": labels[1], "v": directions[1]}
    options = {"weight": weight, "sample_weight": np.abs(_reals("s", dtype, (2, 12))), "label_smoothing": 0.1}
    yield Case("axis 1", dtype, LOSSES, arrays, {"axis": 1, **none})
    yield Case("axis 1 weight sample_weight mean", dtype, LOSSES, arrays, {"axis": 1, **options})
    arrays = {**arrays, "targets": np.abs(_reals("q", dtype, cube.shape))}
    options = {"axis": -2, "where": _mask("cube", cube.shape), "weight": weight, "reduction": "sum"}
    yield Case("axis -2 where probabilities", dtype, LOSSES, arrays, options)
    row = {"logits": flat[:, 0], "targets": np.asarray(3), "v": directions[0][:, 0]}
    yield Case("one row", dtype, LOSSES, row, {})
    pairs = _reals("two", dtype, (ROWS, 2), 12)
    arrays = {"logits": pairs, "targets": _targets("two", pairs), "v": _reals("v", dtype, pairs.shape)}
    yield Case("two classes", dtype, LOSSES, arrays, none)
    many = _reals("many", dtype, (6, 1000), 3)
    arrays = {"logits": many, "targets": _targets("many", many), "v": _reals("v", dtype, many.shape)}
    yield Case("1000 classes", dtype, LOSSES, arrays, none)
    # a sum that rounds after every term drifts from the sum of the gradient's other entries
    sums = np.array([[703, 709, 689, 698, 707, 690, 698, 688, 703], [-12, -2, -6, -12, -12, 0, -6, -np.inf, -np.inf]])
    arrays = {"logits": sums.astype(flat.dtype), "targets": np.array([1, 5])}
    yield Case("row sums", dtype, ("cross_entropy_grad",), arrays, none)
    single = _reals("one", dtype, (ROWS, 1), 50)
    arrays = {"logits": single, "targets": np.zeros(ROWS, np.int64), "v": _reals("v", dtype, single.shape)}
    yield Case("one class", dtype, LOSSES, arrays, none)
    for reduction in ("none", "mean", "sum"):
        empty = {name: np.empty((0, CLASSES), numpy_dtype(dtype)) for name in ("logits", "v")}
        arrays = {**empty, "targets": np.empty(0, np.int64)}
        yield Case(f"no rows {reduction}", dtype, LOSSES, arrays, {"reduction": reduction})
    empty = {name: np.empty((4, 0), numpy_dtype(dtype)) for name in ("logits", "v")}
    yield Case("no classes", dtype, LOSSES, {**empty, "targets": np.zeros(4, np.int64)}, {}, "always")


def _labels(dtype: str) -> Iterator[Case]:
    """Label dtypes, also where the number of classes does not fit them; labels out of range."""
    verbs, none = ("cross_entropy_and_grad",), {"reduction": "none"}
    x, wide = block("ordinary", dtype), _reals("wide", dtype, (4, 300), 3)
    labels = _targets("ordinary", x)
    if dtype in ("float32", "float64"):
        for kind in LABELS:
            yield Case(f"{kind} labels", dtype, verbs, {"logits": x, "targets": labels.astype(kind)}, none)
            top = min(np.iinfo(kind).max, 299)
            fits = np.array([0, top, top // 2, 100]).astype(kind)
            yield Case(f"{kind} labels of 300", dtype, verbs, {"logits": wide, "targets": fits}, none)
    bad: dict[str, Any] = {"-1": np.int64(-1), "C": np.int64(CLASSES), "-100": np.int8(-100)}
    bad["huge"] = np.uint64(2**63 + 1)
    for name, label in bad.items():
        targets = labels.astype(label.dtype)
        targets[[0, 7]] = label
        arrays = {"logits": x, "targets": targets, "v": _reals("direction", dtype)}
        for reduction in ("none", "mean"):
            options = {"reduction": reduction}
            yield Case(f"label {name} {reduction}", dtype, LOSSES, arrays, options, "checked")


def _probabilities(dtype: str) -> Iterator[Case]:
    """Losses, entropies and divergences of probabilities."""
    log_p = {name: _reference_log_softmax(block(name, dtype)) for name in ("ordinary", "margins", "wide", "mixed")}
    p = {name: _normal(np.exp(a), dtype) for name, a in log_p.items()}
    corners = np.array(p["ordinary"])
    corners[:4] = np.eye(4, CLASSES)
    corners[4, :3], corners[5], corners[6] = 0, 0, 1 / CLASSES
    p["corners"] = corners
    weight = np.linspace(0.25, 2, CLASSES).astype(corners.dtype)
    sample_weight = np.resize([0.5, 1, 2, 0, 1.25], ROWS).astype(corners.dtype)
    verbs, none = ("cross_entropy_from_probs",), {"reduction": "none"}
    for name, probs in p.items():
        labels, soft = _targets(name, probs), _soft_targets(name, probs)["probabilities"]
        yield Case(f"{name} probs", dtype, verbs, {"probs": probs, "targets": labels}, none)
        yield Case(f"{name} probs, probabilities", dtype, verbs, {"probs": probs, "targets": soft}, none)
        yield Case(f"{name} entropy", dtype, ("entropy",), {"p": probs})
        yield Case(f"{name} divergence", dtype, ("kl_divergence",), {"p": probs, "q": p["ordinary"][::-1].copy()})
        yield Case(f"{name} divergence to it", dtype, ("kl_divergence",), {"p": p["ordinary"], "q": probs})
    ratios = (p["ordinary"].astype(np.float64) * np.linspace(0.45, 1.6, ROWS)[:, None]).astype(corners.dtype)
    yield Case("close divergence", dtype, ("kl_divergence",), {"p": ratios, "q": p["ordinary"]})
    probs, labels = p["mixed"], _targets("from probs", p["mixed"])
    kept = _targets("mixed", block("mixed", dtype))
    variants: dict[str, dict[str, Any]] = {
        "mean": {},
        "sum": {"reduction": "sum"},
        "weight": {"weight": weight, "reduction": "none"},
        "weight sample_weight mean": {"weight": weight, "sample_weight": sample_weight},
        "ignore_index mean": {"ignore_index": 1, "weight": weight},
    }
    for name, options in variants.items():
        yield Case(f"{name} probs", dtype, verbs, {"probs": p["ordinary"], "targets": labels}, options)
        if "ignore" not in name:
            soft = _soft_targets("from probs", probs)["probabilities"]
            yield Case(f"{name} probs, probabilities", dtype, verbs, {"probs": p["ordinary"], "targets": soft}, options)
    yield Case("confident probs mean", dtype, verbs, {"probs": p["margins"], "targets": kept}, {})
    flat = np.ascontiguousarray(p["ordinary"].T)
    yield Case("axis 0 probs", dtype, verbs, {"probs": flat, "targets": labels}, {"axis": 0, **none})
    yield Case("axis 0 entropy", dtype, ("entropy",), {"p": flat}, {"axis": 0})
    yield Case("axis 0 divergence", dtype, ("kl_divergence",), {"p": flat, "q": flat[:, ::-1].copy()}, {"axis": 0})


def _long(dtype: str) -> Iterator[Case]:
    """Long rows, by run length: drifting and stagnating sums, sums of terms that underflow, on both axes."""
    classes = 2**17 if dtype in ("float16", "bfloat16") else 2**20
    tail = {"float16": -15.0, "bfloat16": -104.5, "float32": -104.5, "float64": -745.5}[dtype]
    rows = np.full((2, classes), [[-0.7], [tail]])
    rows[:, 0] = 0.0
    rows = rows.astype(numpy_dtype(dtype))
    levels = _reals("levels", dtype, 37, 2)
    columns = levels[generator("long columns").integers(0, 37, (classes, 2))]
    loss, none = ("cross_entropy_and_grad",), {"reduction": "none"}
    yield Case("long rows", dtype, FAMILIES["softmax"], {"x": rows})
    yield Case("long columns", dtype, FAMILIES["softmax"], {"x": columns}, {"axis": 0})
    yield Case("long rows", dtype, loss, {"logits": rows, "targets": np.array([0, 0])}, none)
    yield Case("long columns", dtype, loss, {"logits": columns, "targets": np.array([5, 9])}, {"axis": 0, **none})


def _integers() -> Iterator[Case]:
    """Integer and bool logits: converted before anything wraps around."""
    for kind in INTEGERS:
        rng = generator(f"integers {kind}")
        if kind == "bool":
            x = rng.random(SHAPE) < 0.5
        else:
            low, high = max(np.iinfo(kind).min, -300), min(np.iinfo(kind).max, 300)
            x = rng.integers(low, high, SHAPE, endpoint=True).astype(kind)
            x[0, :2] = low, high
        yield Case(kind, "integer", FAMILIES["softmax"], {"x": x})
        labels = {"logits": x, "targets": _targets(kind, x)}
        loss = ("cross_entropy_and_grad",)
        yield Case(kind, "integer", loss, labels, {"reduction": "none"})
        one_hot = {"logits": x, "targets": np.eye(CLASSES, dtype=np.int64)[labels["targets"]]}
        yield Case(f"{kind}, integer one-hot", "integer", loss, one_hot, {})
