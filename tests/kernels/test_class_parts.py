"""Some classes of a row by Numba, judged by the formulas in float64."""

from dataclasses import replace

import numpy as np
import pytest

import xsoftmax as xs
from xsoftmax import formulas
from xsoftmax.calls.records import Problem, Rows
from xsoftmax.choose import Runner
from xsoftmax.formulas import Part
from xsoftmax.implementations.array_api import operations as array_api
from xsoftmax.implementations.numpy import blocked_parts

pytest.importorskip("numba")

from xsoftmax.implementations.numpy import numba_parts

pytestmark = pytest.mark.backend("numpy")

RNG = np.random.default_rng(21)
CLASSES = 3 * 2100
LARGEST = np.finfo(np.float32).max


class Fallback:
    def behind(self, *args, **kwargs):
        raise AssertionError("the kernels take this")


fallback = Fallback()


def problem(dtype, **options):
    return Problem("test", "numpy", "ndarray", dtype, "float64", dtype, (-1,), labels=True, **options)


def ordinary(shape):
    return RNG.normal(scale=3.0, size=shape)


def far_apart(shape):
    return RNG.normal(scale=200.0, size=shape)


def shifted(shape):
    return 1e4 + RNG.normal(size=shape)


def tied(shape):
    return np.round(RNG.normal(size=shape))


def with_absent_classes(shape):
    x = RNG.normal(size=shape)
    x[RNG.random(shape) < 0.4] = -np.inf
    x[:, 5] = 0.25
    return x


def huge(shape):
    x = RNG.normal(size=shape) * 1e37
    x[:, 3] = -LARGEST
    x[0, 4] = LARGEST
    return x


def confident(shape):
    x = RNG.normal(size=shape)
    x[:, 7] = 40.0
    return x


ROWS = [ordinary, far_apart, shifted, tied, with_absent_classes, huge, confident]
# the other two parts of the rows, or none
PARTS = {"the whole": (0, CLASSES), "short": (40, 33), "middle": (1000, 1500), "long": (1500, 3000)}


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=ROWS, ids=lambda make: make.__name__)
def rows(request, dtype):
    return request.param((19, CLASSES)).astype(dtype)


@pytest.fixture(params=PARTS.values(), ids=PARTS)
def part(request):
    start, size = request.param
    return slice(start, start + size)


def state_of(x, labels=None, weight=None, part=slice(0, CLASSES)):
    """By the formulas."""
    wide = problem("float64", class_weighted=weight is not None)
    weight = None if weight is None else weight[part]
    place = Part(part.start, CLASSES, CLASSES)
    rows = Rows(weight=weight)
    return array_api.class_state(wide, x[:, part].astype(np.float64), labels, rows, place, xp=np, run=None)


def state_of_all(x):
    """With T = 1 at the first class."""
    classes = x.shape[1]
    wide, labels = problem("float64"), np.zeros(len(x), int)
    return array_api.class_state(wide, x.astype(np.float64), labels, Rows(), Part(0, classes, classes), xp=np, run=None)


def close(found, expected, dtype, ulps):
    """In ulps of float64, or rounded once more to float32."""
    if dtype == "float32":
        with np.errstate(over="ignore"):
            np.testing.assert_array_max_ulp(found, expected.astype(np.float32), 1)
    else:
        np.testing.assert_allclose(found, expected, rtol=ulps * np.finfo(np.float64).eps, atol=1e-320)


@pytest.mark.parametrize("with_labels", [False, True])
def test_states(rows, part, with_labels, dtype):
    labels = RNG.integers(CLASSES, size=len(rows)) if with_labels else None
    weight = RNG.random(CLASSES) if with_labels else None
    place = Part(part.start, CLASSES, CLASSES)
    given = Rows(weight=None if weight is None else weight[part])
    found = numba_parts.class_state(problem(dtype), rows[:, part], labels, given, place, xp=np, run=fallback)
    expected = state_of(rows, labels, weight, part)
    np.testing.assert_array_equal(found.m, expected.m)
    # exponentials for float32 have 33 bits, a quotient of two 32, and none is below exp(−150)
    rtol, lost = (2.0**-32, 1e-61 * CLASSES) if dtype == "float32" else (2e-15, 0.0)
    for name in ("wm", "top", "others", "far"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=2e-15, err_msg=name)
    np.testing.assert_allclose(found.q / found.wm, expected.q / expected.wm, rtol=rtol, atol=lost)


