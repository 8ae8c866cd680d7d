"""Products with the Jacobians of softmax and log_softmax of small arrays of any layout, for Numba; as in `small`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ACROSS
from . import objects, row_losses
from .exponentials import alive
from .small import given, hide, kept_classes, softmax_of, taken, takes, transformed
from .vector_math import EXACT, item, jit

SOFTMAX, LOG_JVP, LOG_VJP = range(3)


@jit(**EXACT)
def _product(operation: int, n: int, classes: int, y: int, v: int, to: int, like: Any) -> None:
    step = classes * item(like)
    if operation == SOFTMAX:
        row_losses.softmax_product(n, classes, y, step, like, v, step, like, to, step, like)
    else:
        row_losses.log_softmax_product(n, classes, y, step, like, v, step, like, to, step, like, operation == LOG_VJP)


@jit(**EXACT)
def product(operation: int, y: int, v: int, to: int, axes: int, like: Any) -> bool:
    n, classes = objects.extent(y, axes)
    if not (objects.is_aligned(y) and objects.is_aligned(v) and objects.fits(v, y, axes, 0, True)):
        return False
    if objects.is_matrix(y, axes) and objects.is_matrix(v, axes) and objects.is_matrix(to, axes):
        _product(operation, n, classes, objects.data(y), objects.data(v), objects.data(to), like)
        return True
    a, b = taken(y, axes, n, classes, like, like), taken(v, axes, n, classes, like, like)
    found = np.empty_like(a)
    _product(operation, n, classes, a.ctypes.data, b.ctypes.data, found.ctypes.data, like)
    alive(a)
    alive(b)
    given(found, like, to, axes, n, classes, like)
    return True


@jit(**EXACT)
def product_of_kept(operation: int, y: int, v: int, where: int, to: int, axes: int, like: Any) -> bool:
    n, classes = objects.extent(y, axes)
    if not (objects.is_aligned(y) and objects.is_aligned(v) and objects.fits(v, y, axes, 0, True)):
        return False
    if not objects.fits(where, y, axes, 0, False):
        return False
    kept = kept_classes(where, y, axes, n, classes)
    a, b = taken(y, axes, n, classes, like, 0.0)[: n * classes], taken(v, axes, n, classes, like, 0.0)[: n * classes]
    hide(a, kept, 0.0 if operation == SOFTMAX else -math.inf)
    hide(b, kept, 0.0)
    found = np.empty_like(a)
    _product(operation, n, classes, a.ctypes.data, b.ctypes.data, found.ctypes.data, 0.0)
    alive(a)
    alive(b)
    hide(found, kept, 0.0)
    given(found, 0.0, to, axes, n, classes, like)
    return True


@jit(**EXACT)
def gradient(x: int, v: int, where: int, to: int, axes: int, temperature: float, like: Any) -> bool:
    """y (v − Σ y v) / T at y = softmax(x), which is not rounded in between."""
    n, classes = objects.extent(x, axes)
    if not (takes(x, where, axes, n, classes) and objects.is_aligned(v) and objects.fits(v, x, axes, 0, True)):
        return False
    z = transformed(x, where, axes, n, classes, temperature, like)
    at = z.ctypes.data
    softmax_of(n, classes, at, at, 0.0, classes <= ACROSS)
    u = taken(v, axes, n, classes, like, 0.0)[: n * classes]
    kept = kept_classes(where, x, axes, n, classes) if where else np.empty(0)
    if where:
        hide(z, kept, 0.0)
        hide(u, kept, 0.0)
    found = np.empty_like(u)
    _product(SOFTMAX, n, classes, at, u.ctypes.data, found.ctypes.data, 0.0)
    alive(z)
    alive(u)
    for k in range(len(found)):
        found[k] /= temperature
    if where:
        hide(found, kept, 0.0)
    given(found, 0.0, to, axes, n, classes, like)
    return True
