"""Values of random problems, as rows of classes: logits that are hard to get right, probabilities, targets, vectors."""

from __future__ import annotations

import math

import numpy as np

from xsoftmax.verify.cases import INTEGERS
from xsoftmax.verify.formats import FORMATS
from xsoftmax.verify.inputs import numpy_dtype

FRACTIONS = (0.25, 0.5, 1.0, 1.75, 3.0, 2.0**-10)  # exact in every dtype

CALM = ("normal", "normal", "offset", "ties", "equal", "margin", "tail", "zones", "neighbours", "few")
WILD = ("nan", "inf", "minus inf", "all minus inf", "huge", "subnormal")


def logits(rng: np.random.Generator, dtype: str, rows: int, classes: int, calm: bool | None = None) -> np.ndarray:
    """Each row of a kind of its own; wild ones in some problems, for a nan would hide a whole mean."""
    if dtype == "integer":
        return _whole(rng, rows, classes)
    if calm is None:
        calm = bool(rng.random() < 0.65)
    kinds = CALM if calm else CALM[::2] + WILD
    x = np.empty((rows, classes))
    for i in range(rows):
        x[i] = _ROWS[str(rng.choice(kinds))](rng, dtype, classes) if classes else 0.0
    limit = _largest(dtype)
    return np.where(np.isfinite(x), np.clip(x, -limit, limit), x).astype(numpy_dtype(dtype))


def _largest(dtype: str) -> float:
    form = FORMATS[dtype]
    return math.ldexp(2 - 2.0 ** (1 - form.digits), form.highest)


