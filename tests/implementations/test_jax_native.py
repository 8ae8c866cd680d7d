"""Derivatives of every verb under JAX's transformations, to the third order, where rows are ordinary and where not."""

from functools import partial

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import xsoftmax as xs  # noqa: E402

pytestmark = pytest.mark.backend("jax")

INF, NAN = float("inf"), float("nan")

# XLA compiles every test's functions and runs each once
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def x32():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", before)


# ---------------------------------------------------------------------------------------------------------------------
# plain definitions, differentiated by JAX. Everything has the shape (3, 4), since JAX compiles shape by shape.

RNG = np.random.default_rng(5)
X, V, U = RNG.normal(size=(3, 3, 4))
Q, P = (np.exp(a) / np.exp(a).sum(axis=-1, keepdims=True) for a in RNG.normal(size=(2, 3, 4)))
B = np.array([[0.5, -1.0, 2.0, 1.0], [-3.0, 0.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
MASK = np.array([[1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]], dtype=bool)
Q_MASKED = np.exp(X) * MASK / (np.exp(X) * MASK).sum(axis=-1, keepdims=True)
MASK = jnp.asarray(MASK)
WEIGHT, SAMPLE_WEIGHT = np.array([0.5, 1.0, 2.0, 0.7]), np.array([0.7, 1.4, 2.0])
LABELS = jnp.array([3, 0, 1])
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
        # b = 0 hides x, and with it ∂²/∂x∂b, which the definition has
        lambda x, b: (jnp.log(jnp.abs((b * jnp.exp(x)).sum(axis=-1))), jnp.sign((b * jnp.exp(x)).sum(axis=-1))),
        (X, np.where(B == 0.0, 0.3, B)),
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


def derivatives(f, args):
    """Value, and derivatives of the first three orders in forward and reverse mode."""
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
    return {name: jax.jit(derivative)(*args) for name, derivative in orders.items()}


def assert_same(found, expected, tolerance=1e-12):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("verb", VERBS)
def test_derivatives_are_those_of_the_definition(verb, x64):
    f, plain, args = VERBS[verb]
    args = tuple(map(jnp.asarray, args))
    assert_same(derivatives(f, args), derivatives(plain, args))
