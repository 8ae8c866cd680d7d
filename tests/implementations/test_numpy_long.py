"""Rows too long to be copied: results as the formulas have them, and memory that does not grow with the row."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import xsoftmax as xs
from xsoftmax import threads
from xsoftmax.choose import reasons, recorded
from xsoftmax.implementations.numpy.long import LONG

pytestmark = pytest.mark.backend("numpy")

DTYPES = [np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
CLASSES = LONG + 77
LABELS = np.array([7, CLASSES - 1])


@pytest.fixture(params=["numpy_blocked", "numpy_numba"], autouse=True)
def implementation(request):
    operation, problem, _ = recorded(xs.softmax, np.zeros(2))
    if why := reasons(request.param, operation, problem):
        pytest.skip("; ".join(why))
    with xs.use_implementation(request.param):
        yield request.param


def logits(dtype, classes=CLASSES):
    """The second row can't be exponentiated as it is, but in half precision."""
    x = np.random.default_rng(3).normal(size=(2, classes)) * 3.0
    x[1] -= 30.0 if dtype.itemsize == 2 else 800.0
    x[1, 70_000] = 9.0 if dtype.itemsize == 2 else 2.0
    return x.astype(dtype)


def others(x):
    """Targets, a cotangent, log-probabilities and a mask."""
    rng = np.random.default_rng(4)
    t, v = rng.random(x.shape) / x.shape[1], rng.normal(size=x.shape)
    mask = rng.random(x.shape) < 0.9
    mask[[0, 1], LABELS % x.shape[1]] = True
    with xs.use_implementation("array_api"):
        log_y = xs.log_softmax(x)
    return t.astype(x.dtype), v.astype(x.dtype), log_y, mask


CALLS = {
    "softmax": lambda x, t, v, log_y, mask: xs.softmax(x),
    "log_softmax": lambda x, t, v, log_y, mask: xs.log_softmax(x, where=mask, temperature=0.5),
    "logsumexp": lambda x, t, v, log_y, mask: xs.logsumexp(x),
    "labels": lambda x, t, v, log_y, mask: xs.cross_entropy_and_grad(x, LABELS, reduction="none"),
    "options": lambda x, t, v, log_y, mask: xs.cross_entropy_and_grad(
        x, LABELS, where=mask, label_smoothing=0.1, z_loss=0.01, weight=np.abs(t[0]), softcap=30.0
    ),
    "probabilities": lambda x, t, v, log_y, mask: xs.cross_entropy_and_grad(x, t, sample_weight=np.abs(v[:, 0])),
    "softmax_vjp": lambda x, t, v, log_y, mask: xs.softmax_vjp(t, v),
    "log_softmax_vjp": lambda x, t, v, log_y, mask: xs.log_softmax_vjp(log_y, v, where=mask),
    "log_softmax_jvp": lambda x, t, v, log_y, mask: xs.log_softmax_jvp(log_y, v),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_as_the_formulas(call, dtype):
    x = logits(dtype)
    arrays = x, *others(x)
    kept = [a.copy() for a in arrays]
    found = CALLS[call](*arrays)
    with xs.use_implementation("array_api"):
        expected = CALLS[call](*arrays)
    for a, b in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        eps = 12 * float(ml_dtypes.finfo(a.dtype).eps)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=eps, atol=eps * np.abs(b[np.isfinite(b)]).max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_in_place_and_in_any_order(axis, dtype):
    x = logits(dtype)
    x, labels = (x, LABELS) if axis else (np.ascontiguousarray(x.T), LABELS)
    for verb in (xs.softmax, xs.log_softmax, lambda a, **o: xs.cross_entropy_grad(a, labels, **o)):
        expected, given = verb(x, axis=axis), x.copy()
        assert verb(given, axis=axis, out=given) is given
        np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(np.float64)], ids=str)
def test_corners(dtype):
    x = np.stack([logits(dtype)[0]] * 4)
    x[1, 90_000], x[2, 5], x[3] = np.nan, np.inf, -np.inf
    y = xs.softmax(x, where=np.ones(x.shape, bool))
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1:]).all()
    mask = np.ones(x.shape, bool)
    mask[1, 90_000], mask[2] = False, False
    np.testing.assert_array_equal(
        xs.logsumexp(x, where=mask)[1:], [xs.logsumexp(x[1], where=mask[1]), -np.inf, -np.inf]
    )
    loss, grad = xs.cross_entropy_and_grad(x, np.zeros(4, int), where=mask, reduction="none")
    assert np.isfinite(loss[:2]).all()
    np.testing.assert_array_equal(loss[2:], [0.0, np.nan])
    np.testing.assert_array_equal(grad[2], 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_peak_memory(dtype, monkeypatch):
    """At most 8 MB a thread besides the result; what Numba itself takes is not seen here."""
    monkeypatch.setattr(threads, "_threads", 2)
    x = logits(dtype, 1_200_000 if dtype.itemsize == 2 else 600_000)
    t, v, log_y, mask = others(x)
    out = np.empty_like(x)
    for call in (
        lambda: xs.softmax(x, out=out),
        lambda: xs.log_softmax(x, where=mask, out=out),
        lambda: xs.logsumexp(x),
        lambda: xs.cross_entropy_and_grad(x, LABELS, out=out),
        lambda: xs.cross_entropy_and_grad(x, t, where=mask, label_smoothing=0.1, out=out),
        lambda: xs.log_softmax_vjp(log_y, v),
        lambda: xs.softmax_vjp(t, v),
    ):
        call()
        tracemalloc.start()
        result = call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        own = 0 if isinstance(result, tuple) or result is out else result.nbytes
        assert peak - own < 2 * 8e6