def test_softmax_and_log_softmax(rows, part, dtype):
    own, state = state_of(rows, part=part), state_of(rows)
    p, place = problem(dtype), Part(part.start, CLASSES, CLASSES)
    wide = problem("float64"), rows[:, part].astype(np.float64), None
    found = numba_parts.class_softmax(p, rows[:, part], None, place, own, state, xp=np, run=fallback)
    expected = array_api.class_softmax(*wide, place, own, state, xp=np, run=None)
    close(found, expected, dtype, 6)
    if dtype == "float32":
        found = numba_parts.class_log_softmax(p, rows[:, part], None, state, xp=np, run=fallback)
        with np.errstate(over="ignore"):
            close(found, array_api.class_log_softmax(*wide, state, xp=np, run=None), dtype, 6)


def test_gradient(rows, part, dtype):
    labels, scale = RNG.integers(CLASSES, size=len(rows)), RNG.random((len(rows), 1))
    labels[:2] = 7
    scale[3] = 0.0
    weight = RNG.random(CLASSES)
    own, state = (state_of(rows, labels, weight, some) for some in (part, slice(0, CLASSES)))
    given, place = Rows(weight=weight[part], scale=scale), Part(part.start, CLASSES, CLASSES)
    p = problem(dtype, class_weighted=True)
    x = rows[:, part].copy()
    found = numba_parts.class_grad(p, x, labels, given, place, own, state, xp=np, run=fallback, out=x)
    assert found is x
    wide = replace(p, dtype="float64", result="float64")
    wide_x = rows[:, part].astype(np.float64)
    expected = array_api.class_grad(wide, wide_x, labels, given, place, own, state, xp=np, run=None)
    close(found, expected, dtype, 8)


def test_a_large_scale_brings_nothing_back(dtype):
    """Nor does it lose what it brings into reach."""
    x = np.zeros((2, 100), dtype)
    x[:, 10], x[:, 11] = -np.inf, -600.0 if dtype == "float64" else -150.0
    x[1] += 700.0
    large = 1e250 if dtype == "float64" else 1e35
    labels, state = np.zeros(2, int), state_of_all(x)
    rows, place = Rows(scale=np.full((2, 1), large)), Part(0, 100, 100)
    grad = numba_parts.class_grad(problem(dtype), x, labels, rows, place, state, state, xp=np, run=fallback)
    np.testing.assert_array_equal(grad[:, 10], 0.0)
    expected = (np.exp(x[:1, 11], dtype=np.float64) / 98 * large).astype(dtype)
    np.testing.assert_allclose(grad[:, 11], [*expected, *expected], rtol=2 * np.finfo(dtype).eps)


def test_a_small_scale_loses_nothing():
    x = RNG.normal(size=(1, 100))
    labels, state, place = np.zeros(1, int), state_of_all(x), Part(0, 100, 100)
    grads = [
        numba_parts.class_grad(
            problem("float64"), x, labels, Rows(scale=np.full((1, 1), scale)), place, state, state, xp=np, run=fallback
        )
        for scale in (1.0, 2.0**-900)
    ]
    np.testing.assert_allclose(grads[1] * 2.0**900, grads[0], rtol=1e-14)


@pytest.mark.parametrize("name", ["numpy_numba", "numpy_blocked"])
def test_absent_rows_whatever_the_weights(name, dtype):
    """T of the first row is infinite, that of the second nan."""
    x, weight = RNG.normal(size=(3, 100)).astype(dtype), np.ones(100)
    weight[:2] = np.inf, np.nan
    labels, rows, place = np.arange(3), Rows(weight=weight, scale=np.array([[0.0], [0.0], [1.0]])), Part(0, 100, 100)
    p = problem(dtype, class_weighted=True)
    implementation = {"numpy_numba": numba_parts, "numpy_blocked": blocked_parts}[name]
    with np.errstate(invalid="ignore"):
        state = array_api.class_state(
            replace(p, dtype="float64"), x.astype("float64"), labels, rows, place, xp=np, run=None
        )
        grad = implementation.class_grad(p, x, labels, rows, place, state, state, xp=np, run=Runner(None, name))
    np.testing.assert_array_equal(grad[:2], 0.0)
    assert grad[2].any()


