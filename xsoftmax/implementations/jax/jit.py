"""The formulas compiled: one XLA program for each problem and shape, on JAX arrays that hold values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ...calls.records import Problem
from ..array_api import operations as array_api
from . import linear, small

_LEAST = 2.0**-126  # a number below it would be flushed on its way into a program, one above 1 / it no float32


def refuses(problem: Problem) -> list[str]:
    if problem.container != "ArrayImpl":
        return [f"a {problem.container} holds no values: the formulas become part of the caller's program"]
    return []


def program(p: Problem, call: Any, verb: Any, *options: Any, xp: Any, run: Any) -> Any:
    """A verb with what stands around its operations; like its arrays, the program may move to any device."""
    if _is_traced((call, options)):
        return run.behind("program", p, call, verb, *options, xp=xp)
    return _run_compiled("program", p, call._replace(problem=None, device=None), verb, *options)


def _compiled(operation: str) -> Callable[..., Any]:
    def run_compiled(p: Problem, *arrays: Any, xp: Any, run: Any) -> Any:
        if _is_traced(arrays):
            return run.behind(operation, p, *arrays, xp=xp)
        return _run_compiled(operation, p, *arrays)

    return run_compiled


def _is_traced(args: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))


def _run_compiled(operation: str, p: Problem, *args: Any) -> Any:
    leaves, tree = jax.tree.flatten(args)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    constants = tuple(None if isinstance(leaf, jax.Array) else leaf for leaf in leaves)
    if p.temperature == 1.0 or not _LEAST <= p.temperature <= 1.0 / _LEAST:
        return _program(operation, p, tree, constants, None, arrays)
    # an argument of the program, since it is annealed; the other numbers of a problem stay through a training run
    return _program(operation, replace(p, temperature=1.0), tree, constants, p.temperature, arrays)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _program(operation: str, p: Problem, tree: Any, constants: Any, temperature: Any, arrays: Any) -> Any:
    p = p if temperature is None else replace(p, temperature=temperature)
    rest = iter(arrays)
    leaves = [next(rest) if leaf is None else leaf for leaf in constants]
    return _formulas(operation, p, *jax.tree.unflatten(tree, leaves), xp=jnp)


def _formulas(operation: str, p: Problem, *args: Any, xp: Any, out: None = None) -> Any:
    return _FORMULAS[operation](p, *args, xp=xp, run=_formulas)


_FORMULAS = array_api.OPERATIONS | {"linear_cross_entropy": linear.linear_cross_entropy}
OPERATIONS = {operation: _compiled(operation) for operation in _FORMULAS} | {"program": program}
ENTRIES = small.ENTRIES
