"""The oracle against hand-computed values, other people's digits, and other libraries."""

import json
import math
from pathlib import Path

import ml_dtypes
import mpmath
import numpy as np
import pytest
import scipy.special

from xsoftmax.verify.compare import Arithmetic, judge
from xsoftmax.verify.oracle import expected

CASES = json.loads((Path(__file__).parents[1] / "data" / "accuracy_cases.json").read_text(encoding="utf-8"))["cases"]
DTYPES = {"bfloat16": ml_dtypes.bfloat16}
mp80 = mpmath.MPContext()
mp80.dps = 80


def one(verb, arrays, which=0, **options):
    """Exact values of one result as a NumPy object array."""
    exact = expected((verb,), arrays, options)[verb][which]
    return np.array(exact.values, dtype=object)[exact.index.ravel()].reshape(exact.index.shape)


def decode(case):
    """Input row, the entry of the input at which each expected value stands, and the expected values."""
    dtype = DTYPES.get(case["dtype"], case["dtype"])
    if "input" in case:
        values, repeats = case["input"], [1] * len(case["input"])
        answers = case["expected"]
    else:
        values, repeats = zip(*case["input_rle"], strict=True)
        answers = case.get("expected_rle") or case["expected"]
    row = np.repeat([float.fromhex(v) for v in values], repeats).astype(dtype)
    places = np.cumsum([0, *repeats[:-1]])
    return row, places, answers


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']}-{case['op']}-{case['dtype']}")
def test_accuracy_cases_to_24_digits(case):
    row, places, answers = decode(case)
    arrays, options = {"x": row}, {}
    if case["op"].startswith("cross_entropy"):
        args = case["args"]
        if "probs" in args:
            targets = np.array([float.fromhex(q) for q in args["probs"]], dtype=row.dtype)
        else:
            targets = np.array(args["target"] if "target" in args else places[args["target_run"]])
        arrays, options = {"logits": row, "targets": targets}, {"reduction": "sum"}
    got = np.atleast_1d(one(case["op"], arrays, **options))
    got = got[places] if got.size == row.size else got
    assert len(got) == len(answers)
    for value, answer in zip(got, map(mp80.mpf, answers), strict=True):
        if mp80.isfinite(answer):
            assert abs(value - answer) <= abs(answer) * mp80.mpf("1e-24")
        else:
            assert value == answer or (mp80.isnan(value) and mp80.isnan(answer))


def test_ulp_scale_of_the_cases_is_the_unit():
    for case in CASES:
        if "ulp_scale" in case:
            row, _, _ = decode(case)
            (exact,) = expected((case["op"],), {"x": row}, {})[case["op"]]
            assert [float(u) for u in exact.units] == [float(u) for u in case["ulp_scale"]]


def test_hand_computed_values():
    """Softmax of logarithms of small integers: rational probabilities, logarithms of rationals."""
    ln = [mp80.log(n) for n in (1, 2, 4)]
    # float64 logarithms are not exact, so the answers hold to their rounding
    x = np.array([float(a) for a in ln])
    assert np.allclose(one("softmax", {"x": x}).astype(float), [1 / 7, 2 / 7, 4 / 7], rtol=1e-15)
    assert float(one("logsumexp", {"x": x})) == pytest.approx(math.log(7), rel=1e-15)
    exact = {"softmax": [0.5, 0.5], "log_softmax": [-mp80.log(2)] * 2}
    for verb, answers in exact.items():
        for value, answer in zip(one(verb, {"x": np.zeros(2)}), answers, strict=True):
            assert abs(value - answer) < mp80.mpf("1e-60")


