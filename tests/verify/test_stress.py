"""A small search for counter-examples; the large one is ``benchmarks/stress.py``."""

import numpy as np
import pytest
from random_problems import stress

from xsoftmax.libraries.backends import backend
from xsoftmax.verbs import functions
from xsoftmax.verify.cases import FLOATS

pytestmark = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than float64, which it would have to screen"
)


def last(*arguments):
    *_, found = stress.search(backend("numpy"), *arguments)
    return found


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("verb", stress.REFERENCES)
def test_no_counter_example(verb, dtype):
    found = last(verb, dtype, 60_000)
    assert found.screened >= 60_000
    assert found.verdict.failures == []
    assert 0 < found.verdict.worst <= found.verdict.bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_plain_formula_is_found_out(monkeypatch, dtype):
    """The rounding of x − max alone is 64 ulp in float32, 512 in float64."""

    def plain(x):
        w = np.exp(x - np.max(x, axis=-1, keepdims=True))
        return w / np.sum(w, axis=-1, keepdims=True)

    monkeypatch.setattr(functions, "softmax", plain)
    assert last("softmax", dtype, 100_000).verdict.worst > 20
