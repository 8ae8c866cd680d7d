"""Corners of meaning and of accuracy by the CUDA kernels, run on the host, in every kind of kernel."""

import host_kernels
import numpy as np
import pytest

import xsoftmax as xs
from xsoftmax.verify.cases import POSITIONAL
from xsoftmax.verify.compare import Arithmetic, judge
from xsoftmax.verify.oracle import expected

pytestmark = [
    pytest.mark.backend("numpy"),
    pytest.mark.slow,
    pytest.mark.skipif(host_kernels.COMPILER is None, reason="no g++ here"),
]

LAYOUTS = ["side by side", "across", "one long row"]  # resident or by lanes; columns; in pieces
LONG = 17_000
LABELS = np.array([0, 1, 2, 0])


@pytest.fixture
def compiled(on_host, tmp_path):
    """Runs a function twice, before the second time with all the kernels that it needs."""

    def run(function):
        with np.errstate(all="ignore"):
            function()
            on_host.compile(tmp_path)
            result = function()
        assert on_host.missing == set()
        return result

    return run


def laid(layout, x, fill=0.0):
    """Rows and the axis of their classes, filled up so that every kind of kernel takes them."""
    if layout == "side by side":
        return x, -1
    if layout == "across":
        return np.asfortranarray(np.concatenate([x, np.full((len(x), 150), fill, x.dtype)], axis=1)).T, 0
    return np.concatenate([x, np.full((len(x), LONG), fill, x.dtype)], axis=1), -1


def assert_kept(found, verb, arrays, options, *, most=None):
    """The contract, or less than that."""
    dtype = next(iter(arrays.values())).dtype.name
    results = found if isinstance(found, tuple) else (found,)
    for got, exact in zip(results, expected((verb,), arrays, options)[verb], strict=True):
        verdict = judge(np.asarray(got), exact, Arithmetic(dtype))
        assert verdict.failures == []
        assert most is None or verdict.worst <= most


@pytest.mark.parametrize("verb", ["log_softmax_vjp", "log_softmax_jvp"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("classes", [2, 5000])
def test_products_keep_the_confident_class(compiled, verb, dtype, classes):
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(12, classes))
    x[np.arange(12), rng.integers(classes, size=12)] += np.linspace(0, 300, 12)
    log_y = x - x.max(axis=1, keepdims=True)
    log_y -= np.log1p(np.exp(log_y).sum(axis=1, keepdims=True) - 1)
    confident = log_y.argmax(axis=1)
    others = np.where(np.arange(classes) == confident[:, None], -np.inf, x)
    margin = np.logaddexp.reduce(others, axis=1) - x[np.arange(12), confident]
    log_y[np.arange(12), confident] = -np.log1p(np.exp(margin))
    log_y = log_y.astype(dtype)
    for v in (np.eye(classes)[confident], rng.normal(size=x.shape)):
        v = v.astype(dtype)
        found = compiled(lambda v=v: getattr(xs, verb)(log_y, v))
        y, not_y = np.exp(log_y.astype(np.longdouble)), -np.expm1(log_y.astype(np.longdouble))
        factor, terms = (y, v.astype(np.longdouble)) if verb == "log_softmax_vjp" else (np.longdouble(1), y * v)
        top = y > 0.5
        rest, whole = (np.sum(a, axis=1, keepdims=True) for a in (np.where(top, 0, terms), terms))
        exact = v * not_y - factor * np.where(top, rest, whole - terms)
        sizes = np.sum(np.where(top, 0, np.abs(terms)), axis=1, keepdims=True)
        sizes = np.where(top, sizes, np.sum(np.abs(terms), axis=1, keepdims=True) - np.abs(terms))
        unit = np.spacing((np.abs(v) * not_y + factor * sizes).astype(dtype))
        assert np.max(np.abs(found - exact) / unit) <= (6 if dtype == "float64" else 1)


def test_products_of_mixed_dtypes(compiled):
    log_y, v = np.log([[0.3, 0.7]]).astype(np.float32), np.array([[1.0, -2.5]])
    for verb in ("log_softmax_vjp", "log_softmax_jvp"):
        found = compiled(lambda verb=verb: getattr(xs, verb)(log_y, v))
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, getattr(xs, verb)(log_y.astype(np.float64), v), rtol=1e-15)


