"""Temperatures and differences near the ends of the floating-point numbers."""

import math

import numpy as np
import pytest
from support import get, put, widest

import xsoftmax as xs

X = np.array([[1.0, 2.0, 3.0], [3.0, -1.0, 3.0], [0.0, 0.0, 0.0], [-5.0, -np.inf, 2.0]])
COLD = [[0.0, 0.0, 1.0], [0.5, 0.0, 0.5], [1 / 3] * 3, [0.0, 0.0, 1.0]]
THIRD = [1 / 3] * 3
HOT = [THIRD, THIRD, THIRD, [0.5, 0.0, 0.5]]


@pytest.mark.parametrize("temperature, expected", [(5e-324, COLD), (1e-300, COLD), (1e-38, COLD), (1e308, HOT)])
def test_no_temperature_makes_a_finite_row_nan(xb, temperature, expected):
    eps = np.finfo(widest(xb)).eps
    for dtype in xb.dtypes():
        y = xb.to_numpy(xs.softmax(xb.asarray(X, dtype=dtype), temperature=temperature)).astype(np.float64)
        step = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}.get(dtype, eps)
        np.testing.assert_allclose(y, expected, rtol=2 * max(step, eps))
    log_y = get(xb, xs.log_softmax(put(xb, X), temperature=temperature))
    np.testing.assert_allclose(np.exp(log_y), expected, rtol=8 * eps)


def test_losses_of_the_coldest_rows(xb):
    if not hasattr(xb.xp, "arange"):
        pytest.skip(f"{xb.name} has no arange, which class indices need")
    x, v, options = put(xb, X), put(xb, np.ones_like(X)), {"temperature": 5e-324, "reduction": "none"}
    labels = put(xb, np.array([2, 0, 1, 2]))
    loss, grad = (get(xb, a) for a in xs.cross_entropy_and_grad(x, labels, **options))
    np.testing.assert_allclose(loss, [0.0, math.log(2), math.log(3), 0.0], rtol=1e-6)
    assert not np.isnan(grad).any()
    np.testing.assert_array_equal(grad[[0, 3]], 0.0)
    for result in (
        xs.cross_entropy_hvp(x, labels, v, **options),
        *xs.cross_entropy_grad_and_hessian_diag(x, labels, **options),
    ):
        assert not np.isnan(get(xb, result)).any()


def test_differences_that_overflow_before_they_are_divided(xb):
    largest = float(np.finfo(widest(xb)).max)
    x, temperature = put(xb, np.array([[largest, -largest, 0.0]])), largest / 2
    z = np.array([0.0, -4.0, -2.0])
    expected = z - np.log(np.exp(z).sum())
    eps = np.finfo(widest(xb)).eps
    np.testing.assert_allclose(get(xb, xs.log_softmax(x, temperature=temperature))[0], expected, rtol=16 * eps)
    np.testing.assert_allclose(get(xb, xs.softmax(x, temperature=temperature))[0], np.exp(expected), rtol=16 * eps)


@pytest.mark.parametrize("implementation", ["array_api", "numpy_blocked"])
def test_a_small_part_of_a_difference_that_overflows(xb, implementation):
    """t (m − x) is a number where m − x is none."""
    if implementation != "array_api" and xb.name != "numpy":
        pytest.skip(f"{implementation} is NumPy's")
    largest = float(np.finfo(widest(xb)).max)
    x, t = np.array([[largest, -largest], [largest, 0.0]]), np.array([[0.95, 0.05], [0.5, 0.5]])
    with xs.use_implementation(implementation):
        calls = [
            xs.cross_entropy(put(xb, x), put(xb, t), reduction="none"),
            xs.linear_cross_entropy(put(xb, x), put(xb, np.eye(2)), put(xb, t), reduction="none"),
        ]
        for loss in calls:
            np.testing.assert_allclose(get(xb, loss) / largest, [0.1, 0.5], rtol=1e-6)
