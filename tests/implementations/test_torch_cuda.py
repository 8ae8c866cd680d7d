"""The kernels on PyTorch's tensors, of the host instead of a device: how tensors are read, made and handed over."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from support import forget_choices

torch = pytest.importorskip("torch")

import xsoftmax as xs  # noqa: E402
from xsoftmax.calls.records import Problem  # noqa: E402
from xsoftmax.implementations.cupy.operations import Operations  # noqa: E402
from xsoftmax.implementations.cupy.weights import Weighings  # noqa: E402
from xsoftmax.implementations.torch import cuda as torch_cuda  # noqa: E402
from xsoftmax.implementations.torch import memory  # noqa: E402

_PATH = Path(__file__).parents[1] / "kernels" / "cuda" / "host_kernels.py"
_SPEC = importlib.util.spec_from_file_location("host_kernels", _PATH)
host_kernels = sys.modules["host_kernels"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(host_kernels)

pytestmark = pytest.mark.backend("torch")

RNG = np.random.default_rng(2)
X = torch.from_numpy(RNG.normal(size=(6, 21))).float()
LABELS = torch.from_numpy(RNG.integers(0, 21, 6))
CALLS = {
    "softmax": lambda x: xs.softmax(x),
    "softmax of columns": lambda x: xs.softmax(x.T, axis=0),
    "softmax of every other": lambda x: xs.softmax(x[:, ::2]),
    "log_softmax, masked": lambda x: xs.log_softmax(x, where=x > -1),
    "logsumexp of both axes": lambda x: xs.logsumexp(x, axis=None),
    "products": lambda x: (xs.softmax_vjp(torch.softmax(x, -1), x), xs.log_softmax_jvp(torch.log_softmax(x, -1), x)),
    "mean": lambda x: xs.cross_entropy_and_grad(x, LABELS, ignore_index=3, weight=torch.arange(21.0)),
    "sum": lambda x: xs.cross_entropy_and_grad(
        x, torch.softmax(x, -1), sample_weight=torch.arange(6.0), reduction="sum"
    ),
    "rows": lambda x: xs.cross_entropy_and_grad(x, LABELS.to(torch.uint8), label_smoothing=0.1, reduction="none"),
    "bfloat16": lambda x: xs.cross_entropy_and_grad(x.to(torch.bfloat16), LABELS),
}


class OnHost(torch_cuda._Torch):
    def __init__(self, host):
        self.host = host

    def device(self, x):
        return self.host.on

    def launch(self, x, launch, blocks, arguments):
        self.host.launch(x, launch, blocks, arguments)


@pytest.fixture
def host(monkeypatch):
    """Tensors of the CPU pass for those of a device."""
    host = host_kernels.Host()
    library = OnHost(host)
    plain = memory.are_plain
    monkeypatch.setattr(torch_cuda, "_operations", Operations(library))
    monkeypatch.setattr(torch_cuda, "_weighings", Weighings(library))
    monkeypatch.setattr(torch_cuda, "refuses", lambda problem: [])
    monkeypatch.setattr(torch_cuda, "are_plain", lambda device, *values: plain("cpu", *values))
    forget_choices()
    with xs.use_implementation("torch_cuda"):
        yield host
    forget_choices()


def parts(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.slow
@pytest.mark.skipif(host_kernels.COMPILER is None, reason="no g++ here")
def test_as_by_the_formulas(host, tmp_path):
    for call in CALLS.values():
        call(X)
    host.compile(tmp_path)
    for name, call in CALLS.items():
        found = parts(call(X))
        with xs.use_implementation("array_api"):
            expected = parts(call(X))
        for a, b in zip(found, expected, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            eps = torch.finfo(a.dtype).eps
            torch.testing.assert_close(a, b, rtol=2 * eps, atol=eps / 8, msg=lambda text, name=name: f"{name}: {text}")
    assert host.missing == set()


@pytest.mark.slow
@pytest.mark.skipif(host_kernels.COMPILER is None, reason="no g++ here")
def test_derivatives(host, tmp_path):
    """The rules stand in front of the kernels; a recorded loss is summed by PyTorch."""
    x = X.double().requires_grad_()
    xs.cross_entropy(x, LABELS).backward()
    (xs.log_softmax(x) ** 2).sum().backward()
    host.compile(tmp_path)
    (found,) = torch.autograd.grad(xs.cross_entropy(x, LABELS), x)
    expected = (torch.softmax(x, -1) - torch.nn.functional.one_hot(LABELS, 21)).detach() / 6
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-16)
    (found,) = torch.autograd.grad((xs.log_softmax(x) ** 2).sum(), x)
    (expected,) = torch.autograd.grad((torch.log_softmax(x, -1) ** 2).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert host.missing == set()


def _problem(device):
    return Problem("softmax", "torch", "Tensor", "float32", "float64", "float32", (-1,), device=device)


def test_refusals(monkeypatch):
    assert torch_cuda.refuses(_problem("cpu")) == ["a Tensor is not plain memory of a CUDA device"]
    monkeypatch.setattr(torch_cuda, "find_spec", lambda name: None)
    missing = 'CuPy, which launches the kernels, is not installed: pip install "xsoftmax[cuda13x]"'
    assert torch_cuda.refuses(_problem("cuda")) == [missing]
