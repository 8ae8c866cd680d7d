"""Losses of a linear layer: those of its logits, however these are cut."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_close, get, put, skip_inexact, widest

import xsoftmax as xs
from xsoftmax.calls.plan import plan
from xsoftmax.implementations.array_api.pieces import Halved, blocks
from xsoftmax.verify import oracle
from xsoftmax.verify.compare import Arithmetic, judge
from xsoftmax.verify.inputs import BLOCKS, block

RNG = np.random.default_rng(23)
N, D, V = 5, 3, 7
X, FACTOR, BIAS = RNG.normal(size=(N, D)), 2 * RNG.normal(size=(V, D)), RNG.normal(size=V)
LABELS, Q = np.array([0, 6, 3, 2, 3]), RNG.dirichlet(np.ones(V), size=N)
WEIGHT, SAMPLE_WEIGHT = RNG.random(V), np.array([1.0, 0.5, 0.0, 2.0, 1.0])
MASK = (RNG.random((N, V)) < 0.7) | (np.arange(V) == LABELS[:, None])
ARRAYS = ("linear_bias", "where", "weight", "sample_weight")
OPTIONS = {
    "plain": {},
    "weights": {"weight": WEIGHT, "sample_weight": SAMPLE_WEIGHT},
    "smoothing": {"label_smoothing": 0.2, "where": MASK, "weight": WEIGHT},
    "mask of classes": {"where": np.arange(V) != 5, "label_smoothing": 0.1},
    "mask of rows": {"where": np.arange(N)[:, None] != 2, "label_smoothing": 0.1, "sample_weight": SAMPLE_WEIGHT},
    "transformed": {"softcap": 3.0, "temperature": 0.7, "z_loss": 0.1, "sample_weight": SAMPLE_WEIGHT},
}
CHUNKS = [None, 1, 2, 99, (None, 1), (2, 3), (99, 6), (5, 7)]
FEW_CHUNKS = [None, 2, (4, 3)]


SLOW = ("cubed", "ndonnx")  # they plan, or build a program, for half a minute


def skip_slow(xb):
    if xb.name in SLOW:
        pytest.skip(f"{xb.name} takes half a minute for each, and has another")


def skip_compiled(xb, *choices):
    """JAX compiles each shape and option for seconds: one of three is enough, `choices` being places in lists."""
    if xb.name == "jax" and sum(choices) % 3:
        pytest.skip("jax compiles it for seconds, and has another")


def of_logits(x, factor, targets, linear_bias=None, **options):
    """What the unchunked way gives."""
    logits = x @ factor.T if linear_bias is None else x @ factor.T + linear_bias
    loss, g = xs.cross_entropy_and_grad(logits, targets, **options)
    back = g.reshape(-1, g.shape[-1])
    grad_bias = None if linear_bias is None else back.sum(axis=0)
    return loss, g @ factor, back.T @ x.reshape(-1, x.shape[-1]), grad_bias


def call(verb, xb, *arrays, **options):
    options = {name: put(xb, value) if name in ARRAYS else value for name, value in options.items()}
    return get(xb, getattr(xs, verb)(*(put(xb, a) for a in arrays), **options))


def assert_all_close(xb, found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert_close(xb, a, b, scale=8.0)


# ---------------------------------------------------------------------------------------------------------------------
# as without chunks


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("chunk_size", FEW_CHUNKS)
def test_every_backend(xb, options, chunk_size):
    skip_compiled(xb, list(OPTIONS).index(options), FEW_CHUNKS.index(chunk_size))
    if (options, chunk_size) not in (("plain", 2), ("smoothing", None)):
        skip_slow(xb)
    targets = LABELS if hasattr(xb.xp, "arange") and options != "smoothing" else Q
    options = {"linear_bias": BIAS, **OPTIONS[options]}
    found = call("linear_cross_entropy_and_grad", xb, X, FACTOR, targets, chunk_size=chunk_size, **options)
    expected = of_logits(X, FACTOR, targets, **options)
    assert_all_close(xb, found, expected)
    if xb.name not in SLOW:
        loss = call("linear_cross_entropy", xb, X, FACTOR, targets, chunk_size=chunk_size, **options)
        assert_close(xb, loss, expected[0])


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("targets", [LABELS, Q], ids=["labels", "probabilities"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_chunking(dtype, options, targets, reduction):
    options = {name: np.asarray(a, dtype) if name in ARRAYS[2:] else a for name, a in OPTIONS[options].items()}
    options |= {"reduction": reduction}
    x, factor, bias = (a.astype(dtype) for a in (X, FACTOR, BIAS))
    targets = targets if targets is LABELS else targets.astype(dtype)
    for linear_bias in (None, bias):
        expected = of_logits(x, factor, targets, linear_bias, **options)
        for chunk_size in CHUNKS:
            chosen = {"linear_bias": linear_bias, "chunk_size": chunk_size, **options}
            found = xs.linear_cross_entropy_and_grad(x, factor, targets, **chosen)
            assert (found.grad_linear_bias is None) == (linear_bias is None)
            for a, b in zip(found, expected, strict=True):
                if b is not None:
                    assert (a.dtype, a.shape) == (b.dtype, b.shape)
                    np.testing.assert_allclose(a, b, rtol=64 * np.finfo(dtype).eps, atol=64 * np.finfo(dtype).eps)
            loss = xs.linear_cross_entropy(x, factor, targets, **chosen)
            np.testing.assert_array_equal(loss, found.loss)


@pytest.mark.backend("numpy")
@given(st.data())
@settings(max_examples=200)
def test_any_shape_and_chunk(data):
    n, width, classes = (data.draw(st.integers(1, 9), label) for label in ("n", "width", "classes"))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31), "seed"))
    x, factor = 3 * rng.normal(size=(n, width)), 3 * rng.normal(size=(classes, width))
    targets = rng.integers(classes, size=n)
    size = st.none() | st.integers(1, 12)
    chunk_size = data.draw(size | st.tuples(size, size), "chunk_size")
    options = {"ignore_index": int(targets[0]), "label_smoothing": data.draw(st.sampled_from([0.0, 0.3]), "smoothing")}
    found = xs.linear_cross_entropy_and_grad(x, factor, targets, chunk_size=chunk_size, **options)
    for a, b in zip(found[:3], of_logits(x, factor, targets, **options)[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("chunk_size", [(5, 1), (24, 2), (None, 4), (7, 5)])
def test_merged_states_keep_the_contract(chunk_size, name, dtype, weighted):
    """With the unit matrix the product rounds nothing: loss and gradient are within the bounds of the whole's."""
    x = block(name, dtype)
    if not np.isfinite(x).all():
        x = np.where(np.isfinite(x), x, np.asarray(-3.0, dtype))
    labels, unit = np.arange(len(x)) % x.shape[1], np.eye(x.shape[1], dtype=dtype)
    options = {"weight": np.linspace(0.5, 2.0, x.shape[1]), "temperature": 2.0} if weighted else {}
    with np.errstate(over="ignore", invalid="ignore"):  # of the products for the weight
        loss, grad, *_ = xs.linear_cross_entropy_and_grad(
            x, unit, labels, chunk_size=chunk_size, reduction="none", **options
        )
    expected = xs.cross_entropy_and_grad(x, labels, reduction="none", **options)
    for kind, a, b in (("cross_entropy", loss, expected.loss), ("gradient", grad, expected.grad)):
        bound = 2 * Arithmetic(dtype, True, False).bound(kind)
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite])
        a, b = a[finite], b[finite]
        assert np.all(abs(a.astype(np.float64) - b.astype(np.float64)) <= bound * np.spacing(abs(b)))
    assert not np.any(np.signbit(loss))