@pytest.mark.parametrize("classes", [1000, 1 << 20])
def test_sums_of_equal_terms(compiled, classes):
    rows = np.stack([np.where(np.arange(classes) == 7, 3.0, 0.3), np.full(classes, -1 / 3)])
    labels, v = np.array([7, 1]), np.where(np.arange(classes) % 3, 0.7, 0.1)[None] * np.ones((2, 1))
    smoothed = {"label_smoothing": 0.5, "reduction": "none"}
    found = compiled(lambda: xs.cross_entropy_and_grad(rows, labels, **smoothed))
    arrays = {"logits": rows, "targets": labels}
    assert_kept(tuple(found), "cross_entropy_and_grad", arrays, smoothed, most=4.5)
    y = np.stack([np.full(classes, 1 / classes), np.where(np.arange(classes) == 3, 0.7, 0.3 / (classes - 1))])
    for verb, given in (("softmax_vjp", y), ("log_softmax_vjp", np.log(y)), ("log_softmax_jvp", np.log(y))):
        arrays = dict(zip(POSITIONAL[verb], (given, v), strict=True))
        assert_kept(compiled(lambda: getattr(xs, verb)(given, v)), verb, arrays, {}, most=4.5)  # noqa: B023


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_temperature_divides_differences(compiled, layout, dtype):
    limit = float(np.finfo(dtype).max)
    x = np.array([[1, 2, 3], [-limit, limit, 0], [3, 3, -np.inf], [limit, -limit, limit]], dtype)
    x, axis = laid(layout, x, -np.inf)
    temperatures = (5e-324, 1e-300, 1e-42, 1e-3, 0.7, 1e5, 1e42, 1.7e308)
    for t in temperatures if layout != "one long row" else temperatures[::3]:
        y, log_y, (loss, grad) = compiled(
            lambda t=t: (
                xs.softmax(x, axis=axis, temperature=t),
                xs.log_softmax(x, axis=axis, temperature=t),
                xs.cross_entropy_and_grad(x, LABELS, axis=axis, temperature=t, reduction="none"),
            )
        )
        wide = np.moveaxis(x, axis, -1).astype(np.longdouble)
        z = (wide - wide.max(axis=-1, keepdims=True)) / t
        exact = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        y, log_y, grad = (np.moveaxis(a, axis, -1).astype(np.longdouble) for a in (y, log_y, grad))
        eps = float(np.finfo(dtype).eps)
        with np.errstate(over="ignore", invalid="ignore"):
            np.testing.assert_allclose(y, np.exp(exact), rtol=8 * eps, atol=float(np.finfo(dtype).tiny))
            np.testing.assert_allclose(log_y, exact.astype(dtype), rtol=8 * eps, atol=8 * eps)
            losses = -exact[np.arange(4), LABELS].astype(np.float64 if dtype == "float64" else np.float32)
            np.testing.assert_allclose(loss, losses, rtol=1e-14 if dtype == "float64" else 1e-6)
            assert not np.isnan(grad).any()
            slope = (np.exp(exact) - (np.arange(z.shape[1]) == LABELS[:, None])) / t
            sure = np.abs(slope) > np.finfo(dtype).tiny
            np.testing.assert_allclose(grad[sure], slope.astype(dtype)[sure], rtol=16 * eps)


