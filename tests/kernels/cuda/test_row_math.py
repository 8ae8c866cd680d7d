"""The row arithmetic of the CUDA kernels, compiled for the host: error bounds, whatever the order of the merges."""

import ctypes
import math
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from xsoftmax.kernels import cuda as cuda_kernels

mpmath = pytest.importorskip("mpmath")

COMPILER = shutil.which("g++") or shutil.which("clang++")
pytestmark = [
    pytest.mark.backend("numpy"),
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here"),
    pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than float64 here"),
]

RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_order():
    RNG.bit_generator.state = np.random.default_rng(3).bit_generator.state


NUMBERS, INDICES = (np.ctypeslib.ndpointer(dtype, flags="C") for dtype in (np.float64, np.int32))


class Arithmetic(NamedTuple):
    """Bounds in ulps of `result`; where subnormals are flushed, results below `least` may be anything up to it."""

    name: str
    logits: type
    result: type
    softmax: float
    log_softmax: float
    logsumexp: float
    loss: float
    grad: float
    least: float
    loss_result: type


# measured on these rows; the contract: float64 6 (logsumexp 4), float32 1, without float64 4, 16 bits 1
ARITHMETICS = [
    Arithmetic("float64", np.float64, np.float64, 2.0, 2.0, 1.5, 2.5, 2.5, 0.0, np.float64),
    Arithmetic("float32_wide", np.float32, np.float32, 0.51, 0.51, 0.51, 0.51, 0.51, 0.0, np.float32),
    Arithmetic("float32_pairs", np.float32, np.float32, 2.0, 2.0, 0.6, 0.6, 2.0, 2.0**-126, np.float32),
    Arithmetic("float16", np.float16, np.float16, 0.51, 0.51, 0.51, 4.0, 0.51, 0.0, np.float32),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    built = tmp_path_factory.mktemp("row_math") / "row_math.so"
    source = Path(__file__).with_name("row_math_host.cpp")
    command = [COMPILER, "-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-I", Path(cuda_kernels.__file__).parent, source, "-o", built], check=True)
    found = ctypes.CDLL(str(built))
    for arithmetic in ARITHMETICS:
        getattr(found, arithmetic.name).argtypes = [
            NUMBERS, NUMBERS, ctypes.c_int, INDICES, ctypes.c_int, INDICES, ctypes.c_int,
            *[ctypes.c_double] * 4, *[NUMBERS] * 5,
        ]  # fmt: skip
    found.functions.argtypes = [NUMBERS, ctypes.c_int, ctypes.c_int, *[NUMBERS] * 5]
    return found


class Results(NamedTuple):
    softmax: np.ndarray
    log_softmax: np.ndarray
    grad: np.ndarray
    target_grad: np.ndarray
    logsumexp: float
    loss: float
    target_loss: float


def computed(library, arithmetic, x, t=None, label=0, total=1.0, zeta=0.0, factor=1.0, temperature=1.0, pieces=None):
    """Results of a row, cut at random and put together in a random order."""
    x = np.ascontiguousarray(x, np.float64)
    if t is None:
        t = np.zeros(x.size)
        t[label] = 1.0
    t = np.ascontiguousarray(t, np.float64)
    pieces = pieces or int(RNG.integers(1, min(x.size, 40) + 1))
    ends = np.sort(RNG.integers(0, x.size + 1, pieces)).astype(np.int32)
    ends[-1] = x.size
    left, merges = list(range(pieces)), []
    while len(left) > 1:
        into, from_ = RNG.choice(len(left), 2, replace=False)
        merges.append((left[into], left[from_]))
        del left[from_]
    merges.append((left[0], left[0]))
    arrays = [np.empty(x.size) for _ in range(4)]
    numbers = np.empty(3)
    options = (label, total, zeta, factor, temperature)
    getattr(library, arithmetic.name)(
        x, t, x.size, ends, pieces, np.array(merges, np.int32).reshape(-1), *options, *arrays, numbers
    )
    return Results(*arrays, *numbers)


