"""Derivatives of every verb under JAX's transformations, where rows are ordinary and where not.

To the third order; those of verbs that are derivatives of the loss to the second.
"""

import math
from functools import partial

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import xsoftmax as xs  # noqa: E402

pytestmark = pytest.mark.backend("jax")

INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def quick_compilation():
    """Every test compiles functions of its own and runs them once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def x64():
    yield from with_x64(True)


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def either(request):
    yield from with_x64(request.param)


def with_x64(enabled):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", enabled)
    yield
    jax.config.update("jax_enable_x64", before)


# ---------------------------------------------------------------------------------------------------------------------
# plain definitions, differentiated by JAX. Everything has the shape (3, 4), since JAX compiles shape by shape.

RNG = np.random.default_rng(5)
X, V = RNG.normal(size=(2, 3, 4))
Q, P = (np.exp(a) / np.exp(a).sum(axis=-1, keepdims=True) for a in RNG.normal(size=(2, 3, 4)))
B = np.array([[0.5, -1.0, 2.0, 1.0], [-3.0, 0.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
MASK = np.array([[1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]], dtype=bool)
Q_MASKED = np.exp(X) * MASK / (np.exp(X) * MASK).sum(axis=-1, keepdims=True)
MASK = jnp.asarray(MASK)
WEIGHT, SAMPLE_WEIGHT = np.array([0.5, 1.0, 2.0, 0.7]), np.array([0.7, 1.4, 2.0])
LABELS = jnp.array([3, 0, 1], dtype=jnp.int32)
UNCAPPED = {"label_smoothing": 0.1, "temperature": 1.5, "z_loss": 0.05}
SMOOTH = {**UNCAPPED, "softcap": 3.0}


def plain_terms(x, targets, weight=1.0, *, where=True, label_smoothing=0.0, temperature=1.0, softcap=None):
    """z, y, log y, t and the classes kept."""
    z = (x if softcap is None else softcap * jnp.tanh(x / softcap)) / temperature
    kept = jnp.broadcast_to(where, z.shape)
    y, log_y = jax.nn.softmax(z, where=kept), jnp.where(kept, jax.nn.log_softmax(z, where=kept), 0.0)
    t = jax.nn.one_hot(targets, 4, dtype=z.dtype) if targets.ndim == 1 else jnp.where(kept, targets, 0.0)
    t = weight * ((1.0 - label_smoothing) * t + label_smoothing * kept / kept.sum(axis=-1, keepdims=True))
    return z, y, log_y, t, kept


def plain_scales(targets, weight, sample_weight, reduction):
    """Factors of a row's loss and of its squared logsumexp."""
    if reduction == "none":
        return sample_weight, sample_weight
    counted = sample_weight * (weight[targets] if targets.ndim == 1 else 1.0)
    return sample_weight / counted.sum(), sample_weight / sample_weight.sum()


def plain_loss(x, targets, weight, sample_weight, *, z_loss=0.0, reduction="mean", **options):
    z, _, log_y, t, kept = plain_terms(x, targets, weight, **options)
    scale, scale_square = plain_scales(targets, weight, sample_weight, reduction)
    square = jax.nn.logsumexp(z, axis=-1, where=kept) ** 2
    loss = -scale * (t * log_y).sum(axis=-1) + scale_square * z_loss * square
    return loss if reduction == "none" else loss.sum()


def plain_grad(x, targets, weight, sample_weight, *, z_loss=0.0, reduction="mean", **options):
    z, y, _, t, kept = plain_terms(x, targets, weight, **options)
    scale, scale_square = plain_scales(targets, weight, sample_weight, reduction)
    lse = jax.nn.logsumexp(z, axis=-1, where=kept)
    grad = scale[:, None] * (t.sum(axis=-1, keepdims=True) * y - t) + (2.0 * z_loss * scale_square * lse)[:, None] * y
    slope = 1.0 if options.get("softcap") is None else 1.0 / jnp.cosh(x / options["softcap"]) ** 2
    return grad * slope / options.get("temperature", 1.0)


def plain_hvp(x, targets, v, *args, **options):
    return jax.jvp(lambda x: plain_grad(x, targets, *args, **options), (x,), (v,))[1]


