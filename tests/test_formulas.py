"""The mathematics alone: at 50 digits against its definition, and in floats without a warning."""

import math
from fractions import Fraction
from itertools import product

import mpmath
import numpy as np
import pytest
from calls import ARRAYS, CALLS, Arrays, parts
from hypothesis import given
from hypothesis import strategies as st

import xsoftmax as xs
from xsoftmax import formulas
from xsoftmax.libraries import sums

pytestmark = pytest.mark.backend("numpy")

DIGITS = 50
RNG = np.random.default_rng(5)
CLASSES = 4
X = RNG.normal(scale=3.0, size=(3, CLASSES))
X[1] = [40.0, 0.5, -1.0, 0.25]  # a confident row
X[2] = [2.5, 2.5, -60.0, 1.0]  # a tie of the maximum
V = RNG.normal(size=X.shape)
Q = RNG.dirichlet(np.ones(CLASSES), size=3) * 1.5
LABELS = np.array([1, 0, 2])
WEIGHT = np.array([0.5, 2.0, 1.0, 0.25])


# ---------------------------------------------------------------------------------------------------------------------
# 50 digits


@pytest.fixture
def mp():
    """The namespace of an array library with 50 digits."""
    namespace = pytest.importorskip("mparray")
    with mpmath.workdps(DIGITS):
        yield namespace


def digits(a):
    return a._data


def agree(found, expected, scale=1):
    """But for a few roundings at 50 digits."""
    found, expected = np.asarray(found, object), np.asarray(expected, object)
    assert found.shape == expected.shape
    for a, b in zip(found.ravel(), expected.ravel(), strict=True):
        assert abs(a - b) <= mpmath.mpf(10) ** (3 - DIGITS) * (abs(b) + scale * mpmath.mpf(10) ** -DIGITS), (a, b)


def rows(a):
    return [[mpmath.mpf(value) for value in row] for row in a.tolist()]


def lse(x):
    return mpmath.log(mpmath.fsum(map(mpmath.exp, x)))


def test_logits_at_fifty_digits(mp):
    x = mp.asarray(X)
    agree(digits(xs.softmax(x)), [[mpmath.exp(a) / mpmath.fsum(map(mpmath.exp, row)) for a in row] for row in rows(X)])
    with mpmath.workdps(3 * DIGITS):  # a − logsumexp cancels
        log_y = [[a - lse(row) for a in row] for row in rows(X)]
        totals = [lse(row) for row in rows(X)]
        signed = [
            mpmath.fsum(b * mpmath.exp(a) for a, b in zip(*pair, strict=True))
            for pair in zip(rows(X), rows(V), strict=True)
        ]
        signed = [(mpmath.log(abs(s)), mpmath.sign(s)) for s in signed]
    agree(digits(xs.log_softmax(x)), log_y)
    agree(digits(xs.logsumexp(x)), totals)
    value, sign = xs.logsumexp(x, b=mp.asarray(V), return_sign=True)
    agree(digits(value), [s[0] for s in signed])
    agree(digits(sign), [s[1] for s in signed])


def test_products_at_fifty_digits(mp):
    y, log_y = xs.softmax(mp.asarray(X)), xs.log_softmax(mp.asarray(X))
    v = mp.asarray(V)
    p, d = digits(y), rows(V)
    size = 10**DIGITS  # where the sum cancels, digits are those of the terms
    mean = [mpmath.fsum(a * b for a, b in zip(p[i], d[i], strict=True)) for i in range(3)]
    agree(
        digits(xs.softmax_vjp(y, v)), [[p[i][j] * (d[i][j] - mean[i]) for j in range(CLASSES)] for i in range(3)], size
    )
    agree(digits(xs.log_softmax_jvp(log_y, v)), [[d[i][j] - mean[i] for j in range(CLASSES)] for i in range(3)], size)
    total = [mpmath.fsum(row) for row in d]
    agree(
        digits(xs.log_softmax_vjp(log_y, v)),
        [[d[i][j] - p[i][j] * total[i] for j in range(CLASSES)] for i in range(3)],
        size,
    )
    jacobian = digits(xs.softmax_jacobian(y))
    agree(
        jacobian,
        [[[p[i][j] * ((j == k) - p[i][k]) for k in range(CLASSES)] for j in range(CLASSES)] for i in range(3)],
        size,
    )


