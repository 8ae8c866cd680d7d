"""Operations on arrays in the memory of a CUDA device, by the kernels, whichever library the arrays are of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from ...calls.records import Array, Problem, Rows
from ...kernels.cuda import launch as cuda
from ...kernels.cuda.arguments import Arguments, Place
from ...libraries.arrays import cast, dtype_name
from ...libraries.strides import runs

_MOST_CLASSES = 1 << 30  # a kernel counts the classes of a row, and a few steps beyond, in 32 bits
_MOST_BLOCKS = 1 << 30
_VECTOR_BYTES = 16


class Library(Protocol):
    """What a library does with its arrays on CUDA devices; everything happens on the current stream."""

    def pointer(self, x: Array) -> int: ...
    def strides(self, x: Array) -> tuple[int, ...]:
        """In elements."""

    def empty_like(self, x: Array) -> Array: ...
    def empty(self, shape: tuple[int, ...], dtype: str, like: Array) -> Array: ...
    def contiguous(self, x: Array) -> Array: ...
    def device(self, x: Array) -> cuda.Device: ...
    def launch(self, x: Array, launch: cuda.Launch, blocks: int, arguments: Any) -> None:
        """The kernels of a launch, one behind the other, on the device of x."""


class Layout(NamedTuple):
    """Rows in two loops; of each array the steps of both and of the classes, in elements."""

    rows: int
    inner_rows: int
    classes: int
    steps: tuple[tuple[int, ...], ...]


class LikeLogits(NamedTuple):
    """Arrays of the shape of the logits."""

    x: Array
    y: Array | None = None
    targets: Array | None = None
    where: Array | None = None


WRITES = frozenset({"softmax", "log_softmax", "cross_entropy"})


@dataclass(frozen=True, slots=True)
class Operations:
    """The inner operations, each as an implementation has it."""

    library: Library

    def declared(self) -> dict[str, Any]:
        return {
            "softmax": self.softmax,
            "log_softmax": self.log_softmax,
            "logsumexp": self.logsumexp,
            "cross_entropy": self.cross_entropy,
            "softmax_product": self.softmax_product,
            "log_softmax_vjp": self.log_softmax_vjp,
            "log_softmax_jvp": self.log_softmax_jvp,
        }

    def softmax(
        self, p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any, out: Array | None = None
    ) -> Array:
        return self._like_logits("softmax", p, x, where, xp, run, out)

    def log_softmax(
        self, p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any, out: Array | None = None
    ) -> Array:
        return self._like_logits("log_softmax", p, x, where, xp, run, out)

    def _like_logits(
        self, verb: str, p: Problem, x: Array, where: Array | None, xp: Any, run: Any, out: Array | None
    ) -> Array:
        if not _fits(x, p):
            return run.behind(verb, p, x, where, xp=xp)
        y = self.library.empty_like(x) if out is None else out
        self._launch(verb, p, LikeLogits(x, y, where=where), xp)
        return y

    def logsumexp(self, p: Problem, x: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
        if not _fits(x, p):
            return run.behind("logsumexp", p, x, where, xp=xp)
        value = self.library.empty(row_shape(p, x), p.result, x)
        self._launch("logsumexp", p, LikeLogits(x, where=where), xp, value=self.library.pointer(value))
        return value

    def cross_entropy(
        self, p: Problem, x: Array, targets: Array, rows: Rows, *, xp: Any, run: Any, out: Array | None = None
    ) -> tuple[Array | None, Array | None]:
        """Labels that are no class give nan, which no one has to look for."""
        varied = rows.weight is not None and math.prod(rows.weight.shape) != x.shape[p.axes[0]]
        if varied or not _fits(x, p):
            return run.behind("cross_entropy", p, x, targets, rows, xp=xp)
        grad = None if "grad" not in p.wants else self.library.empty_like(x) if out is None else out
        loss = self.library.empty(row_shape(p, x), "float64", x) if "loss" in p.wants else None
        kept: list[Array] = []  # until the kernels are launched

        def address(a: Array | None) -> int:
            if a is None:
                return 0
            kept.append(a := self.library.contiguous(a))
            return self.library.pointer(a)

        numbers: dict[str, Any] = {
            "value": address(loss),
            "weight": address(rows.weight),
            "smoothing": p.label_smoothing,
        }
        dense = None
        if p.labels:
            numbers |= {"labels": address(targets), "label_kind": label_kind(targets)}
        else:
            dense = targets if dtype_name(targets) in cuda.ITEM_BYTES else cast(targets, p.compute, xp)
        for name, value, constant in (("zeta", rows.zeta, "z_loss"), ("scale", rows.scale, "factor")):
            if isinstance(value, float):
                numbers[constant] = value
            elif value is not None:
                one = math.prod(value.shape) == 1
                value = value if one else xp.broadcast_to(value, row_shape(p, x))
                numbers |= {name: address(value), f"{name}_step": 0 if one else 1}
        verb = "label_loss" if p.labels and not p.label_smoothing else "target_loss"
        self._launch(verb, p, LikeLogits(x, grad, dense, rows.where), xp, **numbers)
        return loss, grad

    def softmax_product(self, p: Problem, y: Array, v: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
        return self._product("softmax_product", p, y, v, where, xp, run)

    def log_softmax_vjp(self, p: Problem, log_y: Array, dy: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
        return self._product("log_softmax_vjp", p, log_y, dy, where, xp, run)

    def log_softmax_jvp(self, p: Problem, log_y: Array, dx: Array, where: Array | None, *, xp: Any, run: Any) -> Array:
        return self._product("log_softmax_jvp", p, log_y, dx, where, xp, run)

    def _product(self, verb: str, p: Problem, y: Array, v: Array, where: Array | None, xp: Any, run: Any) -> Array:
        if not _fits(y, p):
            return run.behind(verb, p, y, v, where, xp=xp)
        y, v = cast(y, p.result, xp), cast(v, p.result, xp)
        to = self.library.empty_like(y)
        self._launch(verb, replace(p, dtype=p.result), LikeLogits(y, to, v, where), xp)
        return to

    def _launch(self, verb: str, p: Problem, given: LikeLogits, xp: Any, **numbers: Any) -> None:
        """Rows that no two loops walk, and classes that no one loop does, are copied, and the result back."""
        if given.where is not None:
            given = given._replace(where=xp.broadcast_to(given.where, given.x.shape))
        layout = _layout(tuple(given.x.shape), tuple(self.library.strides(a) for a in given if a is not None), p.axes)
        if layout is not None:
            self.launch_on(layout, verb, p, given, numbers)
            return
        order = (*(axis for axis in range(-given.x.ndim, 0) if axis not in p.axes), *p.axes)
        copies = LikeLogits(*(None if a is None else self.library.contiguous(xp.permute_dims(a, order)) for a in given))
        if given.y is not None:
            copies = copies._replace(y=self.library.empty_like(copies.x))
        self._launch(verb, replace(p, axes=tuple(range(-len(p.axes), 0))), copies, xp, **numbers)
        if given.y is not None:
            back = tuple(order.index(axis) for axis in range(-given.x.ndim, 0))
            given.y[...] = xp.permute_dims(copies.y, back)

    def launch_on(self, layout: Layout, verb: str, p: Problem, given: LikeLogits, numbers: dict[str, Any]) -> None:
        steps = iter(layout.steps)
        x, y, t, where = (Place() if a is None else Place(self.library.pointer(a), *next(steps)) for a in given)
        targets = None if given.targets is None else dtype_name(given.targets)
        with_classes = tuple(
            (place._replace(data=place.data % _VECTOR_BYTES), cuda.ITEM_BYTES[dtype])
            for place, dtype in zip((x, y, t), (p.dtype, p.dtype, targets or p.dtype), strict=True)
            if place.data
        )
        memory = _memory(layout, with_classes)
        weighed = verb == "target_loss" and (p.labels or p.class_weighted or p.label_smoothing != 0.0)
        transformed = weighed or p.temperature != 1.0 or p.softcap is not None
        options = transformed or given.where is not None or memory == "across"
        device = self.library.device(given.x)
        problem = _problem(verb, p.dtype, targets, transformed, options, device.fast_float64)
        launch = _planned(problem, layout.rows, layout.classes, device, memory, given.y is not None)
        space = self.library.empty((layout.rows * launch.slices * launch.piece_bytes,), "uint8", given.x)
        arguments = Arguments(layout.rows, layout.inner_rows, layout.classes, x, y, t, where)._replace(
            pieces=self.library.pointer(space) if launch.slices else 0,
            softcap=p.softcap or 0.0,
            temperature=p.temperature,
            slices=launch.slices,
            **numbers,
        )
        blocks = min(-(-layout.rows // launch.rows_per_block) * launch.blocks_per_row, _MOST_BLOCKS)
        self.library.launch(given.x, launch, blocks, arguments.record())


@lru_cache(maxsize=1024)
def _planned(
    problem: cuda.Template, rows: int, classes: int, device: cuda.Device, memory: cuda.Memory, writes: bool
) -> cuda.Launch:
    return cuda.launch(problem, rows, classes, device, memory=memory, writes=writes)


@lru_cache(maxsize=1024)
def _problem(
    verb: str, dtype: str, targets: str | None, transformed: bool, options: bool, fast_float64: bool
) -> cuda.Template:
    arithmetic = cuda.arithmetic(dtype, verb, transformed=transformed, targets=targets, fast_float64=fast_float64)
    return cuda.Template(arithmetic, dtype, verb, options, None if targets == dtype else targets)


@lru_cache(maxsize=1024)
def _layout(shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...], axes: Sequence[int]) -> Layout | None:
    """None: there are more loops than the kernels have."""
    of_rows = runs(shape, strides, [axis for axis in range(-len(shape), 0) if axis not in axes])
    of_classes = runs(shape, strides, axes)
    if len(of_rows) > 2 or len(of_classes) > 1:
        return None
    loops = [*of_rows, *([] for _ in range(2 - len(of_rows))), *(of_classes or [[]])]
    sizes = [math.prod(shape[axis] for axis in loop) for loop in loops]
    walked = [next((axis for axis in reversed(loop) if shape[axis] > 1), None) for loop in loops]
    steps = tuple(tuple(0 if axis is None else s[axis] for axis in walked) for s in strides)
    return Layout(sizes[0] * sizes[1], sizes[1], sizes[2], steps)


@lru_cache(maxsize=1024)
def _memory(layout: Layout, arrays: tuple[tuple[Place, int], ...]) -> cuda.Memory:
    """How the arrays with classes lie; `data` modulo 16, with the bytes of an element."""
    if layout.classes > 1 and any(place.step != 1 for place, _ in arrays):
        return "across"
    starts = {tuple(item * step % _VECTOR_BYTES for step in place[1:3]) + place[:1] for place, item in arrays}
    if starts == {(0, 0, 0)}:
        return "aligned"
    if len({item for _, item in arrays}) > 1 or len(starts) > 1:
        return "apart"
    side_by_side = layout.inner_rows == 1 and all(place.outer == layout.classes for place, _ in arrays)
    return "packed" if side_by_side and not arrays[0][0].data else "alike"


def _fits(x: Array, p: Problem) -> bool:
    return math.prod(x.shape[axis] for axis in p.axes) < _MOST_CLASSES


def label_kind(labels: Array) -> int:
    name = dtype_name(labels)
    size = int(name.removeprefix("u").removeprefix("int")) // 8
    return -size if name.startswith("u") else size


def row_shape(p: Problem, x: Array) -> tuple[int, ...]:
    return tuple(1 if axis in p.axes else n for axis, n in enumerate(x.shape, start=-x.ndim))
