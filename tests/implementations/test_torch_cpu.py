"""PyTorch tensors on the CPU as NumPy arrays: no copies, no wrapped tensor, the formulas for the rest."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
from torch.autograd import forward_ad  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

import xsoftmax as xs  # noqa: E402
from xsoftmax.implementations.torch import cpu as torch_cpu  # noqa: E402
from xsoftmax.implementations.torch.memory import are_plain, have_tangents  # noqa: E402

pytestmark = pytest.mark.backend("torch")

X = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40)


def test_plain_tensors_are_taken():
    assert xs.explain("softmax", X).implementation == "torch_cpu"
    assert xs.explain("cross_entropy_grad", torch.nn.Parameter(X), LABELS).implementation == "torch_cpu"


def test_bfloat16_needs_its_numpy_dtype(monkeypatch):
    problem = SimpleNamespace(container="Tensor", device="cpu", dtype="bfloat16", result="bfloat16")
    assert torch_cpu.refuses(problem) == []
    monkeypatch.setattr(torch_cpu, "find_spec", lambda name: None)
    missing = "ml_dtypes, NumPy's bfloat16, is not installed: pip install ml_dtypes"
    assert torch_cpu.refuses(problem) == [missing]


def test_subclasses_are_left_to_the_formulas():
    class Mine(torch.Tensor):
        pass

    explanation = xs.explain("softmax", X.as_subclass(Mine))
    assert explanation.refused["torch_cpu"] == ("a Mine is not plain memory",)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_as_the_formulas(dtype):
    x = X.to(dtype)
    for f in (
        xs.softmax,
        xs.log_softmax,
        xs.logsumexp,
        lambda x: xs.cross_entropy(x, LABELS),
        lambda x: xs.cross_entropy_grad(x, LABELS),
        lambda x: xs.softmax_vjp(xs.softmax(x), x),
    ):
        found = f(x)
        with xs.use_implementation("array_api"):
            torch.testing.assert_close(found, f(x), rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_memory_is_shared():
    y = torch.empty_like(X)
    pointer = y.data_ptr()
    assert xs.softmax(X, out=y) is y
    assert y.data_ptr() == pointer
    torch.testing.assert_close(y, torch.softmax(X, -1))
    loss, grad = xs.cross_entropy_and_grad(X, LABELS, out=y)
    assert grad is y
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(X, LABELS))


@pytest.mark.parametrize(
    ("tensor", "plain"),
    [
        (X, True),
        (X.T, True),
        (torch.nn.Parameter(X), False),
        (X.to(torch.bfloat16), True),
        (torch._neg_view(X), False),
        (torch.empty(2, device="meta"), False),
        (torch._efficientzerotensor(2), False),
    ],
    ids=["plain", "transposed", "records", "bfloat16", "negated", "meta", "zero"],
)
def test_plain(tensor, plain):
    assert are_plain("cpu", tensor, None, 1.0) == plain


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # PyTorch's own, for its first dual tensor
def test_tangents():
    assert not have_tangents(X, None)
    with forward_ad.dual_level():
        assert not have_tangents(X, None, 1.0)
        assert have_tangents(X, forward_ad.make_dual(X, X))


def test_a_traced_program_computes():
    """Tracing sees PyTorch's own operations alone."""
    program = make_fx(lambda x: xs.softmax(x))(X)
    torch.testing.assert_close(program(2 * X), torch.softmax(2 * X, -1))


def test_labels_out_of_range_under_a_transform():
    """They can't raise there, and must not be read behind the row."""
    gradient = torch.func.vmap(torch.func.grad(xs.cross_entropy))(X[:2].double(), torch.tensor([1, 10**6]))
    assert torch.isfinite(gradient[0]).all()
    assert torch.isnan(gradient[1]).all()