OPTIONS = [
    {},
    {"label_smoothing": 0.25},
    {"temperature": 0.5},  # 1 / temperature is a Python float: exact for a power of two alone
    {"softcap": 20.0},
    {"z_loss": 0.5},
    {"label_smoothing": 0.25, "temperature": 1.5, "softcap": 30.0, "z_loss": 0.125},
]


def row_loss(x, q, *, label_smoothing=0.0, temperature=1.0, softcap=None, z_loss=0.0):
    """The definition: Σ w_i q′_i (logsumexp(z) − z_i) + ζ logsumexp(z)²"""
    z = [(a if softcap is None else softcap * mpmath.tanh(a / softcap)) / mpmath.mpf(temperature) for a in x]
    total = lse(z)
    smooth = [
        w * ((1 - label_smoothing) * t + mpmath.mpf(label_smoothing) / len(x)) for w, t in zip(WEIGHT, q, strict=True)
    ]
    return mpmath.fsum(t * (total - a) for t, a in zip(smooth, z, strict=True)) + z_loss * total**2


def derivative(f, x, *orders):
    """A partial derivative, from a working precision that numerical differentiation can afford to lose."""
    return mpmath.diff(f, tuple(x), tuple(sum(i == k for k in orders) for i in range(len(x))))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_losses_at_fifty_digits(mp, kind, options):
    """Loss, gradient, Hessian diagonal and Hessian product are those of the definition, differentiated numerically."""
    targets = mp.asarray(LABELS if kind == "labels" else Q)
    q = rows(np.eye(CLASSES)[LABELS] if kind == "labels" else Q)
    given_options = {**options, "weight": mp.asarray(WEIGHT), "reduction": "none"}
    x, v = mp.asarray(X), mp.asarray(V)
    loss, grad = xs.cross_entropy_and_grad(x, targets, **given_options)
    _, diag = xs.cross_entropy_grad_and_hessian_diag(x, targets, **given_options)
    hvp = xs.cross_entropy_hvp(x, targets, v, **given_options)
    with mpmath.workdps(2 * DIGITS):
        functions = [lambda *row, t=t: row_loss(row, t, **options) for t in q]
        losses = [f(*row) for f, row in zip(functions, rows(X), strict=True)]
        gradients, hessians = [], []
        for f, row in zip(functions, rows(X), strict=True):
            gradients.append([derivative(f, row, i) for i in range(CLASSES)])
            hessians.append([[derivative(f, row, i, j) for j in range(CLASSES)] for i in range(CLASSES)])
        products = [
            [mpmath.fsum(a * b for a, b in zip(line, d, strict=True)) for line in h]
            for h, d in zip(hessians, rows(V), strict=True)
        ]
    size = 10**DIGITS
    agree(digits(loss), losses)
    agree(digits(grad), gradients, size)
    agree(digits(diag), [[h[i][i] for i in range(CLASSES)] for h in hessians], size)
    agree(digits(hvp), products, size)


def test_a_library_nobody_has_heard_of(mp):
    """Every verb runs there, with the right numbers."""
    arrays = Arrays(*(mp.asarray(a.astype(np.float64) if a.dtype.kind == "f" else a) for a in ARRAYS))
    for verb, call in CALLS.items():
        for found, expected in zip(parts(call(arrays)), parts(call(ARRAYS)), strict=True):
            eps = np.finfo(np.float32).eps
            np.testing.assert_allclose(digits(found).astype(float), expected, rtol=eps, atol=eps, err_msg=verb)


# ---------------------------------------------------------------------------------------------------------------------
# warnings


