"""Temperatures and differences near the ends of the floating-point numbers."""

import math
from functools import cache

import numpy as np
import pytest
from support import get, put, widest

import xsoftmax as xs
from xsoftmax.choose import reasons, recorded
from xsoftmax.implementations.numpy import long
from xsoftmax.verify.cases import POSITIONAL
from xsoftmax.verify.compare import Arithmetic, judge
from xsoftmax.verify.formats import FORMATS
from xsoftmax.verify.inputs import numpy_dtype
from xsoftmax.verify.oracle import expected

X = np.array([[1.0, 2.0, 3.0], [3.0, -1.0, 3.0], [0.0, 0.0, 0.0], [-5.0, -np.inf, 2.0]])
COLD = [[0.0, 0.0, 1.0], [0.5, 0.0, 0.5], [1 / 3] * 3, [0.0, 0.0, 1.0]]
THIRD = [1 / 3] * 3
HOT = [THIRD, THIRD, THIRD, [0.5, 0.0, 0.5]]


@pytest.mark.parametrize("temperature, expected", [(5e-324, COLD), (1e-300, COLD), (1e-38, COLD), (1e308, HOT)])
def test_no_temperature_makes_a_finite_row_nan(xb, temperature, expected):
    eps = np.finfo(widest(xb)).eps
    for dtype in xb.dtypes():
        y = xb.to_numpy(xs.softmax(xb.asarray(X, dtype=dtype), temperature=temperature)).astype(np.float64)
        step = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}.get(dtype, eps)
        np.testing.assert_allclose(y, expected, rtol=2 * max(step, eps))
    log_y = get(xb, xs.log_softmax(put(xb, X), temperature=temperature))
    np.testing.assert_allclose(np.exp(log_y), expected, rtol=8 * eps)


def test_losses_of_the_coldest_rows(xb):
    if not hasattr(xb.xp, "arange"):
        pytest.skip(f"{xb.name} has no arange, which class indices need")
    x, v, options = put(xb, X), put(xb, np.ones_like(X)), {"temperature": 5e-324, "reduction": "none"}
    labels = put(xb, np.array([2, 0, 1, 2]))
    loss, grad = (get(xb, a) for a in xs.cross_entropy_and_grad(x, labels, **options))
    np.testing.assert_allclose(loss, [0.0, math.log(2), math.log(3), 0.0], rtol=1e-6)
    assert not np.isnan(grad).any()
    np.testing.assert_array_equal(grad[[0, 3]], 0.0)
    for result in (
        xs.cross_entropy_hvp(x, labels, v, **options),
        *xs.cross_entropy_grad_and_hessian_diag(x, labels, **options),
    ):
        assert not np.isnan(get(xb, result)).any()


def test_differences_that_overflow_before_they_are_divided(xb):
    largest = float(np.finfo(widest(xb)).max)
    x, temperature = put(xb, np.array([[largest, -largest, 0.0]])), largest / 2
    z = np.array([0.0, -4.0, -2.0])
    expected = z - np.log(np.exp(z).sum())
    eps = np.finfo(widest(xb)).eps
    np.testing.assert_allclose(get(xb, xs.log_softmax(x, temperature=temperature))[0], expected, rtol=16 * eps)
    np.testing.assert_allclose(get(xb, xs.softmax(x, temperature=temperature))[0], np.exp(expected), rtol=16 * eps)


def test_logits_by_a_temperature_that_their_dtype_has_not(xb):
    """In float32 alone, x / temperature is a number where the temperature is none."""
    x = np.array([[1.0, -1.0, 0.5]]) * 2.0**127
    z = x / 2.0**130
    found = xb.to_numpy(xs.log_softmax(xb.asarray(x, dtype="float32"), temperature=2.0**130))
    np.testing.assert_allclose(found, z - np.log(np.exp(z).sum()), rtol=2.0**-21)


def test_a_gradient_by_a_temperature_that_its_dtype_has_not(xb):
    x, t = np.zeros((1, 2)), 2.0**-120 * np.array([[1.0, 3.0]])
    x, t = (xb.asarray(a, dtype="float32") for a in (x, t))
    grad = xs.cross_entropy_grad(x, t, temperature=2.0**-220, reduction="none")
    np.testing.assert_array_equal(xb.to_numpy(grad), 2.0**100 * np.array([[1.0, -1.0]]))


