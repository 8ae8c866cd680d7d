"""The checker against planted wrong answers: it must catch each, and let through what is right."""

import math

import mpmath
import numpy as np
import pytest
from perfect import rounded

from xsoftmax.verify.cases import FLOATS, cases
from xsoftmax.verify.compare import COLUMNS, CONTRACT, Arithmetic, judge
from xsoftmax.verify.exact import Exact
from xsoftmax.verify.formats import FORMATS, MP
from xsoftmax.verify.inputs import block, numpy_dtype
from xsoftmax.verify.oracle import expected
from xsoftmax.verify.run import exact_results

FLOAT32, FLOAT64 = Arithmetic("float32"), Arithmetic("float64")
NATIVE = Arithmetic("float32", float64=False)
FLUSHING = Arithmetic("float32", float64=False, flushes=True)


def reference(verb, name="ordinary", dtype="float32", which=0, **options):
    """Exact result of a verb on a block, with the argmax as target of every row."""
    x = block(name, dtype)
    if verb.startswith("cross_entropy"):
        targets = options.pop("targets", np.argmax(x, axis=-1))
        arrays, options = {"logits": x, "targets": targets}, {"reduction": "none", **options}
    else:
        arrays = {"x": x}
    return expected((verb,), arrays, options)[verb][which]


def single(value, kind="softmax", dtype="float32", unit=None, **slack):
    exact = Exact(kind, dtype, index=np.zeros(1, np.int64))
    exact.add(MP.mpf(value), unit, **slack)
    return exact


@pytest.mark.parametrize("dtype", FLOATS)
def test_correctly_rounded_results_pass_everywhere(dtype):
    compared = 0
    for case in cases(dtype):
        if case.error != "never" or "long" in case.name:
            continue
        for verb, parts in exact_results(case, "float64").items():
            for exact in parts:
                verdict = judge(rounded(exact), exact, Arithmetic(dtype))
                assert not verdict.failures, (case.name, verb)
                assert verdict.worst <= 0.501 or verdict.bound > 1, (case.name, verb)
                compared += verdict.compared
    assert compared > 50_000


def test_swapped_label():
    exact, x = reference("cross_entropy"), block("ordinary", "float32")
    wrong = reference("cross_entropy", targets=np.argsort(x, axis=-1)[:, -2])
    assert not judge(rounded(exact), exact, FLOAT32).failures
    assert judge(rounded(wrong), exact, FLOAT32).failures
    assert judge(rounded(wrong), exact, NATIVE).failures


def test_swapped_label_of_one_row():
    exact = reference("cross_entropy_grad")
    labels = np.argmax(block("ordinary", "float32"), axis=-1)
    labels[11] = (labels[11] + 1) % 6
    assert judge(rounded(reference("cross_entropy_grad", targets=labels)), exact, NATIVE).failures


def test_dropped_maximum():
    x = block("ordinary", "float64")
    w = np.exp(x - x.max(axis=-1, keepdims=True))
    others = np.sum(np.where(w == 1, 0, w), axis=-1, keepdims=True)
    assert judge(w / others, reference("softmax", "ordinary", "float64"), FLOAT64).failures
    near = np.log1p(others[:, 0] - 1) + x.max(axis=-1)
    assert judge(near, reference("logsumexp", "ordinary", "float64"), FLOAT64).failures


def test_all_ties_dropped():
    x = block("ties", "float64")
    m = x.max(axis=-1, keepdims=True)
    q = np.sum(np.where(x == m, 0, np.exp(x - m)), axis=-1)
    assert judge(m[:, 0] + np.log1p(q), reference("logsumexp", "ties", "float64"), FLOAT64).failures


def test_lost_log1p():
    """What most libraries return at a confident row: 0."""
    exact = reference("log_softmax", "margins")
    got = rounded(exact)
    got[got > -1e-7] = 0.0
    assert math.isinf(FLOAT32.bound("softmax")) is False
    assert judge(got, exact, NATIVE).failures


