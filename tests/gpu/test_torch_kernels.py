"""PyTorch's CUDA tensors by the same kernels. ``pytest --backend torch:cuda tests/gpu``"""

import pytest

import xsoftmax as xs

torch = pytest.importorskip("torch")
pytest.importorskip("cupy", exc_type=ImportError)
pytestmark = pytest.mark.backend("torch:cuda")


@pytest.fixture(autouse=True)
def kernels():
    with xs.use_implementation("torch_cuda"):
        yield


def logits(dtype=torch.float32, **options):
    return torch.randn(64, 501, device="cuda", generator=torch.Generator("cuda").manual_seed(3)).to(dtype)


LABELS = torch.arange(64) * 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_as_on_the_cpu(dtype):
    x, labels = logits(dtype), LABELS.cuda()
    with xs.use_implementation("array_api"):
        expected = [xs.softmax(x.cpu()), *xs.cross_entropy_and_grad(x.cpu(), LABELS)]
    eps = torch.finfo(dtype).eps
    for found, exact in zip([xs.softmax(x), *xs.cross_entropy_and_grad(x, labels)], expected, strict=True):
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), exact, rtol=2 * eps, atol=2 * eps / 64)


def test_derivatives():
    x, labels = logits(torch.float64).requires_grad_(), LABELS.cuda()
    (found,) = torch.autograd.grad(xs.cross_entropy(x, labels), x)
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(x, labels), x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(xs.log_softmax, x[:2, :5].detach().requires_grad_())


def test_the_stream_is_pytorchs():
    """On a side stream, behind work that takes a while: a kernel on another stream would read too early."""
    x = logits()
    expected = xs.softmax(x + 1)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        found = xs.softmax(x + 1)
    stream.synchronize()
    assert torch.equal(found, expected)


def test_who_runs():
    assert xs.explain("softmax", logits()).implementation == "torch_cuda"
    explanation = xs.explain("softmax", torch.zeros(3))
    assert explanation.implementation is None