def test_an_infinite_factor_of_a_product():
    """As IEEE arithmetic has it: no sum is nan because it is kept in two numbers."""
    y, v = np.full((1, 3000), 1.0 / 3000, np.float32), np.zeros((1, 3000), np.float32)
    v[0, 4] = np.inf
    state = numba_parts.class_product_state(problem("float32"), y, v, None, xp=np, run=fallback)
    assert state.product == np.inf
    expected = np.where(v == np.inf, np.nan, -np.inf)
    np.testing.assert_array_equal(xs.softmax_vjp(y, v), expected)
    np.testing.assert_array_equal(xs.log_softmax_jvp(np.log(y), v), expected)


def test_blocks_that_repeat_a_row(dtype):
    """Their rows have a step of 0, which results have not."""
    row = RNG.normal(size=100).astype(dtype)
    x = np.broadcast_to(row, (5, 100))
    state, p, place = state_of_all(x), problem(dtype), Part(0, 100, 100)
    y = numba_parts.class_softmax(p, x, None, place, state, state, xp=np, run=fallback)
    expected = formulas.softmax(row.astype(np.float64), (-1,), xp=np)
    np.testing.assert_allclose(y, np.broadcast_to(expected, x.shape), rtol=2 * np.finfo(dtype).eps)
    if dtype == "float32":
        log_y = numba_parts.class_log_softmax(p, x, None, state, xp=np, run=fallback)
        np.testing.assert_allclose(log_y, np.broadcast_to(np.log(expected), x.shape), rtol=2 * np.finfo(dtype).eps)
        sums = numba_parts.class_product_state(p, y, x, None, xp=np, run=fallback)
        product = numba_parts.class_softmax_product(p, x, x, None, sums, xp=np, run=fallback)
        np.testing.assert_array_equal(product, np.broadcast_to(product[0], x.shape))


@pytest.mark.parametrize("sure", [False, True])
def test_softmax_product(part, sure):
    y = formulas.softmax(RNG.normal(scale=3.0, size=(19, CLASSES)), (-1,), xp=np)
    if sure:
        y[:, 1200], y[2, :] = 1.0 - 2.0**-20, 0.6  # the third is no probability
    y, v = y.astype(np.float32), RNG.normal(size=y.shape).astype(np.float32)
    p, wide = problem("float32"), (y[:, part].astype(np.float64), v[:, part].astype(np.float64))
    own = numba_parts.class_product_state(p, y[:, part], v[:, part], None, xp=np, run=fallback)
    others = [
        formulas.product_state(y[:, some].astype(np.float64), v[:, some].astype(np.float64), (-1,), xp=np)
        for some in (slice(0, part.start), slice(part.stop, CLASSES))
        if some.stop > some.start
    ]
    side_by_side = formulas.ProductState(*(np.concatenate(a, axis=-1) for a in zip(own, *others, strict=True)))
    state = formulas.merged_products(side_by_side, (-1,), xp=np)
    whole = formulas.product_state(y.astype(np.float64), v.astype(np.float64), (-1,), xp=np)
    found = numba_parts.class_softmax_product(p, y[:, part], v[:, part], None, state, xp=np, run=fallback)
    expected = formulas.softmax_product_of_part(*wide, whole, xp=np)
    magnitude = np.abs(wide[0]) * (np.abs(wide[1]) + np.sum(np.abs(y * v.astype(np.float64)), axis=1, keepdims=True))
    assert np.all(np.abs(found - expected) <= 0.5 * np.spacing(magnitude.astype(np.float32)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_without_a_maximum_are_left_to_the_formulas(value):
    x = RNG.normal(size=(3, 100)).astype(np.float32)
    x[1, 4] = value
    with pytest.raises(AssertionError, match="the kernels take this"):
        numba_parts.class_state(problem("float32"), x, None, Rows(), Part(0, 100, 100), xp=np, run=fallback)