def test_logsumexp_of_a_temperature(compiled):
    """In the squared logsumexp it is m / T + log Σ exp((x − m) / T)."""
    x, t = np.array([[3.0, 1.0, 2.0]]), 0.7
    found = compiled(lambda: xs.cross_entropy_and_grad(x, np.array([1]), temperature=t, z_loss=0.1, reduction="none"))
    assert_kept(
        tuple(found),
        "cross_entropy_and_grad",
        {"logits": x, "targets": np.array([1])},
        {"temperature": t, "z_loss": 0.1, "reduction": "none"},
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_z_loss_of_the_largest_logits(compiled, layout, dtype):
    """2 ζ logsumexp overflows where a row's scale makes a number of it."""
    largest = float(np.finfo(dtype).max)
    x, axis = laid(layout, np.array([[largest, 0, 1], [1, -largest / 2, largest / 2]], dtype), -np.inf)
    labels, options = np.array([0, 1]), {"axis": axis, "z_loss": 0.6}
    one_hot = np.zeros_like(x)
    np.moveaxis(one_hot, axis, -1)[[0, 1], labels] = 1
    for t in (labels, one_hot):
        grad = compiled(lambda t=t: xs.cross_entropy_grad(x, t, **options))
        expected = np.zeros_like(np.moveaxis(x, axis, -1))
        expected[0, 0], expected[1, 2] = 0.6 * largest, 0.6 * largest / 2
        expected[1, 1] = -0.5
        np.testing.assert_allclose(np.moveaxis(grad, axis, -1), expected, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_distance_that_overflows_alone(compiled, layout):
    """t (m − x) is finite where m − x is not."""
    x = np.array([[1.7e308, -1.7e308, 0.0], [-1.7e308, 0.0, 1.7e308]])
    x, axis = laid(layout, x, -np.inf)
    t, _ = laid(layout, np.array([[0.9375, 0.0625, 0.0], [0.125, 0.5, 0.0]]))
    loss = compiled(lambda: xs.cross_entropy(x, t, axis=axis, reduction="none"))
    np.testing.assert_allclose(loss, [0.125 * 1.7e308, 0.25 * 1.7e308 + 0.5 * 1.7e308], rtol=1e-15)
    weight = np.full(x.shape[axis], 0.0625)
    loss = compiled(lambda: xs.cross_entropy(x, np.array([1, 0]), axis=axis, weight=weight, reduction="none"))
    np.testing.assert_allclose(loss, [0.125 * 1.7e308] * 2, rtol=1e-15)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_negative_target_at_no_probability(compiled, layout):
    x, axis = laid(layout, np.array([[0.0, -np.inf, 1.0], [-np.inf, 1.0, 0.0]]), -np.inf)
    t, _ = laid(layout, np.array([[0.5, -0.5, 1.0], [-0.5, 1.0, 0.5]]))
    assert (compiled(lambda: xs.cross_entropy(x, t, axis=axis, reduction="none")) == -np.inf).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_is_never_minus_zero(compiled, dtype, reduction):
    x = np.array([[800.0, 0.0], [0.0, 0.0]], dtype)
    for weights in ([-1.0, 0.0], [-0.0, -1e-320], [-0.0, 0.0]):
        s = np.array(weights)
        loss = compiled(lambda s=s: xs.cross_entropy(x[:1], np.array([0]), sample_weight=s[:1], reduction=reduction))
        assert not np.signbit(loss)
    s = np.array([-1e-60])
    loss = compiled(lambda: xs.cross_entropy(x[1:], np.array([0]), sample_weight=s, reduction="sum"))
    assert (loss == 0.0 and not np.signbit(loss)) if dtype == "float32" else loss < 0.0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1}, {"temperature": 0.7, "z_loss": 0.1}])
def test_nothing_kept(compiled, layout, options):
    """Row 0 keeps nothing, row 1 −∞ alone, row 2 not its label, row 3 all."""
    x = np.array([[np.nan, 1.0, 2.0], [-np.inf, -np.inf, 1.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    where = np.array([[False] * 3, [True, True, False], [True, True, False], [True] * 3])
    (x, axis), (where, _) = laid(layout, x), laid(layout, where, False)
    dense = np.moveaxis(np.eye(x.shape[axis])[LABELS], -1, axis)
    for targets in (LABELS, dense):
        none, mean = compiled(
            lambda targets=targets: tuple(
                xs.cross_entropy_and_grad(x, targets, axis=axis, where=where, **options, reduction=reduction)
                for reduction in ("none", "mean")
            )
        )
        kept = np.moveaxis(where, axis, -1)
        loss, grad = none.loss, np.moveaxis(none.grad, axis, -1)
        assert loss[0] == 0.0
        assert np.isnan(loss[1])
        assert loss[2] == (np.inf if targets is LABELS else loss[2])
        assert np.isfinite(loss[3])
        assert (grad[~kept] == 0.0).all()
        assert np.isnan(grad[1][kept[1]]).all()
        assert np.isfinite(grad[2:]).all()
        np.testing.assert_array_equal(np.moveaxis(mean.grad, axis, -1)[[0, 2, 3]], grad[[0, 2, 3]] / 4)
        expected = compiled(
            lambda targets=targets: xs.cross_entropy(
                *(np.delete(a, 1, axis=a.ndim - 2 if a.ndim > 1 and axis == -1 else -1) for a in (x, targets)),
                axis=axis, where=np.delete(where, 1, axis=where.ndim - 2 if axis == -1 else -1), **options
            )
        )  # fmt: skip
        np.testing.assert_allclose(expected, (loss[2] + loss[3]) / 3)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}, {"temperature": 0.7}, {"ignore_index": 0}])
