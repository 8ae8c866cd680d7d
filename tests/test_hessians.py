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
]


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


@pytest.mark.parametrize("implementation", [None, "numpy_blocked", "array_api"])
@pytest.mark.parametrize("case", CASES)
def test_roundings_that_terms_share(xb, implementation, case):
    if not xb.float64 or not hasattr(xb.xp, "arange"):
        pytest.skip(f"{xb.name} has no float64, or no arange")
    if implementation is not None and xb.name != "numpy":
        pytest.skip("other implementations of NumPy's")
    arrays, options, exact = problem(*case)
    x, targets, v = (xb.asarray(a) for a in arrays.values())
    options = {name: xb.asarray(a) if isinstance(a, np.ndarray) else a for name, a in options.items()}
    with xs.use_implementation(implementation) if implementation else nullcontext():
        product = xs.cross_entropy_hvp(x, targets, v, **options)
        _, diag = xs.cross_entropy_grad_and_hessian_diag(x, targets, **options)
    arithmetic = Arithmetic("float64", flushes=xb.flushes_subnormals)
    for found, reference in ((product, exact[VERBS[0]][0]), (diag, exact[VERBS[1]][1])):
        assert not judge(xb.to_numpy(found), reference, arithmetic).failures
