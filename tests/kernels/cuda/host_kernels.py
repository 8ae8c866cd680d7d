"""An implementation of NumPy's operations by the CUDA kernels, run thread by thread on the host."""

import ctypes
import platform
import shutil
import subprocess
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from xsoftmax.calls.records import Problem
from xsoftmax.implementations.cupy.operations import Operations
from xsoftmax.implementations.cupy.quick import ShortCuts
from xsoftmax.implementations.cupy.weights import Weighings
from xsoftmax.kernels import cuda as cuda_kernels
from xsoftmax.kernels.cuda import launch as cuda
from xsoftmax.verify.inputs import numpy_dtype

COMPILER = shutil.which("g++") if platform.machine() == "x86_64" else None
HEADER = Path(__file__).with_name("kernels_host.h")
NAME = "host_cuda"
H200 = cuda.Device(multiprocessors=132, shared_bytes=227 << 10, clusters=True)
WEIGHING = ("weigh", "count_part", "scale_part", "sum_losses", "sum_part", "join_losses")
OPERATIONS = ("softmax", "log_softmax", "logsumexp", "cross_entropy")
PRODUCTS = ("softmax_product", "log_softmax_vjp", "log_softmax_jvp")


class Host:
    """Memory of the host for that of a device; kernels that are not compiled yet are only noted."""

    def __init__(self, device=H200):
        self.on = device
        self.kernels = {}
        self.missing = set()

    def pointer(self, x):
        return x.__array_interface__["data"][0]

    def strides(self, x):
        return tuple(stride // x.itemsize for stride in x.strides)

    def empty_like(self, x):
        return aligned(np.empty_like(x))

    def empty(self, shape, dtype, like):
        return aligned(np.empty(shape, numpy_dtype(dtype)))

    def contiguous(self, x):
        return np.ascontiguousarray(x)

    def device(self, x):
        return self.on

    def launch(self, x, launch, blocks, arguments):
        self.missing |= {name for name in launch.kernels if name not in self.kernels}
        if not self.missing:
            for name in launch.kernels:
                record = ctypes.c_void_p(self.pointer(arguments))
                self.kernels[name](record, blocks, launch.threads, launch.shared_bytes)

    def compile(self, folder):
        """What is missing, as one library."""
        names, self.missing = sorted(self.missing), set()
        if not names:
            return
        library = build(names, folder)
        self.kernels |= {name: getattr(library, f"kernel_{i}") for i, name in enumerate(names)}


def aligned(array):
    """The same memory order, and a start at a multiple of 16 bytes as every allocation of CuPy."""
    if array.__array_interface__["data"][0] % 16 == 0:
        return array
    space = np.empty(array.nbytes + 16, np.uint8)
    start = -space.__array_interface__["data"][0] % 16
    return np.ndarray(array.shape, array.dtype, space, start, array.strides)


def build(names, folder):
    """Kernels number 0, 1, … of a library."""
    lines = [f"KERNEL({i}, {_arguments(name)}, {cluster_of(name)}, {name})\n" for i, name in enumerate(names)]
    source = folder / "instantiations.cpp"
    source.write_text("".join([f'#include "{HEADER.name}"\n', *lines]))
    built = folder / f"kernels-{abs(hash(tuple(names)))}.so"
    _run_compiler("-shared", "-I", _precompiled().name, source, "-o", built)
    return ctypes.CDLL(str(built))


@cache
def _precompiled():
    """The folder of the kernels' text as the compiler keeps it, which takes 2 s of every compilation otherwise."""
    folder = tempfile.TemporaryDirectory()
    _run_compiler("-x", "c++-header", HEADER, "-o", Path(folder.name) / f"{HEADER.name}.gch")
    return folder


def _run_compiler(*arguments):
    flags = ["-std=c++17", "-O1", "-mf16c", "-ffp-contract=off", "-Wno-unknown-pragmas", "-fPIC"]
    include = ["-I", HEADER.parent, "-I", Path(cuda_kernels.__file__).parent]
    subprocess.run([COMPILER, *flags, *arguments, *include], check=True)


def _arguments(name):
    return "Weighing" if name.startswith(tuple(f"xsoftmax::{kernel}<" for kernel in WEIGHING)) else "Arguments"


def cluster_of(name):
    """Blocks that run together."""
    return int(name.split(">, ")[1].split(",")[0]) if "::clustered<" in name else 1


def implementation(host):
    """The operations of an implementation."""
    return Operations(host).declared() | Weighings(host).declared()


def short_cuts(host, dtype):
    """The entries of matrices of a dtype, by verb."""
    p = Problem("softmax", "numpy", "ndarray", dtype, "float64", dtype, (-1,))
    made = ShortCuts(Operations(host), Weighings(host), "numpy").entries()
    return {verb: make(replace(p, verb=verb), 2, None) for verb, make in made.items()}
