"""All backends of the run against each other, pair by pair: off by no more than both their contracts allow."""

from itertools import combinations

import numpy as np
import pytest

import xsoftmax as xs
from xsoftmax.verify.compare import Arithmetic

RNG = np.random.default_rng(20260801)
X = RNG.normal(scale=4.0, size=(64, 10)).astype(np.float32)  # float32 values, so that every dtype holds the same
V = RNG.normal(size=X.shape).astype(np.float32)
LABELS = RNG.integers(10, size=64)
Q = RNG.dirichlet(np.ones(10), size=64).astype(np.float32)
Y = np.exp(X, dtype=np.float64) / np.exp(X, dtype=np.float64).sum(axis=-1, keepdims=True)


def itself(result):
    return abs(result)


def magnitude(result):
    """logsumexp may cancel against the maximum: the larger of the two counts."""
    return np.maximum(abs(result), abs(X).max(axis=-1))


def product(result):
    return Y * (abs(V) + (Y * abs(V)).sum(axis=-1, keepdims=True))


def general(result):
    return np.maximum(Y * Q.sum(axis=-1, keepdims=True), Q)


# verb and options, the line of the contract, and the magnitude whose ulp is its unit
CALLS = {
    "softmax": (lambda x, v, t, q: xs.softmax(x), "softmax", itself),
    "log_softmax": (lambda x, v, t, q: xs.log_softmax(x), "log_softmax", itself),
    "logsumexp": (lambda x, v, t, q: xs.logsumexp(x), "logsumexp", magnitude),
    "loss": (lambda x, v, t, q: xs.cross_entropy(x, t, reduction="none"), "cross_entropy", itself),
    "loss, probabilities": (lambda x, v, t, q: xs.cross_entropy(x, q, reduction="none"), "cross_entropy", itself),
    "gradient": (lambda x, v, t, q: xs.cross_entropy_grad(x, t, reduction="none"), "gradient", itself),
    "gradient, probabilities": (
        lambda x, v, t, q: xs.cross_entropy_grad(x, q, reduction="none"),
        "general_gradient",
        general,
    ),
    "hvp": (lambda x, v, t, q: xs.cross_entropy_hvp(x, t, v, reduction="none"), "vector_product", product),
    "hessian diagonal": (
        lambda x, v, t, q: xs.cross_entropy_grad_and_hessian_diag(x, t, reduction="none")[1],
        "hessian_diag",
        itself,
    ),
}


LABELLED = ("loss", "gradient", "hvp", "hessian diagonal")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("call", CALLS)
def test_backends_agree(live_backends, call, dtype):
    compute, kind, magnitude_of = CALLS[call]
    results = {}
    for xb in live_backends:
        if dtype not in xb.dtypes() or (call in LABELLED and not hasattr(xb.xp, "arange")):
            continue  # class indices need a range, and a library without one is told so
        x, v, q = (xb.asarray(a, dtype=dtype) for a in (X, V, Q))
        found = xb.to_numpy(compute(x, v, xb.asarray(LABELS), q))
        assert found.dtype == dtype
        bound = Arithmetic(dtype, xb.float64, xb.flushes_subnormals).bound(kind)
        results[xb.name] = found.astype(np.float64), bound
    if len(results) < 2:
        pytest.skip(f"{len(results)} backend with {dtype} in this run, two are needed")
    for (one, (a, bound_a)), (other, (b, bound_b)) in combinations(results.items(), 2):
        unit = np.spacing(magnitude_of(a).astype(dtype)).astype(np.float64)
        apart = np.max(abs(a - b) / unit)
        assert apart <= bound_a + bound_b, f"{one} and {other} are {apart:.3g} ulp apart"
