"""The contenders that were asked for, each with its library or the reason why that is not here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from .contenders import Contender

Makers = Mapping[str, Callable[[], Contender]]


def check_names(names: Iterable[str], known: Makers) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"bench: unknown contender {name!r}, expected one of {', '.join(known)}")


def made(names: Iterable[str], known: Makers) -> dict[str, Contender | str]:
    """The contenders, or why they are not here."""
    found: dict[str, Contender | str] = {}
    for name in names:
        try:
            found[name] = known[name]()
        except ImportError as error:
            found[name] = f"not installed: {error}"
    return found
