"""The kernels' functions of one number, and their sums, against extended precision."""

import os
import subprocess
import sys

import numpy as np
import pytest

import xsoftmax as xs
from xsoftmax.libraries import sums

numba = pytest.importorskip("numba")

from xsoftmax.kernels.cpu import exponentials, small, vector_math  # noqa: E402

pytestmark = [
    pytest.mark.backend("numpy"),
    pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than float64 here"),
]

RNG = np.random.default_rng(11)


@numba.njit(**vector_math.EXACT)
def _exp(x, k, like, out):
    for i in range(x.size):
        out[i] = vector_math.exp(x[i], k, like)


@numba.njit(**vector_math.EXACT)
def _log1p(x, out):
    for i in range(x.size):
        out[i] = vector_math.log1p(x[i])


def ulps(found, exact):
    return float(np.max(np.abs((found - exact) / np.spacing(np.abs(exact).astype(np.float64)))))


@pytest.mark.parametrize("k", [0, 500, -300])
def test_exp(k):
    x = np.concatenate([RNG.uniform(-400, 350, 50_000), RNG.uniform(-1, 1, 50_000), [0.0, -0.0, np.log(2) / 2]])
    out = np.empty_like(x)
    exact = np.ldexp(np.exp(x.astype(np.longdouble)), k)
    keep = (exact < 1e308) & (exact > 1e-307)
    _exp(x, k, 1.0, out)
    assert ulps(out[keep], exact[keep]) < 0.7
    _exp(x, k, np.float32(1), out)
    assert float(np.max(np.abs(out / exact - 1)[keep])) < 2.0**-31.9


def test_exp_far_from_0():
    """Reduced exactly up to 2²¹ ln 2, where the power of two brings it back."""
    x = RNG.uniform(1e5, 1e6, 1000)
    for value in x:
        n = int(np.rint(value / np.log(2)))
        out = np.empty(1)
        _exp(np.array([value]), -n, 1.0, out)
        exact = np.exp(np.longdouble(value) - n * np.log(np.longdouble(2)))
        # the reference's own argument is rounded: 1e6 · 2^−64
        assert abs(out[0] / exact - 1) < 2.0**-43


def test_log1p():
    u = np.concatenate([10.0 ** RNG.uniform(-300, 300, 50_000), RNG.uniform(0, 3, 50_000), [0.0, 1.0, 0.5, 2.0**53]])
    out = np.empty_like(u)
    _log1p(u, out)
    exact = np.log1p(u.astype(np.longdouble))
    positive = exact > 0
    assert ulps(out[positive], exact[positive]) < 0.8
    assert out[u == 0.0].tolist() == [0.0]


def test_two_sum_keeps_what_is_lost():
    assert exponentials.two_sum(1e16, 0.0, 1.0) == (1e16, 1.0)
    assert exponentials.two_sum(1.0, 0.5, 1e16) == (1e16, 1.5)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 31, 100])
def test_total_has_the_bits_of_the_formulas(n):
    terms = RNG.normal(size=n)
    assert small.total(terms.copy()) == sums.total(terms, (-1,), xp=np)[0]


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 1)() == 0, reason="root writes anywhere")
def test_read_only_installation(tmp_path):
    """Where nothing can be kept on disk, kernels are compiled in memory."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "no" / "such"), "HOME": str(tmp_path)}
    tmp_path.chmod(0o500)
    code = "import numpy as np, xsoftmax as xs; print(xs.softmax(np.zeros((2, 4), np.float32))[0, 0])"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    tmp_path.chmod(0o700)
    assert run.stdout.strip() == "0.25", run.stderr


def test_nowhere_to_keep_kernels(monkeypatch):
    """Where Numba finds no directory for its cache, nothing is kept."""

    def kept(function):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(vector_math, "Kept", kept)
    assert vector_math.jit(**vector_math.EXACT)(lambda: 1.0)() == 1.0


@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_bad_row_stays_alone(dtype, classes):
    x = RNG.normal(size=(200, classes)).astype(dtype)
    x[7, 1], x[70, 0], x[99] = np.nan, np.inf, -np.inf
    good = np.ones(200, bool)
    good[[7, 70, 99]] = False
    with xs.use_implementation("numpy_numba"):
        for verb in (xs.softmax, xs.log_softmax):
            y = verb(x)
            assert np.isnan(y[~good]).all()
            np.testing.assert_allclose(y[good], verb(x[good]), rtol=4 * np.finfo(dtype).eps)
