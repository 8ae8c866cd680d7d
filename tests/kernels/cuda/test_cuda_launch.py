"""How the CUDA kernels are launched: every row finds room, and no limit of a device is passed."""

import re

import pytest

from xsoftmax.kernels import cuda

pytestmark = pytest.mark.backend("numpy")

H200 = cuda.Device(multiprocessors=132, shared_bytes=227 << 10, clusters=True)
OLDER = cuda.Device(multiprocessors=68, shared_bytes=99 << 10, clusters=False)
LENGTHS = sorted(
    {n + d for n in (1, 2, 3, 8, *(1 << i for i in range(4, 21)), 50_257, 128_256) for d in (-1, 0, 1)} - {0}
)


def launched(dtype, classes, rows=1 << 16, device=H200, *, verb="softmax", writes=True, memory=None):
    options = memory == "across"
    problem = cuda.Problem(cuda.arithmetic(dtype, verb, options=options, fast_float64=True), dtype, verb, options)
    memory = memory or ("packed" if classes * cuda.ITEM_BYTES[dtype] % 16 else "aligned")
    return cuda.launch(problem, rows, classes, device, memory=memory, writes=writes)


@pytest.mark.parametrize("device", [H200, OLDER], ids=["H200", "older"])
@pytest.mark.parametrize("dtype", cuda.ITEM_BYTES)
def test_rows_fit(dtype, device):
    for classes in LENGTHS:
        found = launched(dtype, classes, device=device)
        name = found.kernels[0]
        if "resident" in name:
            lanes, n, chunks = map(int, re.search(r"<(\d+)>, (\d+), (\d+)>$", name).groups())
            assert lanes * n * chunks >= classes
            assert n * chunks <= 16
            assert found.threads in (128, lanes)
            assert found.threads % 32 == 0
        elif "swept" not in name:
            assert found.shared_bytes * found.blocks_per_row >= classes * cuda.ITEM_BYTES[dtype]
            assert found.shared_bytes <= device.shared_bytes
        assert found.threads <= 1024
        assert device.clusters or "clustered" not in name


@pytest.mark.parametrize(
    "dtype, classes, kernel",
    [
        ("float32", 10, "resident<.*Lanes<4>, 1, 4>"),
        ("float32", 1024, "resident<.*Block<64>, 4, 4>"),
        ("bfloat16", 4096, "resident<.*Block<256>, 8, 2>"),
        ("float32", 16_384, "shared<.*512, 4>"),
        ("bfloat16", 50_257, "shared<.*512, 1>"),
        ("bfloat16", 128_256, "clustered<.*4, 512, 8>"),
        ("float32", 131_072, "clustered<.*8, 512, 4>"),
        ("float64", 1 << 20, "swept<.*Block<256>, 2>"),
    ],
)
def test_a_kernel_for_every_length(dtype, classes, kernel):
    assert re.search(kernel, launched(dtype, classes).kernels[0])


@pytest.mark.parametrize("verb", cuda.PRODUCTS)
@pytest.mark.parametrize("memory", [None, "across"])
def test_products_fit(verb, memory):
    for classes in LENGTHS:
        name = launched("float32", classes, verb=verb, memory=memory).kernels[0]
        if "resident" in name:
            lanes, n, chunks = map(int, re.search(r"<(\d+)>, (\d+), (\d+)>$", name).groups())
            assert lanes * n * chunks >= classes
            assert n * chunks <= 8


def test_few_rows_are_cut():
    found = launched("float32", 1 << 20, rows=1)
    assert [re.match(r"xsoftmax::(\w+)", name)[1] for name in found.kernels] == ["piece", "joined"]
    assert found.blocks_per_row == found.slices == 128
    assert found.piece_bytes > 0


def test_classes_that_are_not_side_by_side():
    assert "Columns" in launched("float32", 21, memory="across").kernels[0]
    assert "swept" in launched("float32", 1000, memory="across").kernels[0]


def test_what_is_only_read_needs_no_room():
    for classes in (10, 1000, 100_000):
        assert "swept" in launched("float32", classes, verb="label_loss", writes=False).kernels[0]


def test_a_loss_of_16_bits_is_float32():
    assert cuda.arithmetic("bfloat16", "softmax", options=False, fast_float64=True) == "Float16"
    assert cuda.arithmetic("bfloat16", "label_loss", options=False, fast_float64=True) == "Float32Pairs"
    assert cuda.arithmetic("float32", "softmax", options=False, fast_float64=False) == "Float32Pairs"
