"""Rows of float16 and bfloat16, for Numba: a few at a time as float32, which the other kernels take, and back.

Elements are 16-bit patterns at an address, side by side in a row or from row to row; `brain`: they are bfloat16.
A result is rounded to float32 and then to 16 bits: off by 0.5 + 2^−13 ulp at most.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ACROSS
from . import row_losses, rows, tile_losses, tiles
from .exponentials import alive
from .vector_math import EXACT, float_bits, float_from_bits, jit, pointer

_TOGETHER = 8192  # elements at once: 32 KiB, and the results in the same place
_LIKE = np.float32(0)

_SIGN, _MAGNITUDE = 0x8000, 0x7FFF
_FLOAT_INFINITY = 0x7F800000
_HALF_INFINITY, _HALF_NAN, _BRAIN_NAN = 0x7C00, 0x7E00, 0x7FC0
_BIAS = float.fromhex("0x1p112")  # what the exponents of float32 and float16 are apart
_LEAST_NORMAL = 0x38800000  # 2^−14
_OVERFLOW = 0x47800000  # 2^16
_SUBNORMAL = 0x3F000000  # 0.5, beside which 2^−24 is the last bit
_REBIASED = (112 << 23) - 0xFFF


@jit(**EXACT)
def _widen_brain(x: Any, size: int, to: Any) -> None:
    for j in range(size):
        to[j] = float_from_bits(np.uint32(x[j]) << np.uint32(16))


@jit(**EXACT)
def _widen_half(x: Any, size: int, to: Any) -> None:
    for j in range(size):
        bits = np.uint32(x[j])
        magnitude = bits & np.uint32(_MAGNITUDE)
        number = float_bits(float_from_bits(magnitude << np.uint32(13)) * np.float32(_BIAS))
        special = np.uint32(_FLOAT_INFINITY) if magnitude >= np.uint32(_HALF_INFINITY) else np.uint32(0)
        to[j] = float_from_bits(number | special | ((bits & np.uint32(_SIGN)) << np.uint32(16)))


@jit(**EXACT)
def _narrow_brain(x: Any, size: int, to: Any) -> None:
    """To the nearest, ties to even."""
    for j in range(size):
        bits = float_bits(x[j])
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        near = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
        to[j] = np.uint16(near if x[j] == x[j] else np.uint32(_BRAIN_NAN))


@jit(**EXACT)
def _narrow_half(x: Any, size: int, to: Any) -> None:
    for j in range(size):
        bits = float_bits(x[j])
        magnitude = bits & np.uint32(0x7FFFFFFF)
        odd = (magnitude >> np.uint32(13)) & np.uint32(1)
        near = (magnitude - np.uint32(_REBIASED) + odd) >> np.uint32(13)
        small = float_bits(float_from_bits(magnitude) + np.float32(0.5)) - np.uint32(_SUBNORMAL)
        near = small if magnitude < np.uint32(_LEAST_NORMAL) else near
        near = np.uint32(_HALF_INFINITY) if magnitude >= np.uint32(_OVERFLOW) else near
        near = near if x[j] == x[j] else np.uint32(_HALF_NAN)
        to[j] = np.uint16(near | ((bits >> np.uint32(16)) & np.uint32(_SIGN)))


@jit(**EXACT)
def _widen(n: int, classes: int, x: int, x_step: int, brain: bool, to: int) -> None:
    for i in range(n):
        row, wide = pointer(x + i * x_step, np.uint16), pointer(to + 4 * i * classes, np.float32)
        if brain:
            _widen_brain(row, classes, wide)
        else:
            _widen_half(row, classes, wide)


@jit(**EXACT)
def _narrow(n: int, classes: int, given: int, y: int, y_step: int, brain: bool) -> None:
    for i in range(n):
        wide, row = pointer(given + 4 * i * classes, np.float32), pointer(y + i * y_step, np.uint16)
        if brain:
            _narrow_brain(wide, classes, row)
        else:
            _narrow_half(wide, classes, row)


@jit(**EXACT)
def _some(n: int, classes: int, tiled: bool) -> int:
    """Rows at once; whole tiles."""
    some = max(1, _TOGETHER // classes)
    return min(n, max(64, some // 64 * 64) if tiled else some)


@jit(**EXACT)
def _take(n: int, classes: int, x: int, x_step: int, x_class_step: int, brain: bool, z: int) -> tuple[int, int]:
    """Some rows as float32, in the order in which they lie; steps from row to row and class to class."""
    if x_class_step == 2:
        _widen(n, classes, x, x_step, brain, z)
        return 4 * classes, 4
    _widen(classes, n, x, x_class_step, brain, z)
    return 4, 4 * n


@jit(**EXACT)
def _give(n: int, classes: int, z: int, y: int, y_step: int, y_class_step: int, brain: bool) -> None:
    if y_class_step == 2:
        _narrow(n, classes, z, y, y_step, brain)
    else:
        _narrow(classes, n, z, y, y_class_step, brain)


@jit(**EXACT)
def normalise(
    operation: int, n: int, classes: int, x: int, x_step: int, x_class_step: int, y: int, y_step: int,
    y_class_step: int, brain: bool,
) -> None:  # fmt: skip
    """softmax (0), log_softmax (1), or logsumexp (2) into one float32 for each row."""
    tiled = x_class_step != 2 or classes <= ACROSS
    some = _some(n, classes, tiled)
    space = np.empty(some * classes, np.float32)
    z = space.ctypes.data
    for start in range(0, n, some):
        size, yi = min(some, n - start), y + start * y_step
        step, class_step = _take(size, classes, x + start * x_step, x_step, x_class_step, brain, z)
        if operation == 2:
            if tiled:
                tiles.logsumexp(size, classes, z, step, class_step, _LIKE, yi, y_step, _LIKE)
            else:
                rows.logsumexp(size, classes, z, step, _LIKE, yi, y_step, _LIKE)
            continue
        if operation == 0:
            if tiled:
                tiles.softmax(size, classes, z, step, class_step, _LIKE, z, step, class_step, _LIKE)
            else:
                rows.softmax(size, classes, z, step, _LIKE, z, step, _LIKE)
        elif tiled:
            tiles.log_softmax(size, classes, z, step, class_step, _LIKE, z, step, class_step, _LIKE)
        else:
            rows.log_softmax(size, classes, z, step, _LIKE, z, step, _LIKE)
        _give(size, classes, z, yi, y_step, y_class_step, brain)
    alive(space)


@jit(**EXACT)
def cross_entropy_labels(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, labels: int, weight: int, zeta: int, zeta_step: int,
    scale: int, scale_step: int, loss: int, grad: int, grad_step: int, grad_class_step: int, brain: bool,
) -> None:  # fmt: skip
    tiled = x_class_step != 2 or classes <= ACROSS
    some = _some(n, classes, tiled)
    space = np.empty(some * classes, np.float32)
    z = space.ctypes.data
    for start in range(0, n, some):
        size, at, out = min(some, n - start), labels + 8 * start, z if grad else 0
        step, class_step = _take(size, classes, x + start * x_step, x_step, x_class_step, brain, z)
        zi, si, to = zeta + start * zeta_step, scale + start * scale_step, loss + 8 * start if loss else 0
        if tiled:
            tile_losses.cross_entropy_labels(
                size, classes, z, step, class_step, _LIKE, at, weight, zi, zeta_step, si, scale_step, to, out, step,
                class_step, _LIKE,
            )  # fmt: skip
        else:
            row_losses.cross_entropy_labels(
                size, classes, z, step, _LIKE, at, weight, zi, zeta_step, si, scale_step, to, out, step, _LIKE
            )
        if grad:
            _give(size, classes, out, grad + start * grad_step, grad_step, grad_class_step, brain)
    alive(space)


@jit(**EXACT)
def cross_entropy_dense(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, targets: int, t_step: int, t_class_step: int,
    zeta: int, zeta_step: int, scale: int, scale_step: int, loss: int, grad: int, grad_step: int, grad_class_step: int,
    brain: bool,
) -> None:  # fmt: skip
    """Targets of the same dtype and order."""
    tiled = x_class_step != 2 or classes <= ACROSS
    some = _some(n, classes, tiled)
    space = np.empty(2 * some * classes, np.float32)
    z = space.ctypes.data
    t = z + 4 * some * classes
    for start in range(0, n, some):
        size, out = min(some, n - start), z if grad else 0
        step, class_step = _take(size, classes, x + start * x_step, x_step, x_class_step, brain, z)
        _take(size, classes, targets + start * t_step, t_step, t_class_step, brain, t)
        zi, si, to = zeta + start * zeta_step, scale + start * scale_step, loss + 8 * start if loss else 0
        if tiled:
            tile_losses.cross_entropy_dense(
                size, classes, z, step, class_step, _LIKE, t, step, class_step, _LIKE, zi, zeta_step, si, scale_step,
                to, out, step, class_step, _LIKE,
            )  # fmt: skip
        else:
            row_losses.cross_entropy_dense(
                size, classes, z, step, _LIKE, t, step, _LIKE, zi, zeta_step, si, scale_step, to, out, step, _LIKE
            )
        if grad:
            _give(size, classes, out, grad + start * grad_step, grad_step, grad_class_step, brain)
    alive(space)


@jit(**EXACT)
def product(
    operation: int, n: int, classes: int, y: int, y_step: int, v: int, v_step: int, to: int, to_step: int, brain: bool
) -> None:
    """softmax_product (0), log_softmax_jvp (1) or log_softmax_vjp (2)."""
    some, step = _some(n, classes, False), 4 * classes
    space = np.empty(2 * some * classes, np.float32)
    z = space.ctypes.data
    u = z + some * step
    for start in range(0, n, some):
        size = min(some, n - start)
        _widen(size, classes, y + start * y_step, y_step, brain, z)
        _widen(size, classes, v + start * v_step, v_step, brain, u)
        if operation == 0:
            row_losses.softmax_product(size, classes, z, step, _LIKE, u, step, _LIKE, u, step, _LIKE)
        else:
            row_losses.log_softmax_product(
                size, classes, z, step, _LIKE, u, step, _LIKE, u, step, _LIKE, operation == 2
            )
        _narrow(size, classes, u, to + start * to_step, to_step, brain)
    alive(space)
