"""Dask arrays, block by block with the kernels of the blocks' own library; nothing is computed here.

Rows that are whole in each block: the verb on each block. Classes that are split: one tree of the rows' states, then a
pass over the blocks; what has no such states is left to the formulas on the whole arrays.
"""

from __future__ import annotations

from typing import Any

from ...calls.records import Problem
from ...libraries.quiet import quietly
from . import split_rows
from .leaves import without_empty_blocks
from .whole_rows import on_blocks, splits_classes


def refuses(problem: Problem) -> list[str]:
    return []


@quietly
def program(p: Problem, call: Any, verb: Any, *options: Any, xp: Any, run: Any) -> Any:
    call = without_empty_blocks(call._replace(problem=p))
    if splits_classes(call):
        return run.behind("program", p, call, verb, *options, xp=xp)
    return on_blocks(call, verb, options, run)


OPERATIONS = {"program": program, **split_rows.OPERATIONS}