def _whole(rng, rows, classes):
    kind = str(rng.choice(INTEGERS))
    if kind == "bool":
        return rng.random((rows, classes)) < 0.5
    low, high = max(np.iinfo(kind).min, -300), min(np.iinfo(kind).max, 300)
    x = rng.integers(low, high, (rows, classes), endpoint=True)
    return (x // int(rng.choice([1, 10, 40]))).astype(kind)


def _underflow(dtype: str) -> float:
    return {"float16": 17.0, "float64": 746.0}.get(dtype, 104.0)


def _normal(rng, dtype, n):
    return rng.normal(size=n) * 10.0 ** rng.uniform(-3, 2.5)


def _offset(rng, dtype, n):
    far = 5 if dtype != "float16" else 4
    return _normal(rng, dtype, n) + rng.choice([-1, 1]) * 10.0 ** rng.uniform(0, far if rng.random() < 0.7 else 30)


def _ties(rng, dtype, n):
    return np.round(rng.normal(size=n) * rng.choice([0.5, 1, 5])) + rng.choice([0.0, 7.25, -80.0])


def _equal(rng, dtype, n):
    return np.full(n, rng.normal() * 10.0 ** rng.uniform(-3, 3))


def _margin(rng, dtype, n):
    x = rng.normal(size=n)
    x[rng.integers(n)] = x.max() + rng.uniform(0, 1.05 * _underflow(dtype))
    return x - (x.max() * rng.uniform(0, 2) if rng.random() < 0.5 else 0)


def _tail(rng, dtype, n):
    x = rng.uniform(-1.5, 6, n) - _underflow(dtype)
    x[rng.integers(n)] = 0
    return x + rng.choice([0.0, 0.5, -0.75, 3.0, -20.0])


def _zones(rng, dtype, n):
    over, under = 709.0 if dtype == "float64" else 88.0, _underflow(dtype)
    top = rng.choice([0, 2.0**-20, -0.5, over - 8, over - 1, over, over + 0.5, 2 * under, -over, -2 * under])
    x = top - np.abs(rng.normal(size=n)) * rng.choice([1, 10, 30])
    x[rng.integers(n)] = top
    return x


def _neighbours(rng, dtype, n):
    ulp = 2.0 ** (1 - FORMATS[dtype].digits)
    return rng.choice([1.5, -1.5, 24.0, -48.0, 0.75]) * (1 + ulp * rng.integers(-1, 2, n))


def _few(rng, dtype, n):
    return rng.choice(rng.normal(size=3) * 10.0 ** rng.uniform(-1, 2), n)


def _put(value):
    def make(rng, dtype, n):
        x = rng.normal(size=n) * 3
        x[rng.random(n) < 0.3] = value
        x[rng.integers(n)] = value
        return x

    return make


def _huge(rng, dtype, n):
    limit = _largest(dtype)
    return rng.choice([limit, -limit, 0.0, 0.95 * limit, limit / 2, 1.0], n)


def _subnormal(rng, dtype, n):
    return rng.integers(-5, 6, n) * FORMATS[dtype].quantum


_ROWS = {
    "normal": _normal,
    "offset": _offset,
    "ties": _ties,
    "equal": _equal,
    "margin": _margin,
    "tail": _tail,
    "zones": _zones,
    "neighbours": _neighbours,
    "few": _few,
    "nan": _put(np.nan),
    "inf": _put(np.inf),
    "minus inf": _put(-np.inf),
    "all minus inf": lambda rng, dtype, n: np.full(n, -np.inf),
    "huge": _huge,
    "subnormal": _subnormal,
}


def probabilities(rng, dtype: str, rows: int, classes: int, *, log: bool = False) -> np.ndarray:
    """Rounded (log-)probabilities of calm logits, some exactly 0; without subnormal numbers, which some flush."""
    if dtype == "integer":
        return np.eye(max(classes, 1), classes, dtype=np.int64)[rng.integers(0, max(classes, 1), rows)]
    kind = numpy_dtype(dtype)
    if not classes:
        return np.empty((rows, 0), kind)
    x = logits(rng, dtype, rows, classes, calm=True).astype(np.float64)
    gone = (rng.random(x.shape) < 0.1) & (rng.random((rows, 1)) < 0.3)
    gone[np.arange(rows), rng.integers(0, classes, rows)] = False
    x = np.where(gone, -np.inf, x)
    shifted = x - x.max(axis=1, keepdims=True)
    top = shifted.argmax(axis=1, keepdims=True)
    w = np.exp(shifted)
    np.put_along_axis(w, top, 0.0, axis=1)
    log_y = (shifted - np.log1p(w.sum(axis=1, keepdims=True))).astype(kind)
    if log:
        return log_y
    y = np.exp(log_y.astype(np.float64)).astype(kind)
    return np.where(y.astype(np.float64) < FORMATS[dtype].tiny, np.zeros((), kind), y)


def vectors(rng, dtype: str, rows: int, classes: int) -> np.ndarray:
    """Of all scales; some equal, some 0, some the unit vectors."""
    v = rng.normal(size=(rows, classes)) * 10.0 ** rng.uniform(-2, 2, (rows, 1))
    kind = rng.random((rows, 1))
    v = np.where(kind < 0.1, np.ones_like(v), v)
    v = np.where((kind > 0.7) & (rng.random(v.shape) < 0.3), 0.0, v)
    if dtype == "integer":
        return np.round(v).clip(-100, 100).astype(np.int64)
    return v.astype(numpy_dtype(dtype))


def labels(rng, x: np.ndarray) -> np.ndarray:
    """The argmax in half of the rows, any in the others."""
    rows, classes = x.shape
    if not classes:
        return np.zeros(rows, np.int64)
    return np.where(rng.random(rows) < 0.5, x.astype(np.float64).argmax(axis=1), rng.integers(0, classes, rows))


def target_probabilities(rng, x: np.ndarray, dtype: str) -> np.ndarray:
    """One-hot or general, with zeros, of any sum; sometimes with negative ones, or mass at a logit of −inf."""
    rows, classes = x.shape
    if not classes:
        return np.empty((rows, 0), numpy_dtype(dtype))
    q = rng.dirichlet(np.full(classes, float(rng.choice([0.3, 1.0]))), rows) * rng.uniform(0.2, 3, (rows, 1))
    q = np.where(q < 1e-3, 0, q)
    kind = rng.random()
    if kind < 0.15:
        q = np.where(rng.random(q.shape) < 0.3, -q, q)
    if rng.random() < 0.85:
        q = np.where(np.isneginf(x.astype(np.float64)), 0, q)
    empty = ~(q != 0).any(axis=1) & (rng.random(rows) < 0.7)
    q[np.flatnonzero(empty), labels(rng, x)[empty]] = 1.0
    q[rng.random(rows) < 0.05] = 0.0
    return q.astype(numpy_dtype(dtype))
