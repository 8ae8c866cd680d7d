"""Logits that are hard to get right, as named blocks of one shape: lazy compilers see few shapes."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from .formats import FORMATS

SHAPE = ROWS, CLASSES = 24, 6

# Where the dtype that a dtype is computed in overflows (T) and underflows (U), as logits.
_REACH = {"float16": (88.0, 104.0), "bfloat16": (88.0, 104.0), "float32": (88.0, 104.0), "float64": (709.0, 746.0)}
_MARGINS = {
    "float16": (1, 3, 5, 7, 8, 9, 10, 11, 13, 15, 16.5, 17),
    "bfloat16": (2, 4, 5, 6, 10, 20, 40, 60, 80, 86, 90, 95),
    "float32": (5, 10, 15, 17, 20, 30, 50, 70, 86, 87.3, 100, 103.5),
    "float64": (10, 20, 36, 37.5, 50, 100, 300, 600, 700, 708.4, 740, 744.5),
}


def generator(name: str) -> np.random.Generator:
    """A generator that depends on nothing but the name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def numpy_dtype(name: str) -> np.dtype:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def block(name: str, dtype: str) -> np.ndarray:
    """The logits of a named block, (24, 6)."""
    with np.errstate(over="ignore"):
        return _BLOCKS[name](generator(f"{name} {dtype}"), dtype).astype(numpy_dtype(dtype))


def _ordinary(rng: np.random.Generator, dtype: str) -> np.ndarray:
    return rng.normal(size=SHAPE) * np.repeat([0.1, 1, 3, 10], ROWS // 4)[:, None]


def _margins(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """One class ahead of all others by a margin, below, around and above zero."""
    x = rng.normal(size=SHAPE)
    margins = np.resize(_MARGINS[dtype], ROWS)
    tops = np.arange(ROWS) % CLASSES
    x[np.arange(ROWS), tops] = x.max(axis=1) + margins
    return x - np.where(np.arange(ROWS) < ROWS // 2, 0.0, x.max(axis=1) * rng.uniform(0, 2, ROWS))[:, None]


def _wide(rng: np.random.Generator, dtype: str) -> np.ndarray:
    reach = _REACH[dtype][1]
    return np.concatenate(
        [rng.normal(size=(ROWS // 2, CLASSES)) * reach / 2, rng.uniform(-reach, reach, (ROWS // 2, CLASSES))]
    )


def _offsets(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """Common offsets; from 1e30 on neighbouring numbers are infinitely far apart and only ties remain."""
    largest = float(np.finfo(np.float16).max) if dtype == "float16" else np.ldexp(1.0, 127) * (2 - 2.0**-7)
    if dtype == "float64":
        largest = np.finfo(np.float64).max
    huge = 3e4 if dtype == "float16" else 1e30
    offsets = np.repeat([1e4, -1e4, huge, -huge, largest, -largest], ROWS // 6)[:, None]
    x = np.where(np.abs(offsets) == 1e4, offsets + 3 * rng.normal(size=SHAPE), offsets)
    step = 2.0 ** (2 - FORMATS[dtype].digits)
    x = np.where(np.abs(offsets) == huge, offsets * (1 - step * rng.integers(0, 2, SHAPE)), x)
    extreme = np.abs(offsets) == largest
    return np.where(extreme & (rng.random(SHAPE) < 0.3), -x, np.where(extreme & (rng.random(SHAPE) < 0.2), 0.0, x))


def _ties(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """Ties of the maximum, rows of one value, neighbours one ulp apart, zeros of both signs."""
    x = rng.choice([-3.0, 2.0, 2.0, 1.5, -40.0], size=SHAPE)
    x[:4] = np.array([0.0, -0.0, 7.25, -80.0])[:, None]
    x[4:8] = np.where(rng.random((4, CLASSES)) < 0.5, 0.0, -0.0)
    ulp = 2.0 ** (1 - FORMATS[dtype].digits)
    x[8:16] = np.array([1.5, -1.5, 24.0, -24.0, 0.75, 3.0, -48.0, 6.0])[:, None] * (
        1 + ulp * rng.integers(-1, 2, (8, CLASSES))
    )
    return x


def _tails(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """All but the maximum around the smallest subnormal."""
    edge = {"float16": 17.0, "bfloat16": 92.0}.get(dtype, _REACH[dtype][1] - 0.6)
    x = -edge + rng.uniform(-1.5, 6, SHAPE)
    x[np.arange(ROWS), rng.integers(0, CLASSES, ROWS)] = 0.0
    return x + np.repeat([0.0, 0.5, -0.75, 3.0, -20.0, 40.0], ROWS // 6)[:, None]


def _zones(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """Maxima where the choice of the shift changes: around 0, the overflow of exp, twice its underflow."""
    overflow, underflow = _REACH[dtype]
    tops = [0.0, 2.0**-20, -(2.0**-20), 0.4, -0.5, -0.51, -1.5, 2.5, -7.49]
    tops += [overflow + d for d in (-16, -4, -2, -1, -0.25, 0, 0.5, 3)]
    tops += [2 * underflow + d for d in (-1, 0, 1)] + [-overflow, -underflow, -2 * underflow, 1.5 * underflow]
    maxima = np.array(tops)[:ROWS]
    x = maxima[:, None] - np.abs(rng.normal(size=SHAPE)) * np.resize([1, 10, 30], ROWS)[:, None]
    x[np.arange(ROWS), np.arange(ROWS) % CLASSES] = maxima
    return x


def _specials(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """Rows with nan and infinities among ordinary ones."""
    x = 2 * rng.normal(size=SHAPE)
    x[0, 2] = np.nan
    x[1] = np.nan
    x[2, [0, 3]] = np.nan, np.inf
    x[3, 1] = np.inf
    x[4, [1, 4]] = np.inf
    x[5, [1, 4]] = np.inf, -np.inf
    x[6] = -np.inf
    x[7] = np.inf
    x[8, 0] = -np.inf
    x[9, 1:] = -np.inf
    x[10, [0, 2, 4]] = -np.inf
    x[11, [0, 1]] = np.nan, -np.inf
    x[12:16] = np.where(rng.random((4, CLASSES)) < 0.5, -np.inf, x[12:16])
    x[12:16, 5] = 1.25
    return x


def _mixed(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """A few rows of every block whose results are finite whatever the options."""
    parts = {"ordinary": 5, "margins": 7, "wide": 3, "offsets": 2, "ties": 3, "tails": 2, "zones": 2}
    rows = []
    for name, count in parts.items():
        rows.append(block(name, dtype).astype(np.float64)[rng.permutation(8 if name == "offsets" else ROWS)[:count]])
    return np.concatenate(rows)


_BLOCKS: dict[str, Callable[[np.random.Generator, str], np.ndarray]] = {
    "ordinary": _ordinary,
    "margins": _margins,
    "wide": _wide,
    "offsets": _offsets,
    "ties": _ties,
    "tails": _tails,
    "zones": _zones,
    "specials": _specials,
    "mixed": _mixed,
}

BLOCKS = tuple(_BLOCKS)
