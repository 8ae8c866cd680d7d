"""Calls as nodes of a graph: PyTorch's compiler reads Python, and would stop where an implementation is chosen."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def one_node(verb: Callable[P, R]) -> Callable[P, R]:
    """`verb`, which PyTorch's compiler takes as one call; what this computes is part of the graph all the same.

    The door costs 0.2 µs: what answers within 2 stands before it.
    """

    @wraps(verb)
    def door(*arrays: P.args, **options: P.kwargs) -> R:
        if arrays and type(arrays[0]).__module__.startswith("torch"):
            import torch

            if torch.compiler.is_compiling():
                from ..implementations.torch import graph

                return graph.node(verb.__module__, verb.__name__, arrays, options)
        return verb(*arrays, **options)

    return door
