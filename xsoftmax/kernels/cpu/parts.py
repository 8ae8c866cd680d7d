"""Rows of which only some classes are here, side by side: what these tell of the row, and its results, for Numba.

Addresses and steps as in `rows`; numbers of the rows are float64, side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .exponentials import BLOCK, REACH, alive, joined, quotient, shift, times, two_sum
from .rows import ROWS, SUMMED_TOGETHER, group_of, ratios
from .vector_math import EXACT, SUMS, exp, fused, item, jit, pointer


@jit(**EXACT)
def states(n: int, classes: int, x: int, x_step: int, x_type: Any, m: int, q: int) -> None:
    """m and q / wm, which is nan where m is not finite."""
    group = group_of(classes, SUMMED_TOGETHER, x_type)
    space, numbers = np.empty(BLOCK), np.ones(2 * ROWS)
    largest, found = pointer(numbers.ctypes.data, np.float64), pointer(numbers.ctypes.data + 8 * ROWS, np.float64)
    all_m, all_q = pointer(m, np.float64), pointer(q, np.float64)
    for first in range(0, n, group):
        rows = min(group, n - first)
        ratios(rows, classes, x + first * x_step, x_step, x_type, 0, 0, largest, found, space.ctypes.data)
        for i in range(rows):
            all_m[first + i], all_q[first + i] = largest[i], found[i]
    alive(space)
    alive(numbers)


@jit(**EXACT)
def softmax(
    n: int, classes: int, x: int, x_step: int, x_type: Any, m: int, factor: int, y: int, y_step: int, y_type: Any
) -> None:
    """factor · exp(x − m), m finite and at least max x; through w, so that y may be x"""
    space = np.empty(BLOCK)
    w, all_m, factors = pointer(space.ctypes.data, np.float64), pointer(m, np.float64), pointer(factor, np.float64)
    for i in range(n):
        c, k, lowest = _scale_of(all_m[i], factors[i], x_type)
        high, low = quotient(factors[i], 0.0, exp(all_m[i] - c, k, x_type))
        for start in range(0, classes, BLOCK):
            size = min(BLOCK, classes - start)
            _exponentials(pointer(x + i * x_step + start * item(x_type), x_type), size, c, k, lowest, x_type, w)
            to = pointer(y + i * y_step + start * item(y_type), y_type)
            if item(y_type) == 8:
                for j in range(size):
                    to[j] = fused(w[j], high, w[j] * low)
            else:
                times(w, size, high, to)
    alive(space)


@jit(**EXACT)
def _scale_of(m: float, factor: float, like: Any) -> tuple[float, int, float]:
    """c and k of exp(x − c) 2^k, and the x − c from which on it is 0 whatever the factor; float32: x − m is exact.

    float64: a small factor must not be divided by exp(m − c) 2^500, and leaves nothing of what is below 2^−674.
    """
    if item(like) == 4:
        return m, 0, -650.0
    c, k = shift(m, like)
    if abs(factor) < 2.0**-400:
        return c, k - 500, (m - c) - 468.0
    return c, k, (m - c) - REACH


@jit(**EXACT)
def _exponentials(x: Any, size: int, c: float, k: int, lowest: float, like: Any, w: Any) -> None:
    for j in range(size):
        d = np.float64(x[j]) - c
        e = exp(d if d > lowest else lowest, k, like)
        w[j] = e if d > lowest else 0.0


@jit(**EXACT)
def log_softmax(
    n: int, classes: int, x: int, x_step: int, x_type: Any, m: int, log_sum: int, y: int, y_step: int, y_type: Any
) -> None:
    """(x − m) − log_sum"""
    all_m, log_sums = pointer(m, np.float64), pointer(log_sum, np.float64)
    for i in range(n):
        a, b = pointer(x + i * x_step, x_type), pointer(y + i * y_step, y_type)
        for j in range(classes):
            b[j] = (np.float64(a[j]) - all_m[i]) - log_sums[i]


@jit(**SUMS)
def _sums(y: Any, v: Any, size: int) -> tuple[float, float, float, float, float, float]:
    """Σ y and Σ y v of classes with at most half of the probability; of the others their number, and Σ v besides."""
    rest, product, ties, top, of_top, at_top = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(size):
        p, u = np.float64(y[j]), np.float64(v[j])
        major = p > 0.5
        rest += 0.0 if major else p
        product += 0.0 if major else p * u
        ties += 1.0 if major else 0.0
        top += p if major else 0.0
        of_top += p * u if major else 0.0
        at_top += u if major else 0.0
    return rest, product, ties, top, of_top, at_top


@jit(**EXACT)
def product_states(
    n: int, classes: int, y: int, y_step: int, y_type: Any, v: int, v_step: int, v_type: Any, to: int, to_step: int,
    to_type: Any,
) -> None:  # fmt: skip
    """top, ties, at_top, rest and product, side by side; a class is at the top if it alone has more than half of y."""
    for i in range(n):
        rest, rest_low, product, product_low = 0.0, 0.0, 0.0, 0.0
        ties, top, of_top, at_top = 0.0, 0.0, 0.0, 0.0
        for start in range(0, classes, BLOCK):
            a = pointer(y + i * y_step + start * item(y_type), y_type)
            b = pointer(v + i * v_step + start * item(v_type), v_type)
            part, dot, some, sum_y, sum_product, sum_v = _sums(a, b, min(BLOCK, classes - start))
            rest, rest_low = two_sum(rest, rest_low, part)
            product, product_low = two_sum(product, product_low, dot)
            ties, top, of_top, at_top = ties + some, top + sum_y, of_top + sum_product, at_top + sum_v
        rest, product = joined(rest, rest_low), joined(product, product_low)
        if ties != 1.0:  # no probabilities then
            rest, product, ties, top, at_top = rest + top, product + of_top, 0.0, 0.0, 0.0
        state = pointer(to + i * to_step, to_type)
        state[0], state[1], state[2], state[3], state[4] = top, ties, at_top, rest, product


@jit(**EXACT)
def product(
    n: int, classes: int, y: int, y_step: int, y_type: Any, v: int, v_step: int, v_type: Any, pivot: int, mean: int,
    to: int, to_step: int, to_type: Any,
) -> None:  # fmt: skip
    """y ((v − pivot) − mean)"""
    pivots, means = pointer(pivot, np.float64), pointer(mean, np.float64)
    for i in range(n):
        a, b, z = pointer(y + i * y_step, y_type), pointer(v + i * v_step, v_type), pointer(to + i * to_step, to_type)
        for j in range(classes):
            z[j] = np.float64(a[j]) * ((np.float64(b[j]) - pivots[i]) - means[i])
