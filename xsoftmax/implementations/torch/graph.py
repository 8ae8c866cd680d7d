"""A call within a graph of PyTorch's compiler."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from ...libraries.arrays import in_graph


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def node(module: str, name: str, arrays: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """A function that stands behind a door of its name: the compiler takes no function as an argument of a node."""
    verb = getattr(import_module(module), name).__wrapped__
    token = in_graph.set(True)
    try:
        return verb(*arrays, **options)
    finally:
        in_graph.reset(token)
