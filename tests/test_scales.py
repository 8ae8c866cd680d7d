"""Losses whose weights are near the ends of the floating-point numbers, or infinite, judged by the exact oracle."""

import math

import numpy as np
import pytest

import xsoftmax as xs
from xsoftmax import choose
from xsoftmax.choose import reasons, recorded
from xsoftmax.implementations.numpy import long
from xsoftmax.verify.cases import POSITIONAL
from xsoftmax.verify.compare import Arithmetic, judge
from xsoftmax.verify.oracle import expected

pytestmark = pytest.mark.backend("numpy")

GRAD = ("cross_entropy_grad",)
CLASSES = [5, 40]  # tiles and rows
TARGETS = ["labels", "probs"]
LABELS = np.array([1, 0, 2])
WAYS = [
    ("array_api", 0),
    ("numpy_blocked", 0),
    ("numpy_blocked", choose._SMALL),
    ("numpy_numba", 0),
    ("numpy_numba", choose._SMALL),
]


@pytest.fixture(params=WAYS, ids=lambda way: f"{way[0]}{'-entry' if way[1] else ''}")
def way(request, monkeypatch):
    """An implementation, by its operations or by its entries."""
    name, small = request.param
    operation, recipe, _ = recorded(xs.softmax, np.zeros(2))
    if why := reasons(name, operation, recipe):
        pytest.skip("; ".join(why))
    monkeypatch.setattr(choose, "_SMALL", small)
    with xs.use_implementation(name):
        yield name


def rows(classes, at=0.0, dtype="float64"):
    """One ordinary, one near `at`, one confident."""
    x = np.random.default_rng(classes).normal(scale=2.0, size=(3, classes))
    x[1] += at
    x[2, -1] += 30.0
    return x.astype(dtype)


def targets(kind, x):
    if kind == "labels":
        return LABELS
    return np.random.default_rng(1).dirichlet(np.ones(x.shape[1]), len(x)).astype(x.dtype)


def wrong(verbs, x, t, **options):
    """What verbs say otherwise than the exact oracle."""
    arrays = {"logits": x, "targets": t, "v": np.ones_like(x)}
    for verb in verbs:
        given = {name: arrays[name] for name in POSITIONAL[verb]}
        (exact,) = expected((verb,), given, options, x.dtype.name).values()
        with np.errstate(all="ignore"):
            result = getattr(xs, verb)(*given.values(), **options)
        found = result if isinstance(result, tuple) else (result,)
        for a, reference in zip(found, exact, strict=True):
            yield from judge(np.asarray(a), reference, Arithmetic(x.dtype.name, True, False)).failures


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("classes", CLASSES)
def test_small_and_large_weights(way, classes, kind):
    """A class far from the label has a gradient too; of sums up to exp(295) 2^500 no ratio underflows."""
    for weight in (5e-310, 1e-300, 1e-30, 1e300, 1.7e308):
        for at in (0.0, 295.0, -295.0, 1e6):
            x = rows(classes, at)
            options = {"sample_weight": np.full(3, weight), "reduction": "sum"}
            assert [*wrong(GRAD, x, targets(kind, x), **options)] == []


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("classes", CLASSES)
def test_large_weights_with_z_loss(way, classes, kind):
    for weight, z_loss in ((1e308, 0.3), (1.7e308, 2.0), (1e300, 1e10), (1e-300, 2.0)):
        x = rows(classes)
        options = {"sample_weight": np.full(3, weight), "z_loss": z_loss, "reduction": "sum"}
        assert [*wrong(GRAD, x, targets(kind, x), **options)] == []


@pytest.mark.parametrize("classes", CLASSES)
def test_products_of_weights_that_are_no_number(way, classes):
    for weight, class_weight in ((1e308, 20.0), (1e-200, 1e-105), (1e-300, 1e300)):
        options = {"sample_weight": np.full(3, weight), "weight": np.full(classes, class_weight), "reduction": "sum"}
        assert [*wrong(GRAD, rows(classes), LABELS, **options)] == []


@pytest.mark.parametrize("classes", CLASSES)
def test_equal_rows_beside_extreme_ones_have_the_same_bits(way, classes):
    x = np.repeat(rows(classes)[:1], 3, axis=0)
    labels, options = np.array([2, 2, 2]), {"z_loss": 0.5, "reduction": "sum"}
    plain = xs.cross_entropy_grad(x, labels, sample_weight=np.ones(3), **options)
    with np.errstate(all="ignore"):
        mixed = xs.cross_entropy_grad(x, labels, sample_weight=np.array([1.0, 1e-300, 1.7e308]), **options)
    np.testing.assert_array_equal(mixed[0], plain[0])


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_infinite_weight_of_a_class_that_counts(way, dtype, classes, kind):
    """Its loss and the others' gradients are ∞, also where another has more than half of y; its own, ∞ − ∞, is nan."""
    weight = np.ones(classes)
    weight[1] = math.inf
    confident = rows(classes, dtype=dtype)
    confident[0, 1] = 25.0
    for x in (rows(classes, dtype=dtype), confident):
        for reduction in ("none", "sum"):
            options = {"weight": weight, "reduction": reduction}
            assert [*wrong(("cross_entropy_and_grad",), x, targets(kind, x), **options)] == []


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("power, size", [(-1022, 0), (-126, 900), (-100, 925)])
def test_shares_of_distances_that_a_temperature_makes_infinite(way, power, size, classes, kind):
    x = rows(classes) * 2.0**size
    options = {"temperature": 2.0**power, "reduction": "none"}
    if kind == "labels":
        t, options["weight"] = LABELS, np.full(classes, 2.0**-10)
    else:
        t = np.full(x.shape, 2.0**-10)
    assert [*wrong(("cross_entropy",), x, t, **options)] == []


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("power", [-1022, -126, -100])
def test_small_weights_at_small_temperatures(way, power, kind):
    x = rows(5) * 2.0**power
    options = {"temperature": 2.0**power, "sample_weight": np.full(3, 2.0**-1000), "reduction": "sum"}
    assert [*wrong(GRAD, x, targets(kind, x), **options)] == []


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("weight", [1e-310, 1.7e308])
def test_what_slope_and_temperature_make_of_it(way, weight, kind):
    """The scaled gradient alone is ∞, or has lost digits."""
    x = rows(40, 295.0)
    x[0] *= 1e-10
    options = {"sample_weight": np.full(3, weight), "reduction": "sum"}
    for more in ({"temperature": 0.7, "softcap": 30.0, "z_loss": 2.0}, {"temperature": 3.0, "z_loss": 1.0}):
        assert [*wrong(GRAD, x, targets(kind, x), **options, **more)] == []
    assert [*wrong(GRAD, x * 1e-10, targets(kind, x), temperature=1e-10, **options)] == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_rows(way, dtype, monkeypatch):
    monkeypatch.setattr(long, "LONG", 4)
    monkeypatch.setattr(long, "_PIECE", 8)
    weight = np.ones(40)
    weight[1] = math.inf
    assert [*wrong(("cross_entropy_and_grad",), rows(40, dtype=dtype), LABELS, weight=weight, reduction="sum")] == []
    for sample_weight in (5e-310, 1e-300, 1.7e308):
        for class_weight in (1.0, 20.0):
            options = {"sample_weight": np.full(3, sample_weight), "weight": np.full(40, class_weight)}
            assert [*wrong(GRAD, rows(40, dtype=dtype), LABELS, reduction="sum", **options)] == []