def test_a_weight_of_no_row_counts_for_nothing(compiled, layout, options, bad):
    x, axis = laid(layout, np.random.default_rng(0).normal(size=(3, 4)))
    labels, weight = np.array([1, 2, 1]), np.linspace(1, 2, x.shape[axis])
    dense = np.moveaxis(np.eye(x.shape[axis])[labels], -1, axis)
    with_bad = weight.copy()
    with_bad[[0, 3]] = bad
    for targets in (labels,) if "ignore_index" in options else (labels, dense):
        for reduction in ("mean", "none"):
            found, usual = (
                compiled(
                    lambda w=w, targets=targets, reduction=reduction: xs.cross_entropy_and_grad(
                        x, targets, axis=axis, weight=w, reduction=reduction, **options
                    )
                )
                for w in (with_bad, weight)
            )
            np.testing.assert_array_equal(found.loss, usual.loss)
            np.testing.assert_array_equal(found.grad, usual.grad)


def test_ignored_label_beyond_the_labels(compiled):
    x = np.random.default_rng(0).normal(size=(3, 4))
    far, usual = np.array([1, 1 << 63, (1 << 63) - 1], np.uint64), np.array([1, 2, 0])

    def call(labels, ignored):
        return compiled(lambda: xs.cross_entropy_grad(x, labels, ignore_index=ignored, reduction="sum"))

    assert np.isnan(call(far, (1 << 63) - 1)[1]).all()
    assert not call(far, (1 << 63) - 1)[2].any()
    assert np.isnan(call(far, -1)[1:]).all()
    for labels in (usual.astype(np.uint8), usual.astype(np.int8), usual):
        for ignored in (300, -1, 1 << 40, 1 << 63, -(1 << 80)):
            np.testing.assert_array_equal(call(labels, ignored), call(usual, None))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_one_class(compiled, dtype):
    """Also where an axis of length 1 has a step of its own, and where no axis holds classes."""
    one = np.lib.stride_tricks.as_strided(np.arange(64, dtype=dtype), (1, 1, 64), (8, 24, np.dtype(dtype).itemsize))
    for x, axis in ((one, 1), (one, 0), (one, ()), (one[..., ::2], 1), (one.swapaxes(0, 2), 1)):
        y, log_y, lse, product, vjp, jvp = compiled(
            lambda x=x, axis=axis: (
                xs.softmax(x, axis=axis),
                xs.log_softmax(x, axis=axis),
                xs.logsumexp(x, axis=axis, keepdims=True),
                xs.softmax_vjp(np.ones_like(x), x, axis=axis),
                xs.log_softmax_vjp(np.zeros_like(x), x, axis=axis),
                xs.log_softmax_jvp(np.zeros_like(x), x, axis=axis),
            )
        )
        np.testing.assert_array_equal(lse, x)
        assert (y == 1.0).all()
        assert not np.stack([log_y, product, vjp, jvp]).any()


def test_arrays_of_nothing(compiled):
    """Their shapes and dtypes; nothing is launched."""
    for shape in ((0, 4), (3, 0), (0, 2, 5)):
        x, half = (np.zeros(shape, dtype) for dtype in (np.float32, np.float16))
        for verb in (xs.softmax, xs.log_softmax):
            assert compiled(lambda verb=verb: verb(half)).dtype == np.float16  # noqa: B023
        assert compiled(lambda: xs.logsumexp(x)).shape == shape[:-1]  # noqa: B023
        for verb in (xs.softmax_vjp, xs.log_softmax_vjp, xs.log_softmax_jvp):
            found = compiled(lambda verb=verb: verb(x, x))  # noqa: B023
            assert (found.shape, found.dtype) == (shape, np.float32)
    x, labels = np.zeros((0, 4), np.float16), np.zeros(0, np.int64)
    for reduction in ("mean", "sum", "none"):
        for options in ({}, {"weight": np.ones(4)}, {"sample_weight": np.ones(0)}, {"ignore_index": 0, "z_loss": 0.1}):
            loss, grad = compiled(
                lambda options=options, reduction=reduction: xs.cross_entropy_and_grad(
                    x, labels, reduction=reduction, **options
                )
            )
            assert (loss.dtype, grad.dtype, grad.shape) == (np.float32, np.float16, (0, 4))
            assert loss.shape == ((0,) if reduction == "none" else ())