def plain_diag(x, targets, weight, sample_weight, *, z_loss=0.0, temperature=1.0, **options):
    z, y, _, t, _ = plain_terms(x, targets, weight, temperature=temperature, **options)
    scale, scale_square = (s[:, None] for s in plain_scales(targets, weight, sample_weight, "mean"))
    square = 2.0 * z_loss * scale_square
    lse = jax.nn.logsumexp(z, axis=-1, keepdims=True)
    return ((scale * t.sum(axis=-1, keepdims=True) + square * lse) * y * (1.0 - y) + square * y * y) / temperature**2


def weighted(verb):
    """The verb with the weights as arguments to differentiate."""
    return lambda *args, **options: verb(*args[:-2], weight=args[-2], sample_weight=args[-1], **options)


def masked(product, where):
    """Entries masked contribute nothing."""
    return lambda y, v: product(jnp.where(where, y, 0.0), jnp.where(where, v, 0.0))


def softmax_product(y, v):
    return y * (v - (y * v).sum(axis=-1, keepdims=True))


def log_softmax_vjp(log_y, dy):
    return dy - jnp.exp(log_y) * dy.sum(axis=-1, keepdims=True)


def log_softmax_jvp(log_y, dx):
    return dx - (jnp.exp(log_y) * dx).sum(axis=-1, keepdims=True)


def with_softmax(product):
    return lambda x, v: product(jax.nn.softmax(x), v)


def both(f, g):
    return lambda *args: (f(*args), g(*args))


ALL = (WEIGHT, SAMPLE_WEIGHT)
VERBS = {
    "softmax": (partial(xs.softmax, temperature=1.5), lambda x: jax.nn.softmax(x / 1.5), (X,)),
    "softmax, all axes, where": (
        partial(xs.softmax, axis=None, where=MASK),
        lambda x: jax.nn.softmax(x, axis=(0, 1), where=MASK),
        (X,),
    ),
    "log_softmax": (partial(xs.log_softmax, axis=0), lambda x: jax.nn.log_softmax(x, axis=0), (X,)),
    "logsumexp": (partial(xs.logsumexp, where=MASK), lambda x: jax.nn.logsumexp(x, axis=-1, where=MASK), (X,)),
    "logsumexp, b": (
        lambda x, b: xs.logsumexp(x, b=b, return_sign=True),
        lambda x, b: (jnp.log(abs(s := (b * jnp.exp(x)).sum(axis=-1))), jnp.sign(s)),
        (X, B),
    ),
    "softmax_jacobian": (
        lambda x: xs.softmax_jacobian(jax.nn.softmax(x)),
        lambda x: jnp.einsum("icid->icd", jax.jacobian(jax.nn.softmax)(x)),
        (X,),
    ),
    "softmax_jacobian, y": (
        xs.softmax_jacobian,
        lambda y: y[..., None] * jnp.eye(4) - y[..., None] * y[..., None, :],
        (Q,),
    ),
    # along the simplex: the products take Σ y = 1 for granted
    "softmax_vjp": (
        lambda x, v: xs.softmax_vjp(jax.nn.softmax(x), v),
        lambda x, v: softmax_product(jax.nn.softmax(x), v),
        (X, V),
    ),
    "softmax_jvp, where": (
        lambda x, v: xs.softmax_jvp(jax.nn.softmax(x, where=MASK), v, where=MASK),
        lambda x, v: masked(softmax_product, MASK)(jax.nn.softmax(x, where=MASK), v),
        (X, V),
    ),
    "log_softmax_vjp": (xs.log_softmax_vjp, log_softmax_vjp, (np.log(Q), V)),
    "log_softmax_jvp": (xs.log_softmax_jvp, log_softmax_jvp, (np.log(Q), V)),
    "cross_entropy, labels": (
        lambda x, *w: weighted(xs.cross_entropy)(x, LABELS, *w, **SMOOTH),
        lambda x, *w: plain_loss(x, LABELS, *w, **SMOOTH),
        (X, *ALL),
    ),
    "cross_entropy, probabilities": (
        partial(weighted(xs.cross_entropy), where=MASK, **SMOOTH),
        partial(plain_loss, where=MASK, **SMOOTH),
        (X, Q, *ALL),
    ),
    "cross_entropy_grad, labels": (
        lambda x, *w: weighted(xs.cross_entropy_grad)(x, LABELS, *w, **UNCAPPED),
        lambda x, *w: plain_grad(x, LABELS, *w, **UNCAPPED),
        (X, *ALL),
    ),
    "cross_entropy_and_grad, probabilities": (
        partial(weighted(xs.cross_entropy_and_grad), where=MASK, reduction="none"),
        both(
            partial(plain_loss, where=MASK, reduction="none"),
            partial(plain_grad, where=MASK, reduction="none"),
        ),
        (X, Q, *ALL),
    ),
    "cross_entropy_hvp": (
        lambda x, v: weighted(xs.cross_entropy_hvp)(x, jnp.asarray(Q), v, *map(jnp.asarray, ALL), **SMOOTH),
        lambda x, v: plain_hvp(x, Q, v, *ALL, **SMOOTH),
        (X, V),
    ),
    "cross_entropy_grad_and_hessian_diag": (
        partial(weighted(xs.cross_entropy_grad_and_hessian_diag), **UNCAPPED),
        both(partial(plain_grad, **UNCAPPED), partial(plain_diag, **UNCAPPED)),
        (X, Q, *ALL),
    ),
    "cross_entropy_from_probs": (
        lambda p, q, w: xs.cross_entropy_from_probs(p, q, weight=w),
        lambda p, q, w: -(w * q * jnp.log(p)).sum(axis=-1).mean(),
        (P, Q, WEIGHT),
    ),
    "entropy": (xs.entropy, lambda p: -(p * jnp.log(p)).sum(axis=-1), (P,)),
    "kl_divergence": (xs.kl_divergence, lambda p, q: (p * jnp.log(p / q)).sum(axis=-1), (P, Q)),
}


