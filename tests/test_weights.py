"""Weights of classes and rows at their edges, and rows of which a mask keeps nothing."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from support import get, put, widest

import xsoftmax as xs

REDUCTIONS = ("none", "sum", "mean")
X = np.array([[0.5, 1.0, -1.0, 3.0], [0.0, 2.0, 0.25, -4.0], [1.0, 1.0, 0.0, 7.0], [-2.0, 0.0, 5.0, 0.5]])
V = np.array([[1.0, -1.0, 0.5, 2.0], [0.25, 3.0, -1.0, 1.0], [2.0, 1.0, -3.0, 1.0], [1.0, 0.0, 0.5, -1.0]])
LABELS = np.array([1, 2, 1, 2])
EMPTY = (np.inf, -np.inf, np.nan)  # weights of class 0, which no row names


def one_hot(labels):
    return np.eye(X.shape[1])[labels]


def splits(xb):
    """Ways to lay the classes: whole, and for Dask cut."""
    return ("whole", "split") if xb.name == "dask" else ("whole",)


def laid(xb, a, way):
    array = put(xb, a)
    return array if way == "whole" else array.rechunk(tuple(2 if n % 2 == 0 else n for n in array.shape))


def family(x, targets, v, **options):
    """Every verb of the cross-entropy family, by name."""
    loss, grad = xs.cross_entropy_and_grad(x, targets, **options)
    yield "loss", xs.cross_entropy(x, targets, **options)
    yield "loss beside the gradient", loss
    yield "gradient beside the loss", grad
    yield "grad", xs.cross_entropy_grad(x, targets, **options)
    yield "hvp", xs.cross_entropy_hvp(x, targets, v, **options)
    yield "diag", xs.cross_entropy_grad_and_hessian_diag(x, targets, **options)[1]


def from_probs(x, targets, v, *, where=None, **options):
    yield "from_probs", xs.cross_entropy_from_probs(xs.softmax(x), targets, **options)


def linear(x, targets, v, *, chunk_size, xb, **options):
    identity = put(xb, np.eye(X.shape[1]))
    yield "linear", xs.linear_cross_entropy(x, identity, targets, chunk_size=chunk_size, **options)
    found = xs.linear_cross_entropy_and_grad(x, identity, targets, chunk_size=chunk_size, **options)
    yield from zip(("linear loss", "grad_input", "grad_linear_weight"), found, strict=False)


def skip_if_not_indexable(xb):
    if not hasattr(xb.xp, "arange"):
        pytest.skip(f"{xb.name} has no arange, which class indices need")


def chunk_sizes(xb):
    if xb.name == "jax":  # which compiles each for seconds
        return ((3, 2),)
    return (None,) if xb.name in ("dask", "cubed", "ndonnx", "mlx") else (None, (3, 2))


def sweeps(xb):
    yield family
    yield from_probs
    for size in chunk_sizes(xb):
        yield partial(linear, chunk_size=size, xb=xb)


def assert_alike(xb, verbs, given, other):
    for (name, a), (_, b) in zip(verbs(**given), verbs(**other), strict=True):
        np.testing.assert_array_equal(get(xb, a), get(xb, b), err_msg=name)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("empty", EMPTY)
def test_the_weight_of_a_class_that_no_row_names_counts_for_nothing(xb, empty, reduction):
    skip_if_not_indexable(xb)
    if xb.name in ("dask", "jax") and not (empty == np.inf and reduction == "mean"):
        pytest.skip(f"{xb.name} takes long to plan or compile, and one of nine tells")
    for way in splits(xb):
        x, v = laid(xb, X, way), laid(xb, V, way)
        odd, plain = (put(xb, np.array([first, 1.0, 2.0, 0.5])) for first in (empty, 3.0))
        for targets in (put(xb, LABELS), laid(xb, one_hot(LABELS), way)):
            given = {"x": x, "targets": targets, "v": v, "reduction": reduction}
            for verbs in sweeps(xb):
                assert_alike(xb, verbs, {**given, "weight": odd}, {**given, "weight": plain})
        z_loss = {"x": x, "targets": put(xb, LABELS), "v": v, "reduction": reduction, "z_loss": 0.5}
        assert_alike(xb, family, {**z_loss, "weight": odd}, {**z_loss, "weight": plain})


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_that_do_not_count_name_no_class(xb, reduction):
    """Ignored rows, and those of weight 0, may name the class whose weight is infinite."""
    skip_if_not_indexable(xb)
    if xb.name in ("dask", "jax") and reduction != "mean":
        pytest.skip(f"{xb.name} takes long to plan or compile, and a mean has both divisors")
    odd, plain = (put(xb, np.array([first, 1.0, 2.0, 0.5])) for first in (np.inf, 3.0))
    labels = put(xb, np.array([1, 0, 1, 2]))
    s = put(xb, np.array([1.0, 0.0, 0.5, 2.0]))
    for options in ({"sample_weight": s}, {"ignore_index": 0}):
        given = {"x": put(xb, X), "targets": labels, "v": put(xb, V), "reduction": reduction, **options}
        for verbs in sweeps(xb):
            assert_alike(xb, verbs, {**given, "weight": odd}, {**given, "weight": plain})


def test_masked_classes_have_no_weight_under_smoothing(xb):
    """Every class counts with label_smoothing, but for those that `where` takes out."""
    skip_if_not_indexable(xb)
    odd, plain = (put(xb, np.array([first, 1.0, 2.0, 0.5])) for first in (np.inf, 3.0))
    given = {"x": put(xb, X), "targets": put(xb, LABELS), "v": put(xb, V), "label_smoothing": 0.1, "reduction": "none"}
    where = put(xb, np.array([False, True, True, True]))
    assert_alike(xb, family, {**given, "where": where, "weight": odd}, {**given, "where": where, "weight": plain})
    loss = get(xb, xs.cross_entropy(given["x"], given["targets"], weight=odd, label_smoothing=0.1, reduction="none"))
    np.testing.assert_array_equal(loss, np.inf)


MASK = np.array([[True, True, True, True], [False] * 4, [True, False, True, True], [False] * 4])
OPTIONS = (
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 0.5},
    {"softcap": 5.0, "temperature": 0.7},
    {"label_smoothing": 0.1, "z_loss": 0.5, "softcap": 5.0, "temperature": 2.0, "weight": True},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_row_with_nothing_kept_costs_nothing(xb, options):
    """Loss and derivatives 0, whatever the row holds; it counts in a mean."""
    skip_if_not_indexable(xb)
    if xb.name in ("dask", "jax") and len(options) < 3:
        pytest.skip(f"{xb.name} takes long to plan or compile, and all options at once tell")
    options = {k: put(xb, np.array([1.0, 2.0, 0.5, 1.0])) if k == "weight" else a for k, a in options.items()}
    labels = np.array([3, 2, 2, 1])
    x = X.copy()
    x[1], x[3] = np.nan, -np.inf
    for way in splits(xb):
        for targets in (labels, one_hot(labels)):
            t = put(xb, targets) if targets.ndim == 1 else laid(xb, targets, way)
            given = {"x": laid(xb, x, way), "targets": t, "v": laid(xb, V, way), "where": laid(xb, MASK, way)}
            kept = {"x": put(xb, X[::2]), "targets": put(xb, targets[::2]), "v": put(xb, V[::2])}
            kept["where"] = put(xb, MASK[::2])
            sweeps = [family, *(partial(linear, chunk_size=size, xb=xb) for size in chunk_sizes(xb))]
            for verbs in sweeps:
                if verbs is not family:
                    given["x"] = laid(xb, X, way)
                for reduction in ("none", "sum"):
                    here, there = (dict(verbs(**some, **options, reduction=reduction)) for some in (given, kept))
                    for name, value in here.items():
                        found, other = get(xb, value), get(xb, there[name])
                        if found.ndim and name != "grad_linear_weight":
                            np.testing.assert_array_equal(found[1::2], 0.0, err_msg=name)
                            found = found[::2]
                        np.testing.assert_allclose(found, other, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_row_with_nothing_kept_counts_in_a_mean(xb):
    skip_if_not_indexable(xb)
    labels, weight = np.array([3, 2, 2, 1]), np.array([1.0, 2.0, 0.5, 4.0])
    x, t, where = (put(xb, a) for a in (X, labels, MASK))
    each = get(xb, xs.cross_entropy(x, t, where=where, weight=put(xb, weight), reduction="none")).astype(np.float64)
    mean = get(xb, xs.cross_entropy(x, t, where=where, weight=put(xb, weight)))
    np.testing.assert_allclose(mean, each.sum() / weight[labels].sum(), rtol=1e-6)


def test_a_masked_label_beside_kept_classes_costs_infinity(xb):
    skip_if_not_indexable(xb)
    for way in splits(xb):
        x, where, t = laid(xb, X, way), laid(xb, MASK, way), put(xb, np.array([0, 0, 1, 0]))
        for size in chunk_sizes(xb):
            linear = xs.linear_cross_entropy(x, put(xb, np.eye(4)), t, where=where, chunk_size=size, reduction="none")
            assert get(xb, linear)[2] == np.inf
        assert get(xb, xs.cross_entropy(x, t, where=where, reduction="none"))[2] == np.inf


def test_a_row_of_minus_infinity_that_is_not_masked_is_nan(xb):
    skip_if_not_indexable(xb)
    x = np.full((2, 4), -np.inf)
    where = np.array([[True, False, False, False], [True] * 4])
    for way in splits(xb):
        t = put(xb, np.array([1, 0]))
        loss = xs.cross_entropy(laid(xb, x, way), t, where=laid(xb, where, way), reduction="none")
        np.testing.assert_array_equal(get(xb, loss), np.nan)


SURE = np.array([[900.0, 0.0], [0.0, -900.0]])


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_no_loss_is_minus_zero(xb, zero):
    """Of weights, targets and factors of either zero, and of factors that are negative."""
    skip_if_not_indexable(xb)
    x, labels = put(xb, SURE), put(xb, np.array([0, 0]))
    some = put(xb, np.array([zero, -1.0]))
    calls = [
        xs.cross_entropy(x, labels, sample_weight=some, reduction="none"),
        xs.cross_entropy(x, labels, weight=some, reduction="none"),
        xs.cross_entropy(x, put(xb, np.array([[zero, zero], [-1.0, zero]])), reduction="none"),
        xs.cross_entropy_from_probs(xs.softmax(x), labels, sample_weight=some, reduction="none"),
        xs.cross_entropy_from_probs(xs.softmax(x), labels, weight=some, reduction="none"),
        *(xs.cross_entropy(x, labels, sample_weight=some, reduction=reduction) for reduction in ("sum", "mean")),
    ]
    for loss in calls:
        np.testing.assert_array_equal(get(xb, loss), 0.0)
        assert not np.any(np.signbit(get(xb, loss)))


def test_targets_below_zero(xb):
    """At a class of −∞ the loss is −∞."""
    x = np.array([[0.0, -np.inf, 1.0], [0.0, 2.0, -np.inf]])
    targets = np.array([[0.5, -0.25, 0.25], [0.5, -0.25, 0.0]])
    for order in "CF":
        loss = xs.cross_entropy(put(xb, np.asarray(x, order=order)), put(xb, targets), reduction="none")
        assert get(xb, loss)[0] == -np.inf
        np.testing.assert_allclose(get(xb, loss)[1], 0.5 * 2.1269280110429727 - 0.25 * 0.1269280110429727, rtol=1e-6)


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("verb", [xs.linear_cross_entropy, xs.linear_cross_entropy_and_grad])
def test_class_weights_make_no_array_of_rows_and_classes(verb):
    rows, classes, width = 512, 8192, 4
    rng = np.random.default_rng(0)
    x, factor = (rng.normal(size=(n, width)).astype(np.float32) for n in (rows, classes))
    labels, weight = rng.integers(classes, size=rows), rng.random(classes).astype(np.float32)

    def peak(**options):
        verb(x, factor, labels, chunk_size=(64, 1024), **options)
        tracemalloc.start()
        try:
            verb(x, factor, labels, chunk_size=(64, 1024), **options)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(weight=weight) < peak() + rows * classes // 4


def test_constant_directions_of_rows_whose_factor_overflows(xb):
    """Their Hessian product is 0 whatever is finite; 0 · ∞ has no value."""
    if not hasattr(xb.xp, "arange"):
        pytest.skip(f"{xb.name} has no arange, which class indices need")
    big = float(np.finfo(widest(xb)).max)
    x, labels = put(xb, np.array([[1.0, 2.0, 3.0], [0.0, 5.0, 0.0]])), put(xb, np.array([0, 1]))
    v, weight = put(xb, np.full((2, 3), 3.0)), put(xb, np.full(3, big))
    for factor, expected in ((big, 0.0), (np.inf, np.nan)):
        options = {"sample_weight": put(xb, np.full(2, factor)), "weight": weight, "reduction": "sum"}
        with np.errstate(all="ignore"):
            product = get(xb, xs.cross_entropy_hvp(x, labels, v, **options))
        np.testing.assert_array_equal(product, np.full((2, 3), expected))
