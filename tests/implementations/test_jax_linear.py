"""Derivatives of a linear layer's loss under JAX: those of the logits' own loss, and less memory."""

import numpy as np
import pytest

import xsoftmax as xs

jax = pytest.importorskip("jax")
pytestmark = pytest.mark.backend("jax")

N, D, V = 7, 3, 6
CHUNKS = [None, 1, 3, (2, 3), (3, 5), (None, 1)]  # with a rest of rows, and of classes
BOTH = pytest.mark.parametrize("chunk_size", [1, (1, 3)])
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
    found, expected = (jax.jit(jax.grad(f, (0, 1, 2, 3)))(*floats) for f in (linear, plain))
    assert_same(found, expected)


@BOTH
def test_second_order_both_modes_and_jit(given, chunk_size):
    floats, labels = given
    linear, plain = functions(labels, chunk_size, OPTIONS["all"])
    assert_same(*(jax.jit(jax.hessian(f, (0, 1, 2, 3)))(*floats) for f in (linear, plain)))
    assert_same(*(jax.jit(lambda f=f: jax.jvp(f, floats, floats)[1])() for f in (linear, plain)))


def test_gradient_of_each_sample(given):
    (x, factor, bias, _), labels = given

    def linear(factor, bias, row, label):
        return xs.linear_cross_entropy(row[None], factor, label[None], linear_bias=bias)

    def plain(factor, bias, row, label):
        return xs.cross_entropy(row[None] @ factor.T + bias, label[None])

    each = (jax.jit(jax.vmap(jax.grad(f, (0, 1)), (None, None, 0, 0))) for f in (linear, plain))
    assert_same(*(f(factor, bias, x, labels) for f in each))


@BOTH
def test_derivatives_of_targets_and_weights(given, chunk_size):
    (x, factor, *_), _ = given
    q, weight = jax.nn.softmax(x @ factor.T), jax.numpy.linspace(0.5, 2.0, V)

    def gradients(loss):
        def first(q, weight):
            return jax.grad(loss, (0, 1))(q, weight)

        back = jax.vjp(first, q, weight)[1]
        return first(q, weight), back((q, weight))

    def linear(q, weight):
        return xs.linear_cross_entropy(x, factor, q, weight=weight, z_loss=0.1, chunk_size=chunk_size)

    def plain(q, weight):
        return xs.cross_entropy(x @ factor.T, q, weight=weight, z_loss=0.1)

    assert_same(*(jax.jit(lambda f=f: gradients(f))() for f in (linear, plain)))


@BOTH
@pytest.mark.parametrize("masks", ["rows", "classes"])
def test_masked_classes(given, masks, chunk_size):
    floats, labels = given
    classes = jax.numpy.arange(V)
    where = (classes != 1) if masks == "classes" else (classes + jax.numpy.arange(N)[:, None]) % 3 != 0
    where = where | (classes == labels[:, None]) if masks == "rows" else where
    linear, plain = functions(labels, chunk_size, {"where": where, "label_smoothing": 0.1})
    assert_same(*(jax.jit(jax.grad(f, (0, 1, 2, 3)))(*floats) for f in (linear, plain)))


@pytest.mark.parametrize("chunk_size", [2, (2, 3)])
@pytest.mark.parametrize("traced", [False, True])
def test_loss_and_gradients(given, traced, chunk_size):
    (x, factor, bias, s), labels = given

    def linear(x, factor, bias):
        return xs.linear_cross_entropy_and_grad(
            x, factor, labels, linear_bias=bias, sample_weight=s, chunk_size=chunk_size
        )

    loss, g = xs.cross_entropy_and_grad(x @ factor.T + bias, labels, sample_weight=s)
    found = (jax.jit(linear) if traced else linear)(x, factor, bias)
    assert_same(tuple(found), (loss, g @ factor, g.T @ x, g.sum(axis=0)))