def exact(x, t=None, label=0, total=1.0, zeta=0.0, factor=1.0):
    """The same, in as many digits as 1 + exp(−700) has."""
    with mpmath.workdps(400):
        x = [mpmath.mpf(float(a)) for a in x]
        t = [mpmath.mpf(0 if t is None and i != label else 1 if t is None else float(t[i])) for i in range(len(x))]
        m = max(x)
        lse = m + mpmath.log(mpmath.fsum(mpmath.exp(a - m) for a in x))
        y = [mpmath.exp(a - lse) for a in x]
        pull = 2 * zeta * lse
        sum_t = mpmath.fsum(t)
        far = mpmath.fsum(b * (lse - a) for a, b in zip(x, t, strict=True) if b)
        return Results(
            y,
            [a - lse for a in x],
            [factor * ((total + pull) * p - (total if i == label else 0)) for i, p in enumerate(y)],
            [factor * ((sum_t + pull) * p - b) for p, b in zip(y, t, strict=True)],
            lse,
            total * (lse - x[label]) + zeta * lse**2,
            far + zeta * lse**2,
        )


def extended(number):
    high = float(number)
    return np.longdouble(high) + np.longdouble(float(number - high) if math.isfinite(high) else 0.0)


def ulps(found, expected, dtype, least=0.0, scale=None):
    """Errors in ulps of the exact result, or of `scale`."""
    with np.errstate(over="ignore"):
        found = np.atleast_1d(np.asarray(found, np.float64).astype(dtype).astype(np.longdouble))
    expected = np.array([extended(e) for e in np.atleast_1d(np.array(expected, object))])
    size = np.abs(expected if scale is None else np.array([extended(s) for s in scale])).astype(dtype)
    with np.errstate(invalid="ignore"):
        error = np.abs(found - expected) / np.spacing(size).astype(np.longdouble)
    error[np.isinf(expected) & (found == expected)] = 0.0
    error[(np.abs(expected) < least) & (np.abs(found) <= least)] = 0.0
    return float(error.max())