# of verbs that are derivatives of the loss: their second order is its third and fourth, by the same rules, and their
# third compiled for most of the minutes of this file
TO_SECOND = ("value", "reverse", "forward over reverse")
ARE_DERIVATIVES = ("cross_entropy_grad", "cross_entropy_and_grad", "cross_entropy_hvp")


def derivatives(f, args, only=None):
    """Functions for the value and for derivatives to the third order, along fixed random directions; or `only` some."""
    rng = np.random.default_rng(1)
    tangents = tuple(jnp.asarray(rng.normal(size=a.shape)) for a in args)
    factors = [jnp.asarray(rng.normal(size=leaf.shape)) for leaf in jax.tree.leaves(jax.eval_shape(f, *args))]
    everything = tuple(range(len(args)))

    def forward(f):
        return lambda *args: jax.jvp(f, args, tangents)[1]

    def scalar(f):
        return lambda *args: sum(jnp.vdot(c, leaf) for c, leaf in zip(factors, jax.tree.leaves(f(*args)), strict=True))

    def gradient(s):
        return jax.grad(s, argnums=everything)

    def reverse(s):
        return lambda *args: sum(map(jnp.vdot, gradient(s)(*args), tangents))

    s = scalar(f)
    orders = {
        "value": f,
        "reverse": gradient(s),
        "forward over reverse": forward(gradient(s)),
        "third, forward": forward(forward(forward(f))),
        "third, reverse": gradient(reverse(reverse(s))),
    }
    return {name: jax.jit(derivative) for name, derivative in orders.items() if only is None or name in only}


def at(functions, *args):
    return {name: function(*args) for name, function in functions.items()}


def assert_same(found, expected, tolerance=1e-12):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("verb", VERBS)
def test_derivatives_are_those_of_the_definition(verb, x64):
    f, plain, args = VERBS[verb]
    args = tuple(map(jnp.asarray, args))
    only = TO_SECOND if verb.startswith(ARE_DERIVATIVES) else None
    assert_same(at(derivatives(f, args, only), *args), at(derivatives(plain, args, only), *args))