def test_hand_computed_losses():
    """Two equal logits: y = 1/2, nll = ln 2, Q = w_t."""
    x, ln2 = np.zeros((3, 2)), mp80.log(2)
    labels, weight, s = np.array([0, 1, 1]), np.array([1.0, 3.0]), np.array([1.0, 0.5, 2.0])
    arrays = {"logits": x, "targets": labels, "v": np.array([[1.0, 0.0]] * 3)}
    weights = {"weight": weight, "sample_weight": s}
    none = {**weights, "reduction": "none"}

    def close(got, answers):
        assert np.shape(got) == np.shape(answers)
        for value, answer in zip(np.ravel(got), np.ravel(np.array(answers, dtype=object)), strict=True):
            assert abs(value - answer) < mp80.mpf("1e-60")

    rows = [1, mp80.mpf("1.5"), 6]  # s_i·w_t
    close(one("cross_entropy", arrays, **none), [a * ln2 for a in rows])
    close(one("cross_entropy", arrays, **weights, reduction="sum"), mp80.fsum(rows) * ln2)
    close(one("cross_entropy", arrays, **weights), ln2)
    close(
        one("cross_entropy_grad", arrays, **none),
        [[-a / 2, a / 2] if k == 0 else [a / 2, -a / 2] for k, a in zip(labels, map(mp80.mpf, rows), strict=True)],
    )
    close(one("cross_entropy_grad", arrays, **weights)[0], [-1 / mp80.mpf(17), 1 / mp80.mpf(17)])
    close(one("cross_entropy_grad_and_hessian_diag", arrays, which=1, **none)[2], [mp80.mpf("1.5")] * 2)
    close(one("cross_entropy_hvp", arrays, **none)[0], [mp80.mpf("0.25"), mp80.mpf("-0.25")])
    # lse = ln 2: z_loss adds ζ ln² 2 per row, not class-weighted, and divides by Σ s_i = 3.5
    close(one("cross_entropy", arrays, **weights, z_loss=2.0), ln2 + 2 * ln2**2)
    gradient = one("cross_entropy_grad", arrays, **weights, z_loss=2.0)[0, 1]
    close(gradient, 1 / mp80.mpf(17) + 2 * ln2 / mp80.mpf("3.5"))
    # PyTorch: (1 − ε)·w_t·nll_t + ε/C·Σ w_c·nll_c over Σ w_t
    # ε/K goes to each of K classes, however many of them are alike
    alike = {"logits": np.zeros((1, 4)), "targets": np.array([1])}
    gradient = one("cross_entropy_grad", alike, label_smoothing=0.5)[0]
    close(gradient, [mp80.mpf(1) / 8, mp80.mpf(-3) / 8, mp80.mpf(1) / 8, mp80.mpf(1) / 8])
    smoothed = one("cross_entropy", arrays, weight=weight, label_smoothing=0.5)
    close(smoothed, (mp80.mpf("0.5") * 7 + mp80.mpf("0.25") * 4 * 3) * ln2 / 7)


@pytest.mark.parametrize(
    "options, answers",
    [
        ({"ignore_index": 1}, ["ln2", 0, 0]),
        ({"sample_weight": np.array([0.0, 1.0, 0.0])}, [0, "ln2", 0]),
        ({"where": np.array([True, False])}, ["ln1", "inf", "inf"]),
        ({"where": np.zeros(2, bool)}, [0] * 3),
        ({"softcap": 1.0}, ["ln2"] * 3),
    ],
)
def test_rows_that_are_absent_or_masked(options, answers):
    names = {"ln2": mp80.log(2), "ln1": 0, "inf": mp80.inf, 0: 0}
    arrays = {"logits": np.zeros((3, 2)), "targets": np.array([0, 1, 1])}
    got = one("cross_entropy", arrays, reduction="none", **options)
    for value, answer in zip(got, answers, strict=True):
        assert value == names[answer] or abs(value - names[answer]) < mp80.mpf("1e-60")


def test_means_of_nothing():
    arrays = {"logits": np.zeros((2, 3)), "targets": np.array([-1, -1])}
    assert mp80.isnan(one("cross_entropy", arrays, ignore_index=-1)[()])
    assert one("cross_entropy", arrays, ignore_index=-1, reduction="sum")[()] == 0
    assert not one("cross_entropy_grad", arrays, ignore_index=-1).any()
    empty = {"logits": np.zeros((0, 3)), "targets": np.zeros(0, int)}
    assert mp80.isnan(one("cross_entropy", empty)[()])


def test_zero_targets_at_minus_infinity_contribute_nothing():
    x = np.array([-np.inf, 0.0, 0.0])
    q = np.array([0.0, 0.5, 0.5])
    assert float(one("cross_entropy", {"logits": x, "targets": q})) == pytest.approx(math.log(2))
    assert one("cross_entropy", {"logits": x, "targets": np.asarray(0)})[()] == mp80.inf
    assert one("cross_entropy", {"logits": x, "targets": q}, label_smoothing=0.1)[()] == mp80.inf
    gradient = one("cross_entropy_grad", {"logits": x, "targets": np.asarray(0)}).astype(float)
    assert gradient.tolist() == [-1.0, 0.5, 0.5]


RNG = np.random.default_rng(5)
X = RNG.normal(size=(5, 7)) * 4


@pytest.mark.parametrize("axis", [-1, 0, (0, 1), None])
def test_against_scipy(axis):
    for verb in ("softmax", "log_softmax", "logsumexp"):
        got = one(verb, {"x": X}, axis=axis).astype(float)
        assert np.allclose(got, getattr(scipy.special, verb)(X, axis=axis), rtol=1e-13)


