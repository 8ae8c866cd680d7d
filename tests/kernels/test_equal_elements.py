"""Elements of a row that are equal have equal results, to the bit, wherever they lie; layouts change nothing."""

import numpy as np
import pytest

import xsoftmax as xs

pytest.importorskip("numba")

pytestmark = pytest.mark.backend("numpy")

CLASSES = [*range(2, 131), *range(133, 300, 9), *range(1000, 1101, 5)]  # all that a vector loop may leave
DTYPES = ["float32", "float64"]
ORDERS = {"rows": np.ascontiguousarray, "classes": np.asfortranarray}
in_any_order = pytest.mark.parametrize("laid_out", ORDERS.values(), ids=ORDERS)


@pytest.fixture(autouse=True)
def _kernels():
    with xs.use_implementation("numpy_numba"):
        yield


def problem(classes, dtype):
    """Rows of three kinds of elements, and which; the first is of one kind, the last is confident."""
    rng = np.random.default_rng(classes)
    kind = rng.integers(0, 3, (4, classes))
    kind[0], kind[3] = 0, np.arange(classes) % 2 + 1
    kind[3, classes // 2] = 0
    x, t, v = (np.take_along_axis(rng.normal(size=(4, 3)), kind, -1) for _ in range(3))
    x[3, classes // 2] += 9.0
    return kind, x.astype(dtype), np.abs(t).astype(dtype), v.astype(dtype)


def results(x, t, v, order):
    n, classes = x.shape
    x, t, v = map(order, (x, t, v))
    labels, weight = np.full(n, classes // 2), np.full(classes, 0.75, x.dtype)
    log_y, y = xs.log_softmax(x), xs.softmax(x)
    yield from (y, log_y, xs.cross_entropy_and_grad(x, t, reduction="none")[1])
    yield xs.cross_entropy_and_grad(x, t, z_loss=0.1, reduction="none")[1]
    yield xs.cross_entropy_and_grad(x, labels, weight=weight, label_smoothing=0.1, reduction="none")[1]
    yield xs.cross_entropy_and_grad(x, labels, z_loss=0.1, reduction="sum")[1]
    yield from (xs.softmax_vjp(y, v), xs.log_softmax_vjp(log_y, v), xs.log_softmax_jvp(log_y, v))
    yield xs.cross_entropy_grad_and_hessian_diag(x, t, reduction="none")[1]
    yield xs.cross_entropy_hvp(x, t, v, reduction="none")


def of_linear(x, target, chunk):
    """The logits' gradient in class chunks: the bias takes it as it is."""
    one, bias = np.ones((1, 1), x.dtype), np.zeros(x.shape[1], x.dtype)
    return xs.linear_cross_entropy_and_grad(one, x.T, target, linear_bias=bias, chunk_size=(None, chunk))[3][None]


def differing(result, kind, labels):
    rows, classes = np.indices(kind.shape)
    kind = np.where(classes == labels[:, None], 3, kind)
    first = np.argmax(kind[:, None] == np.arange(4)[:, None], axis=-1)
    return np.sum(result != result[rows, first[rows, kind]])


@in_any_order
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_elements_have_equal_results(dtype, laid_out):
    for classes in CLASSES:
        kind, x, t, v = problem(classes, dtype)
        labels = np.full(len(x), classes // 2)
        for i, result in enumerate(results(x, t, v, laid_out)):
            assert result.dtype == x.dtype
            if result.shape == x.shape:
                assert differing(result, kind, labels) == 0, (classes, i)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 7, 32, 33, 34, 40, 100])
def test_equal_logits_have_equal_gradients_in_class_chunks(chunk, dtype):
    for classes in range(chunk + 1, 4 * chunk + 2, 5):
        kind, x, t, _ = problem(classes, dtype)
        for i in range(len(x)):
            label = np.asarray([(7 * i + classes // 2) % classes])
            for target in (label, t[i : i + 1]):
                grad = of_linear(x[i : i + 1], target, chunk)
                assert differing(grad, kind[i : i + 1], label) == 0, (classes, i)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_change_nothing(dtype):
    for classes in (1, 3, 10, 31, 32, 33, 100, 300, 1030):
        _, x, t, v = problem(classes, dtype)
        expected = list(results(x, t, v, np.ascontiguousarray))
        for step in 1, 2:
            for laid_out in (apart, shifted, *(() if classes > 32 else (np.asfortranarray,))):
                for a, b in zip(expected, results(x[::step], t[::step], v[::step], laid_out), strict=True):
                    if np.ndim(a) == 2:
                        np.testing.assert_array_equal(b, a[::step])


def apart(a):
    """Rows that are further apart than they are long."""
    return np.concatenate([a, a], axis=1)[:, : a.shape[1]]


def shifted(a):
    """Rows that begin at odd elements."""
    return np.concatenate([a[:, :1], a], axis=1)[:, 1:]