@pytest.mark.parametrize(
    "f, args",
    [
        (partial(xs.softmax, temperature=1.5), (X,)),
        (lambda x: xs.cross_entropy(jnp.asarray(x), LABELS, **SMOOTH), (X,)),
    ],
    ids=["softmax", "cross_entropy"],
)
def test_derivatives_are_those_of_finite_differences(f, args, x64):
    # differences of the second order are good to about 1e-5
    check_grads(f, args, order=2, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# rows that are not ordinary

EMPTY = jnp.array([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]], dtype=bool)
HIDDEN = jnp.array([[1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]], dtype=bool)


def masked_verbs(where, x):
    """Verbs on logits; what is −∞ or nan in their value whatever x holds is left out."""
    log_y = xs.log_softmax(x, where=where)
    return (
        xs.softmax(x, where=where),
        jnp.where(where, log_y, 0.0),
        jnp.where(where.any(axis=-1), xs.logsumexp(x, where=where), 0.0),
        xs.softmax_jvp(xs.softmax(x, where=where), x, where=where),
        xs.cross_entropy(x, jnp.where(where, Q, 0.0), where=where, **SMOOTH),
    )


def masked_derivatives(where, x):
    q = jnp.where(where, Q, 0.0)
    return (
        xs.cross_entropy_grad(x, q, where=where, **SMOOTH),
        xs.cross_entropy_hvp(x, q, x, where=where, **SMOOTH),
    )


@pytest.mark.parametrize("verbs, only", [(masked_verbs, None), (masked_derivatives, TO_SECOND)])
def test_masked_entries_have_no_part_in_any_derivative(verbs, only, x64):
    x = jnp.asarray(X)
    functions = derivatives(partial(verbs, EMPTY), (x,), only)
    held = jnp.where(EMPTY, x, jnp.asarray([[INF, NAN, -INF, 1e300]] * 3))
    clean, dirty = at(functions, x), at(functions, held)
    assert_same(dirty, clean, tolerance=0.0)
    for leaf in jax.tree.leaves(clean):
        assert np.isfinite(leaf).all()
    for name in {"reverse", "forward over reverse", "third, reverse"} & set(clean):
        np.testing.assert_array_equal(jnp.where(EMPTY, 0.0, clean[name][0]), np.zeros((3, 4)))


def unmasked_verbs(where, x, q):
    options = {} if where is None else {"where": where}
    return (
        xs.softmax(x, **options),
        xs.logsumexp(x, **options),
        xs.cross_entropy(x, q, softcap=3.0, z_loss=0.1, reduction="none", **options),
        xs.cross_entropy_grad(x, q, softcap=3.0, **options),
    )


def test_classes_at_minus_infinity_are_as_if_masked(x64):
    x, q = jnp.asarray(X), jnp.where(HIDDEN, Q, 0.0)
    masked = at(derivatives(partial(unmasked_verbs, HIDDEN), (x, q), ("value", "reverse")), x, q)
    infinite = at(derivatives(partial(unmasked_verbs, None), (x, q)), jnp.where(HIDDEN, x, -INF), q)
    # a target at −∞ costs y Σ t of its row's gradient all the same
    assert_same(infinite["value"], masked["value"])
    assert_same(*(jnp.where(HIDDEN, d["reverse"][0], 0.0) for d in (infinite, masked)))
    for name, leaf in jax.tree_util.tree_leaves_with_path(infinite):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(name)


def test_logsumexp_of_a_row_at_minus_infinity_has_derivatives_zero(x64):
    x = jnp.asarray(X).at[1].set(-INF)
    b = jnp.asarray(B)
    for f in (xs.logsumexp, lambda x: xs.logsumexp(x, b=b, return_sign=True)[0]):
        functions = derivatives(lambda x, f=f: jnp.where(jnp.isinf(value := f(x)), 0.0, value), (x,))
        ordinary, infinite = at(functions, jnp.asarray(X)), at(functions, x)
        for name in ("reverse", "forward over reverse", "third, reverse"):
            np.testing.assert_array_equal(infinite[name][0][1], np.zeros(4))
            assert_same(infinite[name][0][::2], ordinary[name][0][::2])
        assert np.isfinite(infinite["third, forward"]).all()


def losses(x, q, sample_weight):
    probs = xs.cross_entropy_from_probs(abs(x), q, sample_weight=sample_weight)
    return xs.cross_entropy(x, q, sample_weight=sample_weight, **UNCAPPED), probs


