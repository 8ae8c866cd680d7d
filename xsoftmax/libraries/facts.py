"""All that is known of each array library, in one literal table, and the most careful guess for any other."""

from __future__ import annotations

from typing import Literal, NamedTuple

_ALL = ("float16", "bfloat16", "float32", "float64")


class Facts(NamedTuple):
    """The defaults hold for a library that nobody has heard of."""

    name: str = ""
    """Of its backend."""
    module: str = ""
    """Of its functions."""
    roots: tuple[str, ...] = ()
    """Top-level modules of its array types."""
    distributions: tuple[str, ...] = ()
    install: str = ""
    dtypes: tuple[str, ...] = ()
    """Floating dtypes its arrays can have on its best device."""
    shows_values: bool = False
    """An array on the CPU has a truth value, without running a graph, waiting for a device, or failing in a tracer."""
    promises: bool = True
    """Arrays may be promises of a later computation."""
    writeable: bool = False
    """Arrays can be written to."""
    views: bool = False
    """A slice is a view, with strides."""
    places: bool = False
    """Where arrays lie is the library's own business."""
    own_blocks: bool = False
    """Arrays have blocks of their own, or none."""
    device: str = "cpu"
    """What computes on its arrays, where they do not tell."""
    lean: bool = False
    """The implementations for its arrays on the CPU make no temporaries of the logits' size."""
    warns: bool = True
    """Arithmetic gives NumPy's floating-point warnings."""
    adds: Literal["by halving", "in parts", "by a tree"] = "by halving"
    """How sums along axes are taken: of whole axes, of parts that may lie on other devices, of blocks."""
    indexing: Literal["own", "sharded", "blockwise", "take"] = "take"
    most_dimensions: int | None = None
    flushes_subnormals: bool = False
    ml_dtypes: bool = False
    """bfloat16 is that of ml_dtypes, not the library's own."""


FACTS = {
    "numpy": Facts(
        name="numpy",
        module="numpy",
        roots=("numpy",),
        distributions=("numpy",),
        install="pip install numpy",
        dtypes=_ALL,
        shows_values=True,
        promises=False,
        writeable=True,
        views=True,
        places=True,
        lean=True,
        indexing="own",
        most_dimensions=64,
        ml_dtypes=True,
    ),
    "cupy": Facts(
        name="cupy",
        module="cupy",
        roots=("cupy",),
        distributions=("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        install='pip install "xsoftmax[cuda13x]" or pip install "xsoftmax[cuda12x]"',
        dtypes=_ALL,
        promises=False,
        writeable=True,
        views=True,
        device="cuda",
        warns=False,
        indexing="own",
        most_dimensions=64,
        flushes_subnormals=True,
        ml_dtypes=True,
    ),
    "torch": Facts(
        name="torch",
        module="torch",
        roots=("torch",),
        distributions=("torch",),
        install='pip install "xsoftmax[torch]"',
        dtypes=_ALL,
        shows_values=True,
        promises=False,
        writeable=True,
        views=True,
        lean=True,
        warns=False,
        indexing="own",
    ),
    "jax": Facts(
        name="jax",
        module="jax",
        roots=("jax", "jaxlib"),
        distributions=("jax",),
        install='pip install "xsoftmax[jax]"',
        dtypes=_ALL,
        places=True,
        warns=False,
        adds="in parts",
        indexing="sharded",
        flushes_subnormals=True,
    ),
    "dask": Facts(
        name="dask",
        module="dask.array",
        roots=("dask",),
        distributions=("dask",),
        install='pip install "xsoftmax[dask]"',
        dtypes=_ALL,
        places=True,
        own_blocks=True,
        adds="by a tree",
        indexing="blockwise",
        most_dimensions=64,
        ml_dtypes=True,
    ),
    "array_api_strict": Facts(
        name="array-api-strict",
        module="array_api_strict",
        roots=("array_api_strict",),
        distributions=("array-api-strict",),
        install="pip install array-api-strict",
        dtypes=("float32", "float64"),
        shows_values=True,
        promises=False,
        writeable=True,
        most_dimensions=64,
    ),
    "ndonnx": Facts(
        name="ndonnx",
        module="ndonnx",
        roots=("ndonnx",),
        distributions=("ndonnx",),
        install="pip install ndonnx onnxruntime",
        dtypes=("float16", "float32", "float64"),
        places=True,
        own_blocks=True,
    ),
    "mlx": Facts(
        name="mlx",
        module="mlx.core",
        roots=("mlx",),
        distributions=("mlx",),
        install='pip install "mlx[cpu]"',
        dtypes=("float16", "bfloat16", "float32"),
        writeable=True,
        flushes_subnormals=True,
    ),
    "cubed": Facts(
        name="cubed",
        module="cubed",
        roots=("cubed",),
        distributions=("cubed",),
        install="pip install cubed",
        dtypes=("float32", "float64"),
        places=True,
        own_blocks=True,
        indexing="blockwise",
    ),
    "marray": Facts(
        name="marray",
        module="marray",
        roots=("marray",),
        distributions=("marray",),
        install="pip install marray",
        dtypes=("float32", "float64"),
        shows_values=True,
        promises=False,
        writeable=True,
        most_dimensions=64,
    ),
    "sparse": Facts(
        name="sparse",
        module="sparse",
        roots=("sparse",),
        distributions=("sparse",),
        install="pip install sparse",
        dtypes=("float32", "float64"),
        shows_values=True,
        promises=False,
    ),
}

_UNKNOWN = Facts()


def of(library: str) -> Facts:
    return FACTS.get(library, _UNKNOWN)
