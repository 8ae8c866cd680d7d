"""A class far below the maximum has probability 0, and so no gradient, whatever multiplies it."""

import numpy as np
import pytest

import xsoftmax as xs

pytest.importorskip("numba", reason='pip install "xsoftmax[numba]"')


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("classes", [3, 20, 200])
@pytest.mark.parametrize(("dtype", "largest"), [("float32", 1e30), ("float64", 1e300)])
def test_a_huge_logsumexp_pulls_no_class_of_probability_0(dtype, largest, classes, order):
    x = np.full((70, classes), -largest, dtype, order)
    x[:, 0], x[:, 1] = largest, 0.0
    labels = np.arange(70) % 2
    one_hot = np.asarray(np.eye(classes, dtype=dtype)[labels], order=order)
    for targets in (labels, one_hot):
        grad = xs.cross_entropy_grad(x, targets, z_loss=0.1, reduction="none")
        np.testing.assert_array_equal(grad[:, 1], -(labels == 1).astype(dtype))
        np.testing.assert_array_equal(grad[:, 2:], 0.0)
