"""Small matrices take a short cut: the same values, the same errors."""

import numpy as np
import pytest

import xsoftmax as xs
from xsoftmax import choose

pytestmark = pytest.mark.backend("numpy")

RNG = np.random.default_rng(2)
VERBS = {"softmax": xs.softmax, "log_softmax": xs.log_softmax}
LOSSES = {"cross_entropy": xs.cross_entropy, "cross_entropy_and_grad": xs.cross_entropy_and_grad}


@pytest.fixture(params=[entry.name for entry in choose.candidates("numpy")], autouse=True)
def implementation(request):
    operation, problem, _ = choose.recorded(xs.softmax, np.zeros(2))
    if why := choose.reasons(request.param, operation, problem):
        pytest.skip("; ".join(why))
    with xs.use_implementation(request.param):
        yield request.param


@pytest.fixture
def long_way(monkeypatch):
    """The same call without the short cut."""

    def call(f, *args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(choose, "_SMALL", 0)
            return f(*args, **options)

    return call


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (4, 10), (3, 100), (64, 64), (7, 33)])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_same_values(shape, dtype, scale, long_way):
    x = (RNG.normal(size=shape) * scale).astype(dtype)
    labels = RNG.integers(0, shape[1], shape[0])
    eps = np.finfo(dtype).eps
    for verb in VERBS.values():
        found, expected = verb(x), long_way(verb, x)
        assert (type(found), found.dtype, found.shape) == (type(expected), expected.dtype, expected.shape)
        np.testing.assert_allclose(found, expected, rtol=12 * eps, atol=np.finfo(dtype).tiny)
    found, expected = xs.logsumexp(x), long_way(xs.logsumexp, x)
    assert (type(found), found.dtype, found.shape) == (type(expected), expected.dtype, expected.shape)
    np.testing.assert_allclose(found, expected, rtol=12 * eps)
    found, expected = xs.cross_entropy(x, labels), long_way(xs.cross_entropy, x, labels)
    assert type(found) is type(expected)
    np.testing.assert_allclose(found, expected, rtol=12 * eps)
    both, expected = xs.cross_entropy_and_grad(x, labels), long_way(xs.cross_entropy_and_grad, x, labels)
    assert (type(both), type(both.loss)) == (type(expected), type(expected.loss))
    assert both.loss == found
    np.testing.assert_allclose(both.grad, expected.grad, rtol=12 * eps, atol=np.finfo(dtype).tiny)


@pytest.mark.parametrize("classes", [5, 50])
def test_out(classes, long_way):
    x = RNG.normal(size=(6, classes)).astype(np.float32)
    labels = RNG.integers(0, classes, 6)
    for verb in (*VERBS.values(), lambda x, **o: xs.cross_entropy_and_grad(x, labels, **o)[1]):
        expected = long_way(verb, x)
        out = np.full_like(x, np.nan)
        assert verb(x, out=out) is out
        np.testing.assert_allclose(out, expected, rtol=1e-6)
        given = x.copy()
        assert verb(given, out=given) is given
        np.testing.assert_allclose(given, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (lambda memory: np.empty((3, 5), np.float32), ValueError),
        (lambda memory: np.empty((4, 5)), TypeError),
        (lambda memory: memory.tolist(), TypeError),
        (lambda memory: memory[1:21].reshape(4, 5), ValueError),
    ],
    ids=["shape", "dtype", "list", "overlap"],
)
def test_wrong_out(out, error):
    memory = np.zeros(26, np.float32)
    for verb in (*VERBS.values(), lambda x, **o: xs.cross_entropy_and_grad(x, np.zeros(4, int), **o)):
        with pytest.raises(error):
            verb(memory[:20].reshape(4, 5), out=out(memory))
    np.testing.assert_array_equal(memory, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_same_corners(bad, long_way):
    x = RNG.normal(size=(3, 5)).astype(np.float32)
    x[1, 2] = bad
    x[2] = -np.inf
    labels = np.array([0, 2, 1])
    for verb in VERBS.values():
        np.testing.assert_allclose(verb(x), long_way(verb, x), rtol=1e-6)
    np.testing.assert_allclose(xs.cross_entropy(x, labels), long_way(xs.cross_entropy, x, labels), rtol=1e-6)
    np.testing.assert_allclose(
        xs.cross_entropy(x[:2], labels[:2]), long_way(xs.cross_entropy, x[:2], labels[:2]), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"axis": True}, TypeError),
        ({"axis": -1.0}, TypeError),
        ({"temperature": True}, TypeError),
        ({"temperature": "1"}, TypeError),
        ({"temperature": 0.0}, ValueError),
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_same_errors(verb, options, error, long_way):
    x = np.zeros((2, 3))
    for call in (lambda: VERBS[verb](x, **options), lambda: long_way(VERBS[verb], x, **options)):
        with pytest.raises(error):
            call()


@pytest.mark.parametrize(
    ("labels", "options", "error"),
    [
        (np.array([0, 3]), {}, ValueError),
        (np.array([0, -1]), {}, ValueError),
        (np.array([0.0, 1.0]), {}, TypeError),
        (np.array([0, 1, 2]), {}, ValueError),
        ([0, 1], {}, TypeError),
        (np.array([0, 1]), {"reduction": "max"}, ValueError),
        (np.array([0, 1]), {"label_smoothing": True}, TypeError),
        (np.array([0, 1]), {"z_loss": False}, TypeError),
        (np.array([0, 1]), {"temperature": np.ones(2)}, TypeError),
    ],
)
def test_same_errors_of_losses(labels, options, error, long_way):
    x = np.zeros((2, 3))
    for call in (
        lambda: xs.cross_entropy(x, labels, **options),
        lambda: long_way(xs.cross_entropy, x, labels, **options),
    ):
        with pytest.raises(error, match=r"^cross_entropy: "):
            call()


def test_inputs_are_not_changed():
    x = RNG.normal(size=(4, 10))
    labels = RNG.integers(0, 10, 4)
    kept, labels_kept = x.copy(), labels.copy()
    xs.softmax(x), xs.log_softmax(x), xs.cross_entropy(x, labels)
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_array_equal(labels, labels_kept)


def test_other_label_dtypes(long_way):
    x = RNG.normal(size=(4, 10)).astype(np.float32)
    for dtype in (np.int8, np.uint8, np.int32, np.uint64, ">i8"):
        labels = np.array([1, 9, 0, 3]).astype(dtype)
        np.testing.assert_allclose(xs.cross_entropy(x, labels), long_way(xs.cross_entropy, x, labels), rtol=1e-6)


def test_out_over_the_labels():
    memory = np.zeros(20)
    labels = memory[:4].view(np.int64)
    with pytest.raises(ValueError, match=r"^cross_entropy_and_grad: out overlaps targets in part"):
        xs.cross_entropy_and_grad(np.ones((4, 5)), labels, out=memory.reshape(4, 5))
    np.testing.assert_array_equal(memory, 0.0)
