"""Meaning of the losses: against PyTorch and ONNX where they have the option, by hand where they do not."""

import contextlib
import math

import numpy as np
import pytest
import scipy.special
from support import assert_close, default_float, get, put, widest

import xsoftmax as xs

INF, NAN = math.inf, math.nan
RNG = np.random.default_rng(11)
N, C = 6, 5
X = RNG.normal(scale=3.0, size=(N, C))
LABELS = np.array([0, 4, 2, 2, 1, 3])
Q = RNG.dirichlet(np.ones(C), size=N)
WEIGHT = np.array([0.5, 2.0, 1.0, 0.25, 3.0])
SAMPLE_WEIGHT = np.array([1.0, 0.5, 2.0, 0.0, 1.5, 1.0])
V = RNG.normal(size=X.shape)
REDUCTIONS = ["none", "mean", "sum"]
ARRAYS = ("where", "weight", "sample_weight")


@pytest.fixture(autouse=True)
def _labels_need_a_range(request):
    if "xb" in request.fixturenames:
        xb = request.getfixturevalue("xb")
        if not hasattr(xb.xp, "arange"):
            pytest.skip(f"{xb.name} has no arange, which class indices need")


def call(verb, xb, *arrays, **options):
    """A verb on NumPy arrays, by way of the backend."""
    options = {name: put(xb, value) if name in ARRAYS else value for name, value in options.items()}
    return get(xb, getattr(xs, verb)(*(put(xb, a) for a in arrays), **options))


def nll(x):
    return -scipy.special.log_softmax(x, axis=-1)


def rows_at(x, labels):
    return np.take_along_axis(x, labels[:, None], axis=-1)[:, 0]


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch


TORCH_OPTIONS = [
    {},
    {"weight": WEIGHT},
    {"ignore_index": 2},
    {"label_smoothing": 0.2},
    {"weight": WEIGHT, "ignore_index": 2, "label_smoothing": 0.2},
    {"weight": WEIGHT, "label_smoothing": 1.0},
]


def by_torch(x, targets, axis=-1, **options):
    """Loss and gradient from PyTorch, which has its classes on axis 1."""
    torch = pytest.importorskip("torch")
    logits = torch.tensor(x, requires_grad=True)
    if "weight" in options:
        options["weight"] = torch.tensor(options["weight"])
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets), **options)
    loss.sum().backward()
    return loss.detach().numpy(), logits.grad.numpy()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", TORCH_OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_torch(xb, kind, options, reduction):
    if kind == "probabilities" and "ignore_index" in options:
        options = {name: value for name, value in options.items() if name != "ignore_index"}
    targets = LABELS if kind == "labels" else Q
    options = {**options, "reduction": reduction}
    expected, expected_grad = by_torch(X, targets, **options)
    loss, grad = call("cross_entropy_and_grad", xb, X, targets, **options)
    assert_close(xb, loss, expected)
    assert_close(xb, grad, expected_grad)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_torch_images(xb, kind, reduction):
    """(N, C, H, W) with the classes on axis 1."""
    x = RNG.normal(size=(2, 5, 3, 2))
    targets = RNG.integers(5, size=(2, 3, 2)) if kind == "labels" else scipy.special.softmax(x[::-1], axis=1)
    expected, expected_grad = by_torch(x, targets, weight=WEIGHT, reduction=reduction)
    loss, grad = call("cross_entropy_and_grad", xb, x, targets, weight=WEIGHT, reduction=reduction, axis=1)
    assert loss.shape == expected.shape
    assert_close(xb, loss, expected)
    assert_close(xb, grad, expected_grad)


def test_torch_hessian(xb):
    """Hessian-vector product and Hessian diagonal against PyTorch's second derivatives."""
    torch = pytest.importorskip("torch")
    options = {"weight": torch.tensor(WEIGHT), "label_smoothing": 0.1}

    def loss(x):
        return torch.nn.functional.cross_entropy(x, torch.tensor(LABELS), **options)

    hessian = torch.autograd.functional.hessian(loss, torch.tensor(X)).numpy().reshape(X.size, X.size)
    options = {"weight": WEIGHT, "label_smoothing": 0.1}
    hvp = call("cross_entropy_hvp", xb, X, LABELS, V, **options)
    assert_close(xb, hvp, (hessian @ V.ravel()).reshape(X.shape))
    diag = call("cross_entropy_grad_and_hessian_diag", xb, X, LABELS, **options)[1]
    assert_close(xb, diag, np.diag(hessian).reshape(X.shape))


