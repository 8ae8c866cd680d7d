"""The implementations, in the order in which they are asked; importing this imports none of them."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """An implementation: its name, the array library it serves ("*": any) and its module in this package.

    The module has `refuses(problem) -> list[str]`, empty when it takes the problem, and any of the inner operations,
    each called as `operation(problem, *arrays, xp=xp, run=run)`. It may have ENTRIES, which take small arrays straight
    from a verb: `ENTRIES[verb](problem, ndim, entry_of)` makes one, or None. With `derivatives` it only adds derivative
    rules to the operations of the implementations behind it, whichever is asked for. `off` is why it runs only where it
    is asked for.
    """

    name: str
    library: str
    module: str
    derivatives: bool = False
    off: str | None = None


_UNTRIED = "has not run on a device yet, so it is off unless asked for by name"

REGISTRY = (
    Entry("torch_native", "torch", "torch.native", derivatives=True),
    Entry("torch_cuda", "torch", "torch.cuda", off=_UNTRIED),
    Entry("torch_cpu", "torch", "torch.cpu"),
    Entry("jax_native", "jax", "jax.native", derivatives=True),
    Entry("jax_jit", "jax", "jax.jit"),
    Entry("cupy_cuda", "cupy", "cupy.cuda", off=_UNTRIED),
    Entry("numpy_numba", "numpy", "numpy.numba"),
    Entry("numpy_blocked", "numpy", "numpy.blocked"),
    Entry("dask_chunked", "dask", "dask.chunked"),
    Entry("array_api", "*", "array_api.operations"),
)
