"""What the kinds of a call's arrays settle, found once and kept; numbers are no part of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .records import Problem

_MOST = 4096


class Recipe(NamedTuple):
    """Who answers a verb for arrays of these kinds; `entry` takes the arrays and numbers as the verb has them.

    It returns None where anything is odd; without it, such a call is always looked at in full.
    """

    problem: Problem | None = None
    implementation: str | None = None
    entry: Callable[..., Any] | None = None


kept: dict[Any, Recipe] = {}


def keep(key: Any, recipe: Recipe) -> Recipe:
    if len(kept) >= _MOST:
        kept.clear()
    kept[key] = recipe
    return recipe