def test_torch_mean_of_nothing(xb):
    expected, _ = by_torch(X, LABELS * 0, ignore_index=0)
    loss, grad = call("cross_entropy_and_grad", xb, X, LABELS * 0, ignore_index=0)
    np.testing.assert_array_equal(loss, expected)
    np.testing.assert_array_equal(loss, NAN)
    np.testing.assert_array_equal(grad, 0.0)


def test_torch_weights_of_zero_everywhere(xb):
    expected, _ = by_torch(X, LABELS, weight=0 * WEIGHT)
    np.testing.assert_array_equal(call("cross_entropy", xb, X, LABELS, weight=0 * WEIGHT), expected)


# ---------------------------------------------------------------------------------------------------------------------
# ONNX


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [None, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_onnx(xb, weighted, ignore_index, reduction):
    """SoftmaxCrossEntropyLoss by ONNX's own reference implementation."""
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    x, labels = RNG.normal(size=(3, C, 2)), np.array([[0, 2], [2, 4], [1, 3]])
    inputs = {"scores": x, "labels": labels} | ({"weights": WEIGHT} if weighted else {})
    attributes = {"reduction": reduction} | ({} if ignore_index is None else {"ignore_index": ignore_index})
    node = onnx.helper.make_node("SoftmaxCrossEntropyLoss", list(inputs), ["loss"], **attributes)
    (expected,) = reference.ReferenceEvaluator(node).run(None, inputs)
    options = {"weight": WEIGHT} if weighted else {}
    found = call("cross_entropy", xb, x, labels, axis=1, ignore_index=ignore_index, reduction=reduction, **options)
    assert_close(xb, found, expected)


# ---------------------------------------------------------------------------------------------------------------------
# by hand


def test_the_textbook_example(xb):
    """ŷ = (0.228, 0.619, 0.153) and the second class: −log 0.619 = 0.479…"""
    probs, one_hot = np.array([[0.228, 0.619, 0.153]]), np.array([[0, 1, 0]])
    for targets in (one_hot, np.array([1])):
        found = call("cross_entropy_from_probs", xb, probs, targets)
        assert_close(xb, found, -math.log(0.619))
        assert f"{float(found):.6f}" == "0.479650"
    assert_close(xb, call("cross_entropy_grad", xb, np.log(probs), one_hot), probs - one_hot)


def test_gradient_is_prediction_less_target(xb):
    y = scipy.special.softmax(X, axis=-1)
    one_hot = np.eye(C)[LABELS]
    for targets in (LABELS, one_hot, one_hot.astype(np.int32)):
        assert_close(xb, call("cross_entropy_grad", xb, X, targets, reduction="sum"), y - one_hot)
        assert_close(xb, call("cross_entropy_grad", xb, X, targets, reduction="none"), y - one_hot)
        assert_close(xb, call("cross_entropy_grad", xb, X, targets), (y - one_hot) / N)
    assert_close(xb, call("cross_entropy_grad", xb, X, Q, reduction="sum"), y - Q)
    assert_close(xb, call("cross_entropy_grad", xb, X, 2 * Q, reduction="sum"), 2 * y - 2 * Q)


def test_sample_weight(xb):
    rows = rows_at(nll(X), LABELS)
    s, options = SAMPLE_WEIGHT, {"sample_weight": SAMPLE_WEIGHT}
    assert_close(xb, call("cross_entropy", xb, X, LABELS, reduction="none", **options), s * rows)
    assert_close(xb, call("cross_entropy", xb, X, LABELS, reduction="sum", **options), np.sum(s * rows))
    assert_close(xb, call("cross_entropy", xb, X, LABELS, **options), np.sum(s * rows) / np.sum(s))
    w = WEIGHT[LABELS]
    found = call("cross_entropy", xb, X, LABELS, weight=WEIGHT, **options)
    assert_close(xb, found, np.sum(s * w * rows) / np.sum(s * w))
    soft = np.sum(WEIGHT * Q * nll(X), axis=-1)
    found = call("cross_entropy", xb, X, Q, weight=WEIGHT, **options)
    assert_close(xb, found, np.sum(s * soft) / np.sum(s))


def test_sample_weight_scales_gradients(xb):
    y, s = scipy.special.softmax(X, axis=-1), SAMPLE_WEIGHT[:, None]
    options = {"sample_weight": SAMPLE_WEIGHT, "reduction": "none"}
    grad, diag = call("cross_entropy_grad_and_hessian_diag", xb, X, LABELS, **options)
    assert_close(xb, grad, s * (y - np.eye(C)[LABELS]))
    assert_close(xb, diag, s * y * (1 - y))
    product = y * (V - np.sum(y * V, axis=-1, keepdims=True))
    assert_close(xb, call("cross_entropy_hvp", xb, X, LABELS, V, **options), s * product)
    options["reduction"] = "mean"
    assert_close(xb, call("cross_entropy_hvp", xb, X, LABELS, V, **options), s * product / np.sum(SAMPLE_WEIGHT))


@pytest.mark.parametrize("fill", [NAN, INF, -INF])
def test_a_row_of_weight_zero_is_absent(xb, fill):
    """Whatever it holds, a label out of range included."""
    x, labels = X.copy(), LABELS.copy()
    x[3], labels[3] = fill, 77
    for reduction in REDUCTIONS:
        options = {"sample_weight": SAMPLE_WEIGHT, "reduction": reduction}
        found, expected = (call("cross_entropy_and_grad", xb, *a, **options) for a in ((x, labels), (X, LABELS)))
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        assert np.all(np.isfinite(found[0]))


def test_ignored_and_weightless_rows_together(xb):
    """Row 3 has no weight, rows 2 and 1 are ignored; the mean is over the others."""
    labels = np.array([0, 2, 2, 88, 1, 3])
    found = call("cross_entropy", xb, X, labels, ignore_index=2, sample_weight=SAMPLE_WEIGHT, weight=WEIGHT)
    kept = [0, 4, 5]
    w = (SAMPLE_WEIGHT * WEIGHT[labels % C])[kept]
    assert_close(xb, found, np.sum(w * rows_at(nll(X), labels % C)[kept]) / np.sum(w))


@pytest.mark.parametrize("ignored", [2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 2**31, 300, 10**400])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64"])
def test_an_ignored_label_beyond_the_dtype_matches_nothing(xb, dtype, ignored):
    labels = LABELS.astype(dtype)
    found = call("cross_entropy", xb, X, labels, ignore_index=ignored, weight=WEIGHT)
    np.testing.assert_array_equal(found, call("cross_entropy", xb, X, labels, weight=WEIGHT))


def test_labels_past_the_signed_dtypes(xb):
    """Each is ignored by its own number alone."""
    dtype, large = ("uint64", [2**64 - 1, 2**63]) if widest(xb) == "float64" else ("uint32", [2**32 - 1, 2**31])
    expected = call("cross_entropy", xb, X, LABELS, ignore_index=2)
    for label in large:
        labels = np.where(LABELS == 2, np.asarray(label, dtype), LABELS.astype(dtype))
        assert_close(xb, call("cross_entropy", xb, X, labels, ignore_index=label), expected)
        for other in (-1, -(2**63), 2**63 - 1, label - 1):
            with contextlib.suppress(ValueError):  # from a library whose values can be looked at
                assert np.isnan(call("cross_entropy", xb, X, labels, ignore_index=other))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignored", [-100, -1, 2, 255])
def test_ignored_rows_are_absent(xb, ignored, reduction):
    x, labels = np.where((LABELS == 2)[:, None], NAN, X), np.where(LABELS == 2, ignored, LABELS)
    loss, grad = call("cross_entropy_and_grad", xb, x, labels, ignore_index=ignored, reduction=reduction)
    kept = LABELS != 2
    expected = call("cross_entropy_and_grad", xb, X[kept], LABELS[kept], reduction=reduction)
    if reduction == "none":
        np.testing.assert_array_equal(loss[~kept], 0.0)
        loss = loss[kept]
    assert_close(xb, loss, expected[0])
    assert_close(xb, grad[kept], expected[1])
    np.testing.assert_array_equal(grad[~kept], 0.0)


def test_softcap(xb):
    cap, z = 2.0, 2.0 * np.tanh(X / 2.0)
    loss, grad = call("cross_entropy_and_grad", xb, X, LABELS, softcap=cap, reduction="none")
    assert_close(xb, loss, rows_at(nll(z), LABELS))
    slope = 1 - np.tanh(X / cap) ** 2
    assert_close(xb, grad, slope * (scipy.special.softmax(z, axis=-1) - np.eye(C)[LABELS]))


def test_softcap_keeps_minus_infinity(xb):
    x = np.array([[-INF, 0.0, 1.0]])
    loss, grad = call("cross_entropy_and_grad", xb, x, np.array([1]), softcap=30.0)
    expected = call("cross_entropy_and_grad", xb, x[:, 1:], np.array([0]), softcap=30.0)
    assert_close(xb, loss, expected[0])
    assert_close(xb, grad[:, 1:], expected[1])
    assert grad[0, 0] == 0.0


def test_temperature(xb):
    loss, grad = call("cross_entropy_and_grad", xb, X, LABELS, temperature=3.0, reduction="none")
    assert_close(xb, loss, rows_at(nll(X / 3.0), LABELS))
    assert_close(xb, grad, (scipy.special.softmax(X / 3.0, axis=-1) - np.eye(C)[LABELS]) / 3.0)


def test_temperature_follows_softcap(xb):
    z = 4.0 * np.tanh(X / 4.0) / 0.5
    found = call("cross_entropy", xb, X, LABELS, softcap=4.0, temperature=0.5, reduction="none")
    assert_close(xb, found, rows_at(nll(z), LABELS))


def test_z_loss(xb):
    lse = scipy.special.logsumexp(X, axis=-1)
    loss, grad = call("cross_entropy_and_grad", xb, X, LABELS, z_loss=0.3, reduction="none")
    assert_close(xb, loss, rows_at(nll(X), LABELS) + 0.3 * lse**2)
    y = scipy.special.softmax(X, axis=-1)
    assert_close(xb, grad, y - np.eye(C)[LABELS] + 0.6 * lse[:, None] * y)


@pytest.mark.parametrize("implementation", [None, "numpy_blocked", "array_api"])
@pytest.mark.parametrize("targets", ["labels", "one-hot"])
@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_z_loss_of_the_largest_logits(xb, implementation, targets, classes, axis, temperature):
    """2 ζ logsumexp overflows where a row's share of a mean does not; no class without probability is touched by it.

    By a temperature logsumexp does itself.
    """
    if implementation is not None and xb.name != "numpy":
        pytest.skip("other implementations of NumPy's")
    largest = float(np.finfo(widest(xb)).max)
    x = np.zeros((16, classes))
    x[:8, 0] = largest
    x[8:, :2] = -largest / 2
    x[8:, 2:] = -largest
    labels, y = np.array([0, 2] * 8), np.where(x == x.max(-1, keepdims=True), 1.0, 0.0)
    y /= y.sum(-1, keepdims=True)
    x, one_hot, v = (np.moveaxis(a, -1, axis) for a in (x, np.eye(classes)[labels], np.ones(x.shape)))
    t, y = labels if targets == "labels" else one_hot, np.moveaxis(y, -1, axis)
    shared = np.max(x, axis=axis, keepdims=True) * (4.0 / 16 / temperature**2) * y
    expected = shared + np.where(shared == 0.0, (y - one_hot) / 16 / temperature, 0.0)
    options = {"z_loss": 2.0, "axis": axis, "temperature": temperature}
    with xs.use_implementation(implementation) if implementation else contextlib.nullcontext():
        grad = call("cross_entropy_grad", xb, x, t, **options)
        product = call("cross_entropy_hvp", xb, x, t, v, **options)
        same, diag = call("cross_entropy_grad_and_hessian_diag", xb, x, t, **options)
    eps = np.finfo(widest(xb)).eps
    np.testing.assert_allclose(grad, expected, rtol=8 * eps)
    np.testing.assert_array_equal(same, grad)
    np.testing.assert_allclose(product, y * 4.0 / 16 / temperature**2, rtol=8 * eps)
    spread = np.where(y == 1.0, 4.0 / 16 / temperature**2, shared * (1.0 - y) / temperature)
    np.testing.assert_allclose(diag, spread, rtol=8 * eps)


def test_z_loss_is_not_class_weighted(xb):
    """Its mean divides by the number of rows kept, that of the weighted loss by the weights of their labels."""
    kept, w = LABELS != 2, WEIGHT[LABELS]
    rows, squares = rows_at(nll(X), LABELS), scipy.special.logsumexp(X, axis=-1) ** 2
    found = call("cross_entropy", xb, X, LABELS, weight=WEIGHT, ignore_index=2, z_loss=0.3)
    expected = np.sum((w * rows)[kept]) / np.sum(w[kept]) + 0.3 * np.mean(squares[kept])
    assert_close(xb, found, expected)


def test_where_is_absence(xb):
    """As if the class were not there; smoothing spreads over the kept classes alone."""
    kept = np.array([True, True, False, True, True])
    x, labels = np.where(kept, X, INF), np.array([0, 4, 1, 3, 1, 3])
    small = np.array([0, 3, 1, 2, 1, 2])
    for options in ({}, {"label_smoothing": 0.2}, {"z_loss": 0.1, "temperature": 2.0}):
        loss, grad = call("cross_entropy_and_grad", xb, x, labels, where=kept, **options)
        expected = call("cross_entropy_and_grad", xb, X[:, kept], small, **options)
        assert_close(xb, loss, expected[0])
        assert_close(xb, grad[:, kept], expected[1])
        np.testing.assert_array_equal(grad[:, ~kept], 0.0)
    soft = Q[:, kept]
    found = call("cross_entropy", xb, x, Q, where=kept, label_smoothing=0.2)
    assert_close(xb, found, call("cross_entropy", xb, X[:, kept], soft, label_smoothing=0.2))


def test_from_probs(xb):
    p = scipy.special.softmax(X, axis=-1)
    rows = -np.log(rows_at(p, LABELS))
    assert_close(xb, call("cross_entropy_from_probs", xb, p, LABELS, reduction="none"), rows)
    assert_close(xb, call("cross_entropy_from_probs", xb, p, LABELS), np.mean(rows))
    soft = -np.sum(Q * np.log(p), axis=-1)
    assert_close(xb, call("cross_entropy_from_probs", xb, p, Q, reduction="sum"), np.sum(soft))
    w = WEIGHT[LABELS] * SAMPLE_WEIGHT
    found = call("cross_entropy_from_probs", xb, p, LABELS, weight=WEIGHT, sample_weight=SAMPLE_WEIGHT)
    assert_close(xb, found, np.sum(w * rows) / np.sum(w))
    found = call("cross_entropy_from_probs", xb, p.T.copy(), LABELS, axis=0, ignore_index=2)
    assert_close(xb, found, np.mean(rows[LABELS != 2]))


@pytest.mark.parametrize(
    "p, q, loss",
    [
        ([0.0, 1.0], [0.0, 1.0], 0.0),
        ([0.0, 1.0], [0.5, 0.5], INF),
        ([0.5, 0.5], [0.0, 1.0], math.log(2)),
        ([NAN, 0.5], [0.0, 1.0], math.log(2)),
        ([NAN, 0.5], [1.0, 0.0], NAN),
        ([1.0, 1.0], [1.0, 0.0], 0.0),
    ],
)
def test_from_probs_at_the_corners(xb, p, q, loss):
    found = call("cross_entropy_from_probs", xb, np.array([p]), np.array([q]), reduction="none")
    assert_close(xb, found, [loss])
    assert not np.any(np.signbit(found) & ~np.isnan(found))


def test_entropy(xb):
    p = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [-0.1, 0.6, 0.5], [NAN, 0.5, 0.5]])
    assert_close(xb, call("entropy", xb, p), np.sum(scipy.special.entr(p), axis=-1))
    assert_close(xb, call("entropy", xb, p[:3].T.copy(), axis=0), np.sum(scipy.special.entr(p[:3]), axis=-1))