def test_probability_minus_one_at_the_target():
    exact = reference("cross_entropy_grad", "margins")
    y = rounded(reference("softmax", "margins"))
    got = rounded(exact)
    labels = np.argmax(block("margins", "float32"), axis=-1)
    got[np.arange(24), labels] = y[np.arange(24), labels] - 1
    assert any("ulp" in failure for failure in judge(got, exact, NATIVE).failures)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_value_in_a_finite_place(value):
    for verb in ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_grad"):
        exact = reference(verb)
        got = rounded(exact)
        got.reshape(-1)[5] = value
        assert judge(got, exact, NATIVE).failures


@pytest.mark.parametrize("verb", ["softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_grad"])
def test_special_values_are_exact(verb):
    exact = reference(verb, "specials")
    got = rounded(exact)
    assert not judge(got, exact, NATIVE).failures
    places = np.argwhere(~np.isfinite(got))
    assert len(places) > 0
    for place in map(tuple, places):
        for value in (1.0, np.inf, -np.inf, np.nan):
            if not np.array_equal(got[place], value, equal_nan=True):
                wrong = got.copy()
                wrong[place] = value
                assert judge(wrong, exact, NATIVE).failures


def test_one_row_off():
    for verb in ("softmax", "logsumexp", "cross_entropy"):
        exact = reference(verb)
        assert judge(np.roll(rounded(exact), 1, axis=0), exact, NATIVE).failures


def test_transposed_axes():
    x = block("ordinary", "float64")[:6]
    exact = expected(("softmax",), {"x": x}, {"axis": 0})["softmax"][0]
    wrong = expected(("softmax",), {"x": x}, {"axis": 1})["softmax"][0]
    assert judge(rounded(wrong), exact, FLOAT64).failures


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", ">f4"])
def test_wrong_dtype(dtype):
    exact = reference("softmax")
    (failure,) = judge(rounded(exact).astype(dtype), exact, FLOAT32).failures
    assert "dtype" in failure
    assert "expected float32" in failure


@pytest.mark.parametrize("shape", [(24, 6, 1), (6, 24), (144,)])
def test_wrong_shape(shape):
    exact = reference("softmax")
    (failure,) = judge(rounded(exact).reshape(shape), exact, FLOAT32).failures
    assert "expected (24, 6)" in failure


def test_kept_dimension():
    exact = reference("logsumexp")
    assert judge(rounded(exact)[:, None], exact, FLOAT32).failures


def test_a_loss_is_never_minus_zero():
    exact = single(0, "cross_entropy")
    assert not judge(np.zeros(1, np.float32), exact, FLOAT32).failures
    assert judge(-np.zeros(1, np.float32), exact, FLOAT32).failures == ["[0]: −0.0"]


def test_a_loss_is_never_negative():
    exact = single(MP.ldexp(MP.mpf(1), -149), "cross_entropy")
    (failure,) = judge(np.array([-(2.0**-149)], np.float32), exact, NATIVE).failures
    assert "negative" in failure


def test_a_loss_is_zero_only_if_the_true_loss_rounds_to_zero():
    zero = np.zeros(1, np.float32)
    half = MP.ldexp(MP.mpf(1), -150)
    assert not judge(zero, single(half, "cross_entropy"), NATIVE).failures
    (failure,) = judge(zero, single(half * 3, "cross_entropy"), NATIVE).failures
    assert "true loss" in failure


def test_probabilities_above_one():
    exact = single(1)
    got = np.array([1 + 2.0**-23], np.float32)
    assert any("above 1" in failure for failure in judge(got, exact, NATIVE).failures)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ulps, caught", [(1, False), (2, True)])
