"""softmax, log_softmax and logsumexp of small arrays of any layout, for Numba: what costs there is the call.

Arrays are addresses of NumPy's objects, `like` is a number of the logits' dtype. Each kernel returns whether it took
the problem: if not, nothing is written. Logits that are transformed become float64, rows side by side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ACROSS
from . import objects, rows, tiles
from .exponentials import alive, held
from .vector_math import EXACT, item, jit, pointer

_HUGE = 2.0**64  # of logits: differences are 0, or exp(z) is


@jit(**EXACT)
def are_across(a: int, axes: int, classes: int, like: Any) -> bool:
    return classes <= ACROSS or not objects.are_side_by_side(a, axes, item(like))


@jit(**EXACT)
def softmax_of(n: int, classes: int, x: int, y: int, like: Any, across: bool) -> None:
    bytes_ = item(like)
    if across:
        tiles.softmax(n, classes, x, classes * bytes_, bytes_, like, y, classes * bytes_, bytes_, like)
    else:
        rows.softmax(n, classes, x, classes * bytes_, like, y, classes * bytes_, like)


@jit(**EXACT)
def log_softmax_of(n: int, classes: int, x: int, y: int, like: Any, across: bool) -> None:
    bytes_ = item(like)
    if across:
        tiles.log_softmax(n, classes, x, classes * bytes_, bytes_, like, y, classes * bytes_, bytes_, like)
    else:
        rows.log_softmax(n, classes, x, classes * bytes_, like, y, classes * bytes_, like)


@jit(**EXACT)
def logsumexp_of(n: int, classes: int, x: int, y: int, like: Any, across: bool) -> None:
    bytes_ = item(like)
    if across:
        tiles.logsumexp(n, classes, x, classes * bytes_, bytes_, like, y, bytes_, like)
    else:
        rows.logsumexp(n, classes, x, classes * bytes_, like, y, bytes_, like)


@jit(**EXACT)
def taken(x: int, axes: int, n: int, classes: int, like: Any, to_type: Any) -> Any:
    space = np.empty(n * classes * item(to_type) // 8 + 1)
    at, of = objects.offsets(x, x, ~axes, 0, n), objects.offsets(x, x, axes, 0, classes)
    objects.take(x, at, of, like, space.ctypes.data, to_type)
    return space


@jit(**EXACT)
def given(space: Any, space_type: Any, y: int, axes: int, n: int, classes: int, like: Any) -> None:
    at, of = objects.offsets(y, y, ~axes, 0, n), objects.offsets(y, y, axes, 0, classes)
    objects.give(space.ctypes.data, space_type, y, at, of, like)
    alive(space)


@jit(**EXACT)
def kept_classes(where: int, x: int, axes: int, n: int, classes: int) -> Any:
    """What a mask says of each class of each row."""
    kept = np.empty((n * classes + 7) // 8)
    at, of = objects.offsets(where, x, ~axes, 0, n), objects.offsets(where, x, axes, 0, classes)
    objects.take(where, at, of, np.uint8, kept.ctypes.data, np.uint8)
    return kept


@jit(**EXACT)
def hide(z: Any, kept: Any, value: float) -> None:
    """`value` for the classes that are not kept."""
    mask = pointer(kept.ctypes.data, np.uint8)
    for i in range(len(z)):
        z[i] = z[i] if mask[i] else value
    held(kept)


@jit(**EXACT)
def transform(z: Any, n: int, classes: int, softcap: float, temperature: float) -> bool:
    """`formulas.capped`, in place; softcap = 0: none. Whether a row's z are relative to its maximum."""
    if softcap != 0.0:
        for i in range(len(z)):
            z[i] = z[i] if np.isinf(z[i]) else softcap * math.tanh(z[i] / softcap)
    lifted = False
    for i in range(n):
        row = z[i * classes : (i + 1) * classes]
        origin = 0.0
        if temperature < 1.0:
            m = row[0]
            for j in range(classes):
                m = row[j] if row[j] > m or np.isnan(row[j]) else m
            if np.isfinite(m) and abs(m) / temperature > _HUGE:
                origin, lifted = m, True
        for j in range(classes):
            row[j] = (row[j] - origin) / temperature
    return lifted


@jit(**EXACT)
def softmax(x: int, y: int, axes: int, like: Any) -> bool:
    n, classes = objects.extent(x, axes)
    if not objects.is_aligned(x):
        return False
    if objects.is_matrix(x, axes) and objects.is_matrix(y, axes):
        softmax_of(n, classes, objects.data(x), objects.data(y), like, classes <= ACROSS)
        return True
    space = taken(x, axes, n, classes, like, like)
    softmax_of(n, classes, space.ctypes.data, space.ctypes.data, like, are_across(x, axes, classes, like))
    given(space, like, y, axes, n, classes, like)
    return True


