"""A loss of linear logits as a loop of one program over blocks of rows, which are made again for a derivative.

The rules are those of `cross_entropy` and of JAX's own products, so that every order is right, in both modes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..arrays import dtype_name, rounded
from ..chunks import Pieces, Plan
from ..problem import Array, Problem, Rows
from ._linear import Linear, Results, of_nothing

_WHOLE = Plan(None, None, None)


def linear_cross_entropy(
    p: Problem,
    x: Array,
    factor: Array,
    bias: Array | None,
    targets: Array,
    rows: Rows,
    plan: Plan,
    *,
    xp: Any,
    run: Any,
) -> Results:
    n = x.shape[0]
    if n == 0:
        return of_nothing(p, x, factor, bias, xp)
    by_row = [getattr(a, "ndim", 0) == 2 and a.shape[0] == n for a in rows]

    @partial(jax.checkpoint, prevent_cse=False)
    def of_block(factor: Array, bias: Array | None, x: Array, targets: Array, *options: Array) -> Any:
        rest = iter(options)
        some = Rows(*(next(rest) if own else a for own, a in zip(by_row, rows, strict=True)))
        linear = Linear(p, factor, bias, _WHOLE, xp, run)
        loss, gradients = linear.logits_gradients(x, targets, some)
        if "grad" not in p.wants:
            return (loss, None), (None, None)
        shares = [Pieces(factor.shape[0], p.library) for _ in range(2)]
        grad_x = linear.back(x, gradients, *shares)
        return (loss, grad_x), (shares[0].array(xp), None if bias is None else shares[1].array(xp))

    arrays = [x, targets, *(a for own, a in zip(by_row, rows, strict=True) if own)]
    height = n if plan.rows is None else min(plan.rows, n)
    full = n - n % height
    first, totals = of_block(factor, bias, *(a[:height] for a in arrays))
    found = [first]
    if full > height:
        stacked = [jnp.reshape(a[height:full], (-1, height, *a.shape[1:])) for a in arrays]

        def step(totals: Any, some: Any) -> Any:
            values, shares = of_block(factor, bias, *some)
            return jax.tree.map(jnp.add, totals, shares), values

        totals, values = jax.lax.scan(step, totals, stacked)
        found.append(jax.tree.map(lambda a: jnp.reshape(a, (-1, a.shape[-1])), values))
    if full < n:
        last, shares = of_block(factor, bias, *(a[full:] for a in arrays))
        totals = jax.tree.map(jnp.add, totals, shares)
        found.append(last)
    loss, grad_x = jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)
    grads = (None if a is None else rounded(a, dtype_name(b), xp) for a, b in zip(totals, (factor, bias), strict=True))
    return loss, grad_x, *grads
