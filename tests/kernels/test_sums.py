"""Sums in float64 whose terms are equal or huge, negative or infinite targets, and axes of one class."""

import numpy as np
import pytest

import xsoftmax as xs

pytest.importorskip("numba")

pytestmark = [
    pytest.mark.backend("numpy"),
    pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than float64 here"),
]

Long = np.longdouble
LARGE = 1.7e308


@pytest.fixture(autouse=True)
def _kernels():
    with xs.use_implementation("numpy_numba"):
        yield


ORDERS = {"rows": np.ascontiguousarray, "classes": np.asfortranarray}
in_any_order = pytest.mark.parametrize("laid_out", ORDERS.values(), ids=ORDERS)


def ulps(found, expected, unit):
    return float(np.max(np.abs(found - expected) / np.spacing(unit.astype(np.float64))))


def row_sums(x):
    return np.sum(x, axis=-1, keepdims=True)


def targets(kind, x):
    n, classes = x.shape
    rng = np.random.default_rng(classes)
    match kind:
        case "one over C":
            return np.full(x.shape, 1.0 / classes)
        case "equal":
            return np.broadcast_to(rng.uniform(0.5, 1.0, (n, 1)) / classes, x.shape).copy()
        case "smoothed":
            return np.where(np.arange(classes) == 1, 0.5, 0.0) + 0.5 / classes
        case "any":
            return rng.dirichlet(np.ones(classes), n)


@in_any_order
@pytest.mark.parametrize("kind", ["one over C", "equal", "smoothed", "any"])
@pytest.mark.parametrize("classes", [2, 31, 33, 127, 1000, 10_007])
def test_targets(classes, kind, laid_out):
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(8, classes))
    x[:2] = 0.25
    x[2, 0] += 9.0
    t = np.broadcast_to(targets(kind, x), x.shape)
    loss, grad = xs.cross_entropy_and_grad(laid_out(x), laid_out(t), reduction="none")
    x, t = x.astype(Long), t.astype(Long)
    m = np.max(x, axis=-1, keepdims=True)
    e = np.exp(x - m)
    s = row_sums(e)
    q = row_sums(np.where(np.arange(classes) == np.argmax(x, axis=-1)[:, None], 0, e))
    expected = row_sums(t) * np.log1p(q) + row_sums(t * (m - x))
    assert ulps(loss, expected[:, 0], expected[:, 0]) < 4.5
    major = e / s > 0.5
    away = row_sums(np.where(major, 0, t)) - row_sums(t) * (q / s)
    expected = np.where(major, away, row_sums(t) * (e / s) - t)
    assert ulps(grad, expected, np.maximum(e / s * row_sums(t), t)) < 6.0


@in_any_order
@pytest.mark.parametrize("classes", [2, 33, 127, 1000, 10_007])
def test_products(classes, laid_out):
    rng = np.random.default_rng(classes)
    y = rng.dirichlet(np.ones(classes), 6)
    y[:2] = 1.0 / classes
    y[2] = np.where(np.arange(classes) == 0, 1.0 - 1e-9, 1e-9 / (classes - 1))
    log_y, v = np.log(y), np.broadcast_to(rng.uniform(0.5, 1.0, (6, 1)), y.shape).copy()
    v[4:] = rng.normal(size=(2, classes))
    wide = v.astype(Long)
    p, not_p, major = np.exp(log_y.astype(Long)), -np.expm1(log_y.astype(Long)), log_y > -np.log(2.0)

    def of_others(terms):
        rest = row_sums(np.where(major, 0, terms))
        return np.where(major, rest, rest + row_sums(np.where(major, terms, 0)) - terms)

    for found, factor, terms in (
        (xs.log_softmax_vjp(laid_out(log_y), laid_out(v)), p, wide),
        (xs.log_softmax_jvp(laid_out(log_y), laid_out(v)), Long(1), p * wide),
    ):
        unit = np.abs(wide) * not_p + factor * of_others(np.abs(terms))
        assert ulps(found, wide * not_p - factor * of_others(terms), unit) < 4.5
    found = xs.softmax_vjp(laid_out(y), laid_out(v))
    mean, mean_abs = row_sums(y * wide), row_sums(y * np.abs(wide))
    rest = np.abs(1 - row_sums(y.astype(Long))) * np.abs(wide).max()  # what y is off the simplex
    errors = np.abs(found - y * (wide - mean)) - y * rest
    assert np.all(errors <= 5.0 * np.spacing((y * (np.abs(wide) + mean_abs)).astype(np.float64)))


