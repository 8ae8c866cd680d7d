"""Parts of rows of NumPy arrays (n, C), by blocks that stay in the cache, on the threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..blocks import cut
from ..chunks import of_rows
from ..formulas import Part, State
from ..problem import Array, Problem, Rows
from ..threads import each
from . import array_api
from ._linear import rows_of


def class_state(p: Problem, x: Array, targets: Array, rows: Rows, part: Part, *, xp: Any, run: Any) -> State:
    state = State(*(np.empty((len(x), 1)) for _ in State._fields))

    def work(block: slice) -> None:
        found = array_api.class_state(p, *_of_block(block, x, targets, rows, part), xp=xp, run=run)
        for whole, values in zip(state, found, strict=True):
            whole[block] = values

    _each_block(work, x)
    return state


def class_grad(
    p: Problem, x: Array, targets: Array, rows: Rows, part: Part, state: State, *, xp: Any, run: Any
) -> Array:
    """In place of the logits."""

    def work(block: slice) -> None:
        some = State(*(a[block] for a in state))
        x[block] = array_api.class_grad(p, *_of_block(block, x, targets, rows, part), some, xp=xp, run=run)

    _each_block(work, x)
    return x


def _of_block(block: slice, x: Array, targets: Array, rows: Rows, part: Part) -> tuple[Any, ...]:
    return x[block], targets[block], rows_of(rows, block), part._replace(kept=of_rows(part.kept, block))


def _each_block(work: Any, x: Array) -> None:
    parts = [rows for _, rows in cut(1, *x.shape)]
    each(lambda i: work(parts[i]), len(parts))
