"""Every verb is one node of PyTorch's compiled graphs, with its rules, for sizes that change too."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

import xsoftmax as xs  # noqa: E402
from xsoftmax.calls.table import VERBS  # noqa: E402

pytestmark = pytest.mark.backend("torch")

# The graph's operations are those of the formulas: in float64 both are within 6 ulp of the exact result.
CLOSE = {"rtol": 12 * 2.0**-52, "atol": 12 * 2.0**-52}

X = torch.from_numpy(np.random.default_rng(5).normal(size=(4, 3)))
P = torch.softmax(X, -1)
LABELS = torch.tensor([0, 2, 1, 1])
FACTOR, INPUT = X[:3], X[:, :3].flip(0)
WEIGHT, SAMPLE_WEIGHT = torch.tensor([1.0, 0.5, 2.0]), torch.tensor([1.0, 0.0, 2.0, 1.0])
WHERE = torch.tensor([[True, True, False], [True, True, True], [True, True, True], [False, True, True]])
MIX = {"label_smoothing": 0.1, "temperature": 2.0, "softcap": 3.0, "z_loss": 0.1, "where": WHERE, "weight": WEIGHT}
ROWS = {"sample_weight": SAMPLE_WEIGHT, "ignore_index": 1, "reduction": "none"}

CALLS = {
    "softmax": [((X,), {}), ((X,), {"axis": (0, 1), "where": WHERE, "temperature": 0.5})],
    "log_softmax": [((X,), {}), ((X,), {"axis": 0, "where": WHERE, "temperature": 0.5})],
    "logsumexp": [((X,), {"axis": None}), ((X,), {"b": WEIGHT - 1.0, "keepdims": True, "return_sign": True})],
    "softmax_jacobian": [((P,), {})],
    "softmax_vjp": [((P, X), {"where": WHERE})],
    "softmax_jvp": [((P, X), {})],
    "log_softmax_vjp": [((P.log(), X), {})],
    "log_softmax_jvp": [((P.log(), X), {"where": WHERE})],
    "cross_entropy": [((X, LABELS), MIX), ((X, LABELS), ROWS), ((X, P), MIX)],
    "cross_entropy_grad": [((X, LABELS), ROWS), ((X, P), MIX)],
    "cross_entropy_and_grad": [((X, LABELS), {}), ((X, LABELS), MIX | {"reduction": "sum"})],
    "cross_entropy_hvp": [((X, LABELS, X.flip(0)), ROWS), ((X, P, X.flip(0)), MIX)],
    "cross_entropy_grad_and_hessian_diag": [((X, LABELS), MIX)],
    "cross_entropy_from_probs": [((P, LABELS), ROWS), ((P, P), {"weight": WEIGHT})],
    "entropy": [((P,), {})],
    "kl_divergence": [((P, P.flip(0)), {})],
    "linear_cross_entropy": [((INPUT, FACTOR, LABELS), MIX), ((INPUT, FACTOR, LABELS), {"linear_bias": FACTOR[0]})],
    "linear_cross_entropy_and_grad": [((INPUT, FACTOR, LABELS), ROWS | {"chunk_size": (4, 2)})],
}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def compiled(f, backend="aot_eager", **options):
    return torch.compile(f, backend=backend, fullgraph=True, **options)


def leaves(arrays):
    return [a.clone().requires_grad_(a.is_floating_point()) for a in arrays]


def results(found):
    return [r for r in (found if isinstance(found, tuple) else (found,)) if r is not None]


def with_gradient(f, arrays):
    """Results, and the cotangent of the first array from all of them."""
    given = leaves(arrays)
    found = results(f(*given))
    total = sum((r * torch.linspace(1.0, 2.0, r.numel()).reshape(r.shape)).sum() for r in found if r.requires_grad)
    return [*found, *torch.autograd.grad(total, given[:1])]


def test_every_verb_is_here():
    assert CALLS.keys() == VERBS.keys()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    ("verb", "arrays", "options"),
    [(verb, *call) for verb, calls in CALLS.items() for call in calls],
    ids=[f"{verb}-{i}" for verb, calls in CALLS.items() for i in range(len(calls))],
)
def test_one_graph_with_its_backward(verb, arrays, options, backend):
    def f(*arrays):
        return getattr(xs, verb)(*arrays, **options)

    counter = CompileCounterWithBackend(backend)
    graph = compiled(f, counter)
    for _ in range(2):
        expected, found = with_gradient(f, arrays), with_gradient(graph, arrays)
        torch.testing.assert_close(found, expected, **CLOSE)
    assert counter.frame_count == 1
    assert type(graph(*arrays)) is type(f(*arrays))


@pytest.mark.parametrize("verb", ["softmax", "cross_entropy_and_grad"])
def test_a_verb_itself(verb):
    arrays, _ = CALLS[verb][0]
    torch.testing.assert_close(results(compiled(getattr(xs, verb))(*arrays)), results(getattr(xs, verb)(*arrays)))


def test_sizes_and_temperature_change():
    def f(x, labels, temperature):
        return xs.cross_entropy(x, labels, temperature=temperature, weight=torch.ones_like(x[0]), z_loss=0.1)

    counter = CompileCounterWithBackend("aot_eager")
    graph, compiled_first = compiled(f, counter, dynamic=True), 0
    for rows, classes, temperature in ((3, 5, 1.5), (5, 7, 2.0), (6, 7, 2.5)):
        x = torch.from_numpy(np.random.default_rng(rows).normal(size=(rows, classes)))
        labels = torch.arange(rows) % classes
        expected = with_gradient(lambda x: f(x, labels, temperature), (x,))  # noqa: B023
        torch.testing.assert_close(with_gradient(lambda x: graph(x, labels, temperature), (x,)), expected, **CLOSE)  # noqa: B023
        compiled_first = compiled_first or counter.frame_count  # the compiler itself begins anew for a symbolic number
    assert counter.frame_count == compiled_first


def test_sizes_of_a_linear_loss_change():
    counter = CompileCounterWithBackend("aot_eager")
    graph = compiled(xs.linear_cross_entropy, counter, dynamic=True)
    for rows in (5, 6, 7):  # sizes that are alike at first would be taken for one
        x, labels = X.repeat(2, 1)[:rows], LABELS.repeat(2)[:rows]
        torch.testing.assert_close(graph(x, FACTOR, labels), xs.linear_cross_entropy(x, FACTOR, labels), **CLOSE)
    assert counter.frame_count == 1


def test_other_numbers_change():
    def f(x, smoothing):
        return xs.cross_entropy(x, LABELS, label_smoothing=smoothing)

    graph = compiled(f, "eager")
    for smoothing in (0.0, 0.1, 0.2):
        torch.testing.assert_close(graph(X, smoothing), f(X, smoothing), **CLOSE)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_labels_without_a_class_are_nan(backend):
    loss = compiled(lambda x, t: xs.cross_entropy(x, t, reduction="none"), backend)(X, torch.tensor([0, 3, -1, 1]))
    assert torch.isnan(loss).tolist() == [False, True, True, False]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_what_is_tiny_stays(backend):
    x = torch.tensor([40.0, 0.0], dtype=torch.float64, requires_grad=True)
    assert compiled(lambda x: xs.log_softmax(x), backend)(x)[0].item() == pytest.approx(
        -4.248354255291589e-18, rel=1e-15
    )
    loss = compiled(lambda x: xs.cross_entropy(x, torch.tensor(0)), backend)(x)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.tolist() == pytest.approx([-4.248354255291589e-18, 4.248354255291589e-18], rel=1e-15)


def test_ties_have_the_rules_derivative():
    x = torch.zeros(1, 3, dtype=torch.float64)
    f = lambda x: xs.logsumexp(x)  # noqa: E731
    torch.testing.assert_close(with_gradient(compiled(f), (x,)), with_gradient(f, (x,)), **CLOSE)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_out(backend):
    def f(x, out):
        return xs.softmax(x, out=out)

    out = torch.empty_like(X)
    found = compiled(f, backend)(X, out)
    torch.testing.assert_close([found, out], [xs.softmax(X)] * 2, **CLOSE)
    torch.testing.assert_close(compiled(f, backend)(out, out), xs.softmax(xs.softmax(X)), **CLOSE)


def test_transforms_within():
    def gradient(x):
        return torch.func.grad(lambda x: xs.cross_entropy(x, LABELS))(x)

    torch.testing.assert_close(compiled(gradient)(X), xs.cross_entropy_grad(X, LABELS), **CLOSE)
    torch.testing.assert_close(compiled(torch.func.vmap(xs.softmax))(X), xs.softmax(X), **CLOSE)


class Model(torch.nn.Module):
    def forward(self, x, labels):
        return xs.softmax(x), xs.cross_entropy(x, labels, label_smoothing=0.1)


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    program = torch.export.export(Model(), (X, LABELS), strict=strict)
    torch.testing.assert_close(program.module()(X, LABELS), Model()(X, LABELS), **CLOSE)


def test_an_implementation_asked_for_around():
    with xs.use_implementation("array_api"):
        found = compiled(lambda x: xs.softmax(x))(X)
    torch.testing.assert_close(found, xs.softmax(X), **CLOSE)


def test_half_precision_has_the_same_bits():
    x = X.to(torch.bfloat16)
    for found, expected in zip(
        with_gradient(compiled(lambda x: xs.softmax(x)), (x,)), with_gradient(xs.softmax, (x,)), strict=True
    ):
        assert torch.equal(found, expected)
