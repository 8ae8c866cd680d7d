"""Derivatives of every verb under PyTorch's autograd, forward mode and torch.func, to several orders."""

import gc
import math
import weakref
from functools import partial

import pytest

torch = pytest.importorskip("torch")

from array_api_compat import torch as xp  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.autograd import forward_ad, gradcheck, gradgradcheck  # noqa: E402
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import xsoftmax as xs  # noqa: E402
from xsoftmax import choose  # noqa: E402
from xsoftmax.calls.records import Rows  # noqa: E402
from xsoftmax.implementations.torch import native as torch_native  # noqa: E402

pytestmark = [
    pytest.mark.backend("torch"),
    # PyTorch scripts its own decompositions when forward mode is first used
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

INF, NAN = float("inf"), float("nan")
LOSSES = ("cross_entropy", "cross_entropy_grad", "cross_entropy_and_grad", "cross_entropy_hvp",
          "cross_entropy_grad_and_hessian_diag")  # fmt: skip


def normal(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, **options)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def leaf(x):
    return x.detach().clone().requires_grad_()


def assert_close(actual, expected, rtol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol, equal_nan=True)


def check_both_orders(f, *inputs):
    """Against finite differences: reverse, forward, batched, and their compositions."""
    inputs = tuple(leaf(x) for x in inputs)
    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(f, inputs, fast_mode=True, check_fwd_over_rev=True)


# ---------------------------------------------------------------------------------------------------------------------
# every verb, every option

X = normal(2, 3)
V = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(2, 3)
MASK = torch.tensor([[True, False, True], [True, True, False]])


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 1), None], ids=str)
@pytest.mark.parametrize("where", [None, MASK, MASK[0]], ids=["all", "mask", "broadcast mask"])
@pytest.mark.parametrize("verb", [xs.softmax, xs.log_softmax, xs.logsumexp], ids=lambda f: f.__name__)
def test_normalisers(verb, axis, where):
    options = {} if verb is xs.logsumexp else {"temperature": 0.7}

    def f(x):
        y = verb(x, axis=axis, where=where, **options)
        if verb is xs.logsumexp:
            return y.exp()  # −inf where nothing is kept
        return y if where is None or verb is xs.softmax else torch.where(where, y, torch.zeros_like(y))

    check_both_orders(f, X)


@pytest.mark.parametrize("axis", [0, -1, None], ids=str)
@pytest.mark.parametrize("where", [None, MASK], ids=["all", "mask"])
@pytest.mark.parametrize("return_sign", [False, True])
def test_logsumexp_with_factors(axis, where, return_sign):
    b = normal(2, 3, seed=1) if return_sign else uniform(2, 3)

    def f(x, b):
        result = xs.logsumexp(x, b=b, axis=axis, where=where, return_sign=return_sign)
        return result[0] if return_sign else result

    check_both_orders(f, X, b)
    check_both_orders(f, X[:1], b)


def test_logsumexp_factor_of_zero():
    b = torch.tensor([0.0, 1.0, -0.5], dtype=torch.float64)
    f = partial(xs.logsumexp, return_sign=True)
    check_both_orders(lambda x, b: f(x, b=b)[0], X, b)
    dx, db = grad(lambda x, b: f(x, b=b)[0], argnums=(0, 1))(torch.tensor([INF, 1.0, 0.0], dtype=torch.float64), b)
    assert (dx[0], db[0]) == (0.0, 0.0)
    assert torch.isfinite(dx).all()
    assert torch.isfinite(db).all()


@pytest.mark.parametrize("top", [100.0, 500.0, 800.0])
@pytest.mark.parametrize("derivative", [jacrev, jacfwd])
def test_logsumexp_factor_of_zero_far_above(derivative, top):
    """∂/∂b = exp(x) / Σ b exp(x), ∞ where that overflows; the others are none the worse."""
    x, b = torch.tensor([top, 1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0, -0.5], dtype=torch.float64)
    dx, db = derivative(lambda x, b: xs.logsumexp(x, b=b, return_sign=True)[0], argnums=(0, 1))(x, b)
    s = math.e - 0.5
    assert_close(dx, torch.tensor([0.0, math.e / s, -0.5 / s], dtype=torch.float64))
    above = math.exp(top) / s if top < 709.0 else INF
    assert_close(db, torch.tensor([above, math.e / s, 1.0 / s], dtype=torch.float64))


@pytest.mark.parametrize("axis", [0, -1, (0, 1)], ids=str)
@pytest.mark.parametrize("where", [None, MASK], ids=["all", "mask"])
@pytest.mark.parametrize(
    "verb", [xs.softmax_vjp, xs.softmax_jvp, xs.log_softmax_vjp, xs.log_softmax_jvp], ids=lambda f: f.__name__
)
def test_products(verb, axis, where):
    y = X if "log" in verb.__name__ else 0.4 * torch.softmax(X, -1)
    check_both_orders(partial(verb, axis=axis, where=where), y, normal(2, 3, seed=1))


def test_product_by_the_majority_class_has_the_derivative_of_the_mathematics():
    """Finite differences leave the simplex, where subtracting the cotangent of the largest class is no identity."""
    y, v = torch.tensor([0.75, 0.125, 0.125], dtype=torch.float64), normal(3, seed=1)
    assert_close(jacrev(xs.softmax_vjp)(y, v), jacrev(lambda y: y * (v - (y * v).sum()))(y))
    assert_close(jacfwd(xs.softmax_vjp)(y, v), jacrev(lambda y: y * (v - (y * v).sum()))(y))


