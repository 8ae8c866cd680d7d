"""float16 and bfloat16 in the kernels: every bit pattern, and rows in any order of memory."""

import ml_dtypes
import numpy as np
import pytest

import xsoftmax as xs

pytest.importorskip("numba")

from xsoftmax.kernels.cpu import halves

pytestmark = pytest.mark.backend("numpy")

DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
RNG = np.random.default_rng(2)


def address(a):
    return a.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_as_float32(dtype):
    bits = np.arange(1 << 16, dtype=np.uint16)
    found = np.empty(bits.size, np.float32)
    halves._widen(1, bits.size, bits.ctypes.data, 0, dtype.name == "bfloat16", found.ctypes.data)
    expected = bits.view(dtype).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounded_to_the_nearest(dtype):
    numbers = np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)
    with np.errstate(all="ignore"):
        ties = numbers[1:] / 2 + numbers[:-1] / 2
        above, below = np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))
        patterns = RNG.integers(0, 1 << 32, 200_000, np.uint64).astype(np.uint32).view(np.float32)
        given = np.concatenate([numbers, ties, above, below, patterns])
        expected = given.astype(dtype)
    found = np.empty(given.size, np.uint16)
    halves._narrow(1, given.size, given.ctypes.data, found.ctypes.data, 0, dtype.name == "bfloat16")
    missing = np.isnan(given)
    assert np.isnan(found.view(dtype)[missing]).all()
    np.testing.assert_array_equal(found[~missing], expected.view(np.uint16)[~missing])


def laid_out(x, order):
    """The same numbers in another order of memory."""
    match order:
        case "rows":
            return x
        case "classes":
            return np.asfortranarray(x)
        case "neither":
            wide = np.zeros((x.shape[0], 3 * x.shape[1]), x.dtype)
            wide[:, ::3] = x
            return wide[:, ::3]


def close(found, expected, dtype, terms=0.0):
    """Within a rounding, and the kernels' exp, which is good to 2⁻³², of `terms` that cancel."""
    finfo = ml_dtypes.finfo(dtype)
    bound = float(finfo.eps) * abs(expected.astype(float)) + float(finfo.smallest_subnormal) + 2.0**-31 * terms
    apart = abs(found.astype(float) - expected.astype(float))
    assert np.all((apart <= bound) | (found == expected))


ORDERS = ["rows", "classes", "neither"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [3, 21, 40, 700, 9000])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("into", ORDERS)
def test_orders_of_memory(dtype, classes, order, into):
    x = (RNG.normal(size=(70, classes)) * 4).astype(dtype)
    labels = RNG.integers(0, classes, 70)
    targets = xs.softmax(x)
    out = laid_out(np.zeros_like(x), into)
    x, t = laid_out(x, order), laid_out(targets, order)
    for verb in (xs.softmax, xs.log_softmax):
        with xs.use_implementation("array_api"):
            expected = verb(x)
        with xs.use_implementation("numpy_numba"):
            assert verb(x, out=out) is out
        close(out, expected, dtype)
    for given in (labels, t):
        with xs.use_implementation("array_api"):
            loss, grad = xs.cross_entropy_and_grad(x, given)
            value = xs.logsumexp(x)
        with xs.use_implementation("numpy_numba"):
            found, _ = xs.cross_entropy_and_grad(x, given, out=out)
            np.testing.assert_allclose(found, loss, rtol=1e-6)
            close(out, grad, dtype, terms=targets.astype(float) / len(x))
            close(xs.logsumexp(x), value, dtype)