def test_kl_divergence(xb):
    p = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [-0.1, 0.6, 0.5]])
    q = np.array([[0.25, 0.5, 0.25], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.0, 0.5, 0.5], [0.1, 0.4, 0.5]])
    assert_close(xb, call("kl_divergence", xb, p, q), np.sum(scipy.special.rel_entr(p, q), axis=-1))
    assert_close(xb, call("kl_divergence", xb, p[2:3].T, p[2:3].T, axis=0), [0.0])


# ---------------------------------------------------------------------------------------------------------------------
# corners


@pytest.mark.parametrize(
    "row, label, loss, grad",
    [
        ([-INF, 0.0, 0.0], 1, math.log(2), [0.0, -0.5, 0.5]),
        ([-INF, 0.0, 0.0], 0, INF, [-1.0, 0.5, 0.5]),
        ([-INF] * 3, 0, NAN, [NAN] * 3),
        ([INF, 0.0, 0.0], 1, NAN, [NAN] * 3),
        ([NAN, 0.0, 0.0], 1, NAN, [NAN] * 3),
        ([100.0, -INF, -INF], 0, 0.0, [0.0, 0.0, 0.0]),
    ],
)
def test_special_logits_stay_in_their_row(xb, row, label, loss, grad):
    x, labels = np.array([[0.0, 0.0, 0.0], row]), np.array([2, label])
    found, found_grad = call("cross_entropy_and_grad", xb, x, labels, reduction="none")
    assert_close(xb, found, [math.log(3), loss])
    assert_close(xb, found_grad, [[1 / 3, 1 / 3, -2 / 3], grad])
    one_hot = np.eye(3)[labels]
    assert_close(xb, call("cross_entropy", xb, x, one_hot, reduction="none"), [math.log(3), loss])


