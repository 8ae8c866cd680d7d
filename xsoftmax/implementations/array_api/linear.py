"""A loss of logits z = x @ factor.T + bias, of which only a block is there at a time.

Rows are independent. A block that holds all classes of its rows goes through `cross_entropy`. One that is cut by
classes as well is made twice: for the states of the rows, which are merged, and for their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ... import formulas
from ...calls.records import Array, Plan, Problem, Rows
from ...libraries import facts, sums
from ...libraries.arrays import HALF, cast, dtype_name, rounded
from .pieces import Halved, Pieces, blocks, of_classes, of_rows, taken

Results = tuple[Array | None, Array | None, Array | None, Array | None]


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
    """Loss of each row (N, 1), not scaled; gradients of x, factor and bias, scaled by `rows.scale`."""
    if x.shape[0] == 0:
        return of_nothing(p, x, factor, bias, xp)
    if (unit := unit_of(p)) != 1.0:
        rows = rows._replace(scale=unit if rows.scale is None else unit * rows.scale)
    linear = Linear(p, factor, bias, plan, xp, run, unit)
    loss, grad_x = (Pieces(x.shape[0], p.library) for _ in range(2))
    grad_factor, grad_bias = (Pieces(factor.shape[0], p.library) for _ in range(2))
    for block in blocks(0, x.shape[0], plan.rows):
        some = taken(x, block)
        of_block, gradients = linear.logits_gradients(some, taken(targets, block), rows_of(rows, block))
        if of_block is not None:
            loss.add(block, of_block, xp)
        if "grad" in p.wants:
            grad_x.add(block, linear.back(some, gradients, grad_factor, grad_bias), xp)
        del gradients  # before the next ones are made
    if "grad" not in p.wants:
        return loss.array(xp), None, None, None
    return (
        loss.array(xp) if "loss" in p.wants else None,
        grad_x.array(xp),
        linear.whole(grad_factor.array(xp), factor),
        None if bias is None else linear.whole(grad_bias.array(xp), bias),
    )


def unit_of(p: Problem) -> float:
    """A power of two: in it, gradients of logits by a small temperature are numbers, as their products may be."""
    if "grad" not in p.wants or not isinstance(p.temperature, float):
        return 1.0
    spare, most = (960, 400) if p.dtype == "float64" else (48, 400 if p.compute == "float64" else 64)
    return 2.0 ** -max(0, min(most, -math.frexp(p.temperature)[1] - spare))


def of_nothing(p: Problem, x: Array, factor: Array, bias: Array | None, xp: Any) -> Results:
    loss = xp.sum(cast(x, p.compute, xp), axis=-1, keepdims=True) if "loss" in p.wants else None
    if "grad" not in p.wants:
        return loss, None, None, None
    return loss, cast(x * 1.0, dtype_name(x), xp), xp.zeros_like(factor), None if bias is None else xp.zeros_like(bias)


def rows_of(rows: Rows, block: slice) -> Rows:
    where, weight, scale, zeta = rows
    return Rows(of_rows(where, block), weight, of_rows(scale, block), of_rows(zeta, block))


@dataclass(frozen=True, slots=True)
class Linear:
    """What stands behind the logits. Half precision is multiplied as float32, block by block."""

    p: Problem
    factor: Array
    bias: Array | None
    plan: Plan
    xp: Any
    run: Any
    unit: float = 1.0

    @property
    def dtype(self) -> str:
        return "float32" if self.p.dtype in HALF else self.p.dtype

    def logits(self, x: Array, classes: slice) -> Array:
        xp, x = self.xp, cast(x, self.dtype, self.xp)
        some = blocks(classes.start, classes.stop, self.plan.factors if self._is_converted() else None)
        parts = [xp.matmul(x, cast(taken(self.factor, block), self.dtype, xp).T) for block in some]
        z = parts[0] if len(parts) == 1 else xp.concat(parts, axis=-1)
        if z.shape[-1] is None:  # ndonnx forgets the shape of a product
            z = xp.reshape(z, (-1, classes.stop - classes.start))
        if self.bias is not None:
            z += cast(taken(self.bias, classes), self.dtype, xp)
        return z

    def _is_converted(self) -> bool:
        """Whether a block of the factor is a copy."""
        return self.p.masked or dtype_name(self.factor) != self.dtype

    def logits_gradients(
        self, x: Array, targets: Array, rows: Rows
    ) -> tuple[Array | None, Iterable[tuple[slice, Array]]]:
        """Loss of the rows, and the gradient of their logits, by classes."""
        inner = replace(self.p, dtype=self.dtype, result=self.dtype)
        classes = blocks(0, self.factor.shape[0], self.plan.classes)
        if len(classes) > 1:
            return self._by_classes(inner, x, targets, rows, classes)
        z = self.logits(x, classes[0])
        out = z if "grad" in self.p.wants and facts.of(self.p.library).views else None
        loss, grad = self.run("cross_entropy", inner, z, targets, rows, xp=self.xp, out=out)
        return loss, [(classes[0], grad)]

    def _by_classes(
        self, inner: Problem, x: Array, targets: Array, rows: Rows, classes: list[slice]
    ) -> tuple[Array | None, Iterator[tuple[slice, Array]]]:
        xp, n = self.xp, self.factor.shape[0]
        kept = self._kept(rows.where, classes)

        def part(operation: str, block: slice, *state: formulas.State) -> Any:
            z = self.logits(x, block)
            t = targets if self.p.labels else targets[:, block]
            some = rows._replace(where=of_classes(rows.where, block), weight=of_classes(rows.weight, block))
            place = formulas.Part(block.start, n, kept)
            out = z if facts.of(self.p.library).views else None
            return self.run(operation, inner, z, t, some, place, *state, xp=xp, out=out)

        states = [part("class_state", block) for block in classes]
        columns = ([stored(a, self.p.library) for a in arrays] for arrays in zip(*states, strict=True))
        side_by_side = formulas.State(*(xp.concat(arrays, axis=-1) for arrays in columns))
        temperature, loss = self.p.temperature, None
        state = formulas.merged(side_by_side, n, (-1,), temperature, xp=xp)
        if "loss" in self.p.wants:
            loss = formulas.cross_entropy_of_state(state, rows.zeta, temperature, xp=xp)
        pairs = zip(classes, states, strict=True)
        return loss, ((block, part("class_grad", block, own, state)) for block, own in pairs)

    def _kept(self, where: Array | None, classes: list[slice]) -> Array | int:
        """The number of classes that are not masked, in each row."""
        n, xp = self.factor.shape[0], self.xp
        if where is None or not self.p.label_smoothing:
            return n
        counts = [
            xp.sum(xp.astype(of_classes(where, block), getattr(xp, self.p.compute)), axis=-1, keepdims=True)
            for block in (classes if where.shape[-1] != 1 else classes[:1])
        ]
        return sum(counts[1:], counts[0]) * (n if where.shape[-1] == 1 else 1)

    def back(self, x: Array, gradients: Iterable[tuple[slice, Array]], grad_factor: Pieces, grad_bias: Pieces) -> Array:
        """g @ factor; adds g.T @ x and Σ g"""
        xp = self.xp
        shown = finite(cast(x, self.dtype, xp), xp)
        grad_x = Halved()
        for classes, g in gradients:
            g = stored(g, self.p.library)
            for block in blocks(classes.start, classes.stop, self.plan.factors if self._is_converted() else None):
                factor = cast(taken(self.factor, block), self.dtype, xp)
                product = xp.matmul(taken(g, block, 1, classes.start), finite(factor, xp) if self.p.masked else factor)
                grad_x.add(product)
            for block in blocks(classes.start, classes.stop, self.plan.factors):
                some = taken(g, block, 1, classes.start)
                grad_factor.add(block, xp.matmul(some.T, shown), xp)
                if self.bias is not None:
                    grad_bias.add(block, sums.total(some, (-2,), xp=xp)[0, :], xp)
        return self.whole(grad_x.total(), x)

    def whole(self, gradient: Array, of: Array) -> Array:
        if self.unit != 1.0:
            gradient = formulas.over(gradient, self.unit, xp=self.xp)
        return rounded(gradient, dtype_name(of), self.xp)


def finite(a: Array, xp: Any) -> Array:
    """What is absent has gradient 0, and may hold anything; what is not has made its row nan already."""
    return xp.where(xp.isfinite(a), a, xp.zeros_like(a))


def stored(a: Array, library: str) -> Array:
    """Arrays of sparse are multiplied and joined where their fill value is 0 alone: then each element is stored."""
    return type(a).from_numpy(a.todense()) if library == "sparse" and a.fill_value else a
