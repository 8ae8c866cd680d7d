"""The contract matrix: implementation × verb × dtype on every case, judged by the exact oracle."""

import pytest
from kept_oracle import kept

from xsoftmax import choose, use_implementation
from xsoftmax.choose import candidates
from xsoftmax.libraries.arrays import library_of
from xsoftmax.verify import run
from xsoftmax.verify.cases import DTYPES, VERBS
from xsoftmax.verify.run import summarise, verify

REFUSAL = "was asked for but refuses"
# These take small arrays by entries, others by the operations.
WITH_ENTRIES = dict.fromkeys(("numpy_numba", "numpy_blocked", "torch_cpu"), ("float32", "float64"))
ON_INTEGERS = ["softmax", "log_softmax", "logsumexp", "cross_entropy_and_grad"]
# Compiling takes up to a second per case and shape: the inner operations, each through one verb in float32.
JITTED = ["softmax", "logsumexp", "log_softmax_vjp", "cross_entropy_and_grad", "cross_entropy_hvp"]


@pytest.fixture(autouse=True, scope="module")
def each_exact_result_once(request):
    """One store for all workers and sessions, beside pytest's own files."""
    cache = getattr(request.config, "cache", None)
    with pytest.MonkeyPatch.context() as patch:
        if cache is not None:
            patch.setattr(run, "exact_results", kept(run.exact_results, cache.mkdir("exact_results")))
        yield


def check(xb, verb, dtype, **options):
    """Every implementation that serves the backend, forced in turn; derivative rules stand in front of each."""
    compared, failures = 0, []
    for entry in candidates(library_of(xb.xp)):
        if entry.derivatives or (entry.name == "jax_jit" and (verb not in JITTED or dtype != "float32")):
            continue
        for small in (choose._SMALL, 0) if dtype in WITH_ENTRIES.get(entry.name, ()) else (0,):
            with use_implementation(entry.name), pytest.MonkeyPatch.context() as patch:
                patch.setattr(choose, "_SMALL", small)
                summaries = summarise(verify(xb, verbs=[verb], dtypes=[dtype], **options))
            compared += sum(summary.compared for summary in summaries)
            found = [failure for summary in summaries for failure in summary.failures]
            failures += [f"{entry.name}: {failure}" for failure in found if REFUSAL not in failure]
    assert failures == []
    assert compared > 0


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "integer"])
@pytest.mark.parametrize("verb", VERBS)
def test_contract(xb, verb, dtype):
    if dtype not in xb.dtypes():
        pytest.skip(f"{xb.name} has no {dtype}")
    check(xb, verb, dtype)


@pytest.mark.parametrize("verb", ON_INTEGERS)
def test_contract_on_integers(xb, verb):
    check(xb, verb, "integer")


@pytest.mark.backend("jax")
@pytest.mark.parametrize("verb", ["softmax", "log_softmax_vjp"])
def test_contract_jitted(request, verb):
    xb = request.getfixturevalue("live_backends")
    check(next(b for b in xb if b.name == "jax"), verb, "float32", jit=True)