@pytest.mark.parametrize("classes", [4, 40])
def test_products_of_two_dtypes_are_as_exact_as_their_own(classes):
    log_y = np.log(np.random.default_rng(0).dirichlet(np.ones(classes), 3)).astype(np.float32)
    v = np.random.default_rng(1).normal(size=log_y.shape)
    for verb in (xs.log_softmax_jvp, xs.log_softmax_vjp):
        expected = verb(log_y.astype(np.float64), v)
        assert verb(log_y, v).dtype == np.float64
        np.testing.assert_array_equal(verb(log_y, v), expected)
        np.testing.assert_array_equal(verb(log_y.astype(np.float64), v.astype(np.float32)).dtype, np.float64)


def test_a_product_beyond_the_scale_of_its_exponentials():
    half = np.log([0.5, 0.5])
    np.testing.assert_allclose(xs.log_softmax_jvp(half, np.array([1e300, 3e300])), [-1e300, 1e300], rtol=1e-15)
    np.testing.assert_allclose(xs.log_softmax_vjp(half, np.array([1e-200, 3e-200])), [-1e-200, 1e-200], rtol=1e-15)


@in_any_order
@pytest.mark.parametrize("classes", [2, 40])
def test_distances_that_overflow(classes, laid_out):
    """m − x does, t (m − x) does not."""
    x, t = np.zeros((2, classes)), np.zeros((2, classes))
    x[:, 0], x[:, 1], t[:, 0], t[:, 1] = LARGE, -LARGE, 0.95, 0.05
    exact = np.full(2, 0.1 * LARGE)
    np.testing.assert_allclose(xs.cross_entropy(laid_out(x), laid_out(t), reduction="none"), exact, rtol=1e-15)
    weight = np.full(classes, 0.05)
    found = xs.cross_entropy(laid_out(x), np.array([1, 1]), weight=weight, reduction="none")
    np.testing.assert_allclose(found, exact, rtol=1e-15)
    assert np.isinf(xs.cross_entropy(laid_out(x), np.array([1, 1]), reduction="none")).all()


@in_any_order
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [5, 40, 100])
def test_targets_that_meet_infinity(classes, dtype, laid_out):
    x, t = np.zeros((4, classes), dtype), np.full((4, classes), 1.0 / classes, dtype)
    x[:, 1], x[:, 3] = -1.0, -np.inf
    t[:, 3] = -0.5, 0.5, 0.0, 0.0
    t[3, 1] = np.inf
    found = xs.cross_entropy(laid_out(x), laid_out(t), reduction="none")
    np.testing.assert_array_equal(found[[0, 1, 3]], [-np.inf, np.inf, np.inf])
    assert np.isfinite(found[2])


@in_any_order
@pytest.mark.parametrize("classes", [5, 40])
def test_no_loss_is_negative_zero(classes, laid_out):
    x = np.zeros((2, classes))
    x[:, 0] = 1e4
    for t, weight in ((-np.zeros(x.shape), None), (np.zeros(2, int), -np.ones(classes))):
        given = laid_out(t) if t.ndim > 1 else t
        found = xs.cross_entropy(laid_out(x), given, weight=weight, reduction="none")
        np.testing.assert_array_equal(found, 0.0)
        assert not np.signbit(found).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_class_whatever_its_stride(dtype):
    """An axis of length 1 may have any."""
    shapes = [((1, 1, 64), 1), ((3, 1, 5), 1), ((1, 64), 0), ((1,), 0), ((2, 3), ())]
    for shape, axis in shapes:
        y, v = np.ones(shape, dtype), np.full(shape, 3.0, dtype)
        arrays = [(y, v), (np.asfortranarray(y), v[::-1]), (np.broadcast_to(dtype(1), shape), v)]
        for a, b in arrays:
            np.testing.assert_array_equal(xs.softmax_vjp(a, b, axis=axis), 0.0)
            np.testing.assert_array_equal(xs.log_softmax_vjp(a - a, b, axis=axis), 0.0)
            np.testing.assert_array_equal(xs.log_softmax_jvp(a - a, b, axis=axis), 0.0)
            np.testing.assert_array_equal(xs.softmax(a, axis=axis), 1.0)
            np.testing.assert_array_equal(xs.log_softmax(a, axis=axis), 0.0)
            if axis != ():
                np.testing.assert_array_equal(xs.cross_entropy_grad(a, b, axis=axis), 0.0)
