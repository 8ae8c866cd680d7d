"""The run over cases: what it plans, what it counts, and that wrong libraries fail it."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from xsoftmax.libraries.backends import Backend, backend
from xsoftmax.verbs import functions, linear, losses
from xsoftmax.verify.cases import DTYPES, FLOATS, POSITIONAL, VERBS, cases
from xsoftmax.verify.run import Result, plan, summarise, verify

VERB = {"verbs": ["softmax"], "dtypes": ["float32"]}


@pytest.fixture
def numpy_backend():
    return backend("numpy")


def summary(xb, **options):
    (row,) = summarise(verify(xb, **options))
    return row


def plant(monkeypatch, verb, wrong):
    """Replace a verb by one that calls the right one and spoils its result."""
    module = next(module for module in (losses, functions, linear) if hasattr(module, verb))
    right = getattr(module, verb)
    monkeypatch.setattr(module, verb, lambda *arrays, **options: wrong(right, *arrays, **options))


def test_the_right_library_passes(numpy_backend):
    row = summary(numpy_backend, **VERB)
    assert row.ok
    assert row.cases == len(plan(numpy_backend, **VERB)) == len(list(verify(numpy_backend, **VERB))) > 30
    assert row.compared > 4_000_000
    assert 0 < row.worst <= row.bound == 1


WRONG_SOFTMAX = {
    "one row off": lambda f, x, **options: np.roll(f(x, **options), 1, axis=0),
    "nan": lambda f, x, **options: np.where(np.arange(x.size).reshape(x.shape) == 3, np.nan, f(x, **options)),
    "wrong dtype": lambda f, x, **options: f(x, **options).astype(np.float64),
    "wrong shape": lambda f, x, **options: f(x, **options)[..., None],
    "wrong axis": lambda f, x, *, axis=-1, **options: f(x, axis=0 if axis == -1 and x.ndim else axis, **options),
    "without where": lambda f, x, *, where=None, **options: f(x, **options),
    "two results": lambda f, x, **options: (f(x, **options), f(x, **options)),
    "float32 arithmetic": lambda f, x, **options: np.exp(x - np.max(x, axis=-1, keepdims=True)),
    "an exception": lambda f, x, **options: 1 // 0,
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", WRONG_SOFTMAX)
def test_wrong_softmax(numpy_backend, monkeypatch, name):
    plant(monkeypatch, "softmax", WRONG_SOFTMAX[name])
    row = summary(numpy_backend, **VERB)
    assert not row.ok
    assert row.failures


WRONG_LOSS = {
    "swapped label": lambda f, x, t, **options: f(x, (t + 1) % x.shape[-1] if t.ndim < x.ndim else t, **options),
    "minus zero": lambda f, x, t, **options: -np.abs(f(x, t, **options)) * (-1 if x.shape[-1] > 1 else 1),
    "no mean": lambda f, x, t, *, reduction="mean", **options: f(
        x, t, reduction="sum" if reduction == "mean" else reduction, **options
    ),
    "labels unchecked": lambda f, x, t, **options: f(x, t % x.shape[-1] if t.dtype.kind in "iu" else t, **options),
    "smoothing forgotten": lambda f, x, t, *, label_smoothing=0.0, **options: f(x, t, **options),
    "z_loss weighted": lambda f, x, t, *, z_loss=0.0, **options: f(x, t, z_loss=2 * z_loss, **options),
}


@pytest.mark.parametrize("name", WRONG_LOSS)
def test_wrong_loss(numpy_backend, monkeypatch, name):
    plant(monkeypatch, "cross_entropy", WRONG_LOSS[name])
    row = summary(numpy_backend, verbs=["cross_entropy"], dtypes=["float32"])
    assert not row.ok
    assert row.failures


def naive(x, factor, bias, labels):
    """Gradient of the logits from y − 1, which is 0 where the label is certain."""
    y = functions.softmax(x @ factor.T + bias)
    return y - np.eye(len(factor), dtype=x.dtype)[labels]


WRONG_LINEAR = {
    ("grad_input", "y − 1"): lambda x, w, t, found, bias: naive(x, w, bias, t) @ w,
    ("grad_input", "a class missing"): lambda x, w, t, found, bias: (
        found.grad_input - naive(x, w, bias, t)[:, :1] * w[0]
    ),
    ("grad_linear_weight", "a block missing"): lambda x, w, t, found, bias: (
        found.grad_linear_weight - naive(x, w, bias, t)[-3:].T @ x[-3:]
    ),
    ("grad_linear_weight", "scaled twice"): lambda x, w, t, found, bias: found.grad_linear_weight / len(x),
    ("grad_linear_bias", "of one row"): lambda x, w, t, found, bias: naive(x, w, bias, t)[0],
    ("grad_linear_bias", "forgotten"): lambda x, w, t, found, bias: np.zeros_like(bias),
}


@pytest.mark.parametrize("name", WRONG_LINEAR, ids=": ".join)
def test_wrong_gradient_of_a_linear_loss(numpy_backend, monkeypatch, name):
    part, _ = name

    def wrong(right, x, factor, targets, *, linear_bias, **options):
        found = right(x, factor, targets, linear_bias=linear_bias, **options)
        if targets.ndim == 2:
            return found
        value = WRONG_LINEAR[name](x, factor, targets, found, linear_bias).astype(x.dtype)
        return found._replace(**{part: value})

    plant(monkeypatch, "linear_cross_entropy_and_grad", wrong)
    for verb in (verb for verb in VERBS if verb.startswith("linear_cross_entropy_and_grad.")):
        row = summary(numpy_backend, verbs=[verb], dtypes=["float32"])
        assert row.ok == (not verb.endswith(part))


def test_a_warning_is_a_failure(numpy_backend, monkeypatch):
    def noisy(f, x, **options):
        np.log(np.zeros(1))
        return f(x, **options)

    plant(monkeypatch, "entropy", noisy)
    row = summary(numpy_backend, verbs=["entropy"], dtypes=["float64"])
    assert "RuntimeWarning: divide by zero" in row.failures[0]


def test_nothing_compared_is_a_failure(numpy_backend, monkeypatch):
    def refusing(f, p, **options):
        raise NotImplementedError("no entropy here")

    plant(monkeypatch, "entropy", refusing)
    row = summary(numpy_backend, verbs=["entropy"], dtypes=["float64"])
    assert not row.ok
    assert not row.failures
    assert row.compared == 0
    assert row.refused == {"no entropy here": row.cases}


def test_a_refusal_is_counted_and_is_no_failure(numpy_backend, monkeypatch):
    def partly(f, p, *, axis=-1):
        if axis != -1:
            raise NotImplementedError("last axis only")
        return f(p, axis=axis)

    plant(monkeypatch, "entropy", partly)
    row = summary(numpy_backend, verbs=["entropy"], dtypes=["float64"])
    assert row.ok
    assert row.refused == {"last axis only": 1}


@dataclass(frozen=True)
class Narrow(Backend):
    """NumPy without float64 in its list."""

    def dtypes(self):
        return ("float32",)


def test_a_missing_dtype_is_absent_and_not_passed(numpy_backend):
    narrow = Narrow(numpy_backend.name, numpy_backend.xp, numpy_backend.device)
    row = summary(narrow, verbs=["entropy"], dtypes=["float64"])
    assert row.absent
    assert (row.compared, row.worst, row.bound) == (0, 0, 0)
    assert len(plan(narrow, verbs=["entropy"], dtypes=["float64"])) == 1


def test_worst_is_relative_to_its_bound():
    results = [Result("b", "v", "d", "one", 3, 8, 5), Result("b", "v", "d", "two", 2, 4, 5), Result("b", "w", "d", "x")]
    first, second = summarise(results)
    assert (first.worst, first.bound, first.compared, first.cases) == (2, 4, 10, 2)
    assert not second.ok


@pytest.mark.parametrize("options", [{"verbs": ["hardmax"]}, {"dtypes": ["float8"]}])
def test_unknown_names(numpy_backend, options):
    with pytest.raises(ValueError, match=r"verify: unknown (verb|dtype) '(hardmax|float8)', expected one of"):
        plan(numpy_backend, **options)


def test_jit_is_for_jax(numpy_backend):
    with pytest.raises(ValueError, match="verify: jit is for backend jax, found 'numpy'"):
        next(verify(numpy_backend, jit=True))


def test_every_verb_and_dtype_has_cases():
    for dtype in DTYPES:
        verbs = {verb for case in cases(dtype) for verb in case.verbs}
        assert verbs == set(VERBS) or dtype == "integer"
    assert set(POSITIONAL) == set(VERBS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_case_names_are_unique(dtype):
    names = [(case.name, verb) for case in cases(dtype) for verb in case.verbs]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("dtype", FLOATS)
def test_cases_are_the_same_in_every_process(dtype):
    """Inputs depend on names alone: a checksum of all of them."""
    first, again = cases(dtype), cases.__wrapped__(dtype)
    for one, other in zip(first, again, strict=True):
        assert one.name == other.name
        for a, b in zip(one.arrays.values(), other.arrays.values(), strict=True):
            assert a.tobytes() == b.tobytes()


def test_cases_reach_the_corners():
    """Subnormal, vanishing, infinite and nan results are among those compared."""
    loss = [float(v) for case in cases("float32") if "cross_entropy" in case.verbs for v in results(case)]
    assert any(0 < v < 2.0**-126 for v in loss)
    assert any(2.0**-126 < v < 2.0**-60 for v in loss)
    assert math.inf in loss
    assert any(map(math.isnan, loss))


def results(case):
    from xsoftmax.verify.run import exact_results

    return exact_results(case, "float64")["cross_entropy"][0].values if case.error == "never" else []