def test_signed_logsumexp_against_scipy():
    b = RNG.normal(size=(5, 1, 7))
    for keepdims in (False, True):
        options = {"b": b, "return_sign": True, "axis": (0, -1), "keepdims": keepdims}
        want = scipy.special.logsumexp(X, **options)
        got = [one("logsumexp", {"x": X}, which, **options) for which in (0, 1)]
        for value, answer in zip(got, want, strict=True):
            assert value.shape == answer.shape
            assert np.allclose(value.astype(float), answer, rtol=1e-12)


def test_signed_terms_beside_1_keep_all_that_is_a_number():
    x = np.array([0.0, -740.0, -741.0, -744.0])
    got = one("logsumexp", {"x": x}, b=np.array([1.0, 1.0, -2.0, 1.0]))[()]
    with mp80.workdps(700):
        exact = mp80.log1p(mp80.exp(-740) - 2 * mp80.exp(-741) + mp80.exp(-744))
    assert abs(got - exact) < abs(exact) * mp80.mpf("1e-20")


@pytest.mark.parametrize("off, fails", [(1, False), (5, True)])
def test_a_temperature_makes_more_of_what_a_subnormal_probability_lost(off, fails):
    arrays, temperature = {"logits": np.array([[0.0, 178.0]]), "targets": np.array([1])}, 0.25
    verb, options = "cross_entropy_grad_and_hessian_diag", {"temperature": temperature, "reduction": "none"}
    _, exact = expected((verb,), arrays, options)[verb]
    y = np.exp(-178.0 / temperature) + off * 2.0**-1074
    verdict = judge(np.full((1, 2), y / temperature**2), exact, Arithmetic("float64"))
    assert bool(verdict.failures) == fails
    assert fails or verdict.exempted == {"underflowing sums": 2}


def test_divergences_against_scipy():
    p, q = (RNG.dirichlet(np.ones(6), 4) for _ in "pq")
    p[0, 0] = q[0, 0] = q[1, 1] = 0
    p[2, 2] = -0.1
    q[3, 3] = np.nan
    with np.errstate(all="ignore"):
        entropy, divergence = scipy.special.entr(p).sum(-1), scipy.special.rel_entr(p, q).sum(-1)
        found = [one("entropy", {"p": p}).astype(float), one("kl_divergence", {"p": p, "q": q}).astype(float)]
    assert np.allclose(found[0], entropy, rtol=1e-13)
    assert np.allclose(found[1], divergence, rtol=1e-12, equal_nan=True)


LOSS_OPTIONS = [
    {},
    {"reduction": "sum", "softcap": 3.0},
    {"temperature": 0.7, "label_smoothing": 0.2},
    {"weight": np.linspace(0.5, 2, 7), "sample_weight": np.linspace(0.0, 2, 5), "z_loss": 0.3},
    {"where": X < 4, "z_loss": 0.1, "softcap": 5.0, "temperature": 1.3, "label_smoothing": 0.1, "reduction": "sum"},
]
TARGETS = {"labels": np.argmin(X, axis=-1), "probabilities": RNG.random((5, 7))}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=lambda options: " ".join(options) or "none")
def test_derivatives_are_those_of_the_loss(options, targets):
    """Central differences with an exact step of 2^-20: an error of h² = 1e-12 times the third derivative."""
    h = 2.0**-20
    x = np.round(X * 2**20) / 2**20
    v = np.round(RNG.normal(size=X.shape) * 8) / 8
    arrays = {"logits": x, "targets": TARGETS[targets], "v": v}

    def difference(verb, direction):
        up, down = (one(verb, {**arrays, "logits": x + sign * h * direction}, **options) for sign in (1, -1))
        return (up - down) / (2 * h)

    gradient = one("cross_entropy_grad", arrays, **options)
    assert float(difference("cross_entropy", v)) == pytest.approx(float(np.sum(gradient * v)), abs=1e-10)
    product = one("cross_entropy_hvp", arrays, **options).astype(float)
    assert np.allclose(product, difference("cross_entropy_grad", v).astype(float), atol=1e-10)
    diagonal = one("cross_entropy_grad_and_hessian_diag", arrays, which=1, **options)
    column = np.zeros(X.shape)
    column[:, 2] = 1
    assert np.allclose(
        diagonal[:, 2].astype(float), difference("cross_entropy_grad", column)[:, 2].astype(float), atol=1e-10
    )


def test_products_are_those_of_the_jacobian():
    y, v = np.array([0.5, 0.25, 0.25]), np.array([3.0, -1.0, 2.0])
    jacobian = one("softmax_jacobian", {"y": y})
    for verb in ("softmax_vjp", "softmax_jvp"):
        assert one(verb, {"y": y, "v": v}).tolist() == (jacobian @ v).tolist() == [0.625, -0.6875, 0.0625]
    log_y = np.log(y)
    centred = np.eye(3) - y
    assert np.allclose(one("log_softmax_vjp", {"log_y": log_y, "v": v}).astype(float), v @ centred)
    assert np.allclose(one("log_softmax_jvp", {"log_y": log_y, "v": v}).astype(float), centred @ v)