def test_as_wide_as_there_are_classes(given):
    (x, *_), labels = given
    factor = jax.numpy.eye(D)
    found = xs.linear_cross_entropy(x, factor, labels % D, chunk_size=(2, 1))
    assert_same(found, xs.cross_entropy(x, labels % D))


@BOTH
def test_gradients_have_derivatives(given, chunk_size):
    (x, factor, bias, _), labels = given

    def linear(x, factor, bias):
        found = xs.linear_cross_entropy_and_grad(x, factor, labels, linear_bias=bias, chunk_size=chunk_size)
        return sum(jax.numpy.sum(a**3) for a in found)

    def plain(x, factor, bias):
        loss, g = xs.cross_entropy_and_grad(x @ factor.T + bias, labels)
        return sum(jax.numpy.sum(a**3) for a in (loss, g @ factor, g.T @ x, g.sum(axis=0)))

    assert_same(*(jax.jit(jax.grad(f, (0, 1, 2)))(x, factor, bias) for f in (linear, plain)))


@pytest.mark.parametrize("chunk_size", [2, (2, 3)])
def test_absent_rows_have_no_gradient(given, chunk_size):
    """Whatever they hold."""
    (x, factor, *_), labels = given
    x, labels = x.at[1].set(jax.numpy.nan), labels.at[1].set(-100)

    def loss(x, factor):
        return xs.linear_cross_entropy(x, factor, labels, ignore_index=-100, chunk_size=chunk_size)

    grad_x, grad_factor = jax.jit(jax.grad(loss, (0, 1)))(x, factor)
    np.testing.assert_array_equal(grad_x[1], 0.0)
    assert np.all(np.isfinite(grad_x))
    assert np.all(np.isfinite(grad_factor))


@pytest.mark.parametrize("chunk_size", [1, (1, 2)])
def test_halves_add_up_in_float32(chunk_size):
    """Each of 512 blocks adds less than half an ulp to a sum in bfloat16."""
    n = 512
    x, factor = jax.numpy.ones((n, 1), "bfloat16"), jax.numpy.zeros((4, 1), "bfloat16")
    labels = jax.numpy.zeros(n, int)

    def loss(factor):
        return xs.linear_cross_entropy(x, factor, labels, chunk_size=chunk_size, reduction="sum")

    both = xs.linear_cross_entropy_and_grad(x, factor, labels, chunk_size=chunk_size, reduction="sum")
    for grad in (jax.jit(jax.grad(loss))(factor), both.grad_linear_weight):
        assert grad.dtype == "bfloat16"
        np.testing.assert_array_equal(grad[:, 0].astype("float32"), [-384.0, 128.0, 128.0, 128.0])


@pytest.mark.parametrize("chunk_size", [(32, 2000), (256, 125), (1024, 24)])
@pytest.mark.parametrize("both", [False, True])
def test_memory(both, chunk_size):
    """A block has some temporaries, but all blocks have the same: whole rows of a block are nowhere in memory."""
    n, classes = 1024, 2000
    x, factor = jax.numpy.ones((n, 8)), jax.numpy.ones((classes, 8))
    labels = jax.numpy.zeros(n, int)

    def loss(x, factor):
        return xs.linear_cross_entropy(x, factor, labels, chunk_size=chunk_size)

    def loss_and_gradients(x, factor):
        return tuple(xs.linear_cross_entropy_and_grad(x, factor, labels, chunk_size=chunk_size)[:3])

    compiled = jax.jit(loss_and_gradients if both else jax.grad(loss, (0, 1))).lower(x, factor).compile()
    of_block = chunk_size[0] * chunk_size[1] * x.itemsize
    states = 6 * n * -(-classes // chunk_size[1]) * x.itemsize  # of all blocks of classes: they are merged at once
    beside = 4 * (x.nbytes + factor.nbytes) + 2 * (states + 6 * n * x.itemsize)  # and some copies
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * of_block + beside
