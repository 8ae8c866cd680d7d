"""softmax, log_softmax and logsumexp of rows whose classes lie side by side, for Numba.

Arrays are addresses, steps are bytes from row to row. Moderate rows are taken in groups: sums first, then what
follows from them for all rows of the group, then the results, since one row's logarithm or quotient alone takes as long
as 50 classes. All other rows go one by one. Rounded once, at the store.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .exponentials import (
    BLOCK,
    KEPT,
    alive,
    at_once,
    bias,
    buffer,
    exactly,
    fill,
    has_digits,
    moderate,
    ordinary,
    quotient,
    scaled,
    times,
)
from .vector_math import EXACT, exp, item, jit, log1p, pointer

_LN2 = math.log(2.0)
ROWS = 16  # of a group, at most
_KEPT_TOGETHER = 1024  # classes of a group: exponentials, logits and results share the L1 cache
SUMMED_TOGETHER = 2048


@jit(**EXACT)
def group_of(classes: int, together: int, x_type: Any) -> int:
    return max(1, min(ROWS, together * 4 // (item(x_type) * classes)))


@jit(**EXACT)
def softmax(n: int, classes: int, x: int, x_step: int, x_type: Any, y: int, y_step: int, y_type: Any) -> None:
    group, keep = group_of(classes, _KEPT_TOGETHER, x_type), classes <= KEPT
    space = buffer(group * classes)
    w, pitch = space.ctypes.data, 8 * classes
    numbers = np.ones(2 * ROWS)
    sums, ratios = pointer(numbers.ctypes.data, np.float64), pointer(numbers.ctypes.data + 8 * ROWS, np.float64)
    for first in range(0, n, group):
        rows = min(group, n - first)
        for i in range(rows):
            row, to = x + (first + i) * x_step, y + (first + i) * y_step
            sums[i], _ = at_once(row, x_type, classes, None, w + i * pitch, keep, to)
        for i in range(ROWS):  # all, also of fewer rows: each in the same place of the same instruction
            ratios[i] = 1.0 / sums[i]
        for i in range(rows):
            row, to, e = x + (first + i) * x_step, y + (first + i) * y_step, w + i * pitch
            if ordinary(sums[i], x_type):
                if keep:
                    times(pointer(e, np.float64), classes, ratios[i], pointer(to, y_type))
                else:  # log Σ exp(x) is as good as m, which was not looked for
                    k = bias(x_type)
                    near = math.log(sums[i]) - k * _LN2
                    scaled(row, x_type, classes, near, 0.0, k, (ratios[i], 0.0), e, keep, to, y_type)
                continue
            m, c, k, wm, q = exactly(row, x_type, classes, 0.0, False, e, keep)
            if np.isfinite(m):
                scaled(row, x_type, classes, m, c, k, quotient(1.0, q, wm), e, keep, to, y_type)
            else:
                fill(pointer(to, y_type), classes, math.nan)
    alive(space)
    alive(numbers)


@jit(**EXACT)
def ratios(
    n: int, classes: int, x: int, x_step: int, x_type: Any, y: int, y_step: int, largest: Any, found: Any, w: int
) -> None:  # fmt: skip
    """m and q / wm of each row of a group; m = nan or ∞: nothing else counts. y: what will be written, or 0."""
    for i in range(n):
        row = x + i * x_step
        to = y + i * y_step if y else 0
        found[i], m = at_once(row, x_type, classes, pointer(row, x_type)[0], None, False, to)
        largest[i] = m
    for i in range(ROWS):  # as in softmax
        wm = exp(moderate(largest[i], x_type), bias(x_type), x_type)
        q = found[i] - wm
        otherwise = -1.0 if ordinary(found[i], x_type) else math.nan
        found[i] = q / wm if otherwise < 0.0 and has_digits(largest[i], q, wm, x_type) else otherwise
    for i in range(n):
        if not found[i] >= 0.0:
            known = found[i] < 0.0
            largest[i], _, _, wm, q = exactly(x + i * x_step, x_type, classes, largest[i], known, w, False)
            found[i] = q / wm


@jit(**EXACT)
def _logarithms(
    n: int, classes: int, x: int, x_step: int, x_type: Any, y: int, y_step: int, largest: Any, logarithms: Any, w: int
) -> None:  # fmt: skip
    """m and log Σ exp(x − m)."""
    ratios(n, classes, x, x_step, x_type, y, y_step, largest, logarithms, w)
    for i in range(ROWS):
        logarithms[i] = log1p(logarithms[i])


@jit(**EXACT)
def log_softmax(n: int, classes: int, x: int, x_step: int, x_type: Any, y: int, y_step: int, y_type: Any) -> None:
    group = group_of(classes, SUMMED_TOGETHER, x_type)
    space = np.empty(BLOCK)
    w = space.ctypes.data
    d = pointer(w, np.float64)
    numbers = np.ones(2 * ROWS)
    largest, logarithms = pointer(numbers.ctypes.data, np.float64), pointer(numbers.ctypes.data + 8 * ROWS, np.float64)
    for first in range(0, n, group):
        rows = min(group, n - first)
        at, into = x + first * x_step, y + first * y_step
        _logarithms(rows, classes, at, x_step, x_type, into, y_step, largest, logarithms, w)
        for i in range(rows):
            row, to = at + i * x_step, into + i * y_step
            m, log_sum = largest[i], logarithms[i]
            if not np.isfinite(m):
                fill(pointer(to, y_type), classes, math.nan)
            elif row != to:
                a, b = pointer(row, x_type), pointer(to, y_type)
                for j in range(classes):
                    b[j] = (np.float64(a[j]) - m) - log_sum
            else:  # in place: LLVM can't tell that no element is read after it is written
                for start in range(0, classes, BLOCK):
                    a, b = pointer(row + start * item(x_type), x_type), pointer(to + start * item(y_type), y_type)
                    size = min(BLOCK, classes - start)
                    for j in range(size):
                        d[j] = np.float64(a[j]) - m
                    for j in range(size):
                        b[j] = d[j] - log_sum
    alive(space)
    alive(numbers)


@jit(**EXACT)
def logsumexp(n: int, classes: int, x: int, x_step: int, x_type: Any, y: int, y_step: int, y_type: Any) -> None:
    group = group_of(classes, SUMMED_TOGETHER, x_type)
    space = np.empty(BLOCK)
    numbers = np.ones(2 * ROWS)
    largest, logarithms = pointer(numbers.ctypes.data, np.float64), pointer(numbers.ctypes.data + 8 * ROWS, np.float64)
    for first in range(0, n, group):
        rows = min(group, n - first)
        at = x + first * x_step
        _logarithms(rows, classes, at, x_step, x_type, 0, 0, largest, logarithms, space.ctypes.data)
        for i in range(rows):
            m = largest[i]
            pointer(y + (first + i) * y_step, y_type)[0] = m + logarithms[i] if np.isfinite(m) else m
    alive(space)
    alive(numbers)