def nasty(dtype):
    """Rows of three from everything that is extreme."""
    largest, tiny = float(np.finfo(dtype).max), float(np.finfo(dtype).smallest_subnormal)
    values = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        largest,
        -largest,
        0.96 * largest,
        tiny,
        -tiny,
        math.inf,
        -math.inf,
        math.nan,
        89.0,
        -750.0,
    ]
    return np.array(list(product(values, repeat=3))).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_floating_point_warning_from_logits(dtype):
    """Logits as nasty as they come, everything else plain."""
    x = nasty(dtype)
    labels, soft = np.arange(len(x)) % 3, np.array([[0.25, 0.75, 0.0]] * len(x), dtype)
    with np.errstate(all="raise", under="ignore"):
        for axis in (-1, 0, None):
            assert xs.softmax(x, axis=axis).shape == xs.log_softmax(x, axis=axis).shape == x.shape
            assert xs.logsumexp(x, axis=axis).dtype == dtype
        assert xs.logsumexp(x, b=np.array([1.0, -2.0, 0.0], dtype), return_sign=True)[1].dtype == dtype
        for targets in (labels, soft):
            for options in ({}, {"label_smoothing": 0.1}, {"softcap": 30.0}, {"temperature": 3.0}):
                options = {**options, "reduction": "none"}  # a sum may overflow as any sum
                loss, grad = xs.cross_entropy_and_grad(x, targets, **options)
                _, diag = xs.cross_entropy_grad_and_hessian_diag(x, targets, **options)
                assert loss.dtype == grad.dtype == diag.dtype == dtype
                assert xs.cross_entropy_hvp(x, targets, soft, **options).dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_floating_point_warning_from_probabilities(dtype):
    """Those of nasty logits, nan rows included, beside plain directions."""
    x = nasty(dtype)
    y, log_y, v = xs.softmax(x), xs.log_softmax(x), np.array([[1.0, -3.0, 0.0]] * len(x), dtype)
    labels, soft = np.arange(len(x)) % 3, np.array([[0.25, 0.75, 0.0]] * len(x), dtype)
    with np.errstate(all="raise", under="ignore"):
        for verb in (xs.softmax_vjp, xs.softmax_jvp):
            assert verb(y, v).dtype == dtype
        for verb in (xs.log_softmax_vjp, xs.log_softmax_jvp):
            assert verb(log_y, v).dtype == dtype
        assert xs.softmax_jacobian(y).dtype == xs.entropy(y).dtype == dtype
        assert xs.kl_divergence(y, y[::-1]).dtype == dtype
        for targets in (labels, soft):
            assert xs.cross_entropy_from_probs(y, targets, reduction="none").dtype == dtype


# ---------------------------------------------------------------------------------------------------------------------
# parts


@pytest.mark.parametrize("dtype, normal", [(np.float32, 87.0), (np.float64, 708.0)])
def test_shift_is_exact(dtype, normal):
    """x − c rounds nothing wherever exp(x − c) / s is a normal number, but half an ulp of 1/2 at −1/2 < x ≤ m < 0."""

    @given(st.floats(-4000, 4000) | st.floats(-2, 2) | st.floats(-1e30, 1e30), st.floats(0, normal))
    def check(m, gap):
        m = dtype(m)
        x = dtype(float(m) - gap)
        c = formulas.exact_shift(np.asarray(m), xp=np)
        if float(m) - float(x) > normal:
            return
        error = abs(Fraction(float(x)) - Fraction(float(c)) - Fraction(float(x - c)))
        assert error <= (np.finfo(dtype).eps / 4 if -0.5 < x <= m < 0 else 0)
        assert float(m) - float(c) <= normal + 2

    check()


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 31, 100, 255, 1025])
def test_total(n, axis):
    """Nothing is left out or counted twice, whatever the length; every sum is an integer below 2⁵³."""
    x = np.tile(2.0 ** (np.arange(n) % 40), (2, 1)) + np.arange(n)
    x = x if axis == -1 else x.T
    np.testing.assert_array_equal(sums.total(x, (axis,), xp=np), x.sum(axis=axis, keepdims=True))


@pytest.mark.parametrize("shape, axis", [((1, 10**6), -1), ((10**6, 1), -2)])
def test_total_does_not_drift(shape, axis):
    """Sequential sums are off by 10⁴ ulp here."""
    x = RNG.random(10**6).astype(np.float32)
    found = sums.total(x.reshape(shape), (axis,), xp=np)
    exact = math.fsum(x.tolist())
    assert abs(float(found.item()) - exact) <= 2 * np.spacing(np.float32(exact))


def test_one_maximum_stays_out_of_the_sum():
    x = np.array([[3.0, 3.0, 3.0, 1.0], [5.0, -60.0, -70.0, -80.0]])
    e = formulas.exponentials(x, (-1,), xp=np)
    np.testing.assert_allclose(
        e.q / e.wm, [[2 + math.exp(-2)], [math.fsum(map(math.exp, (-65, -75, -85)))]], rtol=1e-15
    )


def test_masked_logits_weigh_nothing():
    e = formulas.exponentials(np.array([[0.0, -math.inf, -math.inf]]), (-1,), xp=np)
    assert (e.q.item(), e.wm.item()) == (0.0, 1.0)
