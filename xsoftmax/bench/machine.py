"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = (
    "numpy",
    "array-api-compat",
    "numba",
    "ml_dtypes",
    "scipy",
    "torch",
    "triton",
    "jax",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "liger-kernel",
    "quack-kernels",
    "onnx",
    "onnxruntime",
    "scikit-learn",
    "threadpoolctl",
    "xsoftmax",
)


def describe(name: str, threads: int) -> dict[str, Any]:
    """Processor, caches, versions and threads; what is not found is left out."""
    return {
        "name": name,
        "processor": processor(),
        "cores": os.cpu_count(),
        "caches": caches(Path("/sys/devices/system/cpu/cpu0/cache")),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": versions(LIBRARIES),
        "threads": threads,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "numba": find_spec("numba") is not None,
        "reference_digits": int(np.finfo(np.longdouble).nmant) + 1,
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def caches(folder: Path) -> dict[str, str]:
    """Sizes by level, as Linux tells them."""
    found = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = ((index / part).read_text().strip() for part in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
