"""Kernels compiled and launched by CuPy: at the first use of each, by NVRTC, kept in CuPy's cache on the disk."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import cupy
from cupy.cuda import runtime

from ...kernels.cuda import launch as cuda

_OLDEST = 70
_FAST_FLOAT64 = {60, 70, 80, 90, 100}
_SHARED_BYTES = 48 << 10  # of a block that does not ask for more


@lru_cache(maxsize=1)
def refusals() -> list[str]:
    """Why no kernel can be launched here."""
    if runtime.is_hip:
        return ["CuPy is built for ROCm, the kernels are CUDA's"]
    capabilities = {i: _capability(i) for i in range(runtime.getDeviceCount())}
    return [
        f"device {i} has compute capability {found / 10}, expected {_OLDEST / 10} or later"
        for i, found in capabilities.items()
        if found < _OLDEST
    ]


def _capability(index: int) -> int:
    return int(cupy.cuda.Device(index).compute_capability)


@lru_cache(maxsize=64)
def device(index: int) -> cuda.Device:
    capability = _capability(index)
    return cuda.Device(
        multiprocessors=runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, index),
        shared_bytes=runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
        clusters=capability >= 90,
        fast_float64=capability in _FAST_FLOAT64,
    )


class Stream(NamedTuple):
    """A stream of another library, as CuPy asks for one."""

    ptr: int


def run(index: int, launch: cuda.Launch, blocks: int, arguments: Any, stream: Any = None) -> None:
    """On a device and a stream, by default CuPy's current one."""
    if runtime.getDevice() == index:
        _run(index, launch, blocks, arguments, stream)
        return
    with cupy.cuda.Device(index):
        _run(index, launch, blocks, arguments, stream)


def _run(index: int, launch: cuda.Launch, blocks: int, arguments: Any, stream: Any) -> None:
    for function in _functions(index, launch.kernels, launch.shared_bytes):
        function((blocks,), (launch.threads,), (arguments,), shared_mem=launch.shared_bytes, stream=stream)


@lru_cache(maxsize=4096)
def _functions(index: int, kernels: tuple[str, ...], shared_bytes: int) -> tuple[Any, ...]:
    """Of the current device, which is number `index`."""
    module = cupy.RawModule(code=cuda.source(), options=cuda.OPTIONS, name_expressions=kernels)
    functions = tuple(module.get_function(kernel) for kernel in kernels)
    for function in functions:
        own = function.shared_size_bytes
        if own + shared_bytes > _SHARED_BYTES:  # one limit for every use, since it is the compiled function's
            function.max_dynamic_shared_size_bytes = device(index).shared_bytes - own
    return functions