def exact_part(dtype, classes):
    """Rows whose exponentials are of one size, all different, and the exact loss and gradient of each."""
    rng = np.random.default_rng(classes)
    offsets = np.array([0.0, -3.0, 708.5, 1492.0, -800.0, 90.0])[:, None]
    x = (rng.normal(size=(6, classes)) + np.where(dtype == "float64", offsets, offsets / 8)).astype(dtype)
    labels = rng.integers(classes, size=6)
    options = {"label_smoothing": 0.1, "reduction": "none"}
    arrays = {"logits": x, "targets": labels}
    return x, labels, options, oracle.expected(("cross_entropy_and_grad",), arrays, options)["cross_entropy_and_grad"]


@pytest.mark.parametrize("width, classes", [(1, 34), (1, 250), (3, 250)])
def test_errors_do_not_grow_with_the_number_of_parts(xb, width, classes):
    """The unit matrix rounds nothing."""
    skip_slow(xb)
    skip_inexact(xb)
    dtype = widest(xb)
    x, labels, options, exact = exact_part(dtype, classes)
    targets = labels if hasattr(xb.xp, "arange") else np.eye(classes)[labels]
    found = call("linear_cross_entropy_and_grad", xb, x, np.eye(classes), targets, chunk_size=(5, width), **options)
    for a, b in zip(found, exact, strict=False):
        assert not judge(a, b, Arithmetic(dtype, xb.float64, xb.flushes_subnormals)).failures


