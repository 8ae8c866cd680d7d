"""How many rows and classes of a linear loss are worked at a time."""

from __future__ import annotations

from typing import Any

from ..libraries import facts
from .records import Plan

_SHARE = 12  # of all logits: with what else a block needs, at most an eighth of them

_LEAST, _MOST = 1 << 24, 1 << 27  # bytes of the logits of a block; 8 MiB take 1.2 to 1.4 times as long as 128

_FLAT = 64  # rows; a product of fewer waits for the memory of the weight

_TALL = 256  # rows of a block that is cut by classes too

_FORMULAS = 4  # of that, where the formulas have temporaries of a block's size: 3 to 7 under JAX

_PART = 4  # of such a block: the linear weight, or its gradient, in one product


def plan(
    n: Any,
    classes: int,
    width: Any,
    itemsize: int,
    library: str,
    rows: int | None,
    some: int | None,
    *,
    on_cpu: bool = True,
) -> Plan:
    """`rows` and `some` classes as asked for, else so many that a block's logits have their share, up to 128 MiB.

    The free memory of a device is not asked for: the same call is to give the same bits.
    """
    if not isinstance(n, int) or not isinstance(width, int):
        return Plan(None, some, None)
    budget = max(n * classes * itemsize // _SHARE, _LEAST)
    if not facts.of(library).lean or not on_cpu:
        budget //= _FORMULAS
    budget = min(budget, _MOST) // itemsize
    if rows is None and not facts.of(library).own_blocks:
        rows = max(1, budget // (some or classes))
        if some is None and rows < min(n, _FLAT):
            rows = _TALL
            some = max(1, budget // rows)
    factors = max(_TALL, budget // (_PART * max(width, 1))) if facts.of(library).views else None
    return Plan(rows, some, factors)
