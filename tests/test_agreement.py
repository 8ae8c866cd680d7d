"""All backends of the run against each other: off by no more than both their contracts allow, and bit by bit."""

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


IN_TWO = 40  # rows of the first piece, of two that differ: ndonnx takes seconds for a piece
TWICE = 2.0 * np.eye(10)[::-1]  # the linear weight: logits are 2 x, in reverse, and round nothing
Y_TWICE = np.exp(2.0 * X, dtype=np.float64) / np.exp(2.0 * X, dtype=np.float64).sum(axis=-1, keepdims=True)
G_TWICE = abs(Y_TWICE[:, ::-1] - np.eye(10)[LABELS])


def input_terms(result):
    """Of a gradient of the input Σ |terms| times their number: half an ulp of it is the product's own error."""
    return 10 * G_TWICE @ TWICE


def weight_terms(result):
    return len(X) * G_TWICE.T @ abs(X)


def linear_loss(x, v, t, q, w):
    return xs.linear_cross_entropy(x, w, t, chunk_size=IN_TWO, reduction="none")


def linear_gradients(x, v, t, q, w):
    return xs.linear_cross_entropy_and_grad(x, w, t, chunk_size=IN_TWO, reduction="sum")[1:3]


# verb and options, the line of the contract, and the magnitude whose ulp is its unit: one for each result
CALLS = {
    "softmax": (lambda x, v, t, q, w: xs.softmax(x), "softmax", itself),
    "log_softmax": (lambda x, v, t, q, w: xs.log_softmax(x), "log_softmax", itself),
    "logsumexp": (lambda x, v, t, q, w: xs.logsumexp(x), "logsumexp", magnitude),
    "loss": (lambda x, v, t, q, w: xs.cross_entropy(x, t, reduction="none"), "cross_entropy", itself),
    "loss, probabilities": (lambda x, v, t, q, w: xs.cross_entropy(x, q, reduction="none"), "cross_entropy", itself),
    "gradient": (lambda x, v, t, q, w: xs.cross_entropy_grad(x, t, reduction="none"), "gradient", itself),
    "gradient, probabilities": (
        lambda x, v, t, q, w: xs.cross_entropy_grad(x, q, reduction="none"),
        "general_gradient",
        general,
    ),
    "hvp": (lambda x, v, t, q, w: xs.cross_entropy_hvp(x, t, v, reduction="none"), "vector_product", product),
    "hessian diagonal": (
        lambda x, v, t, q, w: xs.cross_entropy_grad_and_hessian_diag(x, t, reduction="none")[1],
        "hessian_diag",
        itself,
    ),
    "linear loss": (linear_loss, "cross_entropy", itself),
    "linear gradients": (linear_gradients, "linear_gradient", input_terms, weight_terms),
}


LABELLED = ("loss", "gradient", "hvp", "hessian diagonal", *(call for call in CALLS if call.startswith("linear")))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("call", CALLS)
def test_backends_agree(live_backends, call, dtype):
    compute, kind, *magnitudes = CALLS[call]
    results = {}
    for xb in live_backends:
        if dtype not in xb.dtypes() or (call in LABELLED and not hasattr(xb.xp, "arange")):
            continue  # class indices need a range, and a library without one is told so
        x, v, q, w = (xb.asarray(a, dtype=dtype) for a in (X, V, Q, TWICE))
        found = compute(x, v, xb.asarray(LABELS), q, w)
        found = [xb.to_numpy(result) for result in (found if isinstance(found, tuple) else (found,))]
        assert {result.dtype.name for result in found} == {dtype}
        bound = Arithmetic(dtype, xb.float64, xb.flushes_subnormals).bound(kind)
        results[xb.name] = [result.astype(np.float64) for result in found], bound
    if len(results) < 2:
        pytest.skip(f"{len(results)} backend with {dtype} in this run, two are needed")
    for (one, (found, bound_a)), (other, (wanted, bound_b)) in combinations(results.items(), 2):
        for a, b, magnitude_of in zip(found, wanted, magnitudes, strict=True):
            unit = np.spacing(magnitude_of(a).astype(dtype)).astype(np.float64)
            apart = np.max(abs(a - b) / unit)
            assert apart <= bound_a + bound_b, f"{one} and {other} are {apart:.3g} ulp apart"


WITH_KERNELS = ("numpy", "torch", "dask")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("call", [call for call in CALLS if not call.startswith("linear")])
def test_backends_agree_bit_by_bit(live_backends, record_property, call, dtype):
    """Where float64 is at hand, what is narrower is rounded once. A linear layer's product is its library's own."""
    results = {}
    for xb in live_backends:
        if xb.float64 and dtype in xb.dtypes() and (call not in LABELLED or hasattr(xb.xp, "arange")):
            x, v, q = (xb.asarray(a, dtype=dtype) for a in (X, V, Q))
            results[xb.name] = xb.to_numpy(CALLS[call][0](x, v, xb.asarray(LABELS), q, None))
    if len(results) < 2:
        pytest.skip(f"{len(results)} backend with {dtype} in this run, two are needed")
    # by the formulas there is no difference; the exp of Numba's kernels is good to 2⁻³²: 6 of 10⁴ elements differ
    reference = next((name for name in results if name.partition(":")[0] not in WITH_KERNELS), next(iter(results)))
    differing = {name: int(np.sum(a != results[reference])) for name, a in results.items() if name != reference}
    record_property("compared", results[reference].size * len(differing))
    record_property("differing", sum(differing.values()))
    assert {name: n for name, n in differing.items() if n and name not in WITH_KERNELS} == {}
