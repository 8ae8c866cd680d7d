"""Rows whose classes lie side by side: lengths about the edges of loops, kinds of rows mixed in one group."""

import numpy as np
import pytest

import xsoftmax as xs

pytest.importorskip("numba")

from xsoftmax.kernels.cpu import exponentials

pytestmark = [
    pytest.mark.backend("numpy"),
    pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than float64 here"),
]

RNG = np.random.default_rng(5)
LENGTHS = [33, 40, 48, 49, 64, 127, 128, 511, 512, 1023, 1024, 1025, 1056, 2051, 8192]
VERBS = ["softmax", "log_softmax", "logsumexp"]


@pytest.fixture(autouse=True)
def _kernels():
    with xs.use_implementation("numpy_numba"):
        yield


def rows(classes, dtype=np.float32):
    """Moderate rows among ones that need a shift, digits below the maximum, or have no result."""
    x = (np.random.default_rng([5, classes]).normal(size=(37, classes)) * 3).astype(dtype)
    x[1] -= 1000
    x[3] += 700
    x[5, -1] = 60  # the rest is a share of 1e-26
    x[7] = 2.5
    x[9, : classes // 2] = -np.inf
    x[11, 0], x[13, -1], x[15, classes // 2] = np.nan, np.nan, np.inf
    x[17] = -np.inf
    x[19] *= 1e30
    x[21] -= 505
    x[23] += 499
    x[25] += 299
    x[27] -= 299
    return x


def exact(verb, x):
    with np.errstate(all="ignore"):
        x = x.astype(np.longdouble)
        m = x.max(-1, keepdims=True)
        e = np.exp(x - m)
        top = np.argmax(x, -1)[:, None]
        rest = np.where(np.arange(x.shape[-1]) == top, 0, e).sum(-1, keepdims=True)
        result = {"softmax": e / (1 + rest), "log_softmax": (x - m) - np.log1p(rest), "logsumexp": m + np.log1p(rest)}[
            verb
        ]
        bad = np.isnan(m) | np.isinf(m)
        return np.where(bad, np.nan if verb != "logsumexp" else m, result)


def ulps(found, expected):
    return np.abs(found - expected) / np.spacing(np.abs(expected).astype(found.dtype))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("classes", LENGTHS)
@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 0.51), (np.float64, 4.0)], ids=["float32", "float64"])
def test_every_kind_of_row(verb, classes, dtype, bound):
    x = rows(classes, dtype)
    found = getattr(xs, verb)(x, keepdims=True) if verb == "logsumexp" else getattr(xs, verb)(x)
    expected = exact(verb, x)
    finite = np.isfinite(expected)
    assert ulps(found[finite], expected[finite]).max() <= bound
    np.testing.assert_array_equal(found[~finite], expected[~finite].astype(dtype))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("classes", [40, 128, 300, 1100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_has_the_same_bits_wherever_it_is(verb, classes, dtype):
    x = rows(classes, dtype)
    together = getattr(xs, verb)(x)
    alone = np.concatenate([getattr(xs, verb)(x[i : i + 1]) for i in range(len(x))])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("verb", ["softmax", "log_softmax"])
@pytest.mark.parametrize("classes", LENGTHS)
def test_in_place(verb, classes):
    x = rows(classes)
    expected = getattr(xs, verb)(x)
    getattr(xs, verb)(x, out=x)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("shift", [0, 3, -900])
def test_a_row_whose_exponentials_are_not_kept(shift):
    x = (RNG.normal(size=(2, exponentials.KEPT + 33)) + shift).astype(np.float32)
    expected = exact("softmax", x)
    found = xs.softmax(x)
    assert ulps(found, expected).max() <= 0.51
    assert xs.softmax(x, out=x) is x
    np.testing.assert_array_equal(x, found)
