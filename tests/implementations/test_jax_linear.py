"""Derivatives of a linear layer's loss under JAX: those of the logits' own loss, and less memory."""

import numpy as np
import pytest

import xsoftmax as xs

jax = pytest.importorskip("jax")
pytestmark = pytest.mark.backend("jax")

N, D, V = 7, 4, 6
CHUNKS = [None, 1, 3, 7, (2, 3)]
OPTIONS = {"plain": {}, "all": {"softcap": 3.0, "z_loss": 0.1, "label_smoothing": 0.1}}


@pytest.fixture
def given():
    rng = np.random.default_rng(6)
    floats = (rng.normal(size=(N, D)), rng.normal(size=(V, D)), rng.normal(size=V), rng.random(N))
    return tuple(map(jax.numpy.asarray, floats)), jax.numpy.asarray(rng.integers(V, size=N))


def assert_same(found, expected):
    eps = 64 * np.finfo(jax.numpy.zeros(1).dtype).eps
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=eps, atol=eps)


def functions(labels, chunk_size, options):
    def linear(x, factor, bias, s):
        loss = xs.linear_cross_entropy(
            x, factor, labels, linear_bias=bias, sample_weight=s, chunk_size=chunk_size, reduction="none", **options
        )
        return jax.numpy.sum(loss**2)

    def plain(x, factor, bias, s):
        loss = xs.cross_entropy(x @ factor.T + bias, labels, sample_weight=s, reduction="none", **options)
        return jax.numpy.sum(loss**2)

    return linear, plain


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_gradients(given, chunk_size, options):
    floats, labels = given
    linear, plain = functions(labels, chunk_size, OPTIONS[options])
    found, expected = (jax.grad(f, (0, 1, 2, 3))(*floats) for f in (linear, plain))
    assert_same(found, expected)


def test_second_order_both_modes_and_jit(given):
    floats, labels = given
    linear, plain = functions(labels, 3, {})
    assert_same(*(jax.jit(jax.hessian(f, (0, 1, 2, 3)))(*floats) for f in (linear, plain)))
    assert_same(*(jax.jvp(f, floats, floats)[1] for f in (linear, plain)))


def test_gradient_of_each_sample(given):
    (x, factor, bias, _), labels = given

    def linear(factor, bias, row, label):
        return xs.linear_cross_entropy(row[None], factor, label[None], linear_bias=bias)

    def plain(factor, bias, row, label):
        return xs.cross_entropy(row[None] @ factor.T + bias, label[None])

    assert_same(*(jax.vmap(jax.grad(f, (0, 1)), (None, None, 0, 0))(factor, bias, x, labels) for f in (linear, plain)))


def test_derivative_of_the_targets(given):
    (x, factor, *_), _ = given
    q = jax.nn.softmax(x @ factor.T)
    assert_same(
        jax.grad(lambda q: xs.linear_cross_entropy(x, factor, q, chunk_size=2))(q),
        jax.grad(lambda q: xs.cross_entropy(x @ factor.T, q))(q),
    )


@pytest.mark.parametrize("traced", [False, True])
def test_loss_and_gradients(given, traced):
    (x, factor, bias, s), labels = given

    def linear(x, factor, bias):
        return xs.linear_cross_entropy_and_grad(x, factor, labels, linear_bias=bias, sample_weight=s, chunk_size=2)

    loss, g = xs.cross_entropy_and_grad(x @ factor.T + bias, labels, sample_weight=s)
    found = (jax.jit(linear) if traced else linear)(x, factor, bias)
    assert_same(tuple(found), (loss, g @ factor, g.T @ x, g.sum(axis=0)))


def test_memory_of_a_gradient():
    """A block has some temporaries, but all blocks have the same."""
    n, classes, height = 1024, 2000, 32
    x, factor = jax.numpy.ones((n, 8)), jax.numpy.ones((classes, 8))
    labels = jax.numpy.zeros(n, int)

    def loss(x, factor):
        return xs.linear_cross_entropy(x, factor, labels, chunk_size=height)

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, factor).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * classes * x.itemsize / 2
