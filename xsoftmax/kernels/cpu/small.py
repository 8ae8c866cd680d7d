"""Kernels called with small arrays themselves, for Numba: what costs there is the call."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ACROSS
from . import row_losses, rows, tiles
from .exponentials import alive
from .vector_math import EXACT, item, jit


@jit(**EXACT)
def softmax(x: Any, y: Any) -> None:
    n, classes = x.shape
    like, bytes_ = x[0, 0], item(x[0, 0])
    step = classes * bytes_
    if classes <= ACROSS:
        tiles.softmax(n, classes, x.ctypes.data, step, bytes_, like, y.ctypes.data, step, bytes_, like)
    else:
        rows.softmax(n, classes, x.ctypes.data, step, like, y.ctypes.data, step, like)


@jit(**EXACT)
def log_softmax(x: Any, y: Any) -> None:
    n, classes = x.shape
    like, bytes_ = x[0, 0], item(x[0, 0])
    step = classes * bytes_
    if classes <= ACROSS:
        tiles.log_softmax(n, classes, x.ctypes.data, step, bytes_, like, y.ctypes.data, step, bytes_, like)
    else:
        rows.log_softmax(n, classes, x.ctypes.data, step, like, y.ctypes.data, step, like)


@jit(**EXACT)
def logsumexp(x: Any, y: Any) -> None:
    n, classes = x.shape
    like, bytes_ = x[0, 0], item(x[0, 0])
    step = classes * bytes_
    if classes <= ACROSS:
        tiles.logsumexp(n, classes, x.ctypes.data, step, bytes_, like, y.ctypes.data, bytes_, like)
    else:
        rows.logsumexp(n, classes, x.ctypes.data, step, like, y.ctypes.data, bytes_, like)


@jit(**EXACT)
def _are_classes(labels: Any, classes: int) -> bool:
    wrong = 0
    for label in labels:
        wrong += 1 if label < 0 or label >= classes else 0
    return wrong == 0


@jit(**EXACT)
def mean_cross_entropy(x: Any, labels: Any, loss: Any) -> float:
    """Mean of the rows, for which `loss` is space; −1 where a label is none."""
    n, classes = x.shape
    if not _are_classes(labels, classes):
        return -1.0
    like, bytes_ = x[0, 0], item(x[0, 0])
    step, at, to = classes * bytes_, labels.ctypes.data, loss.ctypes.data
    if classes <= ACROSS:
        tiles.cross_entropy_labels(n, classes, x.ctypes.data, step, bytes_, like, at, 0, 0, 0, 0, 0, to, 0, 0, 0, like)
    else:
        row_losses.cross_entropy_labels(n, classes, x.ctypes.data, step, like, at, 0, 0, 0, 0, 0, to, 0, 0, like)
    return total(loss) / n


@jit(**EXACT)
def mean_cross_entropy_and_grad(x: Any, labels: Any, loss: Any, grad: Any) -> float:
    """Mean of the rows, for which `loss` is space, and its gradient; −1 where a label is none."""
    n, classes = x.shape
    if not _are_classes(labels, classes):
        return -1.0
    share = np.empty(1)
    share[0] = 1.0 / n
    like, bytes_ = x[0, 0], item(x[0, 0])
    step, at, to = classes * bytes_, labels.ctypes.data, loss.ctypes.data
    scale, into = share.ctypes.data, grad.ctypes.data
    if classes <= ACROSS:
        tiles.cross_entropy_labels(
            n, classes, x.ctypes.data, step, bytes_, like, at, 0, 0, 0, scale, 0, to, into, step, bytes_, like
        )
    else:
        row_losses.cross_entropy_labels(
            n, classes, x.ctypes.data, step, like, at, 0, 0, 0, scale, 0, to, into, step, like
        )
    alive(share)
    return total(loss) / n


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
