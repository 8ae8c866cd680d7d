"""How the CUDA kernels are launched: every row finds room, and no limit of a device is passed."""

import math
import re
from typing import get_args

import pytest

from xsoftmax.kernels.cuda import launch as cuda

pytestmark = pytest.mark.backend("numpy")

H200 = cuda.Device(multiprocessors=132, shared_bytes=227 << 10, clusters=True)
OLDER = cuda.Device(multiprocessors=68, shared_bytes=99 << 10, clusters=False)
LENGTHS = sorted(
    {n + d for n in (1, 2, 3, 8, *(1 << i for i in range(4, 21)), 50_257, 128_256) for d in (-1, 0, 1)} - {0}
)


def launched(dtype, classes, rows=1 << 16, device=H200, *, verb="softmax", writes=True, memory=None, options=False):
    options = options or memory == "across"
    problem = cuda.Template(cuda.arithmetic(dtype, verb, transformed=options, fast_float64=True), dtype, verb, options)
    memory = memory or ("packed" if classes * cuda.ITEM_BYTES[dtype] % 16 else "aligned")
    return cuda.launch(problem, rows, classes, device, memory=memory, writes=writes)


def room(found, dtype):
    """Classes of a row that a launch has a place for, counted from the first vector of it."""
    item, name = cuda.ITEM_BYTES[dtype], found.kernels[0]
    if "resident" in name:
        return math.prod(map(int, re.search(r"<(\d+)>, (\d+), (\d+)>$", name).groups()))
    if "tiled" in name:
        return math.prod(map(int, re.search(r"<(\d+)>, (\d+)>$", name).groups()))
    return found.shared_bytes * found.blocks_per_row // item if "swept" not in name else math.inf


def vector(name):
    """Classes side by side that a thread takes at once."""
    *_, last_but_one, last = re.findall(r"\d+", name)
    return int(last_but_one if "resident" in name else last)


@pytest.mark.parametrize("memory", get_args(cuda.Memory))
@pytest.mark.parametrize("device", [H200, OLDER], ids=["H200", "older"])
@pytest.mark.parametrize("dtype", cuda.ITEM_BYTES)
def test_rows_fit(dtype, device, memory):
    for classes in LENGTHS:
        found = launched(dtype, classes, device=device, memory=memory)
        name = found.kernels[0]
        shifted = memory in ("packed", "alike") and classes * cuda.ITEM_BYTES[dtype] % 16 and "tiled" not in name
        assert room(found, dtype) >= classes + (vector(name) - 1 if shifted else 0)
        assert found.threads in (128, 256, 512, int((re.search(r"Block<(\d+)>", name) or [0, 0])[1]))
        assert found.shared_bytes <= (48 << 10 if "tiled" in name else device.shared_bytes)
        assert device.clusters or "clustered" not in name


@pytest.mark.parametrize("dtype", cuda.ITEM_BYTES)
@pytest.mark.parametrize("verb", ["softmax", "target_loss", *cuda.PRODUCTS])
def test_tiles(verb, dtype):
    """They start at multiples of 16 bytes, and take no more than a block has without asking for more."""
    item, arrays = cuda.ITEM_BYTES[dtype], 1 if verb == "softmax" else 2
    for classes in range(1, 512 // item):
        found = launched(dtype, classes, memory="packed", verb=verb)
        assert ("tiled" in found.kernels[0]) == (classes * item % 16 != 0)
        if "tiled" in found.kernels[0]:
            lanes, chunks = map(int, re.search(r"<(\d+)>, (\d+)>$", found.kernels[0]).groups())
            assert found.rows_per_block == 128 // lanes * (16 // chunks)
            assert found.rows_per_block * item % 16 == 0
            assert found.shared_bytes == arrays * found.rows_per_block * classes * item <= 32 << 10
            assert chunks <= (8 if verb in cuda.PRODUCTS else 16)


@pytest.mark.parametrize(
    "dtype, classes, kernel",
    [
        ("float32", 10, "tiled<.*Lanes<1>, 16>"),
        ("float32", 33, "tiled<.*Lanes<4>, 16>"),
        ("bfloat16", 255, "tiled<.*Lanes<16>, 16>"),
        ("bfloat16", 257, "resident<.*Lanes<32>, 8, 2>"),
        ("float32", 1024, "resident<.*Block<64>, 4, 4>"),
        ("bfloat16", 4096, "resident<.*Block<256>, 8, 2>"),
        ("float32", 16_384, "shared<.*512, 4>"),
        ("bfloat16", 50_257, "shared<.*512, 8>"),
        ("bfloat16", 128_256, "clustered<.*4, 512, 8>"),
        ("float32", 131_072, "clustered<.*8, 512, 4>"),
        ("float64", 1 << 20, "swept<.*Block<256>, 2>"),
    ],
)
def test_a_kernel_for_every_length(dtype, classes, kernel):
    assert re.search(kernel, launched(dtype, classes).kernels[0])


@pytest.mark.parametrize(
    "dtype, classes, memory, n",
    [
        ("bfloat16", 5000, "aligned", 8),
        ("bfloat16", 5001, "packed", 8),
        ("float32", 5001, "alike", 4),
        ("float64", 5001, "alike", 2),
        ("float32", 5001, "apart", 1),
        ("float32", 100, "alike", 1),
        ("float32", 5001, "across", 1),
    ],
)
@pytest.mark.parametrize("verb", ["softmax", "log_softmax_vjp"])
@pytest.mark.parametrize("options", [False, True])
def test_vectors(dtype, classes, memory, n, verb, options):
    assert vector(launched(dtype, classes, memory=memory, verb=verb, options=options).kernels[0]) == n


@pytest.mark.parametrize("verb", cuda.PRODUCTS)
@pytest.mark.parametrize("memory", get_args(cuda.Memory))
def test_products_fit(verb, memory):
    for classes in LENGTHS:
        found = launched("float32", classes, verb=verb, memory=memory)
        assert room(found, "float32") >= classes
        if "resident" in found.kernels[0]:
            n, chunks = map(int, re.search(r"(\d+), (\d+)>$", found.kernels[0]).groups())
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
    for classes in (12, 1000, 1001, 100_000):
        assert "swept" in launched("float32", classes, verb="label_loss", writes=False).kernels[0]


def test_a_loss_of_16_bits_is_float32():
    assert cuda.arithmetic("bfloat16", "softmax", fast_float64=True) == "Float16"
    assert cuda.arithmetic("bfloat16", "label_loss", fast_float64=True) == "Float32Pairs"
    assert cuda.arithmetic("float32", "softmax", fast_float64=False) == "Float32Pairs"
