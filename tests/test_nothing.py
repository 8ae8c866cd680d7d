"""Arrays without rows or classes, and the dtypes and shapes of results, whatever there is."""

import numpy as np
import pytest
from support import put, widest

import xsoftmax as xs
from xsoftmax.libraries.arrays import dtype_name

EMPTY = [((0, 4), -1), ((3, 0), -1), ((0, 0), -1), ((2, 0, 3), -1), ((2, 0, 3), 1), ((2, 3, 0), 1), ((0,), 0)]
PAIRS = [("float16", "float32"), ("float32", "float64"), ("float64", "float16"), ("bfloat16", "float16")]
SLOW = ("cubed", "ndonnx")  # they plan, or build a program, for each call
PRODUCTS = ("softmax_vjp", "softmax_jvp", "log_softmax_vjp", "log_softmax_jvp")
WITHOUT_ROWS = [(0, 3), (2, 0, 3)]


def zeros(xb, shape, dtype="float32"):
    return xb.asarray(np.zeros(shape), dtype=dtype)


def labels(xb, shape):
    return xb.asarray(np.zeros(shape, np.int64))


def values(xb, a):
    """What a backend's array is, having been told its dtype before it was computed."""
    told, found = dtype_name(a), xb.to_numpy(a)
    assert told == dtype_name(found)
    return found


def skip_unable(xb):
    if xb.name in SLOW:
        pytest.skip(f"{xb.name} takes seconds for each")
    if xb.name in ("mlx", "marray"):
        pytest.skip(f"{xb.name} can wait for ever for sums over nothing, or masks them")


@pytest.mark.parametrize("shape, axis", EMPTY)
def test_arrays_without_elements(xb, shape, axis):
    skip_unable(xb)
    x, rows = zeros(xb, shape), np.delete(shape, axis)
    for verb in ("softmax", "log_softmax"):
        assert values(xb, getattr(xs, verb)(x, axis=axis)).shape == shape
    for verb in PRODUCTS:
        assert values(xb, getattr(xs, verb)(x, x, axis=axis)).shape == shape
    np.testing.assert_array_equal(values(xb, xs.logsumexp(x, axis=axis)), np.full(rows, -np.inf))
    np.testing.assert_array_equal(values(xb, xs.entropy(x, axis=axis)), np.zeros(rows))
    np.testing.assert_array_equal(values(xb, xs.kl_divergence(x, x, axis=axis)), np.zeros(rows))
    if hasattr(xb.xp, "arange"):
        classes = shape[axis]
        assert values(xb, xs.softmax_jacobian(x, axis=axis)).shape == (*rows, classes, classes)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [*WITHOUT_ROWS, (3, 0)])
def test_losses_without_elements(xb, shape, reduction):
    skip_unable(xb)
    x, q = zeros(xb, shape), zeros(xb, shape)
    loss = {"none": np.zeros(shape[:-1]), "mean": np.nan, "sum": 0.0}[reduction]
    targets = [q, labels(xb, shape[:-1])] if hasattr(xb.xp, "arange") else [q]
    for t in targets:
        if not shape[-1]:
            with pytest.raises(ValueError, match="expected at least one class"):
                xs.cross_entropy(x, t, reduction=reduction)
            continue
        found = xs.cross_entropy_and_grad(x, t, reduction=reduction)
        np.testing.assert_array_equal(values(xb, found.loss), np.float32(loss))
        assert values(xb, found.grad).shape == shape
        assert values(xb, xs.cross_entropy_hvp(x, t, x, reduction=reduction)).shape == shape
        for a in xs.cross_entropy_grad_and_hessian_diag(x, t, reduction=reduction):
            assert values(xb, a).shape == shape
        np.testing.assert_array_equal(values(xb, xs.cross_entropy_from_probs(x, t, reduction=reduction)), loss)


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3), (3,)])
def test_promoted_dtypes(xb, shape, pair):
    """Of products and divergences: the same for nothing as for something."""
    skip_unable(xb)
    if not set(pair) <= set(xb.dtypes()):
        pytest.skip(f"{xb.name} has not both")
    a, b = (zeros(xb, shape, dtype) for dtype in pair)
    expected = "float64" if "float64" in pair else "float32"
    for verb in (*PRODUCTS, "kl_divergence"):
        for arrays in ((a, b), (b, a)):
            result = getattr(xs, verb)(*arrays)
            assert values(xb, result).dtype.name == expected
    assert values(xb, xs.logsumexp(a, b=b)).dtype.name == expected