@pytest.mark.parametrize("implementation", ["array_api", "numpy_blocked"])
def test_a_small_part_of_a_difference_that_overflows(xb, implementation):
    """t (m − x) is a number where m − x is none."""
    if implementation != "array_api" and xb.name != "numpy":
        pytest.skip(f"{implementation} is NumPy's")
    largest = float(np.finfo(widest(xb)).max)
    x, t = np.array([[largest, -largest], [largest, 0.0]]), np.array([[0.95, 0.05], [0.5, 0.5]])
    with xs.use_implementation(implementation):
        calls = [
            xs.cross_entropy(put(xb, x), put(xb, t), reduction="none"),
            xs.linear_cross_entropy(put(xb, x), put(xb, np.eye(2)), put(xb, t), reduction="none"),
        ]
        for loss in calls:
            np.testing.assert_allclose(get(xb, loss) / largest, [0.1, 0.5], rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# rows in parts, and with z_loss, by the exact oracle

TEMPERATURES = {5e-324: 0.3, 1e-310: 1e-9, 1e-300: 0.3, 1e-290: 1e-9, 1e-45: 0.3, 1e-38: 1e-9}  # and a z_loss for each
LOSSES = ("cross_entropy_and_grad", "cross_entropy_hvp", "cross_entropy_grad_and_hessian_diag")


def hard_rows(dtype, flushes):
    """Ties at the maximum, neighbours, logits near the largest number, and a few subnormals apart."""
    form = FORMATS[dtype]
    big, ulp = 0.9 * math.ldexp(1.0, form.highest), 2.0 ** (1 - form.digits)
    rows = [
        [1, 2, 3, 0, -1],
        [3, -1, 3, 3, 2],
        [0, 0, 0, 0, 0],
        [-2, -2, -3, -(2 + 2 * ulp), -2],
        [big, -big, big / 2, big, 0],
        [-big, -big, -big, -big, -0.75 * big],
        [1.5, 1.5 * (1 + ulp), 1.5, 1.5 * (1 + ulp), 1.5],
    ]
    if not flushes:
        rows.append([0, form.quantum, 3 * form.quantum, 3 * form.quantum, -form.quantum])
    return np.array(rows).astype(numpy_dtype(dtype))


def soft(x):
    """Targets at the maximum and off it; none is Σ t / n, n up to 5, where rounding decides on the sign of ∞."""
    return np.broadcast_to(np.array([0.5, 0.125, 0.0, 0.25, 0.0625]).astype(x.dtype), x.shape).copy()


@cache
def problem(verbs, dtype, flushes, is_soft, options):
    """Arrays by name, options, and what is exact, of which the oracle takes its time."""
    x, options = hard_rows(dtype, flushes), dict(options)
    v = np.broadcast_to(np.array([1.0, -1.0, 2.0, 0.5, 3.5]).astype(x.dtype), x.shape).copy()
    targets = soft(x) if is_soft else np.arange(len(x)) % 5
    arrays = {"x": x, "logits": x, "input": x, "linear_weight": np.eye(5, dtype=x.dtype), "targets": targets, "v": v}
    if "where" in options:
        options["where"] = np.array(options["where"])
    needed = {name: arrays[name] for verb in verbs for name in POSITIONAL[verb]}
    return needed, options, expected(verbs, needed, options, dtype)


def wrong(xb, dtype, verbs, place, *, is_soft=False, chosen=None, **options):
    """What a verb says otherwise than the exact oracle."""
    arithmetic = Arithmetic(dtype, xb.float64, xb.flushes_subnormals)
    arrays, options, exact = problem(verbs, dtype, xb.flushes_subnormals, is_soft, tuple(options.items()))
    for verb, references in exact.items():
        result = getattr(xs, verb)(*(place(arrays[a]) for a in POSITIONAL[verb]), **options, **(chosen or {}))
        results = result if isinstance(result, tuple) else (result,)
        for got, reference in zip(results, references, strict=True):
            with np.errstate(all="ignore"):  # ∞ is a result here, and Dask's tasks run now
                found = np.asarray(xb.to_numpy(got))
            for failure in judge(found, reference, arithmetic).failures:
                yield f"{verb} {failure}"


def wrong_losses(xb, dtype, place, temperature, **chosen):
    options = {"temperature": temperature, "reduction": "none"} | chosen
    return [*wrong(xb, dtype, LOSSES, place, **options), *wrong(xb, dtype, LOSSES, place, is_soft=True, **options)]


def dtypes_at(xb, temperature):
    """Those that have something to lose there; of compilers fewer."""
    if xb.name == "jax":
        chosen = {5e-324: ("float32", "float64"), 1e-310: ("float64",), 1e-38: ("bfloat16", "float32")}
        return [dtype for dtype in chosen.get(temperature, ()) if dtype in xb.dtypes()]
    return [dtype for dtype in xb.dtypes() if temperature < (1e-200 if dtype == "float64" else 1.0)]


@pytest.mark.parametrize("dtype, power", [("float32", -127), ("float64", -1023)])
def test_a_small_part_of_a_quotient_that_overflows(xb, dtype, power):
    """t (m − x) / T is a number where (m − x) / T is none."""
    if dtype not in xb.dtypes():
        pytest.skip(f"{xb.name} has no {dtype}")
    x, t = (xb.asarray(np.array([row]).astype(dtype)) for row in ([8, 0, -8], [0.75, 0.0625, 0.03125]))
    with xs.use_implementation("array_api"), np.errstate(all="ignore"):
        loss = xb.to_numpy(xs.cross_entropy(x, t, temperature=2.0**power, reduction="none"))
    np.testing.assert_array_equal(loss, 2.0**-power)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_z_loss_of_the_coldest_rows(xb, temperature):
    if not hasattr(xb.xp, "arange"):
        pytest.skip(f"{xb.name} has no arange, which class indices need")
    for dtype in dtypes_at(xb, temperature):
        assert wrong_losses(xb, dtype, xb.asarray, temperature, z_loss=TEMPERATURES[temperature]) == []


@pytest.mark.parametrize("chunk_size", [(3, 2), (None, 1), None])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_linear_losses_of_the_coldest_rows(xb, temperature, chunk_size):
    if xb.name not in ("numpy", "torch", "jax"):
        pytest.skip("these three have code of their own")
    options = {"temperature": temperature, "reduction": "none", "chosen": {"chunk_size": chunk_size}}
    for dtype in dtypes_at(xb, temperature):
        for is_soft in (False, True):
            for z_loss in (0.0, TEMPERATURES[temperature]):
                given = {"is_soft": is_soft, "z_loss": z_loss, **options}
                assert [*wrong(xb, dtype, ("linear_cross_entropy",), xb.asarray, **given)] == []


@pytest.mark.parametrize("chunk_size", [None, (1, 2)])
def test_linear_gradients_that_are_numbers_where_those_of_the_logits_are_none(xb, chunk_size):
    if xb.name not in ("numpy", "torch"):
        pytest.skip("these two take gradients of the logits in units")
    for dtype, temperature, small in (("float32", 2.0**-140, 2.0**-30), ("float64", 2.0**-1030, 2.0**-20)):
        x, w = (np.array(a).astype(dtype) for a in ([[small, 0], [small, 0]], [[0, small], [0, -small], [-1, 0]]))
        arrays = (xb.asarray(a) for a in (x, w, np.array([0, 0])))
        options = {"temperature": temperature, "reduction": "sum", "chunk_size": chunk_size}
        result = xs.linear_cross_entropy_and_grad(*arrays, **options)
        by_input, by_weight = (xb.to_numpy(a) for a in result[1:3])
        np.testing.assert_array_equal(by_input, [[0, -small / temperature]] * 2)
        np.testing.assert_array_equal(by_weight, small / temperature * np.array([[-1, 0], [1, 0], [0, 0]]))


def test_gradients_of_small_weights_at_a_small_temperature(xb):
    if xb.name == "jax":
        pytest.skip("the gradient of a row is not scaled inside")
    if not hasattr(xb.xp, "arange"):
        pytest.skip(f"{xb.name} has no arange, which class indices need")
    for dtype, small in (("float32", 2.0**-130), ("float64", 2.0**-1030)):
        if dtype not in xb.dtypes() or (dtype == "float32" and xb.flushes_subnormals):
            continue
        x, weight = (xb.asarray(np.array(a).astype(dtype)) for a in ([[0, 0, 0, 0]], [2.0**-100]))
        grad = xs.cross_entropy_grad(
            x, xb.asarray(np.array([0])), sample_weight=weight, temperature=small, reduction="sum"
        )
        np.testing.assert_array_equal(xb.to_numpy(grad), 2.0**-102 / small * np.array([[-3, 1, 1, 1]]))


@pytest.mark.backend("dask")
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_split_classes_of_the_coldest_rows(xb, temperature):
    if xb.name != "dask":
        pytest.skip("others have no split classes")
    da = pytest.importorskip("dask.array")

    def cut(a):
        return da.from_array(a, chunks=(3, 2) if a.ndim == 2 else 3)

    for dtype in dtypes_at(xb, temperature):
        assert [*wrong(xb, dtype, ("softmax", "log_softmax"), cut, temperature=temperature)] == []
        for z_loss in (0.0, TEMPERATURES[temperature]):
            assert wrong_losses(xb, dtype, cut, temperature, z_loss=z_loss) == []


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("implementation", ["array_api", "numpy_blocked", "numpy_numba"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_long_rows_of_the_coldest(xb, temperature, implementation, monkeypatch):
    monkeypatch.setattr(long, "LONG", 4)
    monkeypatch.setattr(long, "_PIECE", 2)
    if xb.name != "numpy":
        pytest.skip("these are NumPy's")
    operation, recipe, _ = recorded(xs.softmax, np.zeros(2))
    if why := reasons(implementation, operation, recipe):
        pytest.skip("; ".join(why))
    with xs.use_implementation(implementation):
        for dtype in dtypes_at(xb, temperature):
            for options in ({}, {"where": (True, True, False, True, True)}):
                verbs = ("softmax", "log_softmax")
                assert [*wrong(xb, dtype, verbs, xb.asarray, temperature=temperature, **options)] == []
            for z_loss in (0.0, TEMPERATURES[temperature]):
                assert wrong_losses(xb, dtype, xb.asarray, temperature, z_loss=z_loss) == []
