"""Derivatives of softmax and log_softmax under PyTorch's autograd, at the exact logits."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from derivatives import exact, logits, vectors  # noqa: E402

import xsoftmax as xs  # noqa: E402
from xsoftmax.libraries.backends import backend  # noqa: E402
from xsoftmax.verify.compare import Arithmetic, judge  # noqa: E402

pytestmark = [
    pytest.mark.backend("torch"),
    # PyTorch scripts its own decompositions when forward mode is first used
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

FLOATS = ("float16", "bfloat16", "float32", "float64")
MASK = np.random.default_rng(2).random((60, 5)) < 0.8
OPTIONS = {"plain": {}, "temperature": {"temperature": 2.0}, "where": {"where": MASK}}


def failures(found, order, dtype, *arrays, **options):
    got = backend("torch").to_numpy(found.detach())
    return judge(got, exact(order, *arrays, **options), Arithmetic(dtype)).failures


def derivatives(verb, x, u, w, **options):
    """Cotangent, tangent and the derivative of the cotangent along w, by backward, by forward mode and by both."""
    x, u, w = map(backend("torch").asarray, (x, u, w))
    if "where" in options:
        options["where"] = torch.from_numpy(options["where"])

    def f(x):
        return verb(x, **options)

    x.requires_grad_()
    (vjp,) = torch.autograd.grad(f(x), x, u, create_graph=True)
    (twice,) = torch.autograd.grad(vjp, x, w)
    x = x.detach()
    _, jvp = torch.func.jvp(f, (x,), (u,))
    _, mixed = torch.func.jvp(lambda x: torch.func.vjp(f, x)[1](u)[0], (x,), (w,))
    by_row = {name: option for name, option in options.items() if name != "where"}

    def of_row(x, u, *where):
        return torch.func.vjp(lambda x: verb(x, **by_row, **dict(zip(("where",), where, strict=False))), x)[1](u)[0]

    masks = (options["where"],) if "where" in options else ()
    return {"vjp": vjp, "jvp": jvp, "twice": twice, "mixed": mixed, "vmap": torch.func.vmap(of_row)(x, u, *masks)}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_log_softmax(dtype, options):
    x, (u, w) = logits(dtype), vectors(dtype)
    found = derivatives(xs.log_softmax, x, u, w, **options)
    for name in ("vjp", "vmap"):
        assert failures(found[name], "log_softmax vjp", dtype, x, u, **options) == []
    assert failures(found["jvp"], "log_softmax jvp", dtype, x, u, **options) == []
    for name in ("twice", "mixed"):
        assert failures(found[name], "log_softmax twice", dtype, x, u, w, **options) == []


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax(dtype, options):
    x, (u, w) = logits(dtype), vectors(dtype)
    found = derivatives(xs.softmax, x, u, w, **options)
    for name in ("vjp", "jvp", "vmap"):
        assert failures(found[name], "softmax", dtype, x, u, **options) == []
    for name in ("twice", "mixed"):
        assert failures(found[name], "softmax twice", dtype, x, u, w, **options) == []


@pytest.mark.parametrize("dtype", FLOATS)
def test_classes_on_another_axis(dtype):
    x, (u, _) = logits(dtype), vectors(dtype)
    a = backend("torch").asarray(x.T.copy()).requires_grad_()
    (found,) = torch.autograd.grad(xs.log_softmax(a, axis=0), a, backend("torch").asarray(u.T.copy()))
    assert failures(found.T, "log_softmax vjp", dtype, x, u) == []


def test_the_hessian_of_a_confident_class():
    """∂² log y_0 / ∂x ∂x = −(diag y − y yᵀ)"""
    x = torch.tensor([60.0, 0.0], dtype=torch.float64)
    found = torch.func.hessian(lambda x: xs.log_softmax(x)[0])(x)
    y = float(torch.exp(torch.tensor(-60.0, dtype=torch.float64)))
    torch.testing.assert_close(found, y * torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))
