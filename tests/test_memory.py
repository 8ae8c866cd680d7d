"""The memory benchmark sees a temporary, and a class weight makes none of the logits' size."""

import sys
from pathlib import Path

import numpy as np
import pytest

import xsoftmax as xs

pytest.importorskip("rich", reason='pip install ".[cli]"')
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux keeps the peak")

SHAPE = 4096, 1024  # 16 MiB of float32
X = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
LABELS = np.random.default_rng(1).integers(0, SHAPE[1], SHAPE[0])
WEIGHT = np.ones(SHAPE[1], np.float32)


@pytest.fixture
def extra(monkeypatch):
    """Arrays of the logits' size that a call takes beside its results."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import memory

    def extra(call):
        return memory.extra(xs.backend("numpy"), lambda _: call(), {}) / X.nbytes

    yield extra
    sys.modules.pop("memory", None)


@pytest.mark.parametrize("copies", [0, 1, 3])
def test_temporaries_are_seen(extra, copies):
    def call():
        held = [X + 1.0 for _ in range(copies)]
        return np.full(SHAPE, len(held), np.float32)

    assert extra(call) == pytest.approx(copies, abs=0.25)  # beside it Python's own pages


@pytest.mark.parametrize("implementation", ["numpy_blocked", "numpy_numba"])
@pytest.mark.parametrize("verb", [xs.cross_entropy, xs.cross_entropy_and_grad])
def test_a_class_weight_costs_no_array_of_logits(extra, implementation, verb):
    if implementation == "numpy_numba":
        pytest.importorskip("numba")
    with xs.use_implementation(implementation):
        verb(X[:8], LABELS[:8], weight=WEIGHT)
        assert extra(lambda: verb(X, LABELS, weight=WEIGHT)) < 0.5  # blocks of 8 MiB a thread at most