def test_two_ulps_where_one_is_allowed(dtype, ulps, caught):
    """One element of a correctly rounded result, moved; float64 has a bound of 6."""
    exact = single(MP.mpf("0.3"), dtype=dtype)
    ulp = 2.0 ** (-1 - FORMATS[dtype].digits)
    factor = 6 if dtype == "float64" else 1
    start = float(exact.values[0]) // ulp * ulp
    got = np.array([start + ulps * factor * ulp]).astype(numpy_dtype(dtype))
    assert bool(judge(got, exact, Arithmetic(dtype)).failures) is caught


def test_ulps_go_by_the_binade_of_the_exact_value():
    below_two = single(MP.mpf(2) - MP.ldexp(MP.mpf(1), -40), "log_softmax")
    # 2 is within rounding; the next number is 2^-22 away, twice the ulp below 2
    assert judge(np.array([2 + 2.0**-22], np.float32), below_two, NATIVE).worst == pytest.approx(2, abs=1e-4)
    assert judge(np.array([2 - 2.0**-23], np.float32), below_two, NATIVE).worst == pytest.approx(1, abs=1e-4)


def test_ulps_below_the_normal_numbers_are_the_smallest_subnormal():
    for dtype, quantum in {"float32": -149, "float64": -1074, "float16": -24, "bfloat16": -133}.items():
        exact = single(MP.ldexp(MP.mpf("2.25"), quantum), "log_softmax", dtype)
        got = np.array([math.ldexp(4, quantum)]).astype(numpy_dtype(dtype))
        assert judge(got, exact, Arithmetic(dtype, float64=False)).worst == 1.75


def test_ulps_of_a_larger_unit():
    exact = single("0.001", "logsumexp", unit=MP.mpf(8))
    got = np.array([0.001 + 8 * 2.0**-23], np.float32)
    assert judge(got, exact, FLOAT32).worst == pytest.approx(1, rel=1e-3)
    assert judge(got, single("0.001", "logsumexp"), FLOAT32).failures


def test_error_of_a_value_between_two_numbers():
    exact = single(1 + MP.ldexp(MP.mpf(1), -30))
    assert judge(np.ones(1, np.float32), exact, FLOAT32).worst == 2.0**-7


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_number_is_not_infinity(dtype):
    """ln 2 above the largest number rounds to it; half an ulp above rounds to infinity."""
    form = FORMATS[dtype]
    largest = MP.ldexp(MP.mpf(2) ** form.digits - 1, form.highest - form.digits + 1)
    arithmetic = Arithmetic(dtype)
    inf, top = (np.array([v]).astype(numpy_dtype(dtype)) for v in (np.inf, float(largest)))
    with MP.workprec(2000):
        below, above = single(largest * (1 + MP.mpf(2) ** -100), "logsumexp", dtype), None
        above = single(largest * (1 + MP.mpf(2) ** -(form.digits - 1)), "logsumexp", dtype)
    assert judge(inf, below, arithmetic).failures
    assert not judge(top, below, arithmetic).failures
    assert not judge(inf, above, arithmetic).failures
    assert judge(-inf, above, arithmetic).failures


def test_equal_inputs_with_unequal_outputs():
    exact = reference("softmax", "ties")
    got = rounded(exact)
    assert not judge(got, exact, NATIVE).failures
    row = next(i for i, codes in enumerate(exact.index) if len(set(codes)) == 1)
    got[row, 3] = np.nextafter(got[row, 3], np.float32(0))
    assert any("same input" in failure for failure in judge(got, exact, NATIVE).failures)


def test_sums_of_rows():
    """Each element within its bound, and the sum not."""
    exact = expected(("softmax",), {"x": np.zeros((1, 64), np.float64)}, {})["softmax"][0]
    got = np.full((1, 64), 1 / 64)
    assert judge(got, exact, FLOAT64).compared == 65
    (failure,) = judge(got * (1 + 5 * 2.0**-52), exact, FLOAT64).failures
    assert "sum of softmax is off by 5" in failure


