"""Arrays of NumPy as they lie in memory, for Numba: an array reaches a kernel as its address, in no time.

After what every object of Python begins with, NumPy's C interface promises: where its numbers lie, how many dimensions
there are, where their lengths and steps lie, two references, and flags. Axes are bits, 1 for the last, 2 for the one
before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .vector_math import EXACT, item, jit, pointer

_HEAD = object.__basicsize__
_IN_ORDER, _ALIGNED = 0x0001, 0x0100


@jit(**EXACT)
def _field(a: int, i: int) -> int:
    return pointer(a + _HEAD, np.int64)[i]


@jit(**EXACT)
def data(a: int) -> int:
    return _field(a, 0)


@jit(**EXACT)
def dimensions(a: int) -> Any:
    return np.int64(pointer(a + _HEAD + 8, np.int32)[0])


@jit(**EXACT)
def length(a: int, axis: int) -> int:
    """Of the last axis: 0, of the one before it: 1."""
    return pointer(_field(a, 2), np.int64)[dimensions(a) - 1 - axis]


@jit(**EXACT)
def step(a: int, axis: int) -> int:
    return pointer(_field(a, 3), np.int64)[dimensions(a) - 1 - axis]


@jit(**EXACT)
def _flags(a: int) -> Any:
    return np.int64(pointer(a + _HEAD + 48, np.int32)[0])


@jit(**EXACT)
def is_aligned(a: int) -> bool:
    return _flags(a) & _ALIGNED != 0


@jit(**EXACT)
def is_matrix(a: int, axes: int) -> bool:
    """Whether it lies in memory row after row."""
    return axes == 1 and _flags(a) & _IN_ORDER != 0


@jit(**EXACT)
def extent(a: int, axes: int) -> tuple[int, int]:
    """Rows and classes."""
    rows, classes = 1, 1
    for axis in range(dimensions(a)):
        if axes >> axis & 1:
            classes *= length(a, axis)
        else:
            rows *= length(a, axis)
    return rows, classes


@jit(**EXACT)
def are_side_by_side(a: int, axes: int, bytes_: int) -> bool:
    """Whether the classes of a row are so."""
    expected = bytes_
    for axis in range(dimensions(a)):
        if axes >> axis & 1 and length(a, axis) > 1:
            if step(a, axis) != expected:
                return False
            expected *= length(a, axis)
    return True


@jit(**EXACT)
def fits(a: int, like: int, axes: int, lacking: int, exactly: bool) -> bool:
    """Whether `a`, which lacks some axes of `like`, has its shape or one that broadcasts to it."""
    own, axis = dimensions(a), 0
    for i in range(dimensions(like)):
        if lacking >> i & 1:
            continue
        if axis < own:
            n = length(a, axis)
            if n != length(like, i) and (exactly or n != 1):
                return False
        elif exactly:
            return False
        axis += 1
    return own <= axis


@jit(**EXACT)
def offsets(a: int, like: int, chosen: int, lacking: int, count: int) -> Any:
    """Where the elements of `a` lie along the chosen axes of `like`, in order, for an `a` that fits."""
    to = np.empty(count, np.int64)
    to[0] = 0
    some, own = 1, dimensions(a)
    for i in range(dimensions(like) - 1, -1, -1):
        if not chosen >> i & 1:
            continue
        axis = i
        for j in range(i):
            axis -= lacking >> j & 1
        n = length(like, i)
        stride = step(a, axis) if axis < own and length(a, axis) > 1 else 0
        for k in range(some - 1, -1, -1):
            base = to[k]
            for s in range(n - 1, -1, -1):
                to[k * n + s] = base + s * stride
        some *= n
    return to


@jit(**EXACT)
def take(a: int, rows: Any, classes: Any, dtype: Any, to: int, to_type: Any) -> None:
    """The elements of `a` side by side, row after row."""
    at, size, bytes_ = data(a), len(classes), item(to_type)
    for i in range(len(rows)):
        row, into = at + rows[i], pointer(to + i * size * bytes_, to_type)
        for j in range(size):
            into[j] = pointer(row + classes[j], dtype)[0]


@jit(**EXACT)
def give(source: int, source_type: Any, a: int, rows: Any, classes: Any, dtype: Any) -> None:
    at, size, bytes_ = data(a), len(classes), item(source_type)
    for i in range(len(rows)):
        row, taken = at + rows[i], pointer(source + i * size * bytes_, source_type)
        for j in range(size):
            pointer(row + classes[j], dtype)[0] = taken[j]


@jit(**EXACT)
def floats(a: int, kind: int, rows: Any, classes: Any, to: Any) -> None:
    """The same as float64, of a `kind` in `numbers.FLOATS`."""
    if kind == 0:
        take(a, rows, classes, np.float32, to.ctypes.data, np.float64)
    else:
        take(a, rows, classes, np.float64, to.ctypes.data, np.float64)


@jit(**EXACT)
def integers(a: int, kind: int, rows: Any, to: Any) -> None:
    """The same as int64, of a `kind` in `numbers.INTEGERS`."""
    one, into = np.zeros(1, np.int64), to.ctypes.data
    if kind == 0:
        take(a, rows, one, np.int8, into, np.int64)
    elif kind == 1:
        take(a, rows, one, np.int16, into, np.int64)
    elif kind == 2:
        take(a, rows, one, np.int32, into, np.int64)
    elif kind == 3:
        take(a, rows, one, np.int64, into, np.int64)
    elif kind == 4:
        take(a, rows, one, np.uint8, into, np.int64)
    elif kind == 5:
        take(a, rows, one, np.uint16, into, np.int64)
    else:
        take(a, rows, one, np.uint32, into, np.int64)
