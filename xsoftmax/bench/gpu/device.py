"""The GPU as the harness needs it: its memory, its clock, and what it is called. CuPy's, on its current stream."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from shutil import which
from typing import Any, Protocol

FLUSHED = 512 << 20  # bytes that are written before each call; that also hides the host's work on the call


class Device(Protocol):
    """Where arrays of `xp` are; `memory` in bytes."""

    xp: Any
    memory: int

    def describe(self) -> dict[str, Any]: ...

    def seconds(self, run: Callable[[], Any]) -> float:
        """Of one call, nothing being in the cache."""

    def synchronize(self) -> None: ...

    def release(self) -> None:
        """Give back the memory that pools hold."""

    def spoil(self, size: int) -> None:
        """Leave nan in the memory that the next arrays of this size are given."""


class CuPyDevice:
    """The current device. PyTorch's default stream is the one of CuPy, so that both are timed by the same events."""

    def __init__(self) -> None:
        import cupy

        self.xp = cupy
        self.memory = cupy.cuda.Device().mem_info[1]
        self._flushed = cupy.empty(FLUSHED, "uint8")
        self._start, self._end = cupy.cuda.Event(), cupy.cuda.Event()

    def describe(self) -> dict[str, Any]:
        runtime = self.xp.cuda.runtime
        properties = runtime.getDeviceProperties(self.xp.cuda.Device().id)
        return {
            "device": properties["name"].decode(),
            "compute_capability": f"{properties['major']}.{properties['minor']}",
            "multiprocessors": properties["multiProcessorCount"],
            "memory": self.memory,
            "l2": properties["l2CacheSize"],
            "driver": driver(),
            "cuda_driver": runtime.driverGetVersion(),
            "cuda_runtime": runtime.runtimeGetVersion(),
        }

    def seconds(self, run: Callable[[], Any]) -> float:
        self._flushed.fill(0)
        self._start.record()
        run()
        self._end.record()
        self._end.synchronize()
        return self.xp.cuda.get_elapsed_time(self._start, self._end) / 1e3

    def synchronize(self) -> None:
        self.xp.cuda.runtime.deviceSynchronize()  # all streams: JAX has its own

    def release(self) -> None:
        gc.collect()
        self.synchronize()
        self.xp.get_default_memory_pool().free_all_blocks()
        if torch := _torch():
            torch.cuda.empty_cache()

    def spoil(self, size: int) -> None:
        self.xp.full(size, 0xFF, "uint8")  # nan in every format
        if torch := _torch():
            torch.full((size,), 0xFF, dtype=torch.uint8, device="cuda")


def _torch() -> Any:
    """PyTorch, if a contender has imported it and it has a device."""
    torch = sys.modules.get("torch")
    return torch if torch and torch.cuda.is_available() else None


def driver() -> str | None:
    """Its version, None where no command tells it."""
    if which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.partition("\n")[0] or None
