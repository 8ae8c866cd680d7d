"""Dask arrays in every way of cutting them: the digits of one array, nothing moved or held that need not be."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_problems import failures
from support import forget_choices

import xsoftmax as xs
from xsoftmax.backends import backend

da = pytest.importorskip("dask.array")
dask = pytest.importorskip("dask")

pytestmark = pytest.mark.backend("dask")

RNG = np.random.default_rng(11)
X = RNG.normal(scale=4.0, size=(24, 30)).astype(np.float32)
LABELS = RNG.integers(30, size=24)


def lengths(rng, n):
    """A random cut of n: one piece, single elements, or pieces of any length, also 0."""
    kind = rng.random()
    if kind < 0.25 or n == 0:
        return (n,)
    if kind < 0.4 and n < 50:
        return (1,) * n
    ends = np.sort(rng.integers(0, n + 1, int(rng.integers(1, 5))))
    return tuple(int(size) for size in np.diff([0, *ends, n]))


def placed(rng, a):
    return da.from_array(a, chunks=tuple(lengths(rng, n) for n in a.shape))


@pytest.mark.filterwarnings("ignore:Increasing number of chunks")
@pytest.mark.parametrize("first", range(0, 160, 20))
def test_random_problems_in_random_chunks(first):
    """Judged by the exact oracle."""
    xb = backend("dask")
    with dask.config.set(scheduler="synchronous"):
        wrong = [failure for seed in range(first, first + 20) for failure in failures(xb, seed, placed)]
    assert wrong == []


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_a_linear_loss_in_any_chunks(seed):
    rng = np.random.default_rng(seed)
    n, width, classes = (int(rng.integers(1, high)) for high in (9, 5, 8))
    x, factor = rng.normal(size=(n, width)), rng.normal(size=(classes, width))
    labels, bias, s = rng.integers(classes, size=n), rng.normal(size=classes), rng.random(n)
    options = {"reduction": str(rng.choice(["mean", "sum"]))}
    expected = xs.linear_cross_entropy_and_grad(x, factor, labels, linear_bias=bias, sample_weight=s, **options)
    cut = [placed(rng, a) for a in (x, factor, labels, bias, s)]
    found = xs.linear_cross_entropy_and_grad(*cut[:3], linear_bias=cut[3], sample_weight=cut[4], **options)
    for a, b in zip(dask.compute(*found, scheduler="synchronous"), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)  # products and their sums in another order


@pytest.mark.parametrize("chunks", [(5, 30), (24, 7), (5, 7)], ids=["rows", "classes", "both"])
def test_no_task_sees_two_blocks_of_logits(chunks):
    x, labels = da.from_array(X, chunks=chunks, name="logits"), da.from_array(LABELS, chunks=chunks[0])
    for results in (xs.softmax(x), *xs.cross_entropy_and_grad(x, labels), xs.softmax_vjp(x, x)):
        graph = results.__dask_graph__()
        for key, needs in graph.get_all_dependencies().items():
            blocks = {need for need in needs if isinstance(need, tuple) and need[0] == "logits"}
            assert len(blocks) <= 1, key


@pytest.mark.parametrize("cut", ["rows", "classes"])
@pytest.mark.parametrize("verb", ["softmax", "cross_entropy_and_grad", "log_softmax_vjp"])
def test_the_graph_grows_with_the_blocks(verb, cut):
    def tasks(blocks):
        shape, chunks = ((8 * blocks, 10), (8, 10)) if cut == "rows" else ((8, 10 * blocks), (8, 10))
        x, labels = da.zeros(shape, chunks=chunks), da.zeros(shape[0], chunks=8, dtype=int)
        others = {"softmax": (), "cross_entropy_and_grad": (labels,), "log_softmax_vjp": (x,)}[verb]
        result = getattr(xs, verb)(x, *others)
        return sum(len(r.__dask_graph__()) for r in (result if isinstance(result, tuple) else (result,)))

    small, large, larger = map(tasks, (64, 128, 256))
    assert larger - large <= 2.2 * (large - small)
    assert larger <= 256 * 20  # of two results, each with its input


def test_split_classes_of_unknown_number():
    x = da.from_array(X, chunks=(24, 10))
    x = x[:, da.ones(30, dtype=bool, chunks=10)]
    message = (
        r"softmax: x has chunks of unknown size along the split class axis -1, expected known ones:"
        r" compute_chunk_sizes\(\) finds them"
    )
    with pytest.raises(ValueError, match=message):
        xs.softmax(x)
    np.testing.assert_array_equal(xs.softmax(x.compute_chunk_sizes()), xs.softmax(da.from_array(X, chunks=(24, 10))))


def test_whole_classes_of_unknown_number():
    x = da.from_array(X, chunks=(5, 30))
    x = x[:, da.ones(30, dtype=bool)]
    np.testing.assert_array_equal(xs.softmax(x).compute(), xs.softmax(X))
    np.testing.assert_array_equal(xs.logsumexp(x).compute(), xs.logsumexp(X))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("chunks", [(2, 30), (4, 7)], ids=["rows", "classes"])
def test_a_label_out_of_range_makes_its_row_nan(chunks, dtype):
    x, labels = da.from_array(X[:4].astype(dtype), chunks=chunks), da.from_array(np.array([0, 30, -1, 3]), chunks=2)
    loss, grad = dask.compute(*xs.cross_entropy_and_grad(x, labels, reduction="none"), scheduler="synchronous")
    np.testing.assert_array_equal(np.isnan(loss), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(grad), np.isnan(loss)[:, None] & np.ones(30, bool))


def test_blocks_without_rows():
    x, labels = da.from_array(X, chunks=((0, 10, 0, 14), 30)), da.from_array(LABELS, chunks=((0, 10, 0, 14),))
    found, expected = xs.cross_entropy_and_grad(x, labels), xs.cross_entropy_and_grad(X, LABELS)
    np.testing.assert_array_max_ulp(found.loss.compute(), expected.loss)
    np.testing.assert_array_max_ulp(found.grad.compute(), expected.grad)


def test_the_implementation_asked_for_runs_the_blocks(monkeypatch):
    from xsoftmax.implementations import numpy_blocked

    def fails(*args, **kwargs):
        raise RuntimeError("numpy_blocked runs")

    x = da.from_array(X, chunks=(5, 30))
    with xs.use_implementation("numpy_blocked"):
        asked = xs.softmax(x)
    with xs.use_implementation("array_api"):
        formulas = xs.softmax(x)
    expected = xs.softmax(X)
    monkeypatch.setattr(numpy_blocked, "softmax", fails)
    forget_choices()
    try:
        with pytest.raises(RuntimeError, match="numpy_blocked runs"):
            asked.compute()
        np.testing.assert_array_max_ulp(formulas.compute(), expected)
    finally:
        monkeypatch.undo()
        forget_choices()


def test_explain_names_it():
    assert xs.explain("cross_entropy", da.from_array(X), da.from_array(LABELS)).implementation == "dask_chunked"


BLOCK = 1 << 20  # bytes
BLOCKS = 48


def made(i, classes):
    return np.random.default_rng(i).normal(size=(BLOCK // (4 * classes), classes)).astype(np.float32)


def large(by_classes):
    """Logits of 48 MiB of which a block is made when it is asked for."""
    classes = 1024
    blocks = [
        da.from_delayed(dask.delayed(made)(i, classes), (BLOCK // (4 * classes), classes), np.float32)
        for i in range(BLOCKS)
    ]
    if not by_classes:
        return da.concatenate(blocks)
    return da.concatenate([da.concatenate(blocks[i : i + 4], axis=1) for i in range(0, BLOCKS, 4)])


@pytest.mark.parametrize("by_classes", [False, True], ids=["rows", "classes"])
@pytest.mark.parametrize("dense", [False, True], ids=["labels", "probabilities"])
def test_memory_of_a_few_blocks(by_classes, dense):
    """Of 48 blocks: with split classes those of a row set wait for its state."""
    x = large(by_classes)
    labels = da.zeros(x.shape[0], chunks=x.chunks[0], dtype=np.int64)
    loss, grad = xs.cross_entropy_and_grad(x, da.zeros_like(x) if dense else labels)
    tracemalloc.start()
    try:
        dask.compute(loss, abs(grad).max(), scheduler="synchronous")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (24 if by_classes else 12) * BLOCK