def losses_derivatives(x, q, sample_weight):
    options = {**UNCAPPED, "sample_weight": sample_weight}
    grad, diag = xs.cross_entropy_grad_and_hessian_diag(x, q, **options)
    return grad, diag, xs.cross_entropy_hvp(x, q, x, **options)


@pytest.mark.parametrize("verbs, only", [(losses, None), (losses_derivatives, TO_SECOND)])
def test_absent_rows_have_no_part_in_any_derivative(verbs, only, x64):
    x, q, present = jnp.asarray(X), jnp.asarray(Q), jnp.array([1.0, 0.0, 2.0])
    functions = derivatives(verbs, (x, q, present), only)
    clean = at(functions, x, q, present)
    for held in (NAN, INF, -INF):
        assert_same(at(functions, x.at[1].set(held), q.at[1].set(NAN), present), clean, tolerance=0.0)
    for leaf in jax.tree.leaves(clean):
        assert np.isfinite(leaf).all()


def test_ignored_rows_have_gradient_zero_whatever_they_hold(either):
    x = jnp.asarray(X, dtype=jnp.float32)
    loss = jax.jit(jax.value_and_grad(partial(xs.cross_entropy, ignore_index=-100)))
    value, grad = loss(x.at[0].set(NAN), LABELS.at[0].set(-100))
    rows, expected = jax.value_and_grad(lambda x: xs.cross_entropy(x, LABELS, reduction="none")[1:].mean())(x)
    np.testing.assert_allclose(value, rows, rtol=1e-6)
    np.testing.assert_allclose(grad, expected, rtol=1e-6)
    np.testing.assert_array_equal(grad[0], np.zeros(4))
    value, grad = loss(x, jnp.full(3, -100))
    assert np.isnan(value)
    np.testing.assert_array_equal(grad, np.zeros((3, 4)))


BAD = {"nan": ([NAN, 0.0, 1.0, 2.0], 0), "label": ([3.0, 0.0, 1.0, 2.0], 4), "negative label": ([0.0] * 4, -1)}


@pytest.mark.parametrize("row, label", BAD.values(), ids=BAD)
def test_a_nan_row_is_nan_alone_and_zero_where_unused(row, label, either):
    x, labels = (
        jnp.asarray(X, dtype=jnp.float32).at[1].set(jnp.asarray(row, dtype=jnp.float32)),
        LABELS.at[1].set(label),
    )

    @jax.jit
    def grad(kept):
        def loss(x):
            rows = xs.cross_entropy(x, labels, reduction="none")
            return jnp.sum(jnp.where(kept, rows, 0.0)), rows

        return jax.grad(loss, has_aux=True)(x)

    every, rows = grad(jnp.array([True, True, True]))
    some, _ = grad(jnp.array([True, False, True]))
    np.testing.assert_array_equal(np.isnan(rows), [False, True, False])
    np.testing.assert_array_equal(np.isnan(every).all(axis=-1), [False, True, False])
    np.testing.assert_array_equal(some[1], np.zeros(4))
    np.testing.assert_array_equal(some[::2], every[::2])
    assert np.isfinite(some).all()


def test_a_target_of_zero_at_minus_infinity_has_derivative_zero(x64):
    x = jnp.asarray(X).at[0, 1].set(-INF)
    q = jnp.asarray(Q).at[0, 1].set(0.0)
    grad = jax.grad(lambda q: xs.cross_entropy(x, q, reduction="sum"))(q)
    np.testing.assert_allclose(grad, jnp.where(jnp.isinf(x), 0.0, -xs.log_softmax(x)), rtol=1e-15)
    by_weight = jax.grad(lambda w: xs.cross_entropy(x, LABELS, weight=w, reduction="sum"))(jnp.ones(4))
    assert np.isfinite(by_weight).all()


