"""Who would run a call, and why the others refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import choose
from ..calls.records import Problem
from ..calls.table import VERBS
from . import function


@dataclass(frozen=True)
class Explanation:
    """The choice for one call.

    Attributes
    ----------
    verb, operation : str
        The public function, and the inner operation that it runs first.
    problem : Problem
        What is asked, without the arrays.
    implementation : str or None
        Who would run it; None if the implementation that was asked for refuses.
    derivatives : str or None
        Whose derivative rules stand in front of it.
    refused : dict of str to tuple of str
        The reasons of the others that were asked.
    """

    verb: str
    operation: str
    problem: Problem
    implementation: str | None
    refused: dict[str, tuple[str, ...]]
    derivatives: str | None = None

    def __str__(self) -> str:
        p = self.problem
        lines = [
            f"{self.verb}: {self.implementation or 'nobody'} runs {self.operation} of a {p.library} {p.array}",
            f"  {p.dtype}, computed in {p.compute}, class axes {p.axes}",
        ]
        if self.derivatives is not None:
            lines.append(f"  {self.derivatives} has the derivative rules")
        lines += [f"  {name} refuses: {'; '.join(why)}" for name, why in self.refused.items()]
        return "\n".join(lines)


def explain(verb: Any, /, *arrays: Any, **options: Any) -> Explanation:
    """Who would run a call, and why the others refused; nothing is computed.

    Parameters
    ----------
    verb : str or callable
        A public function or its name, such as ``"softmax"``.
    *arrays, **options
        What it would be called with; the same checks apply.

    Returns
    -------
    Explanation
        ``str()`` of it is meant for people.

    Raises
    ------
    ValueError
        If there is no such function, or an argument is wrong.
    TypeError
        If `verb` is no function and no name, or an argument is wrong.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> xs.explain("entropy", np.full((4, 10), 0.1)).implementation
    'array_api'
    """
    if not isinstance(verb, str) and not callable(verb):
        raise TypeError(f"explain: verb is a {type(verb).__name__}, expected a public function or its name")
    name = verb if isinstance(verb, str) else getattr(verb, "__name__", "")
    if name not in VERBS or verb not in (name, function(name)):  # other libraries have a softmax too
        raise ValueError(f"explain: verb is {verb!r}, expected one of {', '.join(sorted(VERBS))}")
    operation, problem, choice = choose.recorded(function(name), *arrays, **options)
    refused: dict[str, tuple[str, ...]] = {}
    derivatives = None
    entries = choose.candidates(problem.library)
    rules = [entry.name for entry in entries if entry.derivatives]
    bound = choice not in rules and choose.binds(choice, operation, problem)
    for entry in entries:
        why = choose.reasons(entry.name, operation, problem)
        if entry.derivatives:
            derivatives = derivatives if why else entry.name
        elif not bound or choice == entry.name:
            why = why or ((entry.off,) if entry.off and not bound else ())
            if not why:
                return Explanation(name, operation, problem, entry.name, refused, derivatives)
            refused[entry.name] = why
    return Explanation(name, operation, problem, None, refused, derivatives)