@jit(**EXACT)
def log_softmax(x: int, y: int, axes: int, like: Any) -> bool:
    n, classes = objects.extent(x, axes)
    if not objects.is_aligned(x):
        return False
    if objects.is_matrix(x, axes) and objects.is_matrix(y, axes):
        log_softmax_of(n, classes, objects.data(x), objects.data(y), like, classes <= ACROSS)
        return True
    space = taken(x, axes, n, classes, like, like)
    log_softmax_of(n, classes, space.ctypes.data, space.ctypes.data, like, are_across(x, axes, classes, like))
    given(space, like, y, axes, n, classes, like)
    return True


@jit(**EXACT)
def logsumexp(x: int, y: int, axes: int, like: Any) -> bool:
    """`y` lies in memory row after row."""
    n, classes = objects.extent(x, axes)
    if not objects.is_aligned(x):
        return False
    if objects.is_matrix(x, axes):
        logsumexp_of(n, classes, objects.data(x), objects.data(y), like, classes <= ACROSS)
        return True
    space = taken(x, axes, n, classes, like, like)
    logsumexp_of(n, classes, space.ctypes.data, objects.data(y), like, are_across(x, axes, classes, like))
    alive(space)
    return True


@jit(**EXACT)
def takes(x: int, where: int, axes: int, n: int, classes: int) -> bool:
    return objects.is_aligned(x) and (where == 0 or objects.fits(where, x, axes, 0, False))


@jit(**EXACT)
def transformed(x: int, where: int, axes: int, n: int, classes: int, temperature: float, like: Any) -> Any:
    z = taken(x, axes, n, classes, like, 0.0)[: n * classes]
    if where:
        hide(z, kept_classes(where, x, axes, n, classes), -math.inf)
    transform(z, n, classes, 0.0, temperature)
    return z


@jit(**EXACT)
def softmax_of_transformed(x: int, where: int, y: int, axes: int, temperature: float, like: Any) -> bool:
    n, classes = objects.extent(x, axes)
    if not takes(x, where, axes, n, classes):
        return False
    z = transformed(x, where, axes, n, classes, temperature, like)
    softmax_of(n, classes, z.ctypes.data, z.ctypes.data, 0.0, classes <= ACROSS)
    if where:
        hide(z, kept_classes(where, x, axes, n, classes), 0.0)
    given(z, 0.0, y, axes, n, classes, like)
    return True


@jit(**EXACT)
def log_softmax_of_transformed(x: int, where: int, y: int, axes: int, temperature: float, like: Any) -> bool:
    n, classes = objects.extent(x, axes)
    if not takes(x, where, axes, n, classes):
        return False
    z = transformed(x, where, axes, n, classes, temperature, like)
    log_softmax_of(n, classes, z.ctypes.data, z.ctypes.data, 0.0, classes <= ACROSS)
    if where:
        hide(z, kept_classes(where, x, axes, n, classes), -math.inf)
    given(z, 0.0, y, axes, n, classes, like)
    return True


@jit(**EXACT)
def logsumexp_of_kept(x: int, where: int, y: int, axes: int, like: Any) -> bool:
    n, classes = objects.extent(x, axes)
    if not takes(x, where, axes, n, classes):
        return False
    z = transformed(x, where, axes, n, classes, 1.0, like)
    values = np.empty(n)
    logsumexp_of(n, classes, z.ctypes.data, values.ctypes.data, 0.0, classes <= ACROSS)
    to = pointer(objects.data(y), like)
    for i in range(n):
        to[i] = values[i]
    alive(z)
    return True


@jit(**EXACT)
def total(terms: Any) -> float:
    """Σ by halving, in the order of the formulas, so that the bits are the same; overwrites the terms."""
    n = terms.size
    parts = np.empty(64)
    count = 0
    while n > 2:
        half = n // 2
        if n % 2:
            parts[count] = terms[n - 1]
            count += 1
        for i in range(half):
            terms[i] += terms[half + i]
        n = half
    parts[count] = terms[0] + terms[1] if n == 2 else terms[0]
    count += 1
    while count > 1:
        for i in range(count // 2):
            parts[i] = parts[2 * i] + parts[2 * i + 1]
        if count % 2:
            parts[count // 2] = parts[count - 1]
        count = (count + 1) // 2
    return parts[0]