def test_products_off_the_simplex_may_miss_by_what_the_probabilities_do():
    """y_i·|v_p|·|1 − Σ y|, p the largest y."""
    (exact,) = expected(("softmax_vjp",), {"y": np.array([0.5, 0.25]), "v": np.array([-3.0, 8.0])}, {})["softmax_vjp"]
    assert [float(s["off the simplex"]) for s in exact.slack] == [0.25 * 3 * 0.25, 0.5 * 3 * 0.25]
    assert [float(exact.values[k]) for k in exact.index] == [0.5 * (-3 - 0.5), 0.25 * (8 - 0.5)]


def test_units():
    """The magnitudes in whose ulps the contract measures."""

    def unit(verb, arrays, which=0, **options):
        exact = expected((verb,), arrays, options)[verb][which]
        return [float(u) for u in np.array(exact.units, dtype=object)[exact.index.ravel()]]

    assert unit("logsumexp", {"x": np.full(4, -math.log(4))}) == [math.log(4)]
    y, v = np.array([0.25, 0.75]), np.array([2.0, 4.0])
    assert unit("softmax_vjp", {"y": y, "v": v}) == [0.25 * 5.5, 0.75 * 7.5]
    assert np.allclose(unit("log_softmax_vjp", {"log_y": np.log(y), "v": v}), [1.5 + 0.25 * 4, 1 + 0.75 * 2])
    assert np.allclose(unit("log_softmax_jvp", {"log_y": np.log(y), "v": v}), [1.5 + 0.75 * 4, 1 + 0.25 * 2])
    no_probability = {"log_y": np.log([0.75, 0.75]), "v": v}
    assert np.allclose(unit("log_softmax_vjp", no_probability), [3.5 + 0.75 * 4, 7 + 0.75 * 2])
    general = {"logits": np.zeros(2), "targets": np.array([0.25, 1.25])}
    assert unit("cross_entropy_grad", general) == [0.75, 1.25]
    assert unit("cross_entropy_grad", {**general, "targets": np.array([0.0, 1.0])}) == [0.5, 0.5]
    assert unit("cross_entropy_hvp", {**general, "v": v}) == [0.75 * 5, 0.75 * 7]


def test_transforms_are_charged_to_the_logits_they_round():
    arrays = {"x": np.array([40.0, 10.0])}
    (exact,) = expected(("log_softmax",), arrays, {"temperature": 0.7})["log_softmax"]
    small, large = (exact.slack[code]["temperature"]() for code in exact.index)
    # ∂ log y_i / ∂z_j = δ_ij − y_j, times |z_j|; y_1 = e^(−30/0.7)
    assert float(small) == pytest.approx(math.exp(-30 / 0.7) * (40 + 10) / 0.7, rel=1e-12)
    assert float(large) == pytest.approx((40 + 10) / 0.7, rel=1e-12)
    (exact,) = expected(("log_softmax",), arrays, {"temperature": 0.5})["log_softmax"]
    assert "temperature" not in exact.slack[0]


def test_long_rows_go_by_run_length():
    x = np.full(2**20, -1.0)
    x[77] = 3.0
    (exact,) = expected(("softmax",), {"x": x}, {})["softmax"]
    assert len(exact.values) == 2
    assert float(exact.values[exact.index[77]]) == pytest.approx(1 / (1 + (2**20 - 1) * math.exp(-4)), rel=1e-14)


def test_against_torch():
    """PyTorch's meaning of weights, smoothing and ignored labels under each reduction."""
    torch = pytest.importorskip("torch")
    x = torch.tensor(X, dtype=torch.float64)
    weight = np.linspace(0.5, 2, 7)
    for targets in ([3, 6, 0, 2, 2], TARGETS["probabilities"]):
        targets = np.asarray(targets)
        ignoring = {"ignore_index": 2} if targets.ndim == 1 else {}
        for reduction in ("none", "mean", "sum"):
            for smoothing in (0.0, 0.3):
                options = {"label_smoothing": smoothing, "reduction": reduction, **ignoring}
                want = torch.nn.functional.cross_entropy(
                    x, torch.tensor(targets), weight=torch.tensor(weight), **options
                )
                got = one("cross_entropy", {"logits": X, "targets": targets}, weight=weight, **options)
                assert np.allclose(got.astype(float), want.numpy(), rtol=1e-12)
