"""Kernels compiled by Numba, on blocks of rows of NumPy arrays."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

import numpy as np

from ...calls.records import Array, Problem
from ...kernels import ACROSS
from ...libraries.arrays import HALF
from ...threads import get_num_threads
from . import numba_hessians, numba_parts, small
from .addresses import TYPES, kernel, memory, side_by_side, step, steps
from .operations import READ, WRITES, Operations

_WIDEST = 1 << 16  # classes of rows that are worked across: a tile is 8 rows wide
_WIDEST_HALF = 1 << 10  # the same, of half precision: 64 rows of float32 in 256 KiB
_LONGEST_HALF = 1 << 20  # classes: two rows of float32 in 8 MiB
_EACH = 8  # blocks of a thread
_LEAST = 1 << 18  # elements of one
_PIECE = 4096  # elements that are worth a call
_CODES = {"softmax": 0, "log_softmax": 1, "logsumexp": 2}  # numbers reach a kernel in less time than strings
_PRODUCT_CODES = {"softmax_product": 0, "log_softmax_jvp": 1, "log_softmax_vjp": 2}


@lru_cache(maxsize=1)
def _missing() -> list[str]:
    if find_spec("numba") is None:
        return ['Numba is not installed: pip install "xsoftmax[numba]"']
    try:
        import numba
    except Exception as error:  # with this NumPy, say
        return [f"Numba can't be imported: {error}"]
    return ["Numba is told not to compile: NUMBA_DISABLE_JIT"] if numba.config.DISABLE_JIT else []


def refuses(problem: Problem) -> list[str]:
    return _missing()


class _Kernels:
    def block(self, size: int) -> int:
        """0.1 ms at least, against 10 µs for a call from the pool, and few: threads wait for each other at each."""
        return max(_LEAST, size // (_EACH * get_num_threads())) if size > _LEAST else _LEAST

    def reads(self, view: Array) -> bool:
        outer, inner, classes = view.shape
        if outer > 1 and inner * classes < _PIECE:
            return False
        adjacent = side_by_side(view)
        if view.dtype in READ:
            return adjacent or classes <= _WIDEST
        if classes > _LONGEST_HALF:
            return False
        across = view.strides[1] == view.itemsize and classes <= _WIDEST_HALF
        return view.dtype.name in HALF and view.dtype.isnative and (adjacent or across)

    def normalise(self, operation: str, x: Array, y: Array) -> None:
        n, classes = x.shape
        a, b = memory(x), memory(y)
        if x.dtype not in READ:
            if operation == "logsumexp" or _are_alike(x, y):
                kernel("halves", "normalise")(
                    _CODES[operation], n, classes, a, *steps(x), b, *steps(y), x.dtype.name == "bfloat16"
                )
            else:
                self.normalise(operation, z := np.array(x, order="C"), z)
                y[...] = z
            return
        across = classes <= ACROSS or not side_by_side(x)
        if operation == "logsumexp":
            to: tuple[int, ...] = (b, y.strides[0])
        else:
            across = across or not side_by_side(y)
            to = (b, *(y.strides if across else y.strides[:1]))
        like = (TYPES[x.dtype], TYPES[y.dtype])
        if across:
            kernel("tiles", operation)(n, classes, a, *x.strides, like[0], *to, like[1])
        else:
            kernel("rows", operation)(n, classes, a, x.strides[0], like[0], *to, like[1])

    def cross_entropy(
        self,
        weight: Array | None,
        x: Array,
        targets: Array | None,
        grad: Array | None,
        labels: Array | None,
        zeta: Array | None,
        scale: Array | None,
        loss: Array | None,
    ) -> None:
        n, classes = x.shape
        by_row = (memory(zeta), step(zeta), memory(scale), step(scale), memory(loss))
        if x.dtype not in READ:
            if not _are_alike(x, targets, grad):
                x, targets, into = (None if a is None else np.array(a, order="C") for a in (x, targets, grad))
                self.cross_entropy(weight, x, targets, into, labels, zeta, scale, loss)
                if grad is not None:
                    grad[...] = into
                return
            x_at, t_at, g_at = ((memory(a), *steps(a)) for a in (x, targets, grad))
            brain = x.dtype.name == "bfloat16"
            if labels is not None:
                kernel("halves", "cross_entropy_labels")(
                    n, classes, *x_at, memory(labels), memory(weight), *by_row, *g_at, brain
                )
            else:
                kernel("halves", "cross_entropy_dense")(n, classes, *x_at, *t_at, *by_row, *g_at, brain)
            return
        across = classes <= ACROSS or not all(a is None or side_by_side(a) for a in (x, targets, grad))
        like = TYPES[x.dtype]
        into = like if grad is None else TYPES[grad.dtype]
        x_at, t_at, g_at = ((memory(a), *steps(a)[: 2 if across else 1]) for a in (x, targets, grad))
        module = "tile_losses" if across else "row_losses"
        if labels is not None:
            kernel(module, "cross_entropy_labels")(
                n, classes, *x_at, like, memory(labels), memory(weight), *by_row, *g_at, into
            )
        else:
            kernel(module, "cross_entropy_dense")(
                n, classes, *x_at, like, *t_at, TYPES[targets.dtype], *by_row, *g_at, into
            )

    def product(self, operation: str, y: Array, v: Array, to: Array) -> None:
        if not all(map(side_by_side, (y, v, to))):
            result = np.empty(to.shape, to.dtype)
            self.product(operation, np.ascontiguousarray(y), np.ascontiguousarray(v), result)
            to[...] = result
            return
        if y.dtype not in READ:
            steps = [part for a in (y, v, to) for part in (memory(a), a.strides[0])]
            kernel("halves", "product")(_PRODUCT_CODES[operation], *y.shape, *steps, y.dtype.name == "bfloat16")
            return
        arguments = [part for a in (y, v, to) for part in (memory(a), a.strides[0], TYPES[a.dtype])]
        if operation == "softmax_product":
            kernel("row_losses", "softmax_product")(*y.shape, *arguments)
        else:
            kernel("row_losses", "log_softmax_product")(*y.shape, *arguments, operation == "log_softmax_vjp")


def _are_alike(*arrays: Array | None) -> bool:
    """Whether rows, or classes, lie side by side in each."""
    return len({side_by_side(a) for a in arrays if a is not None}) == 1


OPERATIONS = Operations(_Kernels()).declared() | numba_parts.OPERATIONS | numba_hessians.OPERATIONS
INTO = WRITES | {"class_grad"}
ENTRIES = small.ENTRIES
