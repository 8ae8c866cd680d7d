"""The values of an array in every kind of memory that its library has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xsoftmax.libraries.backends import Backend


def placed(xb: Backend, rng: np.random.Generator, a: np.ndarray) -> Any:
    """The values of `a` as an array of the backend, anyhow."""
    library = xb.name.partition(":")[0]
    place = {"numpy": _numpy, "torch": _torch, "dask": _dask}.get(library)
    return xb.asarray(np.array(a)) if place is None else place(xb, rng, a)


def root(x: Any) -> Any:
    """The array whose memory a view of NumPy shows, gaps and all."""
    while isinstance(getattr(x, "base", None), np.ndarray):
        x = x.base
    return x


def _numpy(xb: Backend, rng, a: np.ndarray) -> np.ndarray:
    kind = rng.random()
    a = np.array(a)
    if kind < 0.35 or a.ndim == 0:
        return a
    if kind < 0.65:
        return _view(rng, a, (1, 1, 2, 3, -1, -2))
    if kind < 0.75:
        return np.asfortranarray(a)
    if kind < 0.82 and a.dtype.itemsize > 1:
        memory = np.full(a.nbytes + 1, 255, np.uint8)
        off = memory[1:].view(a.dtype).reshape(a.shape)
        off[...] = a
        return off
    if kind < 0.9 and a.dtype.kind in "iuf" and a.dtype.itemsize > 1:
        return a.astype(a.dtype.newbyteorder(">"))
    a.flags.writeable = False
    return a


def _view(rng, a: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """With steps, gaps, another order of axes and a start anywhere; the gaps hold nan or −1."""
    order = rng.permutation(a.ndim)
    step, start = rng.choice(steps, a.ndim), rng.integers(0, 4, a.ndim)
    sizes = [int(n * abs(s) + first) for n, s, first in zip(a.shape, step, start, strict=True)]
    shape = [sizes[i] for i in order]
    base = np.full(math.prod(shape) * a.dtype.itemsize, 255 if a.dtype.kind != "b" else 1, np.uint8)
    view = base.view(a.dtype).reshape(shape).transpose(np.argsort(order).astype(int))
    view = view[tuple(slice(int(first), None, int(abs(s))) for first, s in zip(start, step, strict=True))]
    view = view[tuple(slice(0, n) for n in a.shape)]
    view = view[tuple(slice(None, None, -1 if s < 0 else 1) for s in step)]
    view[...] = a
    return view


def _torch(xb: Backend, rng, a: np.ndarray) -> Any:
    if rng.random() < 0.5 or a.ndim == 0:
        return xb.asarray(np.array(a))
    base = xb.asarray(np.array(a))
    order = [int(i) for i in rng.permutation(a.ndim)]
    step, start = rng.choice((1, 1, 2, 3), a.ndim), rng.integers(0, 4, a.ndim)
    sizes = [int(n * s + first) for n, s, first in zip(a.shape, step, start, strict=True)]
    memory = base.new_ones([sizes[i] for i in order]).permute([int(i) for i in np.argsort(order)])
    view = memory[tuple(slice(int(first), None, int(s)) for first, s in zip(start, step, strict=True))]
    view = view[tuple(slice(0, n) for n in a.shape)]
    view.copy_(base)
    return view


def _dask(xb: Backend, rng, a: np.ndarray) -> Any:
    import dask.array

    # Dask itself broadcasts no axis of length 1 that has an empty piece: "Chunks do not add up to same value"
    return dask.array.from_array(a, chunks=tuple((1,) if n == 1 else lengths(rng, n) for n in a.shape))


def lengths(rng, n: int) -> tuple[int, ...]:
    """A random cut of n: one piece, single elements, or pieces of any length, also 0."""
    kind = rng.random()
    if kind < 0.25 or n == 0:
        return (n,)
    if kind < 0.4 and n < 8:
        return (1,) * n
    ends = np.sort(rng.integers(0, n + 1, int(rng.integers(1, 4))))
    return tuple(int(size) for size in np.diff([0, *ends, n]))
