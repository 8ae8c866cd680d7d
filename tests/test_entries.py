# ruff: noqa: B023 (each function is called at once)
"""What takes small arrays straight to an implementation has the results of the long way: every option, any layout."""

import numpy as np
import pytest

import xsoftmax as xs
from xsoftmax import choose
from xsoftmax.implementations.numpy.addresses import are_readable

RNG = np.random.default_rng(7)
SHAPE = 6, 5, 7
AXES = [0, 1, -1]
CHOICES = {
    "where": (None, "where"),
    "weight": (None, "weight"),
    "sample_weight": (None, "sample_weight"),
    "ignore_index": (None, 1),
    "label_smoothing": (0.0, 0.1),
    "temperature": (1.0, 0.7, 2),
    "softcap": (None, 2.5),
    "z_loss": (0.0, 0.01),
    "reduction": ("mean", "none", "sum"),
}
VERBS = [
    xs.cross_entropy,
    xs.cross_entropy_grad,
    xs.cross_entropy_and_grad,
    xs.cross_entropy_grad_and_hessian_diag,
    xs.cross_entropy_hvp,
]


def problem(axis, dtype):
    """Arrays of a loss; a row with all weights 0, an ignored one and a confident one are among them."""
    x = (RNG.normal(size=SHAPE) * 3).astype(dtype)
    classes, rows = SHAPE[axis], tuple(np.delete(SHAPE, axis))
    labels = RNG.integers(0, classes, rows)
    where = RNG.random(SHAPE) < 0.8
    np.put_along_axis(where, np.expand_dims(labels, axis), True, axis)
    probs = np.moveaxis(RNG.dirichlet(np.ones(classes), rows), -1, axis).astype(dtype)
    return {
        "x": x,
        "labels": labels,
        "probs": probs,
        "v": RNG.normal(size=SHAPE).astype(dtype),
        "where": where,
        "weight": RNG.random(classes).astype(dtype),
        "sample_weight": RNG.integers(0, 3, rows).astype(dtype),
    }


def some_options(count):
    """Random combinations, and among them each option alone."""
    alone = [{name: value} for name, values in CHOICES.items() for value in values[1:]]
    mixed = [{name: values[RNG.integers(len(values))] for name, values in CHOICES.items()} for _ in range(count)]
    return [{}, *alone, *mixed]


@pytest.fixture
def both(monkeypatch):
    """A call, and the same by the long way."""

    def call(f):
        short = f()
        with monkeypatch.context() as patch:
            patch.setattr(choose, "_SMALL", 0)
            return short, f()

    return call


def assert_alike(found, expected, scale):
    """Both are within the contract: 6 ulps each in float64, and what rounds a capped logit in another way beside it."""
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (found, expected)), strict=True):
        assert (type(a), a.dtype, a.shape) == (type(b), b.dtype, b.shape)
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=64 * np.finfo(b.dtype).eps, atol=64 * scale * np.finfo(b.dtype).eps)


@pytest.fixture(params=["numpy_numba", "numpy_blocked"])
def implementation(request):
    operation, p, _ = choose.recorded(xs.softmax, np.zeros(2))
    if why := choose.reasons(request.param, operation, p):
        pytest.skip("; ".join(why))
    with xs.use_implementation(request.param):
        yield


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", AXES)
def test_losses(implementation, both, axis, dtype):
    given = problem(axis, dtype)
    for options in some_options(12):
        named = {name: given.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
        for kind in ("labels", "probs"):
            if kind == "probs":
                named.pop("ignore_index", None)
            for verb in VERBS:
                arrays = [given["x"], given[kind]] + [given["v"]] * (verb is xs.cross_entropy_hvp)
                found, expected = both(lambda: verb(*arrays, axis=axis, **named))
                assert_alike(found, expected, scale=1.0)


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [*AXES, None, (0, 2), (-1, 0)], ids=str)
def test_on_logits(implementation, both, axis, dtype):
    given = problem(0, dtype)
    for x in (given["x"], given["x"].T, given["x"][::-1, ::2], np.asfortranarray(given["x"])):
        y, log_y, v = xs.softmax(x, axis=axis), xs.log_softmax(x, axis=axis), RNG.normal(size=x.shape).astype(dtype)
        for where in (None, RNG.random(x.shape) < 0.7, RNG.random(x.shape[-1]) < 0.7):
            for temperature in (1.0, 0.3, 2):
                for verb in (xs.softmax, xs.log_softmax):
                    assert_alike(
                        *both(lambda: verb(x, axis=axis, where=where, temperature=temperature)),
                        scale=0.0,
                    )
            for keepdims in (False, True):
                assert_alike(*both(lambda: xs.logsumexp(x, axis=axis, where=where, keepdims=keepdims)), scale=1.0)
            for verb, a in ((xs.softmax_vjp, y), (xs.log_softmax_vjp, log_y), (xs.log_softmax_jvp, log_y)):
                assert_alike(*both(lambda: verb(a, v, axis=axis, where=where)), scale=1.0)


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("verb", [xs.softmax, xs.log_softmax])
def test_out_of_another_layout(implementation, both, verb):
    x = RNG.normal(size=(4, 3)).astype("float32")
    memory = np.zeros(25, "float32")
    for out in (np.empty((3, 4), "float32").T, memory[:12].reshape(4, 3), memory[::2][:12].reshape(4, 3)):
        assert verb(x, axis=0, out=out) is out
        np.testing.assert_array_equal(out, verb(x, axis=0))
    overlapping = memory[:12].reshape(4, 3)
    with pytest.raises(ValueError, match="out overlaps x in part"):
        verb(overlapping, out=memory[3:15].reshape(4, 3))


