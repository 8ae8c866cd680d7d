"""What people call: the functions of the verb table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import functions, linear, losses


def function(name: str) -> Callable[..., Any]:
    """The function of a verb of the table."""
    return next(vars(module)[name] for module in (functions, losses, linear) if name in vars(module))
