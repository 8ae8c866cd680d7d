"""Hessian products and diagonals of float64 rows whose terms are rounded one way: one class above the others, equal
targets, directions that are 0 for most classes."""

import functools
from contextlib import nullcontext

import numpy as np
import pytest

import xsoftmax as xs
from xsoftmax.verify.compare import Arithmetic, judge
from xsoftmax.verify.oracle import expected

VERBS = "cross_entropy_hvp", "cross_entropy_grad_and_hessian_diag"
CASES = [  # seed, classes, how far above, with weights, with label smoothing
    (9, 63, 20, False, False),
    (25, 257, 20, True, False),
    (5, 1000, 8, True, True),
    (2699, 33, 8, True, False),
]
WILD = 155, 1239, 1275


@functools.cache
def problem(seed, classes, margin, weighted, smoothed):
    rng, options = np.random.default_rng(seed), {"reduction": "none"}
    x = rng.normal(size=(24, classes))
    x[:, 0] += margin * rng.random(24)
    arrays = {"logits": x, "targets": np.full(x.shape, 1 / classes), "v": np.round(rng.normal(size=x.shape))}
    if weighted:
        options["weight"] = rng.random(classes) + 0.1
    if smoothed:
        arrays["targets"] = rng.integers(0, classes, 24)
        options["label_smoothing"] = 0.3
    return arrays, options, expected(VERBS, arrays, options)


@functools.cache
def wild(seed):
    """Rows that share what their targets, class weights, sample weights, smoothing, z-loss and mean are rounded by."""
    rng = np.random.default_rng(seed)
    classes, rows = int(rng.choice([10, 33, 100])), 12
    x = rng.normal(size=(rows, classes)) * rng.choice([1, 3, 10])
    targets = np.full(x.shape, 1 / classes) if rng.random() < 0.5 else np.eye(classes)[rng.integers(0, classes, rows)]
    arrays = {"logits": x, "targets": targets, "v": np.abs(rng.normal(size=x.shape))}
    options = {"weight": np.exp(5 * rng.normal(size=classes)), "sample_weight": rng.random(rows) + 0.01}
    options["label_smoothing"], options["z_loss"] = float(rng.random()), float(10 ** rng.uniform(-6, 1))
    return arrays, options, expected(VERBS, arrays, options)


@pytest.mark.parametrize("implementation", [None, "numpy_blocked", "array_api"])
@pytest.mark.parametrize("case", CASES)
def test_roundings_that_terms_share(xb, implementation, case):
    assert failures(xb, implementation, *problem(*case)) == []


@pytest.mark.parametrize("implementation", [None, "numpy_blocked", "array_api"])
@pytest.mark.parametrize("seed", WILD)
def test_roundings_that_rows_share(xb, implementation, seed):
    assert failures(xb, implementation, *wild(seed)) == []


def failures(xb, implementation, arrays, options, exact):
    if not xb.float64 or not hasattr(xb.xp, "arange"):
        pytest.skip(f"{xb.name} has no float64, or no arange")
    if implementation is not None and xb.name != "numpy":
        pytest.skip("other implementations of NumPy's")
    x, targets, v = (xb.asarray(a) for a in arrays.values())
    options = {name: xb.asarray(a) if isinstance(a, np.ndarray) else a for name, a in options.items()}
    with xs.use_implementation(implementation) if implementation else nullcontext():
        product = xs.cross_entropy_hvp(x, targets, v, **options)
        _, diag = xs.cross_entropy_grad_and_hessian_diag(x, targets, **options)
    arithmetic = Arithmetic("float64", flushes=xb.flushes_subnormals)
    results = (product, exact[VERBS[0]][0]), (diag, exact[VERBS[1]][1])
    return [failure for found, e in results for failure in judge(xb.to_numpy(found), e, arithmetic).failures]
