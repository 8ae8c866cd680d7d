"""The CUDA kernels on a device: what only a device shows. ``pytest --backend cupy tests/gpu``"""

import threading

import numpy as np
import pytest
from random_problems import failures

import xsoftmax as xs

cupy = pytest.importorskip("cupy", exc_type=ImportError)
pytestmark = pytest.mark.backend("cupy")

RNG = np.random.default_rng(4)
X = RNG.normal(size=(300, 1000)).astype(np.float32) * 4
LABELS = RNG.integers(0, 1000, 300)
CALLS = {
    "softmax": lambda x, labels: xs.softmax(x),
    "log_softmax": lambda x, labels: xs.log_softmax(x),
    "logsumexp": lambda x, labels: xs.logsumexp(x),
    "softmax_vjp": lambda x, labels: xs.softmax_vjp(x, x),
    "cross_entropy": lambda x, labels: xs.cross_entropy(x, labels),
    "cross_entropy_and_grad": lambda x, labels: xs.cross_entropy_and_grad(x, labels, ignore_index=3),
    "few rows": lambda x, labels: xs.softmax(x.reshape(3, -1)),
    "soft targets": lambda x, labels: xs.cross_entropy_grad(x, abs(x), reduction="sum"),
}


@pytest.fixture(autouse=True)
def kernels():
    with xs.use_implementation("cupy_cuda"):
        yield


def host(result):
    parts = result if isinstance(result, tuple) else (result,)
    return [cupy.asnumpy(part) for part in parts]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def close_to_numpy(call, found):
    with xs.use_implementation("numpy_blocked"):
        expected = CALLS[call](X, LABELS)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("call", CALLS)
def test_the_same_bits_again(call):
    x, labels = cupy.asarray(X), cupy.asarray(LABELS)
    first = host(CALLS[call](x, labels))
    close_to_numpy(call, first)
    for _ in range(20):
        assert_same(host(CALLS[call](x, labels)), first)


@pytest.mark.parametrize("call", CALLS)
def test_captured_in_a_graph(call):
    """No call waits for the device, or does anything else that a capture does not allow."""
    x, labels = cupy.asarray(X), cupy.asarray(LABELS)
    expected = host(CALLS[call](x, labels))
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        warm = CALLS[call](x, labels)  # compiles, and leaves blocks of memory for the capture
        del warm
        stream.synchronize()
        stream.begin_capture()
        result = CALLS[call](x, labels)
        graph = stream.end_capture()
        for part in result if isinstance(result, tuple) else (result,):
            part.fill(0)
        graph.launch(stream)
        stream.synchronize()
        assert_same(host(result), expected)
        x += 1  # the graph reads what is there now
        graph.launch(stream)
        moved = host(result)
        stream.synchronize()
        again = host(CALLS[call](x, labels))
    assert_same(moved, again)


def test_streams_and_threads():
    """Each thread on its own stream, all at once, the results those of one thread."""
    x, labels = cupy.asarray(X), cupy.asarray(LABELS)
    expected = {call: host(CALLS[call](x, labels)) for call in CALLS}
    cupy.cuda.Device().synchronize()
    wrong = []

    def work(seed):
        order = np.random.default_rng(seed).permutation(list(CALLS))
        with xs.use_implementation("cupy_cuda"), cupy.cuda.Stream(non_blocking=True) as stream:
            for _ in range(10):
                results = {call: CALLS[call](x, labels) for call in order}
                stream.synchronize()
                for call, result in results.items():
                    if not all((a == b).all() for a, b in zip(host(result), expected[call], strict=True)):
                        wrong.append((seed, call))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Allocations(cupy.cuda.MemoryHook):
    """Bytes that were asked for."""

    name = "allocations"

    def __init__(self):
        self.sizes = []

    def malloc_preprocess(self, *, device_id, size, mem_size):
        self.sizes.append(size)