@pytest.mark.parametrize("top", [100.0, 500.0, 800.0])
@pytest.mark.parametrize("derivative", [jax.jacrev, jax.jacfwd])
def test_logsumexp_factor_of_zero_far_above(x64, derivative, top):
    """∂/∂b = exp(x) / Σ b exp(x), ∞ where that overflows; the others are none the worse."""
    x, b = jnp.array([top, 1.0, 0.0]), jnp.array([0.0, 1.0, -0.5])
    dx, db = derivative(lambda x, b: xs.logsumexp(x, b=b, return_sign=True)[0], argnums=(0, 1))(x, b)
    s = math.e - 0.5
    np.testing.assert_allclose(dx, [0.0, math.e / s, -0.5 / s], rtol=1e-14)
    np.testing.assert_allclose(db, [math.exp(top) / s if top < 709.0 else INF, math.e / s, 1.0 / s], rtol=1e-13)


def test_the_derivative_by_a_factor_of_zero_is_not_zero(x64):
    grad = jax.grad(lambda b: xs.logsumexp(jnp.zeros(3), b=b))(jnp.array([2.0, 0.0, 1.0]))
    np.testing.assert_allclose(grad, np.full(3, 1 / 3), rtol=1e-15)


# ---------------------------------------------------------------------------------------------------------------------
# accuracy, dtypes, other libraries


@pytest.mark.parametrize(
    "hessian",
    [
        lambda f: jax.jacfwd(jax.jacrev(f)),
        lambda f: jax.jacrev(jax.jacfwd(f)),
        lambda f: jax.jacrev(jax.jacrev(f)),
        lambda f: jax.jacfwd(jax.jacfwd(f)),
    ],
    ids=["forward over reverse", "reverse over forward", "reverse over reverse", "forward over forward"],
)
def test_hessians_of_confident_rows_keep_their_digits(hessian, x64):
    # y = (1, e⁻⁴⁰, e⁻⁴¹, e⁻⁸⁰) / s: 1 − y of the first is the sum of the others
    x = jnp.array([0.0, -40.0, -41.0, -80.0])
    y = np.exp(np.asarray(x)) / np.exp(np.asarray(x)).sum()
    expected = -np.outer(y, y)
    np.fill_diagonal(expected, [y[i] * np.delete(y, i).sum() for i in range(4)])
    for f in (xs.logsumexp, lambda x: xs.cross_entropy(x[None], jnp.array([0]))):
        # exp is good to a few ulps of 2⁻⁵³
        np.testing.assert_allclose(jax.jit(hessian(f))(x), expected, rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_derivatives_have_the_dtype_of_their_argument(dtype, either):
    x = jnp.asarray(X, dtype=dtype)
    wide = x.astype(jnp.float32)
    eps = float(jnp.finfo(dtype).eps)
    for f in (
        lambda x: xs.softmax(x)[:, 0].sum(),
        lambda x: xs.log_softmax(x)[:, 0].sum(),
        lambda x: xs.logsumexp(x).sum(),
        lambda x: xs.cross_entropy(x, LABELS, z_loss=0.1),
        lambda x: xs.cross_entropy_grad(x, LABELS, reduction="none")[:, 0].sum(),
    ):
        grad, expected = jax.grad(f)(x), jax.grad(f)(wide)
        assert grad.dtype == dtype
        assert jax.jvp(f, (x,), (x,))[1].dtype == f(x).dtype
        # the cotangent and the result are rounded to the narrow dtype once each
        np.testing.assert_allclose(grad.astype(jnp.float32), expected, rtol=2 * eps, atol=2 * eps)


@pytest.mark.parametrize("where", [None, HIDDEN], ids=["whole", "where"])
def test_agrees_with_jax(where, x64):
    x, v = jnp.asarray(X), jnp.asarray(V)
    for ours, theirs in (
        (xs.softmax, jax.nn.softmax),
        (xs.log_softmax, jax.nn.log_softmax),
        (xs.logsumexp, partial(jax.nn.logsumexp, axis=-1)),
    ):
        y, pull = jax.vjp(partial(ours, where=where), x)
        expected, pull_expected = jax.vjp(partial(theirs, where=where), x)
        np.testing.assert_allclose(y, expected, rtol=1e-14)
        u = jnp.where(jnp.isinf(y), 0.0, v[tuple(slice(n) for n in y.shape)] if y.ndim == 2 else v[:, 0])
        (found,), (wanted,) = pull(u), pull_expected(u)
        kept = True if where is None else where
        np.testing.assert_allclose(found, jnp.where(kept, wanted, 0.0), rtol=1e-13, atol=1e-15)


def test_agrees_with_optax(x64):
    optax = pytest.importorskip("optax")
    x, q = jnp.asarray(X), jnp.asarray(Q)
    for ours, theirs in (
        (
            lambda x: xs.cross_entropy(x, LABELS, reduction="none"),
            lambda x: optax.softmax_cross_entropy_with_integer_labels(x, LABELS),
        ),
        (
            lambda x: xs.cross_entropy(x, q, reduction="none"),
            lambda x: optax.softmax_cross_entropy(x, q),
        ),
        (
            lambda x: xs.cross_entropy(x, q, label_smoothing=0.1, reduction="none"),
            lambda x: optax.softmax_cross_entropy(x, optax.smooth_labels(q, 0.1)),
        ),
    ):
        np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-14)
        found, wanted = (jax.grad(lambda x, f=f: f(x).sum())(x) for f in (ours, theirs))
        np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-15)


