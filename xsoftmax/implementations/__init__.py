"""The implementations, in the order in which they are asked; importing this imports none of them."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A module of this package, and the array library it serves ("*": any).

    The module has `refuses(problem) -> list[str]`, empty when it takes the problem, and any of the inner operations,
    each called as `operation(problem, *arrays, xp=xp, run=run)`. With `derivatives` it only adds derivative rules to
    the operations of the implementations behind it, whichever is asked for. `off` is why it runs only where it is
    asked for.
    """

    name: str
    library: str
    derivatives: bool = False
    off: str | None = None


_UNTRIED = "has not run on a device yet, so it is off unless asked for by name"

REGISTRY = (
    Entry("torch_native", "torch", derivatives=True),
    Entry("torch_cuda", "torch", off=_UNTRIED),
    Entry("torch_cpu", "torch"),
    Entry("jax_native", "jax", derivatives=True),
    Entry("jax_jit", "jax"),
    Entry("cupy_cuda", "cupy", off=_UNTRIED),
    Entry("numpy_numba", "numpy"),
    Entry("numpy_blocked", "numpy"),
    Entry("dask_chunked", "dask"),
    Entry("array_api", "*"),
)
