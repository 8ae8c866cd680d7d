"""softmax, log_softmax and logsumexp across rows, for Numba, tile by tile."""

from __future__ import annotations

from typing import Any

import numpy as np

from .exponentials import (
    alive,
)
from .tile import (
    BLOCK,
    FACTOR,
    FOURS,
    LINE,
    LOG_SUM,
    LOSS,
    OUT,
    REST,
    WIDTH,
    M,
    Z,
    after,
    aligned,
    inverses,
    is_copied,
    kept_block,
    line,
    log_sums,
    moderate_rows,
    room_for,
    set_streams,
    store,
    tile_exponentials,
    view,
)
from .vector_math import EXACT, fused, item, jit, pointer


@jit(**EXACT)
def _scaled(w: int, size: int, space: int, to: int, to_step: int, y_type: Any) -> None:
    factor, rest = line(space, FACTOR), line(space, REST)
    for j in range(size):
        e, y = line(w, j), pointer(to + j * to_step, y_type)
        if item(y_type) == 8:
            for t in range(WIDTH):
                y[t] = fused(e[t], factor[t], e[t] * rest[t])
        else:
            for t in range(WIDTH):
                y[t] = e[t] * factor[t]


@jit(**EXACT)
def softmax(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, y: int, y_step: int, y_class_step: int,
    y_type: Any,
) -> None:  # fmt: skip
    memory = room_for(classes, 2)
    space = aligned(memory)
    w, out = after(space + Z, classes), space + OUT
    for start in range(0, n, WIDTH):
        rows, xi, yi = min(WIDTH, n - start), x + start * x_step, y + start * y_step
        copied = is_copied(y_step, rows, y_type)
        set_streams(space, n - start, classes, xi, x_step, x_class_step, x_type, yi, y_step, y_class_step)
        if not moderate_rows(xi, x_step, x_class_step, x_type, rows, classes, space, w):
            tile_exponentials(xi, x_step, x_class_step, x_type, rows, classes, space, w, LINE)
        inverses(space)
        for j in range(0, classes, BLOCK):
            size, yj = min(BLOCK, classes - j), yi + j * y_class_step
            e = kept_block(xi, x_step, x_class_step, x_type, rows, j, classes, space, w)
            to, to_step = (out, WIDTH * item(y_type)) if copied else (yj, y_class_step)
            _scaled(e, size, space, to, to_step, y_type)
            if copied:
                store(out, rows, size, yj, y_step, y_class_step, y_type, space + FOURS)
    alive(memory)


@jit(**EXACT)
def _log_probabilities(
    z: int, step: int, x_type: Any, size: int, space: int, w: int, to: int, to_step: int, y_type: Any
) -> None:
    """(x − m) − log_sum; through w, since y may be x."""
    m, log_sum, d = line(space, M), line(space, LOG_SUM), pointer(w, np.float64)
    for j in range(size):
        x, y = pointer(z + j * step, x_type), pointer(to + j * to_step, y_type)
        for t in range(WIDTH):
            d[t] = np.float64(x[t]) - m[t]
        for t in range(WIDTH):
            y[t] = d[t] - log_sum[t]


@jit(**EXACT)
def log_softmax(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, y: int, y_step: int, y_class_step: int,
    y_type: Any,
) -> None:  # fmt: skip
    memory = room_for(classes, 2)
    space = aligned(memory)
    w, out = after(space + Z, classes), space + OUT
    for start in range(0, n, WIDTH):
        rows, xi, yi = min(WIDTH, n - start), x + start * x_step, y + start * y_step
        copied = is_copied(y_step, rows, y_type)
        set_streams(space, n - start, classes, xi, x_step, x_class_step, x_type, yi, y_step, y_class_step)
        tile_exponentials(xi, x_step, x_class_step, x_type, rows, classes, space, w, 0)
        log_sums(space)
        for j in range(0, classes, BLOCK):
            size, yj = min(BLOCK, classes - j), yi + j * y_class_step
            at, step = view(xi, x_step, x_class_step, x_type, rows, j, classes, space + Z, space, True)
            to, to_step = (out, WIDTH * item(y_type)) if copied else (yj, y_class_step)
            _log_probabilities(at, step, x_type, size, space, w, to, to_step, y_type)
            if copied:
                store(out, rows, size, yj, y_step, y_class_step, y_type, space + FOURS)
    alive(memory)


@jit(**EXACT)
def logsumexp(
    n: int, classes: int, x: int, x_step: int, x_class_step: int, x_type: Any, y: int, y_step: int, y_type: Any
) -> None:
    memory = room_for(classes, 2)
    space = aligned(memory)
    m, log_sum, value = line(space, M), line(space, LOG_SUM), line(space, LOSS)
    for start in range(0, n, WIDTH):
        rows, w, xi = min(WIDTH, n - start), after(space + Z, classes), x + start * x_step
        set_streams(space, n - start, classes, xi, x_step, x_class_step, x_type, 0, 0, 0)
        tile_exponentials(xi, x_step, x_class_step, x_type, rows, classes, space, w, 0)
        log_sums(space)
        for t in range(WIDTH):
            value[t] = m[t] + log_sum[t] if abs(m[t]) < np.inf else m[t]
        for t in range(rows):
            pointer(y + (start + t) * y_step, y_type)[0] = value[t]
    alive(memory)


# ---------------------------------------------------------------------------------------------------------------------
# cross-entropy