def rows(arithmetic, classes=41):
    """Ordinary rows, peaked, wide, far away, with ties, with classes of no probability."""
    x = RNG.normal(size=(34, classes)) * 3
    x[1:4] -= [[1e4], [-1e4], [300]]
    x[4:7] *= [[20], [100], [0.01]]
    for row, margin in zip(range(7, 15), (15, 20, 30, 37, 60, 87, 100, 700), strict=True):
        x[row, row] = 3 * abs(x[row]).max() + margin
    x[15], x[16, ::2], x[17, :7] = 2.5, 8.0, 11.0
    x[18, classes // 2 :] = -np.inf
    x[19, 1:] = -np.inf
    x[20] = np.sort(x[20]) + 5000
    x[21] = np.sort(x[21]) - 5000
    x[22] *= 1e30 if arithmetic.logits != np.float16 else 1e4
    x[23], x[24] = x[23] + 2.0**21, np.sort(x[24]) * 200 + 9000
    x[25, :-1], x[25, -1] = -1000, 0
    x[26], x[27] = -x[26] * 1e-30, np.linspace(-800, 0, classes)
    x[28], x[29] = np.linspace(4090, 4100, classes), np.sort(x[29]) * 30 + 2.0**20
    x[30:34] += RNG.uniform(-700, 700, (4, 1))
    limit = float(np.finfo(arithmetic.logits).max) / 4
    with np.errstate(over="ignore"):
        return np.clip(x, -limit, limit, where=np.isfinite(x), out=x).astype(arithmetic.logits).astype(np.float64)


@pytest.fixture(params=ARITHMETICS, ids=lambda arithmetic: arithmetic.name)
def arithmetic(request):
    return request.param


def check(library, arithmetic, x, worst, **options):
    a = arithmetic
    found, expected = computed(library, a, x, **options), exact(x, **options)
    errors = {
        "softmax": ulps(found.softmax, expected.softmax, a.result, a.least),
        "log_softmax": ulps(found.log_softmax, expected.log_softmax, a.result, a.least),
        "logsumexp": ulps(
            found.logsumexp,
            expected.logsumexp,
            a.result,
            scale=[max(abs(expected.logsumexp), abs(max(x)), expected.logsumexp - float(max(x)))],
        ),
        "loss": ulps(found.loss, expected.loss, a.loss_result, a.least),
        "grad": ulps(found.grad, expected.grad, a.result, a.least),
    }
    for name, error in errors.items():
        worst[name] = max(worst.get(name, 0.0), error)
    return found


def test_rows(library, arithmetic):
    worst = {}
    for classes in (1, 2, 3, 41):
        for x in rows(arithmetic)[:, ::-1][:, :classes] if classes < 41 else rows(arithmetic):
            if np.isfinite(x.max()):
                top = int(np.argmax(x))
                for label in {top, int(RNG.integers(classes))}:
                    found = check(library, arithmetic, x, worst, label=label)
                    assert found.loss >= 0.0
                    assert not np.signbit(found.loss)
                    assert found.softmax.max() <= 1.0
                    assert np.unique(found.softmax[x == x[top]]).size == 1
    print(arithmetic.name, worst)
    assert all(error <= getattr(arithmetic, name) for name, error in worst.items()), worst


def test_options(library, arithmetic):
    """Class weight, z-loss and scale: the terms of a gradient may cancel, so the bound is in ulps of the largest."""
    worst = 0.0
    for x in rows(arithmetic)[:17]:
        options = {"label": int(RNG.integers(x.size)), "total": 0.7, "zeta": 1e-3, "factor": 0.37}
        found, expected = computed(library, arithmetic, x, **options), exact(x, **options)
        pull = 0.37 * (0.7 + 2e-3 * abs(expected.logsumexp))
        scale = [max(pull * p, abs(g)) for p, g in zip(expected.softmax, expected.grad, strict=True)]
        worst = max(worst, ulps(found.grad, expected.grad, arithmetic.result, arithmetic.least, scale))
        assert ulps(found.loss, expected.loss, arithmetic.loss_result) <= arithmetic.loss
    print(arithmetic.name, worst)
    assert worst <= arithmetic.grad + 1.5


def test_targets(library, arithmetic):
    worst, loss = 0.0, 0.0
    for x in rows(arithmetic):
        if not np.isfinite(x.max()):
            continue
        t = RNG.dirichlet(np.full(x.size, 0.3)).astype(arithmetic.logits).astype(np.float64)
        t[RNG.integers(x.size, size=5)] = 0.0
        t[np.isinf(x)] = 0.0
        found, expected = computed(library, arithmetic, x, t), exact(x, t)
        scale = [max(float(p) * t.sum(), b, 1e-300) for p, b in zip(expected.softmax, t, strict=True)]
        worst = max(worst, ulps(found.target_grad, expected.target_grad, arithmetic.result, arithmetic.least, scale))
        loss = max(loss, ulps(found.target_loss, expected.target_loss, arithmetic.loss_result, arithmetic.least))
    print(arithmetic.name, worst, loss)
    assert worst <= arithmetic.grad
    assert loss <= arithmetic.loss + 0.5


def test_one_hot_targets_are_labels(library, arithmetic):
    for x in rows(arithmetic):
        label = int(np.argmax(x))
        a = computed(library, arithmetic, x, label=label)
        expected = exact(x, label=label)
        assert ulps(a.target_grad, expected.target_grad, arithmetic.result, arithmetic.least) <= arithmetic.grad + 0.5
        assert ulps(a.target_loss, expected.target_loss, arithmetic.loss_result, arithmetic.least) <= arithmetic.loss


def test_nearly_tied(library, arithmetic):
    x = np.nextafter(np.full(2, 3, arithmetic.logits), [4, 3], dtype=arithmetic.logits)
    for label in (0, 1):
        found, expected = computed(library, arithmetic, x, label=label), exact(x, label=label)
        for grad in (found.grad, found.target_grad):
            assert ulps(grad, expected.grad, arithmetic.result) <= arithmetic.grad


def test_corners(library, arithmetic):
    for bad, sums in ((np.nan, np.nan), (np.inf, np.inf)):
        x = RNG.normal(size=30)
        x[[3, 17]] = bad
        for _ in range(10):
            found = computed(library, arithmetic, x)
            for a in (found.softmax, found.log_softmax, found.grad, found.target_grad, found.loss, found.target_loss):
                assert np.isnan(a).all()
            np.testing.assert_array_equal(found.logsumexp, sums)
    both = computed(library, arithmetic, [np.inf, np.nan, -np.inf, 0.0])
    assert np.isnan(both.logsumexp)
    nothing = computed(library, arithmetic, np.full(30, -np.inf))
    assert nothing.logsumexp == -np.inf
    assert np.isnan(nothing.softmax).all()
    assert np.isnan([nothing.loss, nothing.target_loss]).all()


def test_no_probability(library, arithmetic):
    x = np.array([1.0, -np.inf, 2.0, -np.inf, 0.0])
    found = computed(library, arithmetic, x, label=1)
    assert found.loss == found.target_loss == np.inf
    assert (found.softmax[[1, 3]] == 0.0).all()
    assert (found.log_softmax[[1, 3]] == -np.inf).all()
    assert found.grad[1] == found.target_grad[1] == -1.0
    assert np.isfinite(computed(library, arithmetic, x, [0.5, 0, 0.5, 0, 0]).target_loss)


def test_exponentials_that_underflow_leave_nothing(library, arithmetic):
    x = np.concatenate([[0.0], np.full(3000, float(np.finfo(arithmetic.logits).min))])
    found = computed(library, arithmetic, x)
    assert arithmetic.result(found.loss) == 0.0
    assert not np.signbit(found.loss)
    assert found.softmax[0] == 1.0
    assert not found.softmax[1:].any()
    assert found.grad[0] == 0.0


@pytest.mark.parametrize("kind", ["normal", "one and equal others", "ascending", "descending"])
def test_long_rows(library, arithmetic, kind):
    classes = 1 << 18
    x = RNG.normal(size=classes)
    if kind == "one and equal others":
        x[:] = math.log(1 / 3)
        x[77] = 9.0
    elif kind != "normal":
        x = np.linspace(4000, 4100, classes)
        x = x if kind == "ascending" else x[::-1]
    x = x.astype(arithmetic.logits)
    found = computed(library, arithmetic, x, label=77, pieces=100)
    e = np.exp(x.astype(np.longdouble) - x.max())
    y = e / e.sum()
    assert ulps(found.softmax, y, arithmetic.result, max(arithmetic.least, 1e-300)) <= arithmetic.softmax
    log_y = x.astype(np.longdouble) - x.max() - np.log(e.sum())
    assert ulps(found.log_softmax, log_y, arithmetic.result) <= arithmetic.log_softmax


def test_functions(library):
    x = np.concatenate([RNG.uniform(-80, 80, 40_000), RNG.uniform(-1, 1, 10_000), [0.0, -0.0]])
    x = x.astype(np.float32).astype(np.float64)
    found = [np.empty_like(x) for _ in range(5)]
    library.functions(x, x.size, 0, *found)
    exact = np.exp(x.astype(np.longdouble))
    relative = [float(np.abs(e / exact - 1).max()) for e in found[:4]]
    print([math.log2(r) for r in relative])
    assert float(np.max(np.abs(found[0] - exact) / np.spacing(exact.astype(np.float64)))) < 0.7
    assert relative[1] < 2.0**-31.9
    assert relative[2] < 2.0**-26
    assert relative[3] < 2.0**-23
    u = np.abs(x)
    logs = np.log1p(u.astype(np.longdouble))
    positive = u > 0
    error = np.abs(found[4] - logs)[positive] / np.spacing(logs[positive].astype(np.float64))
    assert float(error.max()) < 0.8
    assert not found[4][~positive].any()
