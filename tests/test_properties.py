"""Laws that hold for any logits, on every backend; exact ones in the widest dtype a backend has."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import get, put, widest

import xsoftmax as xs

ROWS, CLASSES = SHAPE = (3, 5)
EXAMPLES = {"jax": 5, "dask": 3, "cubed": 1, "ndonnx": 2}  # where a call takes from 10 to 500 ms

# one shape, because some backends compile per shape; plain numbers and ties shrink well and go far enough
logits = hnp.arrays(np.float64, SHAPE, elements=st.floats(-300, 300, width=16) | st.sampled_from([0.0, -1.0, 88.5]))
vectors = hnp.arrays(np.float64, SHAPE, elements=st.floats(-100, 100, width=16))
labels = hnp.arrays(np.int64, ROWS, elements=st.integers(0, CLASSES - 1))
targets = hnp.arrays(np.float64, SHAPE, elements=st.floats(0, 1, width=16))
permutations = st.permutations(range(CLASSES))
options = st.fixed_dictionaries(
    {"reduction": st.sampled_from(["none", "mean", "sum"])},
    optional={
        "label_smoothing": st.sampled_from([0.1, 1.0]),
        "temperature": st.sampled_from([0.5, 3.0]),
        "softcap": st.sampled_from([5.0, 50.0]),
        "z_loss": st.sampled_from([1e-3, 0.5]),
    },
)


def law(*strategies):
    """A property of a backend."""

    def decorate(check):
        def test(xb):
            settings(max_examples=EXAMPLES.get(xb.name, 40))(
                given(st.tuples(*strategies))(lambda drawn: check(xb, *drawn))
            )()

        test.__doc__ = check.__doc__
        return test

    return decorate


@pytest.fixture(autouse=True)
def _labels_need_a_range(xb):
    if not hasattr(xb.xp, "arange"):
        pytest.skip(f"{xb.name} has no arange, which class indices need")


def eps(xb):
    return np.finfo(widest(xb)).eps


def units(xb, n=1.0):
    """The widest row of the contract: 8 ulp in float32 without float64, 6 in float64; an ulp is at most eps."""
    ulps = 64 if xb.name == "mlx" else 6 if xb.float64 else 8  # exp of mlx is off by up to 40 ulp
    return ulps * n * eps(xb)


def call(xb, verb, *arrays, **named):
    return get(xb, getattr(xs, verb)(*(put(xb, a) for a in arrays), **named))


def softmax(x):
    w = np.exp(x - x.max(axis=-1, keepdims=True))
    return w / w.sum(axis=-1, keepdims=True)


@law(logits)
def test_softmax_sums_to_one(xb, x):
    y = call(xb, "softmax", x).astype(np.float64)
    assert np.all(y >= 0)
    assert np.all(y <= 1)
    assert np.all(np.abs(y.sum(axis=-1) - 1) <= 2 * eps(xb) + CLASSES * np.finfo(np.float64).eps)


@law(logits, labels, options)
def test_gradient_of_labels_sums_to_zero(xb, x, t, named):
    """A common offset of the logits changes no loss, but for the squared logsumexp and the cap."""
    for name in ("z_loss", "softcap"):
        named.pop(name, None)
    grad = call(xb, "cross_entropy_grad", x, t, **named).astype(np.float64)
    bound = 4 * eps(xb) * np.abs(grad).max(axis=-1)
    if "label_smoothing" in named:
        bound = 4 * eps(xb) / named.get("temperature", 1.0)
    assert np.all(np.abs(grad.sum(axis=-1)) <= bound + CLASSES * np.finfo(np.float64).eps * np.abs(grad).max(axis=-1))


@law(logits, permutations)
def test_permutation_of_classes(xb, x, order):
    for verb in ("softmax", "log_softmax"):
        found, expected = call(xb, verb, x[:, order]), call(xb, verb, x)[:, order]
        np.testing.assert_allclose(found, expected, rtol=2 * units(xb))
    found, expected = call(xb, "logsumexp", x[:, order]), call(xb, "logsumexp", x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * units(xb) * np.abs(x).max() + 2 * units(xb))


@law(logits, st.integers(-200, 200), labels)
def test_shift(xb, x, shift, t):
    """By a constant that the sums represent exactly, results stay within the bounds."""
    x = np.round(x * 8) / 8
    shifted = x + shift
    tiny = x.shape[1] * np.finfo(np.float32).tiny  # every subnormal term of a sum may be flushed
    for verb in ("softmax", "log_softmax"):
        np.testing.assert_allclose(call(xb, verb, shifted), call(xb, verb, x), rtol=2 * units(xb), atol=tiny)
    for a, b in zip(*(call(xb, "cross_entropy_and_grad", z, t, reduction="none") for z in (shifted, x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2 * units(xb), atol=tiny)
    found = call(xb, "logsumexp", shifted) - call(xb, "logsumexp", x)
    np.testing.assert_allclose(found, shift, rtol=0, atol=2 * units(xb, np.abs(x).max() + abs(shift) + 1))


@law(logits)
def test_log_of_softmax(xb, x):
    """softmax = exp(log_softmax) = exp(x − logsumexp): each to the digits that the exponent leaves."""
    log_y = call(xb, "log_softmax", x).astype(np.float64)
    y = call(xb, "softmax", x)
    rtol = units(xb, 2 + np.abs(log_y).max())
    np.testing.assert_allclose(y, np.exp(log_y), rtol=rtol, atol=np.finfo(np.float32).tiny)
    difference = x - call(xb, "logsumexp", x).astype(np.float64)[:, None]
    np.testing.assert_allclose(log_y, difference, rtol=0, atol=2 * units(xb, 1 + 2 * np.abs(x).max()))


@law(logits, vectors, vectors)
def test_vjp_is_the_transpose_of_jvp(xb, x, u, v):
    """⟨u, J v⟩ = ⟨Jᵀ u, v⟩"""
    y, log_y = call(xb, "softmax", x), call(xb, "log_softmax", x)
    for name, z in (("softmax", y), ("log_softmax", log_y)):
        jvp = call(xb, f"{name}_jvp", z, v).astype(np.float64)
        vjp = call(xb, f"{name}_vjp", z, u).astype(np.float64)
        size = np.sum(np.abs(u), axis=-1) * np.max(np.abs(v), axis=-1)
        left, right = np.sum(u * jvp, axis=-1), np.sum(vjp * v, axis=-1)
        np.testing.assert_array_less(np.abs(left - right), 4 * CLASSES * units(xb) * size + np.finfo(np.float32).tiny)


@law(logits, vectors)
def test_products_against_the_jacobian(xb, x, v):
    y = call(xb, "softmax", x)
    jacobian = call(xb, "softmax_jacobian", y).astype(np.float64)
    np.testing.assert_array_equal(jacobian, jacobian.swapaxes(-1, -2))
    size = y * (np.abs(v) + np.sum(y * np.abs(v), axis=-1, keepdims=True)) + np.finfo(np.float32).tiny
    # an element of the matrix that is subnormal is rounded to a multiple of the least
    subnormal = np.finfo(widest(xb)).smallest_subnormal * np.sum(np.abs(v), axis=-1, keepdims=True)
    for verb in ("softmax_vjp", "softmax_jvp"):
        product = call(xb, verb, y, v)
        by_matrix = np.einsum("rij,rj->ri", jacobian, v.astype(widest(xb)))
        assert np.all(np.abs(product - by_matrix) <= CLASSES * units(xb) * size + subnormal)


@law(logits, labels, targets, options)
def test_loss_and_gradient_together(xb, x, t, q, named):
    for given_targets in (t, q):
        loss, grad = call(xb, "cross_entropy_and_grad", x, given_targets, **named)
        alike(xb, x, loss, call(xb, "cross_entropy", x, given_targets, **named))
        alike(xb, x, grad, call(xb, "cross_entropy_grad", x, given_targets, **named))
        pair = call(xb, "cross_entropy_grad_and_hessian_diag", x, given_targets, **named)
        alike(xb, x, grad, pair[0])


def alike(xb, x, found, expected):
    """The same bits; XLA makes each function a program, and a logit over a temperature may be rounded twice in one."""
    if xb.name != "jax":
        np.testing.assert_array_equal(found, expected)
        return
    bound = (1 + np.max(np.abs(x))) * units(xb)
    np.testing.assert_allclose(found, expected, rtol=bound, atol=bound * np.max(np.abs(expected), initial=0))


@law(logits, labels)
def test_losses_are_not_negative(xb, x, t):
    loss = call(xb, "cross_entropy", x, t, reduction="none")
    assert not np.any(np.signbit(loss))


@law(logits, labels)
def test_labels_are_one_hot_targets(xb, x, t):
    one_hot = np.eye(CLASSES)[t]
    by_label = call(xb, "cross_entropy_and_grad", x, t)
    by_probability = call(xb, "cross_entropy_and_grad", x, one_hot)
    for a, b in zip(by_label, by_probability, strict=True):
        np.testing.assert_allclose(a, b, rtol=2 * units(xb), atol=np.finfo(np.float32).tiny)


@law(hnp.arrays(np.float64, SHAPE, elements=st.floats(-4, 4, width=16)), targets, options, vectors)
def test_finite_differences(xb, x, q, named, v):
    """Gradient, Hessian product and Hessian diagonal against central differences of the loss and of the gradient."""
    if not xb.float64:
        pytest.skip(f"{xb.name} has no float64")
    h, scale = 1e-5, 1.0 + np.abs(v).max()
    named["reduction"] = "sum"
    grad, diag = call(xb, "cross_entropy_grad_and_hessian_diag", x, q, **named)
    hvp = call(xb, "cross_entropy_hvp", x, q, v, **named)
    # truncation h² times a third derivative, and the rounding of a loss of order 10 over h
    np.testing.assert_allclose(
        np.sum(grad * v),
        sum(s * call(xb, "cross_entropy", x + s * h * v / scale, q, **named) for s in (1, -1)) / (2 * h) * scale,
        rtol=1e-5,
        atol=1e-6 * scale,
    )
    up, down = (call(xb, "cross_entropy_grad", x + s * h * v / scale, q, **named) for s in (1, -1))
    np.testing.assert_allclose(hvp, (up - down) / (2 * h) * scale, rtol=1e-5, atol=1e-6 * scale)
    e = np.zeros(SHAPE)
    e[:, 2] = h
    up, down = (call(xb, "cross_entropy_grad", x + s * e, q, **named) for s in (1, -1))
    np.testing.assert_allclose(diag[:, 2], (up - down)[:, 2] / (2 * h), rtol=1e-5, atol=1e-6)


@law(hnp.arrays(np.float64, SHAPE, elements=st.floats(-20, 20, width=16)), vectors)
def test_cross_entropy_is_entropy_plus_divergence(xb, x, z):
    """H(p, q) = H(p) + KL(p‖q)"""
    p, q = softmax(x), softmax(z / 10)
    h = call(xb, "cross_entropy_from_probs", q, p, reduction="none")
    entropy, divergence = call(xb, "entropy", p), call(xb, "kl_divergence", p, q)
    size = np.sum(p * (np.abs(np.log(p)) + np.abs(np.log(q))), axis=-1)
    assert np.all(np.abs(entropy + divergence - h) <= 3 * units(xb, size) + units(xb))
    logits_loss = call(xb, "cross_entropy", z / 10, p, reduction="none")
    # q is rounded, which moves log q by half an ulp for each unit of mass; p sums to 1 but for its rounding
    assert np.all(np.abs(logits_loss - h) <= 3 * units(xb, size) + (CLASSES + 1) * units(xb, 1 + np.abs(z).max()))


@law(logits, labels)
def test_equal_inputs_give_equal_bits(xb, x, t):
    """Classes 0 and 3 hold the same logit, rows 0 and 2 the same of everything."""
    if xb.name == "ndonnx":
        pytest.skip("onnxruntime rounds by position: its vector loops and their tails differ")
    x[:, 3], x[2], t[2] = x[:, 0], x[0], t[0]
    y, log_y = call(xb, "softmax", x), call(xb, "log_softmax", x)
    for result in (y, log_y):
        np.testing.assert_array_equal(result[:, 3], result[:, 0])
        np.testing.assert_array_equal(result[2], result[0])
    loss, grad = call(xb, "cross_entropy_and_grad", x, t, reduction="none")
    assert loss[2] == loss[0]
    np.testing.assert_array_equal(grad[2], grad[0])
    assume(np.all(~np.isin(t, [0, 3])))
    np.testing.assert_array_equal(grad[:, 3], grad[:, 0])


@law(logits, targets, options)
def test_the_same_call_gives_the_same_bits(xb, x, q, named):
    first, second = (call(xb, "cross_entropy_and_grad", x, q, **named) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()
    assert call(xb, "softmax", x).tobytes() == call(xb, "softmax", x).tobytes()


@law(logits, targets, vectors, options)
def test_masked_classes_do_not_matter(xb, x, q, v, named):
    mask = v > 0
    hidden = np.where(mask, x, np.resize([np.nan, np.inf, -np.inf], SHAPE))
    found = call(xb, "softmax", hidden, where=put(xb, mask)), call(xb, "log_softmax", hidden, where=put(xb, mask))
    expected = call(xb, "softmax", x, where=put(xb, mask)), call(xb, "log_softmax", x, where=put(xb, mask))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    losses = [call(xb, "cross_entropy_and_grad", z, q, where=put(xb, mask), **named) for z in (hidden, x)]
    for a, b in zip(*losses, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(losses[0][1][~mask], 0.0)
