"""Array-API namespaces: the one place where the compatibility layer is asked."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from array_api_compat import array_namespace, device, is_writeable_array

_LAYER = "array_api_compat."

__all__ = ["array_namespace", "device", "is_writeable_array", "root", "wrapped"]


def root(xp: Any) -> str:
    """The top-level package of a namespace, wrapped or not."""
    return xp.__name__.removeprefix(_LAYER).partition(".")[0]


def wrapped(name: str) -> Any:
    """The namespace of a library that has none of its own: "numpy", "dask.array"."""
    return import_module(_LAYER + name)
