"""How CuPy's arrays reach the kernels, with a CuPy that has no device but notes what is asked of it."""

import importlib
import sys
import types

import numpy as np
import pytest

from xsoftmax.calls.records import Problem
from xsoftmax.implementations import cupy as cupy_implementations
from xsoftmax.kernels.cuda import launch as cuda

pytestmark = pytest.mark.backend("numpy")

LAUNCH = cuda.Launch(("xsoftmax::a<1>", "xsoftmax::b<2>"), 128, shared_bytes=60 << 10)


class Function:
    shared_size_bytes = 1024
    max_dynamic_shared_size_bytes = None

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def __call__(self, grid, block, args, *, shared_mem, stream):
        self.calls.append((self.name, grid, block, args, shared_mem, stream))


class Device:
    def __init__(self, cupy, index):
        self.cupy, self.index = cupy, index
        self.compute_capability = str(cupy.capabilities[index])

    def __enter__(self):
        self.before, self.cupy.current = self.cupy.current, self.index

    def __exit__(self, *error):
        self.cupy.current = self.before


@pytest.fixture
def cupy(monkeypatch):
    """A module of that name, and the launcher that imports it."""
    fake, runtime = types.ModuleType("cupy"), types.SimpleNamespace(is_hip=False)
    fake.calls, fake.modules, fake.capabilities, fake.current = [], [], [90, 120], 0
    runtime.getDeviceCount = lambda: len(fake.capabilities)
    runtime.getDevice = lambda: fake.current
    runtime.cudaDevAttrMultiProcessorCount, runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin = 1, 2
    runtime.deviceGetAttribute = lambda attribute, index: {1: 132, 2: 227 << 10}[attribute] + index

    def raw_module(*, code, options, name_expressions):
        assert code == cuda.source()
        assert options == cuda.OPTIONS
        functions = {name: Function(name, fake.calls) for name in name_expressions}
        fake.modules.append((fake.current, functions))
        return types.SimpleNamespace(get_function=functions.__getitem__)

    fake.RawModule = raw_module
    fake.cuda = types.ModuleType("cupy.cuda")
    fake.cuda.runtime, fake.cuda.Device = runtime, lambda index: Device(fake, index)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setitem(sys.modules, "cupy.cuda", fake.cuda)
    for name in ("launch", "cuda"):
        monkeypatch.delitem(sys.modules, f"xsoftmax.implementations.cupy.{name}", raising=False)
        monkeypatch.delattr(cupy_implementations, name, raising=False)
    yield fake
    for name in ("launch", "cuda"):
        sys.modules.pop(f"xsoftmax.implementations.cupy.{name}", None)


def launcher():
    return importlib.import_module("xsoftmax.implementations.cupy.launch")


def problem(container="ndarray"):
    return Problem("softmax", "cupy", container, "float32", "float64", "float32", (-1,))


def test_kernels_in_their_order(cupy):
    arguments = np.zeros(1)
    launcher().run(0, LAUNCH, 7, arguments)
    assert [call[0] for call in cupy.calls] == list(LAUNCH.kernels)
    for _, grid, block, args, shared_mem, stream in cupy.calls:
        assert (grid, block, args, shared_mem, stream) == ((7,), (128,), (arguments,), 60 << 10, None)


def test_compiled_once_a_device(cupy):
    for index in (0, 1, 1, 0):
        launcher().run(index, LAUNCH, 1, None, launcher().Stream(5))
    assert [current for current, _ in cupy.modules] == [0, 1]
    assert {call[-1].ptr for call in cupy.calls} == {5}
    assert cupy.current == 0


def test_one_limit_of_shared_memory(cupy):
    """The limit belongs to the compiled function: a smaller launch must not lower it for a larger one."""
    launcher().run(0, LAUNCH, 1, None)
    launcher().run(0, LAUNCH._replace(shared_bytes=47 << 10), 1, None)
    launcher().run(0, LAUNCH._replace(shared_bytes=(47 << 10) + 16), 1, None)  # beside the kernel's own 1024 bytes
    limits = [{f.max_dynamic_shared_size_bytes for f in functions.values()} for _, functions in cupy.modules]
    assert limits == [{(227 << 10) - 1024}, {None}, {(227 << 10) - 1024}]


def test_devices(cupy):
    cupy.capabilities = [90, 89, 100, 70]
    found = [launcher().device(i) for i in range(4)]
    assert [(d.clusters, d.fast_float64) for d in found] == [(True, True), (False, False), (True, True), (False, True)]
    assert (found[1].multiprocessors, found[1].shared_bytes) == (133, (227 << 10) + 1)


def test_refusals(cupy):
    module = importlib.import_module("xsoftmax.implementations.cupy.cuda")
    assert module.refuses(problem()) == []
    assert module.refuses(problem("Mine")) == ["a Mine is not plain memory"]


def test_an_older_device_is_refused(cupy):
    cupy.capabilities = [90, 61]
    expected = ["device 1 has compute capability 6.1, expected 7.0 or later"]
    assert importlib.import_module("xsoftmax.implementations.cupy.cuda").refuses(problem()) == expected


def test_rocm_is_refused(cupy):
    cupy.cuda.runtime.is_hip = True
    expected = ["CuPy is built for ROCm, the kernels are CUDA's"]
    assert importlib.import_module("xsoftmax.implementations.cupy.cuda").refuses(problem()) == expected
