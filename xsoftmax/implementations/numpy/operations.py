"""Operations on NumPy arrays by blocks of rows, whatever does the arithmetic of a block.

Rows with options, or of a dtype or layout that the arithmetic doesn't read, are brought into a block of the compute
dtype first, and the results back from one, by the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ... import formulas
from ...calls.records import Array, Problem, Rows
from ...libraries.arrays import cast, rounded
from ..array_api import operations as array_api
from . import long as long_rows
from .views import on_blocks, views

READ = frozenset({np.dtype(np.float32), np.dtype(np.float64)})


class Arithmetic(Protocol):
    """What is done to a block of rows (n, C), at least of float32 or float64; with a number for each row: (n, 1)."""

    def block(self, size: int) -> int:
        """Elements of a block, of so many in all, that is handed over as it is."""

    def reads(self, view: Array) -> bool:
        """Whether blocks of an aligned view (outer, inner, C) can be handed over as they are, and be written to."""

    def normalise(self, operation: str, x: Array, y: Array) -> None:
        """softmax and log_softmax into y, or logsumexp into (n, 1)."""

    def cross_entropy(
        self,
        weight: Array | None,
        x: Array,
        targets: Array | None,
        grad: Array | None,
        labels: Array | None,
        zeta: Array | None,
        scale: Array | None,
        loss: Array | None,
    ) -> None:
        """Loss of each row, not scaled, and scaled gradient, where these are arrays; of labels or of targets."""

    def product(self, operation: str, y: Array, v: Array, to: Array) -> None:
        """softmax_product, log_softmax_vjp or log_softmax_jvp."""


WRITES = frozenset({"softmax", "log_softmax", "cross_entropy"})


@dataclass(frozen=True, slots=True)
class Operations:
    """The inner operations, each as an implementation has it."""

    arithmetic: Arithmetic

    def declared(self) -> dict[str, Any]:
        return {
            "softmax": self.softmax,
            "log_softmax": self.log_softmax,
            "logsumexp": self.logsumexp,
            "cross_entropy": self.cross_entropy,
            "softmax_product": self.softmax_product,
            "softmax_gradient": self.softmax_gradient,
            "log_softmax_vjp": self.log_softmax_vjp,
            "log_softmax_jvp": self.log_softmax_jvp,
        }

    def softmax(
        self, p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any, out: Array | None = None
    ) -> Array:
        return self._like_logits("softmax", 0.0, p, x, where, xp, run, out)

    def log_softmax(
        self, p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any, out: Array | None = None
    ) -> Array:
        return self._like_logits("log_softmax", -math.inf, p, x, where, xp, run, out)

    def _like_logits(
        self,
        kernel: str,
        masked: float,
        p: Problem,
        x: Array,
        where: Array | None,
        xp: Any,
        run: Any,
        out: Array | None,
    ) -> Array:
        y = np.empty_like(x, subok=False) if out is None else out
        parts = views([x, _spread(where, x), y], p.axes)
        if parts is None:
            return run.behind(kernel, p, x, where, xp=xp)

        def plain(x: Array, where: None, y: Array) -> None:
            for a, b in zip(x, y, strict=True):
                self.arithmetic.normalise(kernel, a, b)

        def prepared(x: Array, where: Array | None, y: Array) -> None:
            z = _prepared(p, x, where, xp)
            result = np.empty_like(z)
            self.arithmetic.normalise(kernel, z, result)
            y[...] = rounded(array_api.masked(result, _rows(where), masked, xp), p.result, xp).reshape(y.shape)

        for part in parts:
            direct = _is_plain(p, where) and all(map(self._reads, part[::2]))
            if not direct and long_rows.are_long(part[0]):
                for a, kept, b in _matrices(*part):
                    long_rows.normalise(kernel, p, a, kept, b, run=run)
                continue
            self._on_blocks(direct, plain, prepared, *part)
        return y

    def logsumexp(self, p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
        parts = views([x, _spread(where, x)], p.axes)
        if parts is None:
            return run.behind("logsumexp", p, x, where, xp=xp)

        def plain(x: Array, where: None, value: Array) -> None:
            for a, b in zip(x, value, strict=True):
                self.arithmetic.normalise("logsumexp", a, b)

        def prepared(x: Array, where: Array | None, value: Array) -> None:
            z = _prepared(p, x, where, xp)
            into = np.empty((len(z), 1), value.dtype)
            self.arithmetic.normalise("logsumexp", z, into)
            value[...] = into.reshape(value.shape)

        values = np.empty(_row_shape(p, x), x.dtype if x.dtype in READ else p.compute)
        for part, value in _with_rows(parts, values):
            direct = _is_plain(p, where) and self._reads(part[0])
            if not direct and long_rows.are_long(part[0]):
                for a, kept, into in _matrices(*part, value):
                    long_rows.normalise("logsumexp", p, a, kept, into, run=run)
                continue
            self._on_blocks(direct, plain, prepared, *part, value)
        return cast(values, p.result, xp)

    def cross_entropy(
        self, p: Problem, x: Array, targets: Array, given: Rows, *, xp: Any, run: Any, out: Array | None = None
    ) -> tuple[Array | None, Array | None]:
        if given.weight is not None and given.weight.size != x.shape[p.axes[0]]:  # weights that differ from row to row
            return run.behind("cross_entropy", p, x, targets, given, xp=xp)
        grad = None if "grad" not in p.wants else np.empty_like(x, subok=False) if out is None else out
        loss = np.empty(_row_shape(p, x)) if "loss" in p.wants else None
        by_label = p.labels and not p.label_smoothing
        dense = None if p.labels else targets
        weight = None if given.weight is None else np.ascontiguousarray(given.weight, np.float64).reshape(-1)
        plain_targets = dense is not None and _alike(x, dense) and not p.label_smoothing and weight is None
        readable = by_label or plain_targets
        parts = views([x, _spread(given.where, x), dense, grad], p.axes)
        if parts is None:
            return run.behind("cross_entropy", p, x, targets, given, xp=xp)

        def plain(x: Array, where: None, t: Array | None, grad: Array | None, *by_row: Array | None) -> None:
            for i in range(len(x)):
                self.arithmetic.cross_entropy(weight, *(None if a is None else a[i] for a in (x, t, grad, *by_row)))

        def prepared(
            x: Array,
            where: Array | None,
            t: Array | None,
            grad: Array | None,
            labels: Array | None,
            *by_row: Array | None,
        ) -> None:
            kept = _rows(where)
            raw = array_api.masked(cast(_rows(x), p.compute, xp), kept, -math.inf, xp)
            labels, *numbers = (_rows(a) for a in (labels, *by_row))
            source = _rows(t) if labels is None else labels[:, 0]
            if formulas.is_cold(p.temperature) or (p.z_loss and _are_lifted(p, raw)):
                zeta, scale, loss = numbers
                rows = Rows(kept, weight, scale, 0.0 if zeta is None else zeta)
                _by_formulas(p, raw, source, rows, loss, grad)
                return
            z = formulas.capped(raw, p.softcap, p.temperature, (-1,), xp=xp)
            if not by_label:
                t = array_api.target_rows(replace(p, axes=(-1,)), source, Rows(kept, weight), z, xp)
                labels = None
            g = None if grad is None else np.empty_like(z)
            zeta, scale, loss = numbers
            scale, lacking = _in_units(scale)
            self.arithmetic.cross_entropy(None if labels is None else weight, z, t, g, labels, zeta, scale, loss)
            if kept is not None and loss is not None:
                loss[~kept.any(axis=-1)] = 0.0
            if g is not None and grad is not None:
                slope, _ = formulas.capped_derivatives(raw, p.softcap, xp=xp)
                if slope is not None:
                    g = np.where(g == 0.0, 0.0, g * slope)  # of an absent row, whatever its slope
                g = formulas.over(g, p.temperature, xp=xp) * lacking
                grad[...] = cast(array_api.masked(g, kept, 0.0, xp), p.result, xp).reshape(grad.shape)

        def long(
            x: Array,
            where: Array | None,
            t: Array | None,
            grad: Array | None,
            labels: Array | None,
            zeta: Array | None,
            scale: Array | None,
            loss: Array | None,
        ) -> None:
            rows = Rows(where, weight, scale, 0.0 if zeta is None else zeta)
            long_rows.cross_entropy(p, x, t if labels is None else labels[:, 0], rows, loss, grad, run=run)

        labels = np.ascontiguousarray(targets, np.int64) if p.labels else None
        zeta, scale = (_each_row(a, p, x) for a in (given.zeta, given.scale))
        for part, *by_row in _with_rows(parts, labels, zeta, scale, loss):
            direct = readable and _is_plain(p, given.where) and all(a is None or self._reads(a) for a in part)
            if not direct and long_rows.are_long(part[0]):
                for arrays in _matrices(*part, *by_row):
                    long(*arrays)
                continue
            self._on_blocks(direct, plain, prepared, *part, *by_row)
        return loss, grad

    def softmax_product(self, p: Problem, y: Array, v: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
        return self._product("softmax_product", 0.0, p, y, v, where, xp, run)

    def softmax_gradient(self, p: Problem, x: Array, v: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
        to = np.empty_like(x, dtype=cast(x[:0] if x.ndim else x, p.result, xp).dtype, subok=False)
        parts = views([x, v, to, _spread(where, x)], p.axes)
        if parts is None or long_rows.are_long(parts[0][0]):
            return run.behind("softmax_gradient", p, x, v, where, xp=xp)

        def prepared(x: Array, v: Array, to: Array, where: Array | None) -> None:
            kept, z = _rows(where), _prepared(p, x, where, xp)
            y, result = np.empty_like(z), np.empty_like(z)
            self.arithmetic.normalise("softmax", z, y)
            u = np.ascontiguousarray(array_api.masked(cast(_rows(v), p.compute, xp), kept, 0.0, xp))
            self.arithmetic.product("softmax_product", y, u, result)
            result = array_api.masked(formulas.over(result, p.temperature, xp=xp), kept, 0.0, xp)
            to[...] = cast(result, p.result, xp).reshape(to.shape)

        for part in parts:
            self._on_blocks(False, None, prepared, *part)
        return to

    def log_softmax_vjp(self, p: Problem, log_y: Array, dy: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
        return self._product("log_softmax_vjp", -math.inf, p, log_y, dy, where, xp, run)

    def log_softmax_jvp(self, p: Problem, log_y: Array, dx: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
        return self._product("log_softmax_jvp", -math.inf, p, log_y, dx, where, xp, run)

    def _product(
        self, operation: str, hidden: float, p: Problem, y: Array, v: Array, where: Array | None, xp: Any, run: Any
    ) -> Array:
        to = np.empty_like(y, dtype=cast(y[:0] if y.ndim else y, p.result, xp).dtype, subok=False)
        parts = views([y, v, to, _spread(where, y)], p.axes)
        if parts is None:
            return run.behind(operation, p, y, v, where, xp=xp)

        def plain(y: Array, v: Array, to: Array, where: None) -> None:
            for i in range(len(y)):
                self.arithmetic.product(operation, y[i], v[i], to[i])

        def prepared(y: Array, v: Array, to: Array, where: Array | None) -> None:
            kept = _rows(where)
            a, b = (
                np.ascontiguousarray(array_api.masked(cast(_rows(array), p.compute, xp), kept, value, xp))
                for array, value in ((y, hidden), (v, 0.0))
            )
            result = np.empty_like(a)
            self.arithmetic.product(operation, a, b, result)
            to[...] = cast(array_api.masked(result, kept, 0.0, xp), p.result, xp).reshape(to.shape)

        for part in parts:
            direct = where is None and _alike(*part[:3]) and all(map(self._reads, part[:3]))
            if not direct and long_rows.are_long(part[0]):
                for a, b, into, kept in _matrices(*part):
                    long_rows.product(operation, p, a, b, kept, into, run=run)
                continue
            self._on_blocks(direct, plain, prepared, *part)
        return to

    def _on_blocks(self, direct: bool, plain: Any, prepared: Any, *arrays: Array | None) -> None:
        if direct:
            on_blocks(plain, *arrays, elements=self.arithmetic.block(arrays[0].size))
        else:
            on_blocks(prepared, *arrays)

    def _reads(self, view: Array) -> bool:
        return view.flags.aligned and self.arithmetic.reads(view)


# ---------------------------------------------------------------------------------------------------------------------
# arrays on their way to a kernel


def _spread(where: Array | None, x: Array) -> Array | None:
    return None if where is None else np.broadcast_to(where, x.shape)


def _alike(*arrays: Array) -> bool:
    """Whether one kernel takes them all."""
    dtypes = {a.dtype for a in arrays}
    return len(dtypes) == 1 or dtypes <= READ


def _matrices(*views: Array | None) -> Iterator[tuple[Array | None, ...]]:
    """Views (outer, inner, C), one (inner, C) of each after the other."""
    outer = next(a for a in views if a is not None).shape[0]
    for i in range(outer):
        yield tuple(None if a is None else a[i] for a in views)


def _is_plain(p: Problem, where: Array | None) -> bool:
    """Whether the kernels can have the logits as they are."""
    return where is None and p.softcap is None and p.temperature == 1.0


def _rows(block: Array | None) -> Array | None:
    """A block as (rows, C), aligned; copied where there is no such view."""
    if block is None:
        return None
    flat = block.reshape(-1, block.shape[-1])
    return flat if flat.flags.aligned else flat.copy()


def _prepared(p: Problem, x: Array, where: Array | None, xp: Any) -> Array:
    return np.ascontiguousarray(array_api.logits(p, _rows(x), _rows(where), (-1,), xp))


def _in_units(scale: Array | None) -> tuple[Array | None, Array | float]:
    """Scales, and what gradients by them lack, which slope and temperature make numbers of again; powers of two."""
    if scale is None:
        return None, 1.0
    size = np.abs(scale)
    power = np.where(size > 2.0**900, 2.0**-128, np.where((size > 0.0) & (size < 2.0**-900), 2.0**512, 1.0))
    return scale * power, 1.0 / power


def _are_lifted(p: Problem, x: Array) -> bool:
    """Whether the z of a row are relative to its maximum, of which no kernel makes the logsumexp."""
    return bool(formulas.lifted(np.zeros((len(x), 1)), x, p.softcap, p.temperature, (-1,), xp=np).any())


def _by_formulas(p: Problem, x: Array, targets: Array, rows: Rows, loss: Array | None, grad: Array | None) -> None:
    of_loss, of_grad = array_api.cross_entropy(replace(p, axes=(-1,)), x, targets, rows, xp=np, run=None)
    if loss is not None:
        loss[...] = of_loss
    if grad is not None:
        grad[...] = of_grad.reshape(grad.shape)


def _row_shape(p: Problem, x: Array) -> tuple[int, ...]:
    return tuple(1 if axis in p.axes else n for axis, n in enumerate(x.shape, start=-x.ndim))


def _each_row(a: Array | float | None, p: Problem, x: Array) -> Array | None:
    """One float64 for each row, or one for all; None stands for none, and for 0."""
    if a is None or (isinstance(a, float) and a == 0.0):
        return None
    a = np.asarray(a, np.float64)
    return a.reshape(1) if a.size == 1 else np.ascontiguousarray(np.broadcast_to(a, _row_shape(p, x)))


def _with_rows(parts: list[list[Array | None]], *by_row: Array | None) -> Iterator[list[Any]]:
    """Each part with its share of the arrays that have a number for each row, as (outer, inner, 1)."""
    start = 0
    for part in parts:
        outer, inner, _ = part[0].shape
        shares: list[Array | None] = []
        for a in by_row:
            if a is None:
                shares.append(None)
            elif a.shape == (1,) and outer * inner > 1:  # one for all rows
                shares.append(np.broadcast_to(a, (outer, inner, 1)))
            elif a.size == 1:
                shares.append(a.reshape(1, 1, 1))
            else:
                shares.append(a.reshape(-1)[start : start + outer * inner].reshape(outer, inner, 1))
        start += outer * inner
        yield [part, *shares]
