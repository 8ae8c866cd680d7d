"""Which implementation runs, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from typing import Any

from .calls import checks, recipes
from .calls.recipes import Recipe
from .calls.records import Problem
from .calls.table import VERBS
from .implementations import REGISTRY, Entry
from .libraries.arrays import FLOATING, dtype_name

_VARIABLE = "XSOFTMAX_IMPLEMENTATION"
_forced: ContextVar[str | None] = ContextVar("xsoftmax_implementation", default=None)
_record: ContextVar[list[tuple[str, Problem, str | None]] | None] = ContextVar("xsoftmax_record", default=None)


class _Recorded(Exception):
    """Ends a call that is only asked who would run it."""


@contextmanager
def use_implementation(name: str) -> Iterator[None]:
    """Run every verb by one implementation within the block.

    Parameters
    ----------
    name : str
        A name of the registry, such as ``"array_api"``. It binds arrays of the library that the implementation
        serves; arrays of other libraries are treated as without it. Verbs that have no inner operation of their own
        always run the formulas. Derivative rules of PyTorch and JAX stay in front of it.

    Raises
    ------
    TypeError
        If `name` is not a str.
    ValueError
        If there is no implementation of that name; or, from a verb within the block, if the implementation refuses
        the problem. An explicit choice never falls back.

    Notes
    -----
    The choice is a context variable: it holds for the current thread or task. ``XSOFTMAX_IMPLEMENTATION`` in the
    environment, read on import, sets the default.

    Examples
    --------
    >>> import numpy as np, xsoftmax as xs
    >>> with xs.use_implementation("array_api"):
    ...     xs.softmax(np.zeros(2))
    array([0.5, 0.5])
    """
    token = _forced.set(_checked(name, "use_implementation", "name"))
    try:
        yield
    finally:
        _forced.reset(token)


_default = os.environ.get(_VARIABLE) or None


def forced() -> str | None:
    """The implementation asked for, if any."""
    name = _forced.get()
    if name is None and _default is not None:
        return _checked(_default, "xsoftmax", _VARIABLE)
    return name


def _checked(name: str, function: str, argument: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{function}: {argument} is a {type(name).__name__}, expected a str such as 'array_api'")
    names = [entry.name for entry in REGISTRY]
    if name not in names:
        raise ValueError(f"{function}: {argument} is {name!r}, expected one of {', '.join(map(repr, names))}")
    return name


def run(operation: str, problem: Problem, /, *arrays: Any, xp: Any, out: Any = None) -> Any:
    """Run an inner operation by the implementation chosen for it, which returns `out` if it has written to it."""
    choice = forced()
    if (record := _record.get()) is not None:
        record.append((operation, problem, choice))
        raise _Recorded
    return _runner(choice)(operation, problem, *arrays, xp=xp, out=out)


def perform(verb: Any, call: Any, /, *options: Any) -> Any:
    """`verb(call, *options, run=run)`, as one program where the implementation chosen makes programs."""
    if _record.get() is not None:
        return verb(call, *options, run=run)
    return run("program", call.problem, call, verb, *options, xp=call.xp)


@dataclass(frozen=True, slots=True)
class Runner:
    """What an implementation asks for inner operations by.

    `choice` is the implementation that was asked for, `me` the one that asks.
    """

    choice: str | None
    me: str | None = None

    def __call__(self, operation: str, problem: Problem, /, *arrays: Any, xp: Any, out: Any = None) -> Any:
        """By the first of all that takes it."""
        return self._run(None, operation, problem, arrays, xp, out)

    def behind(self, operation: str, problem: Problem, /, *arrays: Any, xp: Any, out: Any = None) -> Any:
        """By the first of those that stand behind me."""
        return self._run(self.me, operation, problem, arrays, xp, out)

    def _run(
        self, after: str | None, operation: str, problem: Problem, arrays: tuple[Any, ...], xp: Any, out: Any
    ) -> Any:
        name = _chosen(operation, _settled(problem), self.choice, after)
        module, me = _module(name), _runner(self.choice, name)
        if out is not None and operation in getattr(module, "INTO", ()):
            return module.OPERATIONS[operation](problem, *arrays, xp=xp, run=me, out=out)
        return module.OPERATIONS[operation](problem, *arrays, xp=xp, run=me)


_runner = lru_cache(maxsize=256)(Runner)


def aside(operation: str, problem: Problem, /, *args: Any) -> Any:
    """What an implementation has of its own for the work around the operations; None: the formulas are to do it."""
    if _record.get() is not None:
        return None
    for name in _with_own(operation, problem.library, forced()):  # else a problem may hold a traced number
        if not reasons(name, operation, problem):
            return _module(name).OPERATIONS[operation](problem, *args)
    return None


@lru_cache(maxsize=256)
def _with_own(operation: str, library: str, choice: str | None) -> tuple[str, ...]:
    entries = [entry for entry in candidates(library) if not entry.derivatives]
    names = [entry.name for entry in entries if choice == entry.name]
    names = names or [entry.name for entry in entries if not entry.off]
    return tuple(name for name in names if operation in _module(name).OPERATIONS)


def _settled(problem: Problem) -> Problem:
    """Without a temperature that has no value yet, which no choice may depend on."""
    return problem if isinstance(problem.temperature, float) else replace(problem, temperature=1.0)


@lru_cache(maxsize=4096)
def _chosen(operation: str, problem: Problem, choice: str | None, after: str | None) -> str:
    entries = candidates(problem.library)
    if after is not None:
        entries = entries[[entry.name for entry in entries].index(after) + 1 :]
    for entry in entries:
        if entry.derivatives and not reasons(entry.name, operation, problem):
            return entry.name
    if binds(choice, operation, problem) and choice in [entry.name for entry in entries]:
        if why := reasons(choice, operation, problem):
            raise ValueError(f"{problem.verb}: implementation {choice} was asked for but refuses: {'; '.join(why)}")
        return choice
    return next(entry.name for entry in entries if not (entry.off or reasons(entry.name, operation, problem)))


def binds(choice: str | None, operation: str, problem: Problem) -> bool:
    """Whether the implementation asked for serves this library and has the operation."""
    serves = choice in [entry.name for entry in candidates(problem.library)]
    return serves and operation in _module(choice).OPERATIONS


_SMALL = 1 << 16  # elements; on one thread, in 40 µs at most
_TENSORS = ("Tensor", "Parameter")
_LIBRARIES = {
    "numpy": "numpy",
    "cupy": "cupy",
    "torch": "torch",
    "jaxlib": "jax",
}  # those with entries, by their arrays' module


def entry(verb: str, x: Any, axis: Any) -> Any:
    """What takes a small array of this kind straight to its implementation, or None; that may answer None too.

    The choice is made once for each kind: what would be done for any array costs more than the arithmetic here.
    """
    kind = type(x)
    if kind.__name__ == "ndarray":
        size = x.size if kind.__module__ == "numpy" else min(x.size, 1)  # on a device no size is too large
    elif kind.__module__.startswith("torch"):
        import torch

        if torch.compiler.is_compiling() or kind.__name__ not in _TENSORS:
            return None
        size = x.numel() if x.is_cpu else 0
    elif kind.__name__ == "ArrayImpl":
        size = min(x.size, 1)
    else:
        return None
    if not 0 < size <= _SMALL or _record.get() is not None:
        return None
    if type(axis) is not int and axis is not None and not (type(axis) is tuple and {*map(type, axis)} == {int}):
        return None
    key = verb, kind, x.dtype, x.ndim, axis, forced()
    recipe = recipes.kept.get(key)
    if recipe is None:
        recipe = recipes.keep(key, _found(verb, x, axis, key[-1]))
    return recipe.entry


def _found(verb: str, x: Any, axis: Any, choice: str | None) -> Recipe:
    row, library, dtype = VERBS[verb], _LIBRARIES.get(type(x).__module__.partition(".")[0]), dtype_name(x)
    if library == "jax" and choice is not None:  # which a program that is traced would bind
        return Recipe()
    is_loss, is_native = row.family == "cross_entropy", getattr(x.dtype, "isnative", True)
    if library is None or dtype not in FLOATING or not is_native or (is_loss and type(axis) is not int):
        return Recipe()
    try:
        axes = checks.negative_axes(verb, axis, x.ndim, row.arrays[0])
    except ValueError:
        return Recipe()
    wants = tuple("loss" if a == "rows" else "grad" for a in row.returns) if is_loss else ()
    problem = Problem(verb, library, type(x).__name__, dtype, "float64", dtype, axes, wants=wants)
    return _recipe(problem, row.operations or (verb,), x.ndim, choice)


def _recipe(problem: Problem, operations: tuple[str, ...], ndim: int, choice: str | None) -> Recipe:
    """Of an implementation that has all of the operations; those with derivatives stand before others alone."""
    names = {_behind_rules(operation, problem, choice) for operation in operations}
    if len(names) > 1:
        return Recipe(problem)
    (name,) = names

    def entry_of(verb: str, p: Problem) -> Any:
        """Of arrays of another library, and of what a derivative rule asks for."""
        return _recipe(replace(p, verb=verb), operations, ndim, choice).entry

    make = getattr(_module(name), "ENTRIES", {}).get(problem.verb)
    return Recipe(problem, name, make and make(problem, ndim, entry_of))


def _behind_rules(operation: str, problem: Problem, choice: str | None) -> str:
    name = _chosen(operation, problem, choice, None)
    is_rule = next(entry.derivatives for entry in REGISTRY if entry.name == name)
    return _chosen(operation, problem, choice, name) if is_rule else name


def candidates(library: str) -> list[Entry]:
    """The implementations that serve a library, in the order in which they are asked."""
    return [entry for entry in REGISTRY if entry.library in (library, "*")]


def recorded(verb: Any, /, *arrays: Any, **options: Any) -> tuple[str, Problem, str | None]:
    """The first operation that a call runs, its problem and the implementation asked for; nothing is run."""
    record: list[tuple[str, Problem, str | None]] = []
    token = _record.set(record)
    try:
        verb(*arrays, **options)
    except _Recorded:
        return record[0]
    finally:
        _record.reset(token)
    raise ValueError(f"{verb.__name__}: nothing would run: the arrays are empty, expected at least one row and class")


@lru_cache(maxsize=4096)
def reasons(name: str, operation: str, problem: Problem) -> tuple[str, ...]:
    """Why implementation `name` does not take the problem; empty: it does."""
    module = _module(name)
    missing = () if operation in module.OPERATIONS else (f"has no {operation} of its own",)
    return missing or tuple(module.refuses(problem))


@lru_cache(maxsize=64)
def _module(name: str) -> Any:
    module = next(entry.module for entry in REGISTRY if entry.name == name)
    return import_module(f"{__package__}.implementations.{module}")


def forget() -> None:
    """Read the registry and its modules anew."""
    for cached in (_chosen, _with_own, reasons, _module, _runner):
        cached.cache_clear()
    recipes.kept.clear()