# ---------------------------------------------------------------------------------------------------------------------
# transformations


def every_loss(x, labels, weight, where):
    options = {"weight": weight, "where": where, "z_loss": 0.1, "label_smoothing": 0.1}
    grad, diag = xs.cross_entropy_grad_and_hessian_diag(x, labels, **options)
    return xs.cross_entropy(x, labels, **options) + jnp.vdot(grad, diag) + xs.softmax(x, where=where)[..., 0].sum()


def test_vmap_of_gradients_is_a_loop(x64):
    """Over rows, over the last axis, and with labels, weights or the mask shared or not."""
    x = jnp.asarray(RNG.normal(size=(3, 3, 4)), dtype=jnp.float32)
    labels, weights = jnp.stack([LABELS] * 3), jnp.asarray(RNG.uniform(1, 2, size=(3, 4)), dtype=jnp.float32)
    grad = jax.grad(every_loss)
    one = jax.jit(grad)
    for axes in (
        (0, None, None, None),
        (0, 0, None, None),
        (-1, 0, 0, None),
        (None, None, 0, None),
        (0, None, None, 0),
    ):
        args = [
            a if axis is not None else a[0]
            for a, axis in zip((x, labels, weights, jnp.stack([HIDDEN] * 3)), axes, strict=True)
        ]
        if axes[0] == -1:
            args[0] = jnp.moveaxis(x, 0, -1)
        found = jax.jit(jax.vmap(grad, in_axes=axes))(*args)
        for i in range(3):
            expected = one(
                *(a if axis is None else jnp.take(a, i, axis=axis) for a, axis in zip(args, axes, strict=True))
            )
            # batched and single rows are summed in different orders
            np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-6)


def test_jit_leaks_no_tracer(either):
    x, weight = jnp.asarray(X, dtype=jnp.float32), jnp.asarray(WEIGHT, dtype=jnp.float32)
    with jax.checking_leaks():
        hessian = jax.jit(jax.hessian(every_loss))(x, LABELS, weight, HIDDEN)
    assert np.isfinite(hessian).all()


def test_the_same_call_compiles_once(either):
    x, other, weight = (jnp.asarray(a, dtype=jnp.float32) for a in (X, V, WEIGHT))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    jitted = jax.jit(jax.value_and_grad(every_loss))
    for call in (jitted, jax.value_and_grad(every_loss)):
        call(x, LABELS, weight, HIDDEN)
        assert any("backend_compile" in name for name in compiled)
        compiled.clear()
        call(other, LABELS, weight, HIDDEN)
        assert not any("backend_compile" in name for name in compiled)
    jax.monitoring.clear_event_listeners()


def test_who_runs(either):
    x = jnp.asarray(X, dtype=jnp.float32)
    assert xs.explain("softmax", x).derivatives == "jax_native"
    assert "custom_jvp" in str(jax.make_jaxpr(xs.softmax)(x))


def test_a_forced_implementation_keeps_the_rules():
    """The formulas differentiated as written split a tie's derivative in the maximum."""
    v = jnp.arange(4.0)
    with xs.use_implementation("array_api"):
        gradient = jax.grad(lambda x: xs.softmax(x) @ v)(jnp.zeros(4))
    np.testing.assert_allclose(gradient, (np.arange(4.0) - 1.5) / 4.0, rtol=1e-6)