@pytest.mark.backend("numpy")
def test_parts_far_below_the_shift():
    """The shift of 1492 is itself, that of 1045 is 336: exp(336 − 1492) is 0, what it stands for is not."""
    x, labels = np.array([[1044.9, 1045.2, 1492.0, 1039.3]]), np.array([2])
    with np.errstate(over="ignore"):  # of the products for the weight
        loss, grad, *_ = xs.linear_cross_entropy_and_grad(x, np.eye(4), labels, chunk_size=(None, 1))
    expected = xs.cross_entropy_and_grad(x, labels)
    np.testing.assert_allclose(loss, expected.loss, rtol=1e-15)
    np.testing.assert_allclose(grad, expected.grad, rtol=1e-15)


# ---------------------------------------------------------------------------------------------------------------------
# memory


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("chunk_size", [None, (512, 2048)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_memory(dtype, chunk_size):
    """An eighth of the logits at most, beside results and a float32 gradient of the weight."""
    n, width, classes = 4096, 4, 16032
    x, factor = RNG.normal(size=(n, width)).astype(dtype), RNG.normal(size=(classes, width)).astype(dtype)
    labels = RNG.integers(classes, size=n)
    xs.linear_cross_entropy_and_grad(x, factor, labels, chunk_size=chunk_size)  # compiles
    tracemalloc.start()
    results = xs.linear_cross_entropy_and_grad(x, factor, labels, chunk_size=chunk_size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    extra = peak - sum(a.nbytes for a in results if a is not None) - 4 * factor.size
    assert extra <= 4 * n * classes / 8


def test_plan_of_a_large_vocabulary():
    """A block of logits, and a part of the weight a quarter as large, stay below an eighth of all, and 256 MB."""
    rows, classes, factors = plan(8192, 128_256, 4096, 4, "numpy", None, None)
    assert classes is None
    assert 4 * (rows * 128_256 + factors * 4096) <= min(4 * 8192 * 128_256 / 8, 256e6)
    rows, classes, factors = plan(8192, 4_000_000, 4096, 4, "numpy", None, None)
    assert rows == 256
    assert 4 * (rows * classes + factors * 4096) <= 256e6


def test_plan_of_formulas():
    """Their temporaries have a block's size, so that blocks are a quarter as large; still 64 rows at least."""
    large = 8192, 128_256, 512, 4
    rows, classes, _ = plan(*large, "numpy", None, None)
    for plans in (plan(*large, "jax", None, None), plan(*large, "torch", None, None, on_cpu=False)):
        assert (plans.rows, plans.classes) == (170, None)
    assert (rows, classes) == (261, None)
    rows, classes, _ = plan(1024, 128_256, 512, 4, "jax", None, None)
    assert (rows, classes) == (256, 1024 * 128_256 // 48 // 256)


@pytest.mark.parametrize("library", ["dask", "ndonnx", "cubed"])
def test_lazy_arrays_are_cut_only_as_asked_for(library):
    assert plan(10**6, 10**5, 64, 4, library, None, None)[:2] == (None, None)
    assert plan(10**6, 10**5, 64, 4, library, 7, 9)[:2] == (7, 9)
    assert plan(None, 10**5, 64, 4, library, 7, None).rows is None


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 1000])
def test_halved_sums(n):
    """log₂ n roundings at most, where one after the other has n."""
    found, one = Halved(), np.full(1, 0.1)
    for _ in range(n):
        found.add(one.copy())
    assert abs(found.total()[0] - n * 0.1) <= np.log2(2 * n) * np.spacing(n * 0.1) / 2


def test_blocks():
    assert blocks(0, 7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert blocks(2, 7, None) == [slice(2, 7)]
    assert blocks(2, 7, 5) == [slice(2, 7)]


# ---------------------------------------------------------------------------------------------------------------------
# corners


@pytest.mark.parametrize("reduction, loss", [("none", np.empty(0)), ("mean", np.nan), ("sum", 0.0)])
def test_empty_batch(xb, reduction, loss):
    if xb.name == "marray" and reduction != "none":
        pytest.skip("marray masks the sum of nothing")
    if xb.name == "mlx":
        pytest.skip("mlx 0.32 on the CPU can wait for ever for sums over nothing")
    x = np.empty((0, D))
    for targets in (np.empty(0, np.int64), np.empty((0, V))) if hasattr(xb.xp, "arange") else (np.empty((0, V)),):
        options = {"linear_bias": BIAS, "reduction": reduction}
        found = call("linear_cross_entropy_and_grad", xb, x, FACTOR, targets, **options)
        np.testing.assert_array_equal(found[0], loss)
        assert found[1].shape == (0, D)
        np.testing.assert_array_equal(found[2], np.zeros((V, D)))
        np.testing.assert_array_equal(found[3], np.zeros(V))
        np.testing.assert_array_equal(call("linear_cross_entropy", xb, x, FACTOR, targets, **options), loss)


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("chunk_size", [None, 1, (2, 3)])
def test_input_without_width(chunk_size):
    loss, grad, grad_factor, _ = xs.linear_cross_entropy_and_grad(
        np.empty((N, 0)), np.empty((V, 0)), LABELS, chunk_size=chunk_size
    )
    np.testing.assert_allclose(loss, np.log(V), rtol=1e-15)
    assert (grad.shape, grad_factor.shape) == ((N, 0), (V, 0))


@pytest.mark.parametrize("chunk_size", FEW_CHUNKS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_axes_of_the_batch(xb, chunk_size, reduction):
    skip_slow(xb)
    skip_compiled(xb, reduction == "none", FEW_CHUNKS.index(chunk_size))
    x, q = RNG.normal(size=(2, 3, D)), RNG.dirichlet(np.ones(V), size=(2, 3))
    options = {"reduction": reduction, "sample_weight": RNG.random((2, 3))}
    for where in (np.arange(V) > 0, RNG.random((2, 1, V)) < 0.8, RNG.random((3, 1)) < 0.8, RNG.random((2, 3, V)) < 0.8):
        options["where"] = where
        found = call("linear_cross_entropy_and_grad", xb, x, FACTOR, q, chunk_size=chunk_size, **options)
        expected = of_logits(x, FACTOR, q, **options)
        assert found[0].shape == expected[0].shape
        assert_all_close(xb, found[:3], expected[:3])


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("chunk_size", [None, (2, 3)])
def test_one_row_without_batch_axis(chunk_size):
    found = xs.linear_cross_entropy_and_grad(X[0], FACTOR, np.array(3), chunk_size=chunk_size)
    expected = of_logits(X[:1], FACTOR, np.array([3]))
    np.testing.assert_allclose(found.loss, expected[0], rtol=1e-14)
    np.testing.assert_allclose(found.grad_input, expected[1][0], rtol=1e-13)
    np.testing.assert_allclose(found.grad_linear_weight, expected[2], rtol=1e-13)


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("chunk_size", [None, 1, (2, 3)])
@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf])
def test_what_is_absent_may_hold_anything(fill, chunk_size):
    """A row that is ignored or weightless, and a class that is masked, add nothing to any gradient."""
    x, factor, labels, s = X.copy(), FACTOR.copy(), LABELS.copy(), np.array([1.0, 1.0, 0.0, 1.0, 1.0])
    x[2], x[4], factor[5], labels[4] = fill, fill, fill, -100
    where = np.arange(V) != 5
    options = {"sample_weight": s, "ignore_index": -100, "chunk_size": chunk_size, "linear_bias": BIAS}
    with np.errstate(invalid="ignore"):  # of the product
        found = xs.linear_cross_entropy_and_grad(x, factor, labels, where=where, **options)
    kept = [0, 1, 3]
    expected = of_logits(X[kept], FACTOR, LABELS[kept], BIAS, where=where)
    np.testing.assert_allclose(found.loss, expected[0], rtol=1e-14)
    np.testing.assert_allclose(found.grad_input[kept], expected[1], rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(found.grad_input[[2, 4]], 0.0)
    np.testing.assert_allclose(found.grad_linear_weight, expected[2], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.grad_linear_bias, expected[3], rtol=1e-12, atol=1e-15)


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("chunk_size", [None, (2, 3), (None, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinite_logits(dtype, chunk_size):
    """-inf as no label and as one, nothing but -inf, +inf and nan: each in its own row."""
    logits = np.array(
        [[-np.inf, 0, 0], [-np.inf, 0, 0], [-np.inf] * 3, [np.inf, 0, 0], [np.nan, 0, 0], [0, 0, 0]], dtype
    )
    labels = np.array([1, 0, 0, 1, 1, 2])
    bias = np.zeros(3, dtype)
    with np.errstate(invalid="ignore"):
        for row, label in zip(logits, labels, strict=True):
            found = xs.linear_cross_entropy_and_grad(
                np.ones((1, 1), dtype),
                row[:, None],
                np.array([label]),
                linear_bias=bias,
                chunk_size=chunk_size,
                reduction="none",
            )
            expected = xs.cross_entropy_and_grad(row[None], np.array([label]), reduction="none")
            np.testing.assert_allclose(found.loss, expected.loss, rtol=4 * np.finfo(dtype).eps)
            np.testing.assert_allclose(found.grad_linear_bias, expected.grad[0], rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("chunk_size", [None, 2, (2, 3)])
def test_label_out_of_range(xb, chunk_size):
    if not hasattr(xb.xp, "arange"):
        pytest.skip(f"{xb.name} has no arange, which class indices need")
    if chunk_size != 2:
        skip_slow(xb)
    labels = LABELS.copy()
    labels[1] = V
    options = {"reduction": "none", "chunk_size": chunk_size}
    if xb.checks_labels:
        with pytest.raises(ValueError, match=rf"^linear_cross_entropy: targets has label {V} at position \(1,\)"):
            call("linear_cross_entropy", xb, X, FACTOR, labels, **options)
        return
    loss, grad, grad_factor, _ = xs.linear_cross_entropy_and_grad(
        put(xb, X), put(xb, FACTOR), put(xb, labels), **options
    )
    bad = np.arange(N) == 1
    np.testing.assert_array_equal(np.isnan(xb.to_numpy(loss)), bad)
    np.testing.assert_array_equal(np.isnan(xb.to_numpy(grad)), np.broadcast_to(bad[:, None], (N, D)))
    assert np.isnan(xb.to_numpy(grad_factor)).all()


def test_dtypes(xb):
    """Gradients in the dtype of what they belong to, the loss as from `cross_entropy`; halves multiplied as float32."""
    skip_slow(xb)
    for dtype in xb.dtypes():
        x, factor, bias = (xb.asarray(a, dtype=dtype) for a in (X, FACTOR, BIAS))
        q = xb.asarray(Q, dtype=widest(xb))
        found = xs.linear_cross_entropy_and_grad(x, factor, q, linear_bias=bias, chunk_size=2)
        full = dtype in ("float32", "float64")
        assert found.loss.dtype == xb.asarray(X, dtype=dtype if full else "float32").dtype
        assert all(a.dtype == x.dtype for a in found[1:])
        if not full:
            exact = [xb.to_numpy(a).astype(np.float64) for a in (x, factor, bias)]
            expected = of_logits(*exact[:2], xb.to_numpy(q), exact[2])
            np.testing.assert_allclose(xb.to_numpy(found.loss), expected[0], rtol=1e-6)
            for a, b in zip(found[1:], expected[1:], strict=True):
                eps = 2.0**-10 if dtype == "float16" else 2.0**-7
                np.testing.assert_allclose(xb.to_numpy(a).astype(np.float64), b, rtol=eps, atol=2e-5)


@pytest.mark.backend("numpy")
def test_mixed_dtypes_and_integers():
    x = np.array([[1, 2], [3, 4]], np.uint8)
    factor = np.array([[1.0, 0.5], [-1.0, 0.25]], np.float32)
    found = xs.linear_cross_entropy_and_grad(x, factor, np.array([0, 1]))
    expected = of_logits(x.astype(np.float64), factor.astype(np.float64), np.array([0, 1]))
    assert [a.dtype for a in found[:3]] == [np.float64, np.float64, np.float32]
    for a, b in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.backend("numpy")
def test_inputs_are_not_changed():
    before = [a.copy() for a in (X, FACTOR, BIAS, Q)]
    for chunk_size in CHUNKS:
        xs.linear_cross_entropy_and_grad(X, FACTOR, Q, linear_bias=BIAS, chunk_size=chunk_size)
    for a, b in zip((X, FACTOR, BIAS, Q), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("name", ["numpy_blocked", "array_api"])
def test_every_implementation_of_a_block(name):
    x, factor = X.astype(np.float32), FACTOR.astype(np.float32)
    expected = xs.linear_cross_entropy_and_grad(x, factor, LABELS)
    for chunk_size in (None, (2, 3)):
        with xs.use_implementation(name):
            found = xs.linear_cross_entropy_and_grad(x, factor, LABELS, chunk_size=chunk_size)
        for a, b in zip(found[:3], expected[:3], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.backend("numpy")
def test_explain():
    explanation = xs.explain("linear_cross_entropy", X, FACTOR, LABELS)
    assert (explanation.operation, explanation.implementation) == ("linear_cross_entropy", "array_api")


# ---------------------------------------------------------------------------------------------------------------------
# lazy arrays


def refuse(*args, **kwargs):
    raise RuntimeError("a verb computed its arguments")


@pytest.mark.backend("dask")
@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_dask_stays_lazy(chunk_size, unknown):
    import dask
    import dask.array as da

    x, labels = da.from_array(X, chunks=(2, D)), da.from_array(LABELS, chunks=2)
    if unknown:
        x, labels = (a[da.ones(N, dtype=bool, chunks=2)] for a in (x, labels))
    factor = da.from_array(FACTOR, chunks=(3, D))
    with dask.config.set(scheduler=refuse):
        found = xs.linear_cross_entropy_and_grad(x, factor, labels, chunk_size=chunk_size, z_loss=0.1)
        with pytest.raises(RuntimeError, match="a verb computed"):
            found.loss.compute()
    for a, b in zip(found[:3], of_logits(X, FACTOR, LABELS, z_loss=0.1)[:3], strict=True):
        np.testing.assert_allclose(a.compute(), b, rtol=1e-12, atol=1e-14)


@pytest.mark.backend("ndonnx")
def test_onnx_model_with_a_symbolic_batch():
    import ndonnx
    import onnxruntime

    arrays = {"x": X.astype(np.float32), "factor": FACTOR.astype(np.float32), "labels": LABELS}
    shapes = {"x": ("N", D), "factor": (V, D), "labels": ("N",)}
    traced = {
        name: ndonnx.argument(shape=shapes[name], dtype=getattr(ndonnx, a.dtype.name)) for name, a in arrays.items()
    }
    results = xs.linear_cross_entropy_and_grad(*traced.values())[:3]
    model = ndonnx.build(traced, {f"result{i}": a for i, a in enumerate(results)})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = of_logits(arrays["x"], arrays["factor"], LABELS)
    for a, b in zip(session.run(None, arrays), expected[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
