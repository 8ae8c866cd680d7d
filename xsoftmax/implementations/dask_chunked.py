"""Dask arrays: blocks of whole rows by the kernels of their own library."""

from __future__ import annotations

from typing import Any

from ..problem import Problem
from . import array_api
from ._dask_verbs import on_blocks, splits_classes


def refuses(problem: Problem) -> list[str]:
    return []


def together(p: Problem, given: Any, verb: Any, *options: Any, xp: Any, run: Any) -> Any:
    given = given._replace(problem=p)
    if splits_classes(given):
        return run("together", p, given, verb, *options, xp=xp, after="dask_chunked")
    return on_blocks(given, verb, options, run)
