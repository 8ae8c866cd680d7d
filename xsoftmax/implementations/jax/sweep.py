"""Blocks of classes, and of each the blocks of rows, as loops of one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any  # of arrays with one first axis: rows or classes


def sweep(
    step: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]],
    rows: Tree,
    classes: Tree,
    found: Tree,
    height: int | None,
    width: int | None,
) -> tuple[Tree, Tree]:
    """`step(rows, classes, found)` makes of what was found in the rows of a block what is found now, and its share of
    what the classes have from all rows.
    """
    parts = _cut(rows, height)

    def of_classes(found: list[Tree], some: Tree) -> tuple[list[Tree], Tree]:
        first = jax.tree.map(lambda a: a[0], (parts[0], found[0]))
        _, shapes = jax.eval_shape(step, first[0], some, first[1])
        shares = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

        def of_rows(shares: Tree, block: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
            now, own = step(block[0], some, block[1])
            return jax.tree.map(jnp.add, shares, own), now

        now = []
        for block in zip(parts, found, strict=True):
            shares, values = jax.lax.scan(of_rows, shares, block)
            now.append(values)
        return now, shares

    values = _cut(found, height)
    shares = []
    for part in _cut(classes, width):
        values, own = jax.lax.scan(of_classes, values, part)
        shares.append(own)
    return _joined(values), _joined(shares)


def of_blocks(
    step: Callable[[Tree, Tree], Tree], rows: Tree, classes: Tree, height: int | None, width: int | None
) -> Tree:
    """`step(rows, classes)` of each block, which are numbers of its rows: for all rows, a last axis of the blocks."""
    parts = _cut(rows, height)

    def of_classes(_: None, some: Tree) -> tuple[None, Tree]:
        def of_rows(_: None, block: Tree) -> tuple[None, Tree]:
            return None, step(block, some)

        return None, _joined([jax.lax.scan(of_rows, None, part)[1] for part in parts])

    found = [jax.lax.scan(of_classes, None, part)[1] for part in _cut(classes, width)]
    return jax.tree.map(lambda *a: jnp.moveaxis(jnp.concatenate(a), 0, -1), *found)


def _cut(a: Tree, size: int | None) -> list[Tree]:
    """Blocks of one size, stacked, and one of the rest."""
    n = jax.tree.leaves(a)[0].shape[0]
    size = n if size is None else _even(n, size)
    full = n - n % size
    stacked = jax.tree.map(lambda a: jnp.reshape(a[:full], (-1, size, *a.shape[1:])), a)
    return [stacked, jax.tree.map(lambda a: a[full:][None], a)] if full < n else [stacked]


def _even(n: int, most: int) -> int:
    """A size that divides n, if there is one not much smaller: a rest is cut off by a copy of all."""
    most = min(most, n)
    return next((size for size in range(most, most // 2, -1) if n % size == 0), most)


def _joined(parts: list[Tree]) -> Tree:
    flat = [jax.tree.map(lambda a: jnp.reshape(a, (-1, *a.shape[2:])), part) for part in parts]
    return flat[0] if len(flat) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a), *flat)