def test_smoothing_meets_minus_infinity(xb):
    x, labels, kept = np.array([[-INF, 0.0, 0.0]]), np.array([1]), np.array([False, True, True])
    assert call("cross_entropy", xb, x, labels, label_smoothing=0.1) == INF
    assert_close(xb, call("cross_entropy", xb, x, labels, label_smoothing=0.1, where=kept), math.log(2))


def test_target_that_is_masked(xb):
    loss, grad = call(
        "cross_entropy_and_grad", xb, X[:1], np.array([1]), where=np.array([True, False, True, True, True])
    )
    assert loss == INF
    assert grad[0, 1] == 0.0


def test_nothing_kept(xb):
    """A row of no classes costs nothing, and has no gradient."""
    where = np.zeros((1, C), bool)
    for result in call("cross_entropy_and_grad", xb, X[:1], np.array([1]), where=where):
        np.testing.assert_array_equal(result, 0.0)


@pytest.mark.parametrize("reduction, loss", [("none", []), ("mean", NAN), ("sum", 0.0)])
def test_empty_batch(xb, reduction, loss):
    if xb.name == "marray" and reduction != "none":
        pytest.skip("marray masks the sum of nothing")
    x = np.empty((0, C))
    for targets in (np.empty(0, np.int64), x):
        found, grad = call("cross_entropy_and_grad", xb, x, targets, reduction=reduction)
        np.testing.assert_array_equal(found, loss)
        assert grad.shape == (0, C)
        np.testing.assert_array_equal(call("cross_entropy_from_probs", xb, x, targets, reduction=reduction), loss)
    assert call("cross_entropy_hvp", xb, x, np.empty(0, np.int64), x, reduction=reduction).shape == (0, C)
    grad, diag = call("cross_entropy_grad_and_hessian_diag", xb, x, x, reduction=reduction)
    assert grad.shape == diag.shape == (0, C)