@pytest.mark.backend("numpy")
def test_arrays_lie_in_memory_as_kernels_read_them():
    assert are_readable()


@pytest.mark.backend("numpy")
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"labels": np.full((6, 5), 7)}, ValueError),
        ({"labels": np.zeros((6, 4), int)}, ValueError),
        ({"labels": np.zeros((6, 5))}, TypeError),
        ({"where": np.ones((2, 7), bool)}, ValueError),
        ({"where": np.ones(7)}, TypeError),
        ({"weight": np.ones(6)}, ValueError),
        ({"sample_weight": np.ones((5, 6))}, ValueError),
        ({"temperature": 0.0}, ValueError),
        ({"softcap": -1.0}, ValueError),
        ({"label_smoothing": 1.5}, ValueError),
        ({"z_loss": -0.1}, ValueError),
        ({"reduction": "max"}, ValueError),
        ({"ignore_index": 1.0}, TypeError),
    ],
    ids=lambda a: next(iter(a)) if isinstance(a, dict) else None,
)
def test_what_is_odd_has_the_words_of_the_checks(implementation, monkeypatch, change, error):
    given = problem(-1, "float32")
    labels = change.get("labels", given["labels"])
    options = {name: value for name, value in change.items() if name != "labels"}
    words = []
    for small in (choose._SMALL, 0):
        monkeypatch.setattr(choose, "_SMALL", small)
        with pytest.raises(error) as caught:
            xs.cross_entropy(given["x"], labels, **options)
        words.append(str(caught.value))
    assert words[0] == words[1]


@pytest.mark.backend("torch")
@pytest.mark.parametrize("axis", AXES)
def test_derivatives(both, axis):
    """First and second order, of the logits and of what else may ask for a gradient."""
    torch = pytest.importorskip("torch")
    given = {name: torch.from_numpy(a) for name, a in problem(axis, "float64").items()}

    def derivatives(verb, *names, **named):
        arrays = [given[name].clone().requires_grad_(given[name].is_floating_point()) for name in names]
        asked = [a for a in arrays if a.requires_grad]
        value = verb(*arrays, axis=axis, **named)
        u = torch.linspace(-1.0, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
        first = torch.autograd.grad(value, asked, u, retain_graph=True)
        again = torch.autograd.grad(value, asked, u, create_graph=True)
        second = torch.autograd.grad(sum((g * g).sum() for g in again), asked)
        return tuple(a.numpy() for a in (value.detach(), *first, *(a.detach() for a in again), *second))

    for options in some_options(4):
        named = {name: given.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
        assert_alike(*both(lambda: derivatives(xs.cross_entropy, "x", "labels", **named)), scale=1.0)
        named.pop("ignore_index", None)
        assert_alike(*both(lambda: derivatives(xs.cross_entropy, "x", "probs", **named)), scale=1.0)
    for verb in (xs.softmax, xs.log_softmax, xs.logsumexp):
        for where in (None, given["where"]):
            assert_alike(*both(lambda: derivatives(verb, "x", where=where)), scale=1.0)


@pytest.mark.backend("torch")
def test_a_tensor_that_is_changed_before_backward_is_an_error():
    torch = pytest.importorskip("torch")
    x = torch.zeros(2, 3, requires_grad=True)
    z = x * 1.0
    loss = xs.cross_entropy(z, torch.tensor([0, 1]))
    z.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