@pytest.mark.parametrize("verb", [xs.entropy, xs.softmax_jacobian], ids=lambda f: f.__name__)
def test_of_probabilities(verb):
    check_both_orders(verb, 0.5 * torch.softmax(X, -1))


def test_kl_divergence():
    check_both_orders(xs.kl_divergence, torch.softmax(X, -1), torch.softmax(3.0 * normal(2, 3, seed=1), -1))


LABELS = torch.tensor([2, 0])
PROBS = torch.softmax(normal(2, 3, seed=2), -1)
OPTIONS = {
    "plain": {},
    "where": {"where": torch.tensor([[True, False, True], [True, True, True]])},
    "smoothing": {"label_smoothing": 0.2},
    "temperature": {"temperature": 0.6},
    "softcap": {"softcap": 1.5},
    "z_loss": {"z_loss": 0.3},
    "all": {
        "where": torch.tensor([[True, False, True], [True, True, True]]),
        "label_smoothing": 0.2,
        "temperature": 0.6,
        "softcap": 1.5,
        "z_loss": 0.3,
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("probabilities", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("verb", LOSSES)
def test_losses(verb, probabilities, options):
    function, v = getattr(xs, verb), [normal(2, 3, seed=3)] if verb == "cross_entropy_hvp" else []

    def f(x, weight, sample_weight, *rest):
        *v, targets = rest if probabilities else (*rest, LABELS)
        return function(x, targets, *v, weight=weight, sample_weight=sample_weight, **options)

    check_both_orders(f, X, uniform(3), uniform(2), *v, *([PROBS] if probabilities else []))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("ignore_index", [None, 0, -100], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_reductions_axes_and_ignored_labels(axis, ignore_index, reduction):
    x = normal(3, 2, 2) if axis == 0 else normal(2, 3, 2)
    labels = torch.tensor([[0, 2], [1, -100 if ignore_index == -100 else 2]])
    options = {"axis": axis, "ignore_index": ignore_index, "reduction": reduction}
    check_both_orders(lambda x: xs.cross_entropy(x, labels, **options), x)
    check_both_orders(lambda x, w: xs.cross_entropy_grad(x, labels, weight=w, **options), x, uniform(3))


@pytest.mark.parametrize("probabilities", [False, True], ids=["labels", "probabilities"])
def test_cross_entropy_from_probs(probabilities):
    def f(p, weight, sample_weight, targets=LABELS):
        return xs.cross_entropy_from_probs(p, targets, weight=weight, sample_weight=sample_weight)

    check_both_orders(f, PROBS, uniform(3), uniform(2), *([torch.softmax(X, -1)] if probabilities else []))


# ---------------------------------------------------------------------------------------------------------------------
# transforms of torch.func, against PyTorch's own functions

SCALARS = {
    "softmax": (lambda x: xs.softmax(x)[0], lambda x: torch.softmax(x, -1)[0]),
    "log_softmax": (lambda x: xs.log_softmax(x)[0], lambda x: torch.log_softmax(x, -1)[0]),
    "logsumexp": (xs.logsumexp, lambda x: torch.logsumexp(x, -1)),
    "factors": (
        lambda x: xs.logsumexp(x, b=torch.ones_like(x)),
        lambda x: torch.logsumexp(x, -1),
    ),
    "cross_entropy": (
        lambda x: xs.cross_entropy(x, torch.tensor(1)),
        lambda x: F.cross_entropy(x, torch.tensor(1)),
    ),
    "z_loss": (
        lambda x: xs.cross_entropy(x, torch.tensor(1), z_loss=0.5, softcap=2.0),
        lambda x: (lambda z: F.cross_entropy(z, torch.tensor(1)) + 0.5 * torch.logsumexp(z, -1) ** 2)(
            2.0 * torch.tanh(x / 2.0)
        ),
    ),
}
ORDERS = {
    "reverse": grad,
    "forward": jacfwd,
    "forward over reverse": lambda f: jacfwd(jacrev(f)),
    "reverse over forward": lambda f: jacrev(jacfwd(f)),
    "reverse twice": lambda f: jacrev(jacrev(f)),
    "forward twice": lambda f: jacfwd(jacfwd(f)),
    "hessian": hessian,
    "forward three times": lambda f: jacfwd(jacfwd(jacfwd(f))),
    "third order": lambda f: jacrev(hessian(f)),
    "forward, reverse, forward": lambda f: jacfwd(jacrev(jacfwd(f))),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("functions", SCALARS.values(), ids=SCALARS)
def test_nested_transforms(functions, order):
    ours, theirs = functions
    x = normal(3)
    assert_close(order(ours)(x), order(theirs)(x))


@pytest.mark.parametrize("functions", SCALARS.values(), ids=SCALARS)
def test_jvp_and_vjp(functions):
    ours, theirs = functions
    x, v = normal(3), normal(3, seed=1)
    for actual, expected in zip(jvp(ours, (x,), (v,)), jvp(theirs, (x,), (v,)), strict=True):
        assert_close(actual, expected)
    (y, pull), (_, pull_theirs) = vjp(ours, x), vjp(theirs, x)
    u = torch.ones_like(y, requires_grad=True)
    assert_close(pull(u)[0], pull_theirs(u)[0])
    (du,) = torch.autograd.grad(pull(u)[0] @ v, u)  # what the transform saved is dead by now
    assert_close(du, jvp(theirs, (x,), (v,))[1])


def test_dual_tensors_keep_their_tangents_without_requires_grad():
    x, v = normal(3), normal(3, seed=1)
    for ours, theirs in SCALARS.values():
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(ours(forward_ad.make_dual(x, v))).tangent
        assert_close(tangent, jvp(theirs, (x,), (v,))[1])


def test_reverse_over_dual_tensors():
    v = normal(3, seed=1)
    for ours, theirs in SCALARS.values():
        x = leaf(normal(3))
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(ours(forward_ad.make_dual(x, v))).tangent
            (actual,) = torch.autograd.grad(tangent, x)
        assert_close(actual, hessian(theirs)(x.detach()) @ v)


def stacked(f, *batches, dims=0):
    """What vmap returns, by a loop."""
    dims = (dims,) * len(batches) if not isinstance(dims, tuple) else dims
    n = next(b.shape[d] for b, d in zip(batches, dims, strict=True) if d is not None)
    rows = [f(*(b if d is None else b.select(d, i) for b, d in zip(batches, dims, strict=True))) for i in range(n)]
    return torch.utils._pytree.tree_map(lambda *a: torch.stack(a), *rows)


def cross_entropy_of_row(x, labels, **options):
    return tuple(xs.cross_entropy_and_grad(x, labels, **options))


BATCHES = torch.stack([torch.tensor([0, 2]), torch.tensor([1, 1]), torch.tensor([2, 0]), torch.tensor([1, 0])])
WEIGHT = uniform(3)
VMAPPED = {
    "logits": (lambda x: xs.softmax(x), [normal(4, 2, 3)], 0),
    "batch last": (lambda x: xs.log_softmax(x, axis=0), [normal(2, 3, 4)], 2),
    "all axes": (lambda x: xs.logsumexp(x, axis=None), [normal(4, 2, 3)], 0),
    "mask of fewer dimensions": (lambda m: xs.softmax(X, where=m), [uniform(4, 3) > 0.4], 0),
    "mask and logits": (lambda x, m: xs.log_softmax(x, where=m), [normal(4, 2, 3), uniform(3, 4) > 0.4], (0, 1)),
    "factors": (lambda x, b: xs.logsumexp(x, b=b, return_sign=True), [X, normal(3, 4, seed=1)], (None, 1)),
    "products": (xs.softmax_vjp, [PROBS, normal(2, 4, 3)], (None, 1)),
    "products by y": (xs.log_softmax_jvp, [normal(4, 2, 3), X], (0, None)),
    "labels": (lambda t: cross_entropy_of_row(X, t), [BATCHES], 0),
    "labels of a plain batch": (lambda x, t: cross_entropy_of_row(x, t), [normal(2, 4, 3), LABELS], (1, None)),
    "class weight": (lambda w: cross_entropy_of_row(X, LABELS, weight=w), [uniform(4, 3)], 0),
    "weights of all kinds": (
        lambda t, w, s: cross_entropy_of_row(X, t, weight=w, sample_weight=s, z_loss=0.3, ignore_index=1),
        [BATCHES, uniform(3, 4), uniform(4, 2)],
        (0, 1, 0),
    ),
    "zeta alone": (lambda t: cross_entropy_of_row(X, t, weight=WEIGHT, z_loss=0.3), [BATCHES], 0),
    "classes in front": (lambda x, t: cross_entropy_of_row(x, t, axis=0), [normal(3, 2), BATCHES], (None, 0)),
    "probabilities": (lambda q: cross_entropy_of_row(X, q), [torch.softmax(normal(4, 2, 3), -1)], 0),
    "a single row": (lambda x, t: cross_entropy_of_row(x, t), [X, LABELS], 0),
    "hessian product": (lambda v, t: xs.cross_entropy_hvp(X, t, v), [normal(4, 2, 3), BATCHES], 0),
}


@pytest.mark.parametrize("f, batches, dims", VMAPPED.values(), ids=VMAPPED)
def test_vmap(f, batches, dims):
    assert_close(vmap(f, in_dims=dims)(*batches), stacked(f, *batches, dims=dims))


@pytest.mark.parametrize("f, batches, dims", VMAPPED.values(), ids=VMAPPED)
def test_vmap_within_and_around_grad(f, batches, dims):
    def total(c, *args):
        floats = [c * a if a.is_floating_point() else a for a in args]
        leaves = torch.utils._pytree.tree_leaves(f(*floats))
        return sum((torch.where(torch.isfinite(a), a, torch.zeros_like(a)) ** 2).sum() for a in leaves)

    c, dims = torch.tensor(1.1, dtype=torch.float64), dims if isinstance(dims, tuple) else (dims,) * len(batches)
    around = vmap(grad(total), in_dims=(None, *dims))(c, *batches)
    assert_close(around, stacked(partial(grad(total), c), *batches, dims=dims))
    within = grad(lambda c: vmap(total, in_dims=(None, *dims))(c, *batches).sum())(c)
    assert_close(within, around.sum())


def test_nested_vmap():
    x, t = normal(4, 2, 5, 3), torch.stack([LABELS] * 5)

    def f(x, t):
        return xs.cross_entropy(x, t, reduction="none", label_smoothing=0.1)

    nested = vmap(vmap(f, in_dims=(1, 0)), in_dims=(0, None))(x, t)
    assert_close(nested, torch.stack([stacked(f, a, t, dims=(1, 0)) for a in x]))
    assert_close(vmap(vmap(grad(lambda x, t: f(x, t).sum()), in_dims=(1, 0)), in_dims=(0, None))(x, t),
                 torch.stack([stacked(lambda x, t: xs.cross_entropy_grad(x, t, reduction="sum", label_smoothing=0.1),
                                      a, t, dims=(1, 0)) for a in x]))  # fmt: skip


def test_labels_under_a_transform_are_not_looked_at():
    labels = torch.tensor([1, 3])
    with pytest.raises(ValueError, match=r"label 3 at position \(1,\)"):
        xs.cross_entropy(X, labels, reduction="none")
    rows = vmap(lambda x, t: xs.cross_entropy(x, t, reduction="none"))(X, labels)
    assert torch.isnan(rows).tolist() == [False, True]
    gradient = vmap(grad(partial(xs.cross_entropy, reduction="sum")))(X, labels)
    assert torch.isnan(gradient).all(-1).tolist() == [False, True]
    assert_close(gradient[0], torch.softmax(X[0], -1) - torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch's own functions

SHAPES = {"rows": (6, 4), "images": (2, 4, 3), "one row": (4,)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("kind", ["labels", "ignored", "probabilities"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_cross_entropy_means_what_pytorch_means(weighted, smoothing, kind, reduction, shape, dtype):
    axis = 0 if len(shape) == 1 else 1
    x = 3.0 * normal(*shape).to(dtype)
    rows = shape[:axis] + shape[axis + 1 :]
    targets = torch.randint(0, shape[axis], rows, generator=torch.Generator().manual_seed(1))
    if kind == "ignored" and rows:
        targets.reshape(-1)[1] = -100
    if kind == "probabilities":
        targets = torch.softmax(normal(*shape, seed=2).to(dtype), axis)
    weight = uniform(shape[axis]).to(dtype) if weighted else None
    common = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    ours = partial(xs.cross_entropy, axis=axis, ignore_index=None if kind == "probabilities" else -100, **common)
    actual, expected = [leaf(x), targets], [leaf(x), targets]
    if kind == "probabilities":
        actual[1], expected[1] = leaf(targets), leaf(targets)
    loss, theirs = ours(*actual), F.cross_entropy(*expected, **common)
    rtol = 2e-6 if dtype == torch.float32 else 1e-13  # PyTorch's error: it computes in the dtype of the logits
    assert loss.dtype == dtype
    assert_close(loss, theirs, rtol)
    leaves = [a for a in actual if a.requires_grad]
    gradients = torch.autograd.grad(loss.sum(), leaves)
    for g, e in zip(
        gradients, torch.autograd.grad(theirs.sum(), [a for a in expected if a.requires_grad]), strict=True
    ):
        assert g.dtype == dtype
        assert_close(g, e, rtol)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_normalisers_mean_what_pytorch_means(name, dtype, axis):
    x = (3.0 * normal(5, 4, 3)).to(dtype)
    x[0, 0, 0] = -INF
    ours, theirs = leaf(x), leaf(x.double())
    y, expected = getattr(xs, name)(ours, axis=axis), getattr(torch, name)(theirs, axis)
    u = normal(*y.shape, seed=1).to(dtype)
    u = torch.where(torch.isfinite(y), u, torch.zeros_like(u))
    (dx,) = torch.autograd.grad(y, ours, u)
    assert (y.dtype, dx.dtype) == (dtype, dtype)
    # y is saved as rounded to the dtype, and the cotangents cancel to about a tenth of their size
    rtol = 8 * torch.finfo(dtype).eps
    assert_close(y.double(), expected, rtol)
    assert_close(dx.double(), torch.autograd.grad(expected, theirs, u.double())[0], rtol)


@pytest.mark.parametrize("with_b", [False, True])
def test_derivatives_of_float32_are_rounded_once(with_b):
    x, u, v = (normal(64, 5, seed=seed).float() for seed in range(3))
    narrow = partial(xs.logsumexp, b=v if with_b else None)
    wide = partial(xs.logsumexp, b=v.double() if with_b else None)
    (dx,) = vjp(narrow, x)[1](u[:, 0])
    assert torch.equal(dx, vjp(wide, x.double())[1](u[:, 0].double())[0].float())
    assert torch.equal(jvp(narrow, (x,), (v,))[1], jvp(wide, (x.double(),), (v.double(),))[1].float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_narrow_dtypes_through_every_rule(dtype):
    def f(x, q, w, s, v):
        options = {"weight": w, "sample_weight": s, "z_loss": 0.1, "softcap": 5.0, "temperature": 2.0}
        both = xs.cross_entropy_and_grad(x, q, **options)
        results = (both.loss, both.grad, xs.cross_entropy_hvp(x, q, v, **options), xs.softmax(x, temperature=2.0),
                   xs.log_softmax(x, temperature=2.0), xs.logsumexp(x), xs.logsumexp(x, b=q), xs.softmax_vjp(q, v),
                   xs.log_softmax_vjp(x, v), xs.log_softmax_jvp(x, v))  # fmt: skip
        return sum((r.double() ** 2).sum() for r in results)

    wide = [X, PROBS, uniform(3), uniform(2), normal(2, 3, seed=3)]
    narrow = [leaf(a.to(dtype)) for a in wide]
    wide = [leaf(a.detach().double()) for a in narrow]
    first = torch.autograd.grad(f(*narrow), narrow, create_graph=True)
    second = torch.autograd.grad(sum(g.double().sum() for g in first), narrow)
    first_wide = torch.autograd.grad(f(*wide), wide, create_graph=True)
    second_wide = torch.autograd.grad(sum(g.sum() for g in first_wide), wide)
    for actual, expected in zip((*first, *second), (*first_wide, *second_wide), strict=True):
        assert actual.dtype == dtype
        # relative to the largest: each of the ten results, its cotangent and its derivative are rounded to the dtype
        torch.testing.assert_close(
            actual.double(), expected, rtol=0.0, atol=16 * torch.finfo(dtype).eps * expected.detach().abs().max().item()
        )
    tangents = tuple(torch.ones_like(a) for a in narrow)
    detached = tuple(a.detach() for a in narrow)
    value, tangent = jvp(f, detached, tangents)
    assert_close(value, f(*detached))
    expected = sum(g.sum() for g in first_wide)
    torch.testing.assert_close(tangent, expected, rtol=32 * torch.finfo(dtype).eps, atol=0.0)


# ---------------------------------------------------------------------------------------------------------------------
# corners


def test_ties_share_the_gradient_as_the_mathematics_says():
    """Automatic derivatives of max would split it evenly among the ties, whatever the cotangent."""
    x, v = torch.zeros(4, dtype=torch.float64), torch.arange(4, dtype=torch.float64)
    assert_close(grad(lambda x: xs.softmax(x) @ v)(x), 0.25 * (v - v.mean()))
    assert_close(grad(lambda x: xs.log_softmax(x) @ v)(x), v - 0.25 * v.sum())
    assert_close(grad(lambda x: xs.cross_entropy(x, torch.tensor(2)))(x), 0.25 - F.one_hot(torch.tensor(2), 4).double())
    y = torch.softmax(x, -1)
    assert_close(hessian(xs.logsumexp)(x), torch.diag(y) - torch.outer(y, y))


BAD = torch.tensor([[NAN, 1.0, 2.0], [-INF, -INF, -INF], [INF, 0.0, 1.0], [-INF, 0.0, 1.0]], dtype=torch.float64)
GOOD = torch.tensor([False, False, False, True])
ROW_LABELS = torch.tensor([0, 1, 0, 2])


def good_rows(y):
    return torch.where(GOOD.reshape(-1, *(1,) * (y.ndim - 1)), y, torch.zeros_like(y))


def assert_dead(f, x):
    """Only the last row has derivatives, to the third order, and they are those of the row alone."""
    order = [grad(f), grad(lambda x: (grad(f)(x) * PATTERN[: len(x)]).sum())]
    order.append(grad(lambda x: (order[1](x) * PATTERN[: len(x)]).sum()))
    for derivative in order:
        gradient = derivative(x)
        assert (gradient[:-1] == 0.0).all(), gradient
        assert torch.isfinite(gradient[-1]).all()
        assert (gradient[-1] != 0.0).any()


PATTERN = torch.arange(1.0, 13.0, dtype=torch.float64).reshape(4, 3)
SPOILT = torch.where(GOOD[:, None], PATTERN, NAN)
DEAD = {
    "softmax product": lambda y: (good_rows(xs.softmax_vjp(y.clamp(min=-2.0) / 4.0, SPOILT)) ** 2).sum(),
    "log_softmax products": lambda log_y: (
        good_rows(xs.log_softmax_vjp(log_y, SPOILT) + xs.log_softmax_jvp(log_y, SPOILT)) ** 2
    ).sum(),
    "softmax": lambda x: (good_rows(xs.softmax(x)) ** 2).sum(),
    "softmax, temperature": lambda x: (good_rows(xs.softmax(x, temperature=2.0)) ** 2).sum(),
    "log_softmax": lambda x: (good_rows(xs.log_softmax(x))[:, 1:] ** 2).sum(),
    "logsumexp": lambda x: (good_rows(xs.logsumexp(x)) ** 2).sum(),
    "logsumexp, factors": lambda x: (good_rows(xs.logsumexp(x, b=PATTERN)) ** 2).sum(),
    "loss, by selection": lambda x: (
        good_rows(xs.cross_entropy(x, ROW_LABELS, reduction="none", z_loss=0.1, softcap=9.0)) ** 2
    ).sum(),
    "loss, by sample_weight": lambda x: xs.cross_entropy(x, ROW_LABELS, sample_weight=GOOD.double(), z_loss=0.1) ** 2,
    "loss, by ignore_index": lambda x: (
        xs.cross_entropy(x, torch.where(GOOD, ROW_LABELS, -1), ignore_index=-1, label_smoothing=0.0) ** 2
    ),
    "gradient": lambda x: (xs.cross_entropy_grad(x, ROW_LABELS, sample_weight=GOOD.double()) ** 2).sum(),
    "gradient, by selection": lambda x: (good_rows(xs.cross_entropy_grad(x, ROW_LABELS)) ** 2).sum(),
    "hessian product": lambda x: (xs.cross_entropy_hvp(x, ROW_LABELS, PATTERN, sample_weight=GOOD.double()) ** 2).sum(),
    "hessian diagonal": lambda x: (
        xs.cross_entropy_grad_and_hessian_diag(x, ROW_LABELS, sample_weight=GOOD.double()).hessian_diag ** 2
    ).sum(),
}


@pytest.mark.parametrize("f", DEAD.values(), ids=DEAD)
def test_rows_that_no_cotangent_reaches_have_gradient_0_whatever_they_hold(f):
    assert_dead(f, BAD)


@pytest.mark.parametrize("f", DEAD.values(), ids=DEAD)
def test_rows_that_no_cotangent_reaches_eagerly(f):
    x = leaf(BAD)
    (gradient,) = torch.autograd.grad(f(x), x, create_graph=True)
    (second,) = torch.autograd.grad((gradient * PATTERN).sum(), x)
    assert (gradient[:-1] == 0.0).all()
    assert (second[:-1] == 0.0).all()
    assert_close(gradient, grad(f)(BAD))


@pytest.mark.parametrize("f", DEAD.values(), ids=DEAD)
def test_rows_that_no_tangent_leaves(f):
    assert_close(jvp(f, (BAD,), (PATTERN,))[1], (grad(f)(BAD) * PATTERN).sum())


def test_row_scale_of_a_single_number():
    """A mean of class-weighted labels has one scale for all rows."""
    weight = uniform(2)
    f = lambda x: xs.cross_entropy_hvp(x, torch.tensor([1, 0, 1]), X, axis=0, weight=weight)  # noqa: E731
    check_both_orders(f, X)
    spoilt = torch.tensor([[0.0, NAN, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.isnan(f(X + spoilt)).all(0).tolist() == [False, True, False]


def test_absent_rows_and_the_derivatives_of_weights_and_targets():
    targets = good_rows(F.one_hot(ROW_LABELS).double()) + torch.where(GOOD, 0.0, NAN)[:, None]

    def f(q, w, s):
        loss, gradient = xs.cross_entropy_and_grad(BAD, q, weight=w, sample_weight=s)
        return loss + (gradient**2).sum()

    dq, dw, ds = grad(f, argnums=(0, 1, 2))(targets, torch.ones(3, dtype=torch.float64), GOOD.double())
    assert (dq[:-1] == 0.0).all()
    assert torch.isfinite(dw).all()
    assert (ds[:-1] == 0.0).all()
    dp = grad(lambda p: xs.cross_entropy_from_probs(p, ROW_LABELS, sample_weight=GOOD.double()))(torch.softmax(BAD, -1))
    assert (dp[:-1] == 0.0).all()


def test_a_cotangent_of_0_does_not_hide_the_second_derivative():
    """(softmax − c)² at its minimum: the cotangent is 0, the Hessian is not."""
    x = normal(3)
    for f in (xs.softmax, xs.log_softmax, xs.logsumexp, partial(xs.cross_entropy, z_loss=0.1)):
        apply = (lambda x, f=f: f(x, torch.tensor(1))) if isinstance(f, partial) else f
        value = apply(x).detach()
        jacobian = jacrev(apply)(x).reshape(-1, 3)
        assert_close(hessian(lambda x, g=apply, c=value: ((g(x) - c) ** 2).sum())(x), 2.0 * jacobian.T @ jacobian)


def test_entries_at_minus_infinity():
    x = torch.tensor([-INF, 0.5, 1.0], dtype=torch.float64)
    kept = x[1:]
    for f in (lambda x: xs.softmax(x)[-1], lambda x: xs.log_softmax(x)[-1], xs.logsumexp,
              lambda x: xs.cross_entropy(x, torch.tensor(x.shape[-1] - 1), z_loss=0.1, softcap=3.0)):  # fmt: skip
        assert_close(grad(f)(x), F.pad(grad(f)(kept), (1, 0)))
        assert_close(hessian(f)(x), F.pad(hessian(f)(kept), (1, 0, 1, 0)))
        assert_close(jacfwd(jacfwd(f))(x)[1:, 1:], hessian(f)(kept))


def test_target_at_minus_infinity():
    x = leaf(torch.tensor([[-INF, 0.0, 0.0]], dtype=torch.float64))
    loss = xs.cross_entropy(x, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == INF
    assert gradient.tolist() == [[-1.0, 0.5, 0.5]]
    zero = torch.zeros(1, 3, dtype=torch.float64)
    q = torch.tensor([[0.0, 0.25, 0.75]], dtype=torch.float64)
    _, tangent = jvp(lambda q: xs.cross_entropy(x.detach(), q), (q,), (zero + torch.tensor([0.0, 1.0, 1.0]),))
    assert_close(tangent, torch.log(torch.tensor(4.0, dtype=torch.float64)))
    q = leaf(q)
    (dq,) = torch.autograd.grad(xs.cross_entropy(x.detach(), q, weight=torch.tensor([0.0, 1.0, 1.0])), q)
    assert_close(dq, torch.log(torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64)))


def test_rows_all_at_minus_infinity():
    x = torch.full((2, 3), -INF, dtype=torch.float64)
    assert grad(lambda x: xs.logsumexp(x).exp().sum())(x).tolist() == [[0.0] * 3] * 2
    assert jvp(xs.logsumexp, (x,), (torch.ones_like(x),))[1].tolist() == [0.0, 0.0]
    factored = lambda x: xs.logsumexp(x, b=PATTERN[:2]).exp().sum()  # noqa: E731
    assert (grad(factored)(x) == 0.0).all()
    assert (hessian(factored)(x) == 0.0).all()
    assert torch.isnan(grad(lambda x: xs.softmax(x).sum())(x)).all()


@pytest.mark.parametrize("axis", [-1, None], ids=str)
def test_rows_with_nothing_kept(axis):
    none = torch.zeros(3, dtype=torch.bool)
    for f in (lambda x: xs.softmax(x, where=none, axis=axis), lambda x: xs.logsumexp(x, where=none, axis=axis).exp(),
              lambda x: xs.logsumexp(x, b=PATTERN, where=none, axis=axis).exp()):  # fmt: skip
        assert (grad(lambda x, f=f: f(x).sum())(BAD) == 0.0).all()
        assert (hessian(lambda x, f=f: f(x).sum())(BAD) == 0.0).all()
        assert (jvp(f, (BAD,), (PATTERN,))[1] == 0.0).all()


def test_masked_entries_contribute_nothing_whatever_they_hold():
    where = torch.isfinite(BAD[3:]) & torch.tensor([True, True, True])
    x, clean = torch.where(where, BAD[3:], NAN), torch.where(where, BAD[3:], 0.0)
    v = torch.where(where, PATTERN[:1], NAN)
    label = torch.tensor([2])
    for f in (lambda x: xs.softmax(x, where=where), lambda x: xs.logsumexp(x, where=where),
              lambda x: xs.cross_entropy_grad(x, label, where=where, softcap=3.0, z_loss=0.1),
              lambda x: xs.cross_entropy(x, label, where=where, label_smoothing=0.1)):  # fmt: skip
        for actual, expected in zip(jvp(f, (x,), (v,)), jvp(f, (clean,), (torch.nan_to_num(v),)), strict=True):
            assert_close(actual, expected)
        square = lambda x, f=f: (f(x) ** 2).sum()  # noqa: E731
        assert_close(grad(square)(x), grad(square)(clean))
        assert_close(hessian(square)(x), hessian(square)(clean))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_row_kept(reduction):
    loss, gradient = xs.cross_entropy_and_grad(leaf(X), torch.tensor([7, 7]), ignore_index=7, reduction=reduction)
    assert (gradient == 0.0).all()
    x = leaf(X)
    (dx,) = torch.autograd.grad(xs.cross_entropy(x, torch.tensor([7, 7]), ignore_index=7, reduction=reduction), x)
    assert (dx == 0.0).all()
    assert bool(torch.isnan(loss)) == (reduction == "mean")


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty(shape):
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(xs.softmax(x).sum() + xs.log_softmax(x).sum(), x)
    assert dx.shape == shape


def test_0_dimensions():
    check_both_orders(lambda x: xs.softmax(x, axis=None), torch.tensor(0.3, dtype=torch.float64))
    assert grad(lambda x: xs.logsumexp(x, axis=None))(torch.tensor(0.3)).item() == 1.0


# ---------------------------------------------------------------------------------------------------------------------
# as an implementation


def test_layouts():
    wide = normal(3, 4, 2)
    label = torch.tensor([0, 1])
    for x in (wide.transpose(0, 2), wide[:, ::2], wide[:1].expand(5, 4, 2), wide.flip(0)):
        y = xs.softmax(leaf(x))
        assert_close(y, torch.softmax(x, -1))
        assert_close(
            grad(lambda x: (xs.log_softmax(x) ** 2).sum())(x), grad(lambda x: (x.log_softmax(-1) ** 2).sum())(x)
        )
        u = torch.ones(1, dtype=x.dtype).expand(y.shape)
        assert_close(vjp(xs.log_softmax, x)[1](u)[0], vjp(lambda x: x.log_softmax(-1), x)[1](u)[0])
    assert_close(grad(xs.cross_entropy)(wide[0].T[:, ::2], label), grad(F.cross_entropy)(wide[0].T[:, ::2], label))


def test_base_of_an_expanded_tensor_gets_the_sum():
    x = leaf(X[:1])
    (dx,) = torch.autograd.grad(xs.cross_entropy(x.expand(2, 3), LABELS, reduction="sum"), x)
    assert_close(dx, 2.0 * torch.softmax(X[:1], -1) - torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64))


def test_integer_labels_and_masks_get_no_gradient():
    x = leaf(X)
    for labels in (LABELS, LABELS.to(torch.uint8), LABELS.to(torch.int32)):
        (dx,) = torch.autograd.grad(xs.cross_entropy(x, labels, where=MASK | True), x)
        assert_close(dx, xs.cross_entropy_grad(X, LABELS))
    assert not xs.cross_entropy(X, LABELS).requires_grad
    assert xs.softmax(torch.tensor([1, 2, 3])).tolist() == torch.softmax(torch.tensor([1.0, 2.0, 3.0]), -1).tolist()


def test_the_sign_has_no_derivative():
    value, sign = xs.logsumexp(leaf(X), b=leaf(normal(2, 3, seed=1)), return_sign=True)
    assert value.requires_grad
    assert not sign.requires_grad
    _, (_, tangent) = jvp(lambda x: xs.logsumexp(x, b=X, return_sign=True), (X,), (X,))
    assert (tangent == 0.0).all()


@pytest.mark.parametrize("verb", ["softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_grad"])
def test_runs_on_tensors_and_parameters(verb):
    arrays = (X, LABELS) if "cross" in verb else (X,)
    assert xs.explain(verb, *arrays).derivatives == "torch_native"
    assert xs.explain(verb, torch.nn.Parameter(X), *arrays[1:]).derivatives == "torch_native"
    f = getattr(xs, verb)
    x = torch.nn.Parameter(X)
    (dx,) = torch.autograd.grad(f(x, *arrays[1:]).square().sum(), x)
    assert_close(dx, grad(lambda x: f(x, *arrays[1:]).square().sum())(X))


class Marked(torch.Tensor):
    pass


def test_subclasses_have_the_rules_too():
    x = leaf(torch.zeros(2, 3, dtype=torch.float64).as_subclass(Marked))
    assert xs.explain("softmax", x).derivatives == "torch_native"
    (dx,) = torch.autograd.grad(xs.cross_entropy(x, LABELS), x)
    assert type(dx) is Marked
    assert_close(dx.as_subclass(torch.Tensor), xs.cross_entropy_grad(torch.zeros(2, 3, dtype=torch.float64), LABELS))


def test_tensors_without_values():
    with FakeTensorMode():
        x = torch.zeros(2, 3, requires_grad=True)
        (dx,) = torch.autograd.grad(xs.cross_entropy(x, torch.zeros(2, dtype=torch.int64)), x)
    assert (tuple(dx.shape), dx.dtype) == ((2, 3), torch.float32)


@pytest.mark.slow
# its tracer says that it sees through caches, and looks at the grad of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:.*Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("f", [xs.logsumexp, partial(xs.cross_entropy, z_loss=0.1)], ids=["logsumexp", "cross_entropy"])
def test_compiled_code_has_the_rules_too(f):
    x = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
    one = (lambda x: f(x, torch.tensor(1))) if isinstance(f, partial) else f
    compiled = torch.compile(one, backend="aot_eager")
    assert_close(torch.autograd.grad(compiled(given := leaf(x)), given)[0], grad(one)(x))
    assert_close(torch.compile(hessian(one), backend="aot_eager")(x), hessian(one)(x))


def recorded(calls):
    """The chooser's run with a list of what it was asked for."""

    class Recorded(choose.Runner):
        def __call__(self, operation, problem, *arrays, xp, out=None):
            calls.append((operation, None))
            return super().__call__(operation, problem, *arrays, xp=xp)

        def behind(self, operation, problem, *arrays, xp, out=None):
            calls.append((operation, self.me))
            return super().behind(operation, problem, *arrays, xp=xp)

    return Recorded(None, "torch_native")


def test_derivatives_keep_the_choice():
    calls = []
    _, problem, _ = choose.recorded(xs.softmax, X)
    x = leaf(X)
    y = torch_native.softmax(problem, x, None, xp=xp, run=recorded(calls))
    assert calls == [("softmax", "torch_native")]
    with xs.use_implementation("array_api"):
        (dx,) = torch.autograd.grad(y, x, X, create_graph=True)
        torch.autograd.grad(dx.square().sum(), x)
    assert calls[:2] == [("softmax", "torch_native"), ("softmax_product", "torch_native")]
    assert {operation for operation, _ in calls} == {"softmax", "softmax_product"}


def test_batches_reach_the_arithmetic_in_full_shape():
    """Kernels read shapes and strides; broadcasting is for the formulas alone."""
    shapes = []

    class Run(choose.Runner):
        def behind(self, operation, problem, *arrays, xp, out=None):
            leaves = torch.utils._pytree.tree_leaves(arrays)
            shapes.append([tuple(a.shape) for a in leaves if isinstance(a, torch.Tensor)])
            return super().behind(operation, problem, *arrays, xp=xp)

    run = Run(None, "torch_native")

    _, problem, _ = choose.recorded(xs.softmax_vjp, X, X)
    vmap(lambda v: torch_native.softmax_product(problem, PROBS, v, None, xp=xp, run=run))(normal(4, 2, 3))
    assert shapes == [[(4, 2, 3), (4, 2, 3)]]
    _, problem, _ = choose.recorded(xs.cross_entropy, X, LABELS)
    rows = Rows(MASK[0])
    shapes.clear()
    vmap(lambda x: torch_native.cross_entropy(problem, x, LABELS, rows, xp=xp, run=run)[0])(normal(4, 2, 3))
    assert shapes == [[(4, 2, 3), (4, 2), (3,)]]


def test_nothing_of_the_size_of_a_jacobian():
    """The Jacobian of one row would take 720 GB."""
    n = 300_000
    x, v = torch.linspace(-1.0, 1.0, n, requires_grad=True), torch.linspace(0.0, 1.0, n)
    for f in (xs.softmax, xs.log_softmax, xs.logsumexp, lambda x: xs.cross_entropy(x, torch.tensor(3), z_loss=0.1)):
        (g,) = torch.autograd.grad((f(x) ** 2).sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g @ v, x)
        assert h.shape == (n,)
        jvp(grad(lambda x, f=f: (f(x) ** 2).sum()), (x.detach(),), (v,))


def test_arrays_die_with_their_graph():
    for f in (xs.softmax, xs.log_softmax, xs.logsumexp, lambda x: xs.cross_entropy(x, LABELS)):
        gc.disable()
        try:
            x = leaf(X)
            y = f(x)
            seen = weakref.ref(x), weakref.ref(y)
            del x, y
            assert [ref() for ref in seen] == [None, None]
        finally:
            gc.enable()


def test_small_results_are_not_saved():
    x = leaf(X)
    y = xs.softmax(x)
    with torch.no_grad():
        y.mul_(0.0)
    (gradient,) = torch.autograd.grad(y, x, V)
    assert_close(gradient, grad(lambda x: (xs.softmax(x) * V).sum())(X))


def test_results_that_are_saved_are_guarded(monkeypatch):
    monkeypatch.setattr(choose, "_SMALL", 0)
    x = leaf(X)
    y = xs.softmax(x)
    y.data.add_(0.0)
    with torch.no_grad():
        y.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_forced_implementation_keeps_the_rules():
    """The formulas differentiated as written split a tie's derivative in the maximum."""
    x, v = torch.zeros(4, dtype=torch.float64, requires_grad=True), torch.arange(4.0, dtype=torch.float64)
    with xs.use_implementation("array_api"):
        (xs.softmax(x) @ v).backward()
        explanation = xs.explain("softmax", x)
    torch.testing.assert_close(x.grad, (v - 1.5) / 4.0)
    assert (explanation.implementation, explanation.derivatives) == ("array_api", "torch_native")
    assert "torch_native has the derivative rules" in str(explanation)


def test_mean_of_labels_that_are_no_class_is_nan_with_its_gradient():
    x = torch.zeros(2, 3, dtype=torch.float64)
    gradient = torch.func.vmap(torch.func.grad(xs.cross_entropy))(x, torch.tensor([1, 3]))
    assert torch.isfinite(gradient[0]).all()
    assert torch.isnan(gradient[1]).all()