@pytest.mark.parametrize("reduction, loss", [("none", [0.0] * N), ("mean", NAN), ("sum", 0.0)])
@pytest.mark.parametrize(
    "options", [{"ignore_index": -100}, {"sample_weight": np.zeros(N)}], ids=["ignored", "weightless"]
)
def test_no_row_kept(xb, options, reduction, loss):
    labels = np.full(N, -100)
    found, grad = call("cross_entropy_and_grad", xb, np.full_like(X, NAN), labels, reduction=reduction, **options)
    np.testing.assert_array_equal(found, loss)
    np.testing.assert_array_equal(grad, 0.0)


def test_one_row_without_batch_axis(xb):
    loss, grad = call("cross_entropy_and_grad", xb, X[0], np.array(3))
    assert loss.shape == ()
    assert_close(xb, loss, nll(X)[0, 3])
    assert_close(xb, grad, scipy.special.softmax(X[0]) - np.eye(C)[3])


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_any_axis(xb, axis):
    x = RNG.normal(size=(3, 3, 3))
    labels = RNG.integers(3, size=(3, 3))
    loss, grad = call("cross_entropy_and_grad", xb, x, labels, axis=axis, reduction="none")
    moved = np.moveaxis(x, axis, -1)
    expected = np.take_along_axis(nll(moved), labels[..., None], axis=-1)[..., 0]
    assert_close(xb, loss, expected)
    expected_grad = scipy.special.softmax(moved, axis=-1) - np.eye(3)[labels]
    assert_close(xb, grad, np.moveaxis(expected_grad, -1, axis))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_labels_of_any_integer_dtype(xb, dtype):
    """With more classes than the narrow ones can count."""
    if dtype not in xb.xp.__array_namespace_info__().dtypes(kind=None):
        pytest.skip(f"{xb.name} has no {dtype}")
    x = RNG.normal(size=(2, 300))
    labels = np.array([min(np.iinfo(dtype).max, 299), 100]).astype(dtype)
    found = call("cross_entropy", xb, x, labels, reduction="none")
    assert_close(xb, found, rows_at(nll(x), labels.astype(np.int64)))


