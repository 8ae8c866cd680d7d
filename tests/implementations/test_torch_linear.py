"""Derivatives of a linear layer's loss under PyTorch: those of the logits' own loss, to the second order."""

import numpy as np
import pytest

import xsoftmax as xs

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.backend("torch"),
    # PyTorch scripts its own decompositions when forward mode is first used
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

N, D, V = 6, 4, 7
_GENERATOR = torch.Generator().manual_seed(5)
LABELS = torch.randint(V, (N,), generator=_GENERATOR)
CHUNKS = [None, 2, (4, 3)]


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=_GENERATOR)


ARGUMENTS = (normal(N, D), normal(V, D), normal(V), torch.abs(normal(N)))
FROZEN = ARGUMENTS[1], LABELS
DIRECTION = tuple(map(torch.ones_like, ARGUMENTS))
OPTIONS = [{}, {"softcap": 3.0, "temperature": 0.7, "label_smoothing": 0.1}]


def scalar(chunk_size, options, reduction):
    """The same curved function of a loss, from blocks and from whole logits."""

    def linear(x, factor, bias, s):
        loss = xs.linear_cross_entropy(
            x, factor, LABELS, linear_bias=bias, sample_weight=s, chunk_size=chunk_size, reduction=reduction, **options
        )
        return torch.sum(loss**2)

    def plain(x, factor, bias, s):
        loss = xs.cross_entropy(x @ factor.T + bias, LABELS, sample_weight=s, reduction=reduction, **options)
        return torch.sum(loss**2)

    return linear, plain


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "transformed"])
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_first_and_second_order(chunk_size, options, reduction):
    everything = (0, 1, 2, 3)
    linear, plain = scalar(chunk_size, options, reduction)
    first, expected = (torch.func.grad(f, everything) for f in (linear, plain))
    assert_same(first(*ARGUMENTS), expected(*ARGUMENTS))
    for found, reference in zip(
        torch.func.jacrev(first, everything)(*ARGUMENTS),
        torch.func.jacrev(expected, everything)(*ARGUMENTS),
        strict=True,
    ):
        assert_same(found, reference)
    for f, g in ((linear, plain), (first, expected)):
        found, reference = (torch.func.jvp(h, ARGUMENTS, DIRECTION)[1] for h in (f, g))
        assert_same(*((a if isinstance(a, tuple) else (a,)) for a in (found, reference)))


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_backward_twice(chunk_size):
    x, factor, bias, _ = (a.clone().requires_grad_() for a in ARGUMENTS)

    def loss(x, factor, bias):
        return xs.linear_cross_entropy(x, factor, LABELS, linear_bias=bias, chunk_size=chunk_size)

    assert torch.autograd.gradcheck(loss, (x, factor, bias))
    assert torch.autograd.gradgradcheck(loss, (x, factor, bias))


def test_gradient_is_made_with_the_loss():
    """Backward multiplies no matrices; it may come again, and with any cotangent."""
    x, factor, bias = (a.clone().requires_grad_() for a in ARGUMENTS[:3])
    loss = xs.linear_cross_entropy(x, factor, LABELS, linear_bias=bias, chunk_size=2)
    expected = torch.autograd.grad(xs.cross_entropy(x @ factor.T + bias, LABELS), (x, factor, bias))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        found = torch.autograd.grad(loss, (x, factor, bias), retain_graph=True)
    operations = {event.key for event in profiler.key_averages()}
    assert "aten::mul" in operations
    assert not operations & {"aten::mm", "aten::matmul", "aten::addmm"}
    assert_same(found, expected)
    (twice,) = torch.autograd.grad(2.0 * loss, factor)
    assert_same([twice], [2.0 * expected[1]])


def test_frozen_layer():
    x = ARGUMENTS[0].clone().requires_grad_()
    loss, plain = (
        f(x)
        for f in (lambda x: xs.linear_cross_entropy(x, *FROZEN), lambda x: xs.cross_entropy(x @ FROZEN[0].T, LABELS))
    )
    assert_same(*(torch.autograd.grad(f, x) for f in (loss, plain)))


def test_cotangent_keeps_float16_from_underflow():
    n, w = 500, 2.0**-10
    x = torch.ones(n, 1, dtype=torch.float16).requires_grad_()
    factor = torch.tensor([[w], [-w]], dtype=torch.float16)
    loss = xs.linear_cross_entropy(x, factor, torch.zeros(n, dtype=torch.int64))
    (grad,) = torch.autograd.grad(loss * 2.0**16, x)
    np.testing.assert_allclose(grad, np.full((n, 1), -(2.0**17) * w / (1.0 + np.exp(2.0 * w)) / n), rtol=2.0**-11)


