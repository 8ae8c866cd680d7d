"""Products of log_softmax keep the digits of a class with more than half of y, however little is left to the others."""

import numpy as np
import pytest
from support import skip_inexact

import xsoftmax as xs
from xsoftmax.verify.compare import Arithmetic, judge
from xsoftmax.verify.inputs import numpy_dtype
from xsoftmax.verify.oracle import expected

VERBS = ("log_softmax_vjp", "log_softmax_jvp")
FLOATS = ("float16", "bfloat16", "float32", "float64")


def failures(xb, log_y, v, **options):
    skip_inexact(xb)
    exact = expected(VERBS, {"log_y": log_y, "v": v}, options)
    named = {name: xb.asarray(a) if name == "where" else a for name, a in options.items()}
    arithmetic = Arithmetic(log_y.dtype.name, xb.float64, xb.flushes_subnormals)
    found = []
    for verb in VERBS:
        got = xb.to_numpy(getattr(xs, verb)(xb.asarray(log_y), xb.asarray(v), **named))
        found += [f"{verb}: {failure}" for failure in judge(got, exact[verb][0], arithmetic).failures]
    return found


def given(xb, dtype, shape, axis=-1):
    """Rows of margins from 0 to 100, and vectors with entries alone, alike and of any size."""
    if dtype not in xb.dtypes():
        pytest.skip(f"{xb.name} has no {dtype}")
    rng = np.random.default_rng(7)
    x = rng.normal(size=shape)
    x *= np.exp(rng.uniform(-3, 3.5, np.sum(x, axis, keepdims=True).shape))
    m = np.max(x, axis=axis, keepdims=True)
    log_y = x - m - np.log(np.sum(np.exp(x - m), axis=axis, keepdims=True))
    v = np.where(rng.random(shape) < 0.3, 0, rng.normal(size=shape) * np.exp(rng.uniform(-4, 4, shape)))
    v = np.where(rng.random(np.sum(v, axis, keepdims=True).shape) < 0.2, 1.5, v)
    return log_y.astype(numpy_dtype(dtype)), v.astype(numpy_dtype(dtype))


def test_the_only_other_class_gets_what_the_confident_one_gives(xb):
    log_y, v = np.array([-8.75651076e-27, -60.0], "float32"), np.array([1, 0], "float32")
    assert failures(xb, log_y, v) == []
    found = xb.to_numpy(xs.log_softmax_vjp(xb.asarray(log_y), xb.asarray(v)))
    assert found[0] == -found[1] > 8e-27


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [2, 3, 7, 40, 1000])
def test_rows_of_any_margin(xb, dtype, classes):
    assert failures(xb, *given(xb, dtype, (4000 // classes, classes))) == []


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [0, 1, (0, 2), None])
def test_any_axes(xb, dtype, axis):
    assert failures(xb, *given(xb, dtype, (6, 5, 9), axis), axis=axis) == []


@pytest.mark.parametrize("dtype", FLOATS)
def test_masked_classes_are_absent(xb, dtype):
    log_y, v = given(xb, dtype, (60, 9))
    where = np.random.default_rng(3).random(v.shape) < 0.7
    assert failures(xb, log_y, v, where=where) == []
    where = where | (np.arange(9) == np.argmax(log_y.astype(float), axis=1)[:, None])
    assert failures(xb, log_y, np.where(where, v, np.nan).astype(v.dtype), where=where) == []


@pytest.mark.parametrize("dtype", FLOATS)
def test_halves_and_sums_that_are_not_one(xb, dtype):
    """Ties at 1/2, a class at −∞, several classes with more than half, more than 1."""
    if dtype not in xb.dtypes():
        pytest.skip(f"{xb.name} has no {dtype}")
    half = np.log(0.5)
    log_y = [[half, half, -np.inf], [half, half, -50], [-0.69, -0.7, -9], [-0.1, -0.2, -1], [0.5, -1, -2], [0, 0, 0]]
    log_y = np.array([*log_y, [0, -np.inf, -np.inf], [-1e-4, -9, -11], [-3, -3, -4]]).astype(numpy_dtype(dtype))
    rng = np.random.default_rng(5)
    for v in (np.ones(log_y.shape), np.eye(3)[np.arange(len(log_y)) % 3], rng.normal(size=log_y.shape)):
        assert failures(xb, log_y, v.astype(log_y.dtype)) == []