@pytest.mark.parametrize("call", CALLS)
def test_no_memory_beside_the_result(call):
    x, labels = cupy.asarray(X), cupy.asarray(LABELS)
    result = CALLS[call](x, labels)
    parts = result if isinstance(result, tuple) else (result,)
    with Allocations() as allocations:
        CALLS[call](x, labels)
    given = abs(x).nbytes if call == "soft targets" else 0
    assert sum(allocations.sizes) <= sum(part.nbytes for part in parts) + given + x.nbytes // 8


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_label_that_is_no_class(reduction):
    x, labels = cupy.asarray(X), cupy.asarray(LABELS)
    labels[7], labels[8] = 1000, -1
    loss, grad = host(xs.cross_entropy_and_grad(x, labels, reduction=reduction))
    assert np.isnan(loss[7:9] if reduction == "none" else loss).all()
    assert np.isnan(grad[7:9]).all()
    assert np.isfinite(np.delete(grad, (7, 8), axis=0)).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1 << 21, 1040), (1 << 31, 2), (2100, (1 << 20) + 1)])
def test_more_elements_than_32_bits_count(shape):
    """Rows at both ends are those of a small array."""
    rows, classes = shape
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    # x and y of two bytes; labels of four and of eight, the loss of eight
    if cupy.cuda.Device().mem_info[0] < rows * (4 * classes + 4 + 8 + 8) + (2 << 30):
        pytest.skip("too little memory is free on the device")
    x = cupy.zeros(shape, dtype=cupy.float16)
    ends = cupy.asarray(RNG.normal(size=(8, classes)).astype(np.float16))
    x[:4], x[-4:] = ends[:4], ends[4:]
    labels = cupy.zeros(rows, dtype=np.int32)
    small = xs.softmax(ends)
    y = xs.softmax(x)
    for found, exact in zip(host((y[:4], y[-4:])), host((small[:4], small[4:])), strict=True):
        np.testing.assert_array_max_ulp(found, exact, 1)  # few rows are split, many are not
    assert float(abs(y[rows // 2].astype(np.float32) * classes - 1).max()) < 1e-3
    del y
    pool.free_all_blocks()
    loss, grad = xs.cross_entropy_and_grad(x, labels, reduction="sum", out=x)
    expected = xs.cross_entropy_and_grad(ends, labels[:8], reduction="sum")
    for found, exact in zip(host((grad[:4], grad[-4:])), host((expected.grad[:4], expected.grad[4:])), strict=True):
        np.testing.assert_array_max_ulp(found, exact, 1)
    whole = float(expected.loss) + (rows - 8) * np.log(classes)
    assert abs(float(loss) / whole - 1) < 1e-6


def test_out_is_the_logits():
    x, labels = cupy.asarray(X), cupy.asarray(LABELS)
    expected = host(xs.softmax(x)), host(xs.cross_entropy_and_grad(x, labels))
    y = x.copy()
    assert xs.softmax(y, out=y) is y
    assert_same(host(y), expected[0])
    y = x.copy()
    found = xs.cross_entropy_and_grad(y, labels, out=y)
    assert found.grad is y
    assert_same(host(found), expected[1])


@pytest.mark.parametrize(("dtype", "classes"), [("float32", 12_288), ("float16", 24_576), ("float32", 11_800)])
def test_48_kib_of_a_row(dtype, classes):
    """With the kernel's own shared memory it is more than a launch has unless it asks."""
    x = RNG.normal(size=(300, classes)).astype(dtype)
    for view in (x, x[:, 1:]):
        with xs.use_implementation("numpy_blocked"):
            expected = xs.softmax(view)
        np.testing.assert_array_max_ulp(
            host(xs.softmax(cupy.asarray(x)[:, x.shape[1] - view.shape[1] :]))[0], expected, 1
        )


@pytest.mark.slow
@pytest.mark.parametrize("block", range(40))
def test_random_problems(block):
    xb = xs.backend("cupy")
    assert [failure for seed in range(25 * block, 25 * block + 25) for failure in failures(xb, seed)] == []