@pytest.mark.parametrize("asks", [False, True])
def test_autocast_rounds_nothing(asks):
    x, factor = (a.float().requires_grad_(asks) for a in ARGUMENTS[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = xs.linear_cross_entropy(x, factor, LABELS)
    torch.testing.assert_close(loss, xs.linear_cross_entropy(x, factor, LABELS), rtol=0.0, atol=0.0)


def test_gradients_have_derivatives():
    x, factor, bias, _ = (a.clone().requires_grad_() for a in ARGUMENTS)
    found = xs.linear_cross_entropy_and_grad(x, factor, LABELS, linear_bias=bias, chunk_size=2)
    loss, g = xs.cross_entropy_and_grad(x @ factor.T + bias, LABELS)
    expected = loss, g @ factor, g.T @ x, g.sum(dim=0)
    back = [
        torch.autograd.grad(sum(torch.sum(a**3) for a in results), (x, factor, bias)) for results in (found, expected)
    ]
    assert_same(*back)


def test_absent_rows_have_no_gradient():
    """Whatever they hold, to the second order."""
    x = ARGUMENTS[0].clone()
    x[1] = torch.nan
    labels = torch.where(torch.arange(N) == 1, -100, LABELS)
    x.requires_grad_()
    factor = ARGUMENTS[1].clone().requires_grad_()
    loss = xs.linear_cross_entropy(x, factor, labels, ignore_index=-100, chunk_size=2)
    first = torch.autograd.grad(loss, (x, factor), create_graph=True)
    assert torch.all(first[0][1] == 0.0)
    second = torch.autograd.grad(torch.sum(first[1] ** 2), (x, factor))
    kept = torch.arange(N) != 1
    for a in (first[0], first[1], second[0][kept], second[1]):
        assert torch.all(torch.isfinite(a))


def test_gradient_of_each_sample():
    def linear(factor, bias, row, label):
        return xs.linear_cross_entropy(row[None], factor, label[None], linear_bias=bias)

    def plain(factor, bias, row, label):
        return xs.cross_entropy(row[None] @ factor.T + bias, label[None])

    x, factor, bias, _ = ARGUMENTS
    results = [
        torch.func.vmap(torch.func.grad(f, (0, 1)), (None, None, 0, 0))(factor, bias, x, LABELS)
        for f in (linear, plain)
    ]
    assert_same(*results)


@pytest.mark.parametrize("name", ["targets", "weight"])
def test_other_derivatives_are_refused(name):
    x, factor, _, _ = ARGUMENTS
    q = torch.softmax(normal(N, V), dim=-1).requires_grad_(name == "targets")
    weight = torch.abs(normal(V)).requires_grad_(name == "weight")
    message = rf"^linear_cross_entropy: no derivative with respect to {name} is there; detach it$"
    with pytest.raises(NotImplementedError, match=message):
        xs.linear_cross_entropy(x, factor, q, weight=weight).backward()


# its tracer says that it sees through caches, and looks at the grad of tensors that are no leaves
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled():
    def step(x, factor):
        return xs.linear_cross_entropy(x, factor, LABELS, chunk_size=2)

    given = [a.clone().requires_grad_() for a in ARGUMENTS[:2]]
    loss = torch.compile(step, backend="aot_eager")(*given)
    assert_same(torch.autograd.grad(loss, given), torch.autograd.grad(step(*given), given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "ignore_index": int(LABELS[0])}])
def test_as_pytorch_has_it(options, dtype):
    function = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if function is None:
        pytest.skip(f"PyTorch {torch.__version__} has no linear_cross_entropy, 2.13 has")
    results = []
    for loss in (function, xs.linear_cross_entropy):
        x, factor, bias = (a.to(dtype).requires_grad_() for a in ARGUMENTS[:3])
        value = loss(x, factor, LABELS, linear_bias=bias, **options)
        results.append([value.float().detach(), *(a.float() for a in torch.autograd.grad(value, (x, factor, bias)))])
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_dtype_of_gradients():
    x, factor = (a.to(torch.bfloat16).requires_grad_() for a in ARGUMENTS[:2])
    loss = xs.linear_cross_entropy(x, factor, LABELS, chunk_size=2)
    assert loss.dtype == torch.float32
    loss.backward()
    assert (x.grad.dtype, factor.grad.dtype) == (torch.bfloat16, torch.bfloat16)


def test_empty_batch_is_connected():
    x, factor = ARGUMENTS[0][:0].clone().requires_grad_(), ARGUMENTS[1].clone().requires_grad_()
    xs.linear_cross_entropy(x, factor, LABELS[:0], reduction="sum").backward()
    assert x.grad.shape == (0, D)
    assert torch.all(factor.grad == 0.0)