BAD_LABELS = {
    "too large": (5, np.int64),
    "-1": (-1, np.int8),
    "-100": (-100, np.int32),
    "wrapping": (2**64 - 1, np.uint64),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_label_out_of_range(xb, case):
    """An error where values can be looked at; elsewhere nan in its row, its gradient and the mean. Never a class."""
    value, dtype = BAD_LABELS[case]
    labels = np.abs(LABELS).astype(dtype)
    labels[2] = value
    try:
        xb.asarray(labels)
    except OverflowError as error:
        pytest.skip(str(error))
    if xb.checks_labels:
        with pytest.raises(ValueError, match="targets has label"):
            call("cross_entropy", xb, X, labels)
        return
    loss, grad = call("cross_entropy_and_grad", xb, X, labels, reduction="none")
    good = np.arange(N) != 2
    expected = call("cross_entropy_and_grad", xb, X, LABELS, reduction="none")
    assert_close(xb, loss, np.where(good, expected[0], NAN))
    assert_close(xb, grad, np.where(good[:, None], expected[1], NAN))
    assert np.isnan(call("cross_entropy", xb, X, labels))
    for verb, arrays in {"cross_entropy_hvp": (V,), "cross_entropy_grad_and_hessian_diag": ()}.items():
        for result in np.atleast_3d(call(verb, xb, X, labels, *arrays, reduction="none")).reshape(-1, N, C):
            np.testing.assert_array_equal(np.isnan(result), np.broadcast_to(~good[:, None], X.shape))
    probs = scipy.special.softmax(X, axis=-1)
    found = call("cross_entropy_from_probs", xb, probs, labels, reduction="none")
    np.testing.assert_array_equal(np.isnan(found), ~good)


# ---------------------------------------------------------------------------------------------------------------------
# results


def test_named_results(xb):
    both = xs.cross_entropy_and_grad(put(xb, X), put(xb, LABELS))
    assert isinstance(both, xs.LossAndGrad)
    assert both._fields == ("loss", "grad")
    np.testing.assert_array_equal(xb.to_numpy(both.loss), call("cross_entropy", xb, X, LABELS))
    np.testing.assert_array_equal(xb.to_numpy(both.grad), call("cross_entropy_grad", xb, X, LABELS))
    pair = xs.cross_entropy_grad_and_hessian_diag(put(xb, X), put(xb, LABELS))
    assert isinstance(pair, xs.GradAndHessianDiag)
    assert pair._fields == ("grad", "hessian_diag")
    y = scipy.special.softmax(X, axis=-1)
    assert_close(xb, xb.to_numpy(pair.hessian_diag), y * (1 - y) / N)
    np.testing.assert_array_equal(xb.to_numpy(pair.grad), call("cross_entropy_grad", xb, X, LABELS))


def test_dtypes_of_results(xb):
    """Losses of half-precision logits are float32, everything else is in the logits' dtype."""
    for dtype in xb.dtypes():
        x, v = xb.asarray(X, dtype=dtype), xb.asarray(V, dtype=dtype)
        p = xs.softmax(x)
        loss_dtype = xb.asarray(X, dtype=dtype if dtype in ("float32", "float64") else "float32").dtype
        for targets in (put(xb, LABELS), xb.asarray(Q, dtype=widest(xb))):
            for reduction in REDUCTIONS:
                loss, grad = xs.cross_entropy_and_grad(x, targets, reduction=reduction)
                assert (loss.dtype, grad.dtype) == (loss_dtype, x.dtype)
            hvp = xs.cross_entropy_hvp(x, targets, v)
            grad, diag = xs.cross_entropy_grad_and_hessian_diag(x, targets)
            assert (hvp.dtype, grad.dtype, diag.dtype) == (x.dtype,) * 3
            assert xs.cross_entropy_from_probs(p, targets).dtype == loss_dtype
        assert (xs.entropy(p).dtype, xs.kl_divergence(p, p).dtype) == (x.dtype,) * 2


def test_losses_are_what_sum_returns(xb):
    for reduction in ("mean", "sum"):
        loss = xs.cross_entropy(put(xb, X), put(xb, LABELS), reduction=reduction)
        assert type(loss) is type(xb.xp.sum(put(xb, X)))
    assert type(xs.cross_entropy(put(xb, X[0]), put(xb, np.array(1)), reduction="none")) is type(loss)


def test_integer_logits(xb):
    x = np.array([[3, 0, 255], [7, 7, 7]], np.uint8)
    loss = xs.cross_entropy(xb.asarray(x), xb.asarray(np.array([0, 1])), reduction="none")
    assert loss.dtype == default_float(xb)
    assert_close(
        xb, xb.to_numpy(loss).astype(np.float64), [252.0, np.float64(np.log(3)).astype(xb.to_numpy(loss).dtype)]
    )


def test_confident_rows_keep_their_digits(xb):
    """Loss q, gradient −q at the target: most libraries return 0 from a margin of 17 (float32) or 37 (float64)."""
    for margin in (20.0, 40.0, 80.0):
        loss, grad = call("cross_entropy_and_grad", xb, np.array([[margin, 0.0]]), np.array([0]))
        q = math.log1p(math.exp(-margin))
        eps = np.finfo(widest(xb)).eps
        np.testing.assert_allclose(loss, q, rtol=16 * eps)
        np.testing.assert_allclose(grad[0], [-q, q], rtol=(16 * eps) + math.exp(-margin))


def test_loss_of_a_sure_row_is_plus_zero(xb):
    loss = call("cross_entropy", xb, np.array([[900.0, 0.0], [0.0, -900.0]]), np.array([0, 0]), reduction="none")
    np.testing.assert_array_equal(loss, 0.0)
    assert not np.any(np.signbit(loss))


@pytest.mark.backend("sparse")
def test_a_library_without_a_range_is_told_so():
    import sparse

    x, labels = sparse.COO.from_numpy(X), sparse.COO.from_numpy(LABELS)
    message = r"^cross_entropy: sparse has no arange, which class indices need; pass probabilities"
    with pytest.raises(NotImplementedError, match=message):
        xs.cross_entropy(x, labels)
    loss = xs.cross_entropy(x, sparse.COO.from_numpy(Q), reduction="none")
    np.testing.assert_allclose(loss.todense(), np.sum(Q * nll(X), axis=-1), rtol=1e-14)