@pytest.mark.parametrize("shape", [(0, 3), (2, 3), (3,)])
def test_dtypes_of_losses(xb, shape):
    """That of the logits, float32 for the loss of halves; also of one row."""
    skip_unable(xb)
    for dtype in xb.dtypes():
        x, q = zeros(xb, shape, dtype), zeros(xb, shape, dtype)
        of_loss = dtype if dtype in ("float32", "float64") else "float32"
        loss, grad = xs.cross_entropy_and_grad(x, q)
        assert (values(xb, loss).dtype.name, values(xb, grad).dtype.name) == (of_loss, dtype)
        assert values(xb, xs.cross_entropy(x, q)).dtype.name == of_loss
        assert values(xb, xs.cross_entropy_grad(x, q)).dtype.name == dtype
        assert values(xb, xs.cross_entropy_hvp(x, q, x)).dtype.name == dtype
        for a in xs.cross_entropy_grad_and_hessian_diag(x, q):
            assert values(xb, a).dtype.name == dtype
        rows = shape[:-1]
        found = xs.linear_cross_entropy_and_grad(
            zeros(xb, (*rows, 2), dtype), zeros(xb, (3, 2), dtype), q, linear_bias=zeros(xb, (3,), dtype)
        )
        assert [values(xb, a).dtype.name for a in found] == [of_loss, dtype, dtype, dtype]


@pytest.mark.parametrize("chunk_size", [None, (2, 2), (99, 99)])
@pytest.mark.parametrize("shape", WITHOUT_ROWS)
def test_linear_loss_without_rows(xb, shape, chunk_size):
    skip_unable(xb)
    x, factor, bias = (zeros(xb, s) for s in ((*shape[:-1], 2), (3, 2), (3,)))
    for t in (zeros(xb, shape), labels(xb, shape[:-1])) if hasattr(xb.xp, "arange") else (zeros(xb, shape),):
        found = xs.linear_cross_entropy_and_grad(
            x, factor, t, linear_bias=bias, chunk_size=chunk_size, reduction="none"
        )
        assert [values(xb, a).shape for a in found] == [shape[:-1], x.shape, (3, 2), (3,)]
        assert np.isnan(values(xb, xs.linear_cross_entropy(x, factor, t, chunk_size=chunk_size)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_size", [None, 2, (2, 2)])
def test_masks_without_axes(xb, chunk_size, smoothing):
    """A `where` of no dimension, or of one class, is that of every class."""
    skip_unable(xb)
    if xb.name in ("dask", "jax") and (chunk_size, smoothing) not in ((None, 0.1), ((2, 2), 0.0)):
        pytest.skip(f"{xb.name} takes long to plan or compile, and two of six tell")
    rng = np.random.default_rng(0)
    x, factor, q = (
        put(xb, a) for a in (rng.normal(size=(3, 2)), rng.normal(size=(5, 2)), rng.dirichlet(np.ones(5), 3))
    )
    options = {"chunk_size": chunk_size, "label_smoothing": smoothing}
    expected = xs.linear_cross_entropy_and_grad(x, factor, q, **options)
    for shape in ((), (1,), (1, 1), (3, 1), (5,)):
        found = xs.linear_cross_entropy_and_grad(x, factor, q, where=xb.asarray(np.ones(shape, bool)), **options)
        for a, b in zip(found[:3], expected[:3], strict=True):
            tolerance = 16 * np.finfo(widest(xb)).eps
            np.testing.assert_allclose(xb.to_numpy(a), xb.to_numpy(b), rtol=tolerance, atol=tolerance)


@pytest.mark.backend("dask")
@pytest.mark.parametrize("chunks", [2, -1])
def test_nothing_in_blocks(chunks):
    """A batch of several dimensions, none of which has a row, whose classes are split or not."""
    import dask.array as da

    x, factor, q = (da.from_array(np.zeros(s), chunks=chunks) for s in ((2, 0, 3), (5, 3), (2, 0, 5)))
    found = xs.linear_cross_entropy_and_grad(x, factor, q, reduction="none")
    assert [a.compute().shape for a in found[:3]] == [(2, 0), (2, 0, 3), (5, 3)]
