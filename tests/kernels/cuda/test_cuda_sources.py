"""The CUDA kernels compile with NVRTC for every architecture that is promised, and spill little."""

import ctypes
import itertools
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from xsoftmax.kernels.cuda import launch as cuda

SPILLED = 128  # bytes of a thread at most: ptxas spills some rather than hold more than 64 or 80 registers


def wheel_file(pattern):
    spec = find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations
    return next((str(found) for folder in folders for found in sorted(Path(folder).glob(pattern))), None)


NVRTC = wheel_file("*/lib/libnvrtc.so.*")
PTXAS = wheel_file("*/bin/ptxas") or shutil.which("ptxas")
pytestmark = [
    pytest.mark.backend("numpy"),
    pytest.mark.skipif(NVRTC is None, reason="no wheel with NVRTC here, such as nvidia-cuda-nvrtc-cu12"),
]

DEVICE = cuda.Device(multiprocessors=132, shared_bytes=227 << 10, clusters=True)
DTYPES = {
    "Float64": "float64",
    "Float32Wide": "float32",
    "Float32Transformed": "float32",
    "Float32Pairs": "float32",
    "Float16": "float16",
}
WEIGHING = ("weigh", "count_part", "scale_part", "sum_losses", "sum_part", "join_losses")
VERBS = ["softmax", "log_softmax", "logsumexp", "label_loss", "target_loss", *cuda.PRODUCTS]


# in memory, rows of these lengths: of each kernel the instantiations that need most registers
SIZES = {"packed": (13, 301, 3001, 10_001, 100_001, 3_000_001), "apart": (100, 3000, 10_000, 100_000, 3_000_000)}
SIZES_OF_OPTIONS = {"packed": (13, 301, 2001, 10_001, 100_001), "apart": (2000, 100_000), "across": (100, 3000)}


def kernels(problem, sizes, *, clusters):
    """Names for few and many rows."""
    device = DEVICE._replace(clusters=clusters)
    writes = (False,) if problem.verb == "logsumexp" else (True, False) if problem.verb in cuda.LOSSES else (True,)
    names = {}
    for memory in sizes:
        for classes, rows, write in itertools.product(sizes[memory], (8, 1 << 16), writes):
            found = cuda.launch(problem, rows, classes, device, memory=memory, writes=write)
            names.update(dict.fromkeys(found.kernels))
    return list(names)


def instantiations(arithmetic, *, clusters):
    """bfloat16 differs from float16 by how an element is read and written alone."""
    for verb in VERBS:
        if arithmetic != "Float32Transformed":
            yield from kernels(cuda.Template(arithmetic, DTYPES[arithmetic], verb), SIZES, clusters=clusters)
        if arithmetic != "Float32Wide" or verb == "softmax":  # with a mask alone
            options = cuda.Template(arithmetic, DTYPES[arithmetic], verb, options=True)
            yield from kernels(options, SIZES_OF_OPTIONS, clusters=clusters)


class Compiler:
    def __init__(self):
        self.nvrtc = ctypes.CDLL(NVRTC)

    def check(self, status):
        assert status == 0, f"NVRTC: status {status}"

    def text(self, program, what):
        size = ctypes.c_size_t()
        self.check(getattr(self.nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self.check(getattr(self.nvrtc, f"nvrtcGet{what}")(program, buffer))
        return buffer.value.decode()

    def ptx(self, names, architecture):
        """PTX, and the mangled name of each kernel."""
        program = ctypes.c_void_p()
        arguments = (cuda.source().encode(), b"xsoftmax.cu", 0, None, None)
        self.check(self.nvrtc.nvrtcCreateProgram(ctypes.byref(program), *arguments))
        for name in names:
            self.check(self.nvrtc.nvrtcAddNameExpression(program, name.encode()))
        options = [f"-arch=compute_{architecture}", *cuda.OPTIONS, "-ftz=true"]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = self.nvrtc.nvrtcCompileProgram(program, len(options), array)
        assert status == 0, self.text(program, "ProgramLog")
        assert not re.sub("nvrtc: warning: Architectures prior to .*", "", self.text(program, "ProgramLog")).strip()
        mangled = {}
        for name in names:
            pointer = ctypes.c_char_p()
            self.check(self.nvrtc.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(pointer)))
            mangled[pointer.value.decode()] = name
        text = self.text(program, "PTX")
        self.check(self.nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))
        return text, mangled


@pytest.fixture(scope="module")
def compiler():
    return Compiler()


def resources(ptx, architecture, folder):
    """Registers, bytes spilled and shared bytes of each kernel, by its mangled name."""
    source = folder / "kernels.ptx"
    source.write_text(ptx)
    command = [PTXAS, "-v", f"-arch=sm_{architecture}", source, "-o", folder / "kernels.cubin"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    pattern = r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?"
    found = re.findall(pattern, report, re.DOTALL)
    return {name: (int(registers), int(spilled), int(shared or 0)) for name, spilled, registers, shared in found}


def check(compiler, names, architecture, folder):
    ptx, mangled = compiler.ptx(names, architecture)
    assert all(f".entry {name}(" in ptx for name in mangled)
    if PTXAS is None:
        return
    found = resources(ptx, architecture, folder)
    assert found.keys() == mangled.keys()
    for name, (registers, spilled, shared) in sorted(found.items(), key=lambda item: mangled[item[0]]):
        print(f"sm_{architecture} {registers:4d} registers {spilled:4d} spilled {shared:6d} shared  {mangled[name]}")
        assert spilled <= SPILLED, mangled[name]
        in_shared_memory = re.match(r"xsoftmax::(shared|clustered)<", mangled[name])
        assert shared <= (cuda.STATIC_BYTES if in_shared_memory else 48 << 10), mangled[name]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [90])
@pytest.mark.parametrize("arithmetic", DTYPES)
def test_every_kernel(compiler, arithmetic, architecture, tmp_path):
    check(compiler, list(instantiations(arithmetic, clusters=architecture >= 90)), architecture, tmp_path)


@pytest.mark.parametrize("architecture", [70, 80, 90, 100, 120])
def test_one_of_each_kernel(compiler, architecture, tmp_path):
    problem = cuda.Template("Float32Pairs", "bfloat16", "label_loss")
    names = kernels(problem, {"packed": (13, 301, 30_001, 100_001, 3_000_001)}, clusters=architecture >= 90)
    for verb in cuda.PRODUCTS:
        names += kernels(cuda.Template("Float16", "bfloat16", verb), {"packed": (301, 30_001)}, clusters=False)
    names += [f"xsoftmax::{kernel}<256>" for kernel in WEIGHING]
    assert len({re.match(r"xsoftmax::(\w+)", name)[1] for name in names}) - len(WEIGHING) == (
        9 if architecture >= 90 else 8
    )
    check(compiler, names, architecture, tmp_path)


def test_the_source_is_one_text():
    assert '#include "' not in cuda.source()
    assert re.search(r"\b(INFINITY|NAN|HUGE_VAL)\b", cuda.source()) is None
