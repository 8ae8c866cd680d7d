"""The operations by CUDA kernels, run on the host, keep the contract on every case."""

import contextlib

import host_kernels
import numpy as np
import pytest
from random_problems import failures

import xsoftmax as xs
from xsoftmax.calls.records import Options
from xsoftmax.verify import run as verification
from xsoftmax.verify.cases import DTYPES
from xsoftmax.verify.inputs import numpy_dtype
from xsoftmax.verify.run import plan, summarise, verify

pytestmark = [
    pytest.mark.backend("numpy"),
    pytest.mark.slow,
    pytest.mark.skipif(host_kernels.COMPILER is None, reason="no g++ here"),
]

LOOKED_AT = "no error, expected ValueError"  # of NumPy's labels, which a device's kernels leave as rows of nan
VERBS = (
    "softmax",
    "log_softmax",
    "logsumexp",
    "softmax_vjp",
    "log_softmax_vjp",
    "log_softmax_jvp",
    "cross_entropy",
    "cross_entropy_and_grad",
)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "integer"])
@pytest.mark.parametrize("verb", VERBS)
def test_contract(on_host, tmp_path, monkeypatch, verb, dtype):
    numpy = xs.backend("numpy")
    steps = [step for step in plan(numpy, verbs=[verb], dtypes=[dtype]) if dtype == "float32" or not is_long(step)]
    monkeypatch.setattr(verification, "plan", lambda *args, **options: steps)
    for step in steps:
        with np.errstate(all="ignore"), contextlib.suppress(ValueError):
            verification._call(numpy, verb, step.case, "float64", False)
    on_host.compile(tmp_path)
    (summary,) = summarise(verify(numpy, verbs=[verb], dtypes=[dtype]))
    assert on_host.missing == set()
    assert [failure for failure in summary.failures if not failure.endswith(LOOKED_AT)] == []
    assert summary.compared > 0


def is_long(step):
    """The kernels of long rows are the same for every dtype, and their exact results take half a minute."""
    return max(a.size for a in step.case.arrays.values()) > 1 << 14


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("rows", [7, 40_000])
@pytest.mark.parametrize(
    "options", [{}, {"weight": 1}, {"sample_weight": 1}, {"ignore_index": -100, "z_loss": 0.1, "weight": 1}]
)
def test_weighing(on_host, tmp_path, rows, options, reduction):
    """As by the formulas, also for labels that are no class."""
    rng = np.random.default_rng(rows)
    x, labels = rng.normal(size=(rows, 5)), rng.integers(0, 5, rows)
    labels[::3] = options.get("ignore_index", 0)
    arrays = {"weight": rng.uniform(0.5, 2, 10)[::2], "sample_weight": rng.integers(0, 3, rows) / 2}
    options = options | {name: arrays[name] for name in arrays if name in options} | {"reduction": reduction}
    with np.errstate(all="ignore"):
        xs.cross_entropy_and_grad(x, labels, **options)
    on_host.compile(tmp_path)
    loss, grad = xs.cross_entropy_and_grad(x, labels, **options)
    with xs.use_implementation("array_api"):
        expected = xs.cross_entropy_and_grad(x, labels, **options)
    assert on_host.missing == set()
    np.testing.assert_allclose(loss, expected.loss, rtol=1e-15)
    np.testing.assert_allclose(grad, expected.grad, rtol=2e-15, atol=4e-16)  # where T y − t cancels
    labels[1] = 5
    loss, grad = xs.cross_entropy_and_grad(x, labels, **options)
    if options.get("sample_weight", labels)[1] != 0:
        assert np.isnan(loss if reduction != "none" else loss[1]).all()
        assert np.isnan(grad[1]).all()
    assert np.isfinite(np.delete(grad, 1, axis=0)).all()


@pytest.mark.parametrize("block", range(4))
def test_random_problems(on_host, tmp_path, block):
    seeds, numpy = range(25 * block, 25 * block + 25), xs.backend("numpy")
    with np.errstate(all="ignore"):
        for seed in seeds:
            failures(numpy, seed)
    on_host.compile(tmp_path)
    assert [failure for seed in seeds for failure in failures(numpy, seed)] == []
    assert on_host.missing == set()


@pytest.mark.parametrize("shape", [(4, 10), (1, 1), (7, 300), (20_000, 3)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_short_cuts(on_host, tmp_path, dtype, shape):
    """The same bits as the long way, and the same refusals."""
    rng = np.random.default_rng(shape[1])
    x = host_kernels.aligned(rng.normal(size=shape).astype(numpy_dtype(dtype)))
    labels = rng.integers(0, shape[1], shape[0])
    found, usual = host_kernels.short_cuts(on_host, dtype), tuple(Options())

    def both():
        short = {name: found[name](x, None, 1.0, None, None) for name in ("softmax", "log_softmax")}
        short |= {"logsumexp": found["logsumexp"](x, None, False, None)}
        short |= {"cross_entropy": found["cross_entropy"](x, labels.astype(np.uint16), usual, None, None)}
        loss, grad = found["cross_entropy_and_grad"](x, labels, usual, None, None)
        long = {name: getattr(xs, name)(x) for name in ("softmax", "log_softmax", "logsumexp")}
        long |= {"cross_entropy": xs.cross_entropy(x, labels)}
        expected = xs.cross_entropy_and_grad(x, labels)
        return short | {"loss": loss, "grad": grad}, long | {"loss": expected.loss, "grad": expected.grad}

    with np.errstate(all="ignore"):
        both()
    on_host.compile(tmp_path)
    short, long = both()
    for name in long:
        assert short[name].dtype == long[name].dtype
        np.testing.assert_array_equal(short[name], long[name])
    y = x.copy()
    assert found["softmax"](y, None, 1.0, y, None) is y
    np.testing.assert_array_equal(y, long["softmax"])
    assert found["cross_entropy"](x, labels[1:], usual, None, None) is None
    assert found["cross_entropy"](x, labels.astype(float), usual, None, None) is None
    assert found["softmax"](x, None, 1.0, x[:, ::-1], None) is None
    assert found["softmax"](x, x == x, 1.0, None, None) is None
    assert found["softmax"](x, None, 2.0, None, None) is None
    assert found["cross_entropy"](x, labels, (*usual[:-1], "sum"), None, None) is None
    if x.size > 1:
        flat = np.zeros(x.size + 1, x.dtype)
        assert found["softmax"](flat[1:].reshape(shape), None, 1.0, flat[:-1].reshape(shape), None) is None