def test_sums_of_gradients():
    x = np.linspace(-1, 1, 64)[None]
    for targets, what in ((np.array([3]), "row sum of gradient"), (np.full((1, 64), 1 / 64), "general gradient")):
        arrays, options = {"logits": x, "targets": targets}, {"reduction": "none"}
        exact = expected(("cross_entropy_grad",), arrays, options)["cross_entropy_grad"][0]
        got = rounded(exact)
        assert not judge(got, exact, FLOAT64).failures
        y = (got + (np.arange(64) == 3)) if targets.ndim == 1 else got + 1 / 64
        shifted = np.where(got > 0, got + 4 * np.spacing(y), got)
        wrong = shifted if targets.ndim == 1 else got + 5 * 2.0**-52 / 64
        assert any(what in failure for failure in judge(wrong, exact, FLOAT64).failures)


def test_flushed_subnormals_are_exempted_and_counted():
    exact = single(MP.ldexp(MP.mpf("1.7"), -130))
    zero = np.zeros(1, np.float32)
    assert judge(zero, exact, NATIVE).failures
    verdict = judge(zero, exact, FLUSHING)
    assert not verdict.failures
    assert verdict.exempted == {"flushed subnormals": 1}
    # nothing else than 0, and nothing that is normal
    assert judge(np.array([2.0**-131], np.float32), exact, FLUSHING).failures
    assert judge(zero, single(MP.ldexp(MP.mpf(1), -126)), FLUSHING).failures


def test_underflowing_sums_are_exempted_and_counted():
    """A loss of 2^20 terms of 0.4 quanta each, which the formulas lose."""
    classes = 2**20
    loss = classes * MP.ldexp(MP.mpf("0.4"), -149)
    exact = single(loss, "cross_entropy", **{"underflowing sums": MP.mpf(classes)})
    verdict = judge(np.zeros(1, np.float32), exact, NATIVE)
    assert not verdict.failures
    assert verdict.exempted == {"underflowing sums": 1}
    # through float64 the terms do not underflow
    assert judge(np.zeros(1, np.float32), exact, FLOAT32).failures
    assert judge(np.array([float(3 * loss + 2)], np.float32), exact, NATIVE).failures


def test_transformed_logits_are_exempted_in_the_compute_dtype():
    x = np.array([[7001.0, 3.0]], np.float32)
    exact = expected(("softmax",), {"x": x}, {"temperature": 89.6})["softmax"][0]
    z = (x / np.float32(89.6)).astype(np.float64)
    w = np.exp(z - z.max())
    got = (w / w.sum()).astype(np.float32)
    verdict = judge(got, exact, NATIVE)
    assert not verdict.failures
    assert verdict.exempted == {"temperature": 1}
    assert judge(got, exact, FLOAT32).failures


def test_empty_results_compare_their_shape():
    exact = expected(("softmax",), {"x": np.empty((0, 6), np.float32)}, {})["softmax"][0]
    assert judge(np.empty((0, 6), np.float32), exact, FLOAT32).compared == 1
    assert judge(np.empty((0, 5), np.float32), exact, FLOAT32).failures


def test_contract_has_a_bound_in_every_column():
    for bounds in CONTRACT.values():
        assert len(bounds) == len(COLUMNS)
        assert all(b is None or 0 <= b <= 10 for b in bounds)


def test_formats_are_those_of_numpy():
    for name in ("float16", "float32", "float64"):
        info = np.finfo(name)
        form = FORMATS[name]
        assert (form.tiny, form.quantum) == (info.smallest_normal, info.smallest_subnormal)
        assert form.ulp(MP.mpf(1)) == info.eps
        assert form.overflow == MP.mpf(float(info.max)) + MP.mpf(form.ulp(MP.mpf(float(info.max)))) / 2


def test_oracle_leaves_the_precision_of_mpmath_alone():
    before = mpmath.mp.prec
    reference("cross_entropy_grad", "margins")
    assert mpmath.mp.prec == before
