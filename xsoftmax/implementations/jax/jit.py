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
from . import linear


def refuses(problem: Problem) -> list[str]:
    if problem.container != "ArrayImpl":
        return [f"a {problem.container} holds no values: the formulas become part of the caller's program"]
    return []


def together(p: Problem, call: Any, verb: Any, *options: Any, xp: Any, run: Any) -> Any:
    """A verb with what stands around its operations; like its arrays, the program may move to any device."""
    if _is_traced((call, options)):
        return run("together", p, call, verb, *options, xp=xp, after="jax_jit")
    return _run_compiled("together", p, call._replace(problem=None, device=None), verb, *options)


def _compiled(operation: str) -> Callable[..., Any]:
    def run_compiled(p: Problem, *arrays: Any, xp: Any, run: Any) -> Any:
        if _is_traced(arrays):
            return run(operation, p, *arrays, xp=xp, after="jax_jit")
        return _run_compiled(operation, p, *arrays)

    return run_compiled


softmax = _compiled("softmax")
log_softmax = _compiled("log_softmax")
logsumexp = _compiled("logsumexp")
signed_logsumexp = _compiled("signed_logsumexp")
softmax_product = _compiled("softmax_product")
softmax_jacobian = _compiled("softmax_jacobian")
log_softmax_vjp = _compiled("log_softmax_vjp")
log_softmax_jvp = _compiled("log_softmax_jvp")
cross_entropy = _compiled("cross_entropy")
cross_entropy_hvp = _compiled("cross_entropy_hvp")
cross_entropy_hessian_diag = _compiled("cross_entropy_hessian_diag")
cross_entropy_from_probs = _compiled("cross_entropy_from_probs")
entropy = _compiled("entropy")
kl_divergence = _compiled("kl_divergence")


def _is_traced(args: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))


def _run_compiled(operation: str, p: Problem, *args: Any) -> Any:
    leaves, tree = jax.tree.flatten(args)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    constants = tuple(None if isinstance(leaf, jax.Array) else leaf for leaf in leaves)
    if p.temperature == 1.0:
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
    module = linear if operation == "linear_cross_entropy" else array_api
    return getattr(module, operation)(p, *args, xp=xp, run=_formulas)
