"""log |Σ b e^x| near sums of +1 and of −1 alike, and its sign."""

import math

import numpy as np
import pytest
from support import skip_inexact

import xsoftmax as xs
from xsoftmax.verify.compare import Arithmetic, judge
from xsoftmax.verify.formats import FORMATS, MP
from xsoftmax.verify.inputs import numpy_dtype
from xsoftmax.verify.oracle import expected

FLOATS = ("float16", "bfloat16", "float32", "float64")


def failures(xb, x, b, **options):
    skip_inexact(xb)
    options = {"b": b, "return_sign": True, **options}
    given = {name: xb.asarray(a) if isinstance(a, np.ndarray) else a for name, a in options.items()}
    exact = expected(("logsumexp",), {"x": x}, options)["logsumexp"]
    arithmetic = Arithmetic(x.dtype.name, xb.float64, xb.flushes_subnormals)
    parts = zip(xs.logsumexp(xb.asarray(x), **given), exact, strict=True)
    return [failure for got, e in parts for failure in judge(xb.to_numpy(got), e, arithmetic).failures]


def of_dtype(xb, dtype, *arrays):
    if dtype not in xb.dtypes():
        pytest.skip(f"{xb.name} has no {dtype}")
    return [np.array(a, dtype=numpy_dtype(dtype)) for a in arrays]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_smallest_term_of_a_sum_near_one_of_either_sign(xb, sign):
    x, b = np.array([0, -80], "float32"), np.array([sign, -sign], "float32")
    value, found = (float(xb.to_numpy(a)) for a in xs.logsumexp(xb.asarray(x), b=xb.asarray(b), return_sign=True))
    assert value == pytest.approx(-math.exp(-80), rel=1e-6)
    assert found == sign


@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_that_lack_little_to_one(xb, dtype):
    """Ties that cancel but for ±1, terms below that cancel, factors of the maximum that are not 1, masked classes."""
    x = [[0, -85, 0, 0], [0, 0, -60, 0], [0, -1, -60, -1], [-1, 0, -1, -60], [0, 0, 0, 0], [-0.5, -0.5, 0, -30]]
    b = [[1, 1, 1, -1], [-2, 1, 3, 0], [-1, 1, 1, -1], [1, -1, -1, 1], [0.5, 0.25, 0.25, -2], [1, -1, -1, -1]]
    x, b = of_dtype(xb, dtype, x, b)
    where = np.array([[True, True, True, False]])
    for sign in (1, -1):
        assert failures(xb, x, (sign * b).astype(b.dtype)) == []
        assert failures(xb, x, (sign * b).astype(b.dtype), where=where) == []
        assert failures(xb, x[:, :, None] + x[:, None], (sign * b[:, :, None]).astype(b.dtype), axis=(1, 2)) == []


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["any", "maximum 0", "ties and whole factors"])
def test_random_rows(xb, dtype, kind):
    rng = np.random.default_rng(["any", "maximum 0", "ties and whole factors"].index(kind))
    for classes in (2, 3, 6):
        shape = (150, classes)
        x = rng.normal(size=shape) * np.exp(rng.uniform(-3, 4, (150, 1)))
        b = rng.normal(size=shape)
        if kind != "any":
            x -= np.max(x, axis=1, keepdims=True)
        if kind.startswith("ties"):
            x = np.where(rng.random(shape) < 0.3, 0, x)
            b = np.where(rng.random(shape) < 0.7, rng.choice([1, -1, 2, -2, 0.5], shape), b)
        assert failures(xb, *of_dtype(xb, dtype, x, b)) == []


def test_a_sum_near_minus_one_in_large_rows_with_large_factors(xb):
    x, b = of_dtype(xb, "float32", np.where(np.arange(1000) == 7, 0, -40), np.where(np.arange(1000) == 7, -1, 1))
    assert failures(xb, x, b) == []
    assert failures(xb, x, np.where(b < 0, b, 1e30).astype(b.dtype)) == []


@pytest.mark.backend("torch")
@pytest.mark.parametrize("shift", [0, 100, -700, 10_000])
def test_derivatives_keep_their_digits_where_the_logsumexp_is_large(shift):
    """∂/∂x_i = b_i r_i and ∂/∂b_i = r_i, r_i = exp(x_i) / Σ b exp(x), within 6 ulp times Σ |b| exp(x) / |Σ b exp(x)|"""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, b = rng.normal(size=(20, 7)) + shift, rng.normal(size=(20, 7))
    b[:, 3] = 0
    given = torch.tensor(x, requires_grad=True), torch.tensor(b, requires_grad=True)
    value, _ = xs.logsumexp(given[0], b=given[1], return_sign=True)
    by_x, by_b = (a.numpy() for a in torch.autograd.grad(value.sum(), given))
    ulp = FORMATS["float64"].ulp
    with MP.workprec(200):
        for i, (row, factors) in enumerate(zip(x.tolist(), b.tolist(), strict=True)):
            w, factors = [MP.exp(MP.mpf(a)) for a in row], [MP.mpf(a) for a in factors]
            terms = [a * c for a, c in zip(w, factors, strict=True)]
            total, size = MP.fsum(terms), MP.fsum(map(abs, terms))
            for j, (a, c) in enumerate(zip(w, factors, strict=True)):
                for found, exact in ((by_b[i, j], a / total), (by_x[i, j], c * a / total)):
                    assert abs(MP.mpf(found) - exact) <= 6 * ulp(abs(exact) * size / abs(total))
