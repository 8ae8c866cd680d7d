"""Dask arrays in every way of cutting them: the digits of one array, nothing moved or held that need not be."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_problems import failures
from support import forget_choices

import xsoftmax as xs
from xsoftmax.libraries.backends import backend

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


VERBS = {
    "softmax": lambda x, labels, w: xs.softmax(x, where=w),
    "log_softmax": lambda x, labels, w: xs.log_softmax(x, where=w),
    "logsumexp": lambda x, labels, w: xs.logsumexp(x, where=w),
    "logsumexp of factors": lambda x, labels, w: xs.logsumexp(x, b=x, where=w, return_sign=True),
    "softmax_vjp": lambda x, labels, w: xs.softmax_vjp(xs.softmax(x, where=w), x, where=w),
    "log_softmax_vjp": lambda x, labels, w: xs.log_softmax_vjp(xs.log_softmax(x, where=w), x, where=w),
    "log_softmax_jvp": lambda x, labels, w: xs.log_softmax_jvp(xs.log_softmax(x, where=w), x, where=w),
    "softmax_jacobian": lambda x, labels, w: xs.softmax_jacobian(x),
    "cross_entropy": lambda x, labels, w: xs.cross_entropy_and_grad(x, labels, where=w, label_smoothing=0.1),
    "cross_entropy_hvp": lambda x, labels, w: xs.cross_entropy_hvp(x, labels, x, where=w),
    "hessian_diag": lambda x, labels, w: xs.cross_entropy_grad_and_hessian_diag(x, labels, where=w),
    "entropy": lambda x, labels, w: xs.entropy(xs.softmax(x)),
    "kl_divergence": lambda x, labels, w: xs.kl_divergence(xs.softmax(x), xs.softmax(x * 2.0)),
    "from_probs": lambda x, labels, w: xs.cross_entropy_from_probs(xs.softmax(x), labels),
}


def arrays(results):
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
@pytest.mark.parametrize("chunks", [(4, 30), (4, 7)], ids=["rows", "classes"])
def test_rows_of_unknown_number(chunks, verb):
    """The first block is empty, and nobody knows."""
    some = np.arange(24) >= 5
    x, labels, keep = da.from_array(X, chunks=chunks), da.from_array(LABELS, chunks=4), da.from_array(some, chunks=4)
    found = verb(x[keep], labels[keep], x[keep] > -3.0)
    expected = verb(X[some], LABELS[some], X[some] > -3.0)
    for a, b in zip(dask.compute(*arrays(found), scheduler="synchronous"), arrays(expected), strict=True):
        # an ulp each, and what two products lose
        np.testing.assert_allclose(a, b, rtol=2e-7, atol=2e-7 * np.max(np.abs(b), initial=0.0, where=np.isfinite(b)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("verb", [name for name in VERBS if name not in ("logsumexp", "logsumexp of factors")])
@pytest.mark.parametrize("chunks", [(2, 6), (2, 2)], ids=["rows", "classes"])
def test_masked_classes_of_rows_that_are_nan(chunks, verb, dtype):
    x = X[:4, :6].astype(dtype)
    x[1, 2], x[2, 0] = np.nan, np.inf
    kept = RNG.random(x.shape) < 0.7
    kept[0], kept[:, 3] = True, False
    cut = da.from_array(x, chunks=chunks), da.from_array(np.array([0, 1, 2, 9]), chunks=2)
    found = arrays(VERBS[verb](*cut, da.from_array(kept, chunks=chunks)))
    for a in dask.compute(*found, scheduler="synchronous"):
        if a.shape == x.shape and verb not in ("softmax_jacobian", "entropy"):
            assert set(a[~kept]) <= {0.0, -np.inf}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_numbers_warn_of_nothing(dtype):
    top = np.finfo(dtype).max
    x = np.array([[top, -top, 0, 1], [np.inf, 0, np.nan, 1], [-top, -np.inf, -top, -np.inf]], dtype)
    v = np.array([[top, -top, top, 1], [np.inf, -np.inf, 2, 1], [-top, top, -top, top]], dtype)
    cut, dy = da.from_array(x, chunks=(2, 2)), da.from_array(v, chunks=(2, 2))
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_max_ulp(xs.softmax(cut).compute(), xs.softmax(x))
        np.testing.assert_array_max_ulp(xs.log_softmax(cut).compute(), xs.log_softmax(x))
        xs.softmax_vjp(xs.softmax(cut), dy).compute()


def test_masked_arrays_are_refused():
    x = da.from_array(np.ma.masked_less(X, 0.0), chunks=(5, 30))
    message = (
        r"softmax: x is a dask.Array of numpy.MaskedArray, expected blocks without masks;"
        r" pass dask.array.ma.getdata\(x\) and where=~dask.array.ma.getmaskarray\(x\)"
    )
    with pytest.raises(TypeError, match=message):
        xs.softmax(x)
    kept = xs.softmax(da.ma.getdata(x), where=~da.ma.getmaskarray(x))
    np.testing.assert_array_equal(kept.compute(), xs.softmax(X, where=X >= 0.0))


@pytest.mark.parametrize("axis", [0, 4, -1])
def test_many_axes(axis):
    x = da.from_array(X.reshape(2, 2, 2, 3, 2, 1, 1, 15, 1), chunks=(1, 2, 1, 3, 2, 1, 1, 5, 1))
    labels = np.zeros([n for i, n in enumerate(x.shape) if i != axis % 9], int)
    tracemalloc.start()
    try:
        graphs = [xs.softmax(x, axis=axis), *xs.cross_entropy_and_grad(x, da.from_array(labels), axis=axis)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20  # of the graph
    whole = x.compute()
    expected = [xs.softmax(whole, axis=axis), *xs.cross_entropy_and_grad(whole, labels, axis=axis)]
    for a, b in zip(dask.compute(*graphs, scheduler="synchronous"), expected, strict=True):
        np.testing.assert_array_max_ulp(a, b, 2 if a.ndim == 0 else 1)  # a mean is a sum in another order


def test_a_mean_of_losses_takes_one_task_a_block():
    x, labels = da.zeros((64, 4), chunks=(2, 4)), da.zeros(64, chunks=2, dtype=int)
    ran = []
    with dask.callbacks.Callback(pretask=lambda key, *_: ran.append(key)):
        xs.cross_entropy(x, labels).compute(scheduler="synchronous")
    assert len(ran) <= 32 + 32 / 16 + 2  # blocks, a tree of sixteen, the quotient


def test_the_mean_of_no_row():
    x, labels = da.from_array(X, chunks=(5, 30)), da.full(24, -100, chunks=5, dtype=int)
    assert np.isnan(xs.cross_entropy(x, labels, ignore_index=-100).compute())
    assert xs.cross_entropy(x, labels, ignore_index=-100, reduction="sum").compute() == 0.0


def test_split_classes_of_unknown_number():
    x = da.from_array(X, chunks=(24, 10))
    x = x[:, da.ones(30, dtype=bool, chunks=10)]
    message = (
        r"softmax: x has chunks of unknown size along the split class axis -1, expected known ones:"
        r" compute_chunk_sizes\(\) finds them"
    )
    with pytest.raises(ValueError, match=message):
        xs.softmax(x)
    # an ulp: these blocks lie class by class, which no kernel reads, and exponentials of kernels are good to 2⁻³²
    np.testing.assert_array_max_ulp(
        xs.softmax(x.compute_chunk_sizes()).compute(), xs.softmax(da.from_array(X, chunks=(24, 10))).compute()
    )


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
    from xsoftmax.implementations.numpy import blocked as numpy_blocked

    def fails(*args, **kwargs):
        raise RuntimeError("numpy_blocked runs")

    x = da.from_array(X, chunks=(5, 30))
    with xs.use_implementation("numpy_blocked"):
        asked = xs.softmax(x)
    with xs.use_implementation("array_api"):
        formulas = xs.softmax(x)
    expected = xs.softmax(X)
    monkeypatch.setitem(numpy_blocked.OPERATIONS, "softmax", fails)
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
