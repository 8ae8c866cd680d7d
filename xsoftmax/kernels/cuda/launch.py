"""The CUDA kernels as text, which of them a problem needs, and how they are launched; without CuPy.

A kernel is a template of kernels.cu; what it is instantiated with is its name here, as NVRTC takes it. Sizes are in
elements unless they are called bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

_FOLDER = Path(__file__).parent
_INCLUDE = re.compile(r'^#include "(.+)"\n', re.MULTILINE)

OPTIONS = ("--std=c++17",)  # CuPy adds the architecture and -ftz=true
ELEMENTS = {"float16": "xsoftmax::Half", "bfloat16": "xsoftmax::Brain", "float32": "float", "float64": "double"}
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
LOSSES = ("label_loss", "target_loss")
PRODUCTS = ("softmax_product", "log_softmax_vjp", "log_softmax_jvp")
Memory = Literal["aligned", "packed", "alike", "apart", "across"]

_PIECE_NUMBERS = 20  # `piece_numbers` in kernels.cu

_VECTOR_BYTES = 16
_WARP = 32
_SHORT_BYTES = 512  # below, a row takes few whole vectors: rows go by tiles, or element by element
_STREAMED_BYTES = 8 << 10  # a row that is only read takes a warp up to here, then a block
_BLOCK = 256
_LANES_THREADS = 128
_RESIDENT = 16  # elements of a thread in registers, or in a tile
_RESIDENT_THREADS = 512
_SHARED_THREADS = 512
_SHARED_BYTES = 110 << 10  # so that two blocks share a multiprocessor of compute capability 9.0
STATIC_BYTES = 2 << 10  # of a kernel that has a row in shared memory, beside the row
_CLUSTERS = (2, 4, 8)
_COLUMN_THREADS, _COLUMN_CHUNKS = 8, (1, 4, 16)
_SLICE_BYTES = 32 << 10


@cache
def source() -> str:
    """One text, without includes of its own or of NVIDIA's."""
    return _expanded("kernels.cu")


def _expanded(name: str) -> str:
    return _INCLUDE.sub(lambda include: _expanded(include[1]), (_FOLDER / name).read_text("utf-8"))


@dataclass(frozen=True, slots=True)
class Template:
    """What the kernels are instantiated for: `options` as in view.cuh, `targets` a dtype."""

    arithmetic: str
    dtype: str
    verb: str
    options: bool = False
    targets: str | None = None

    @property
    def name(self) -> str:
        t = ELEMENTS[self.dtype]
        u = t if self.targets is None else ELEMENTS[self.targets]
        options = str(self.options).lower()
        return f"xsoftmax::Problem<xsoftmax::{self.arithmetic}, {t}, {u}, xsoftmax::{self.verb}, {options}>"

    @property
    def real_bytes(self) -> int:
        return 8 if self.arithmetic in ("Float64", "Float32Wide", "Float32Transformed") else 4


def arithmetic(
    dtype: str, verb: str, *, transformed: bool = False, targets: str | None = None, fast_float64: bool
) -> str:
    """A loss of 16-bit logits is float32, so it takes more than they do; what is `transformed` is of float64."""
    if dtype == "float64":
        return "Float64"
    if dtype == "float32" and fast_float64:
        return "Float32Transformed" if transformed else "Float32Wide"
    if dtype == "float32":
        return "Float32Pairs"
    if verb not in LOSSES:
        return "Float16"
    return "Float32Transformed" if fast_float64 and (transformed or targets == "float64") else "Float32Pairs"


class Device(NamedTuple):
    """What a launch depends on."""

    multiprocessors: int
    shared_bytes: int  # of a block at most, where asked for
    clusters: bool
    fast_float64: bool = True  # at half the rate of float32


class Launch(NamedTuple):
    """Kernels in their order, each with the same threads; `blocks_per_row` of one row or `rows_per_block` of one block.

    The blocks of a row in `slices` are as many, and each needs its `piece_bytes` of a workspace.
    """

    kernels: tuple[str, ...]
    threads: int
    rows_per_block: int = 1
    blocks_per_row: int = 1
    shared_bytes: int = 0
    slices: int = 0
    piece_bytes: int = 0


def launch(problem: Template, rows: int, classes: int, device: Device, *, memory: Memory, writes: bool) -> Launch:
    """How a problem is launched; `writes`: there is a result for each class.

    `memory` tells how the arrays that have classes lie (x, y, targets of a loss, vector of a product):

    - "aligned": classes side by side, every row of each array starts at a multiple of 16 bytes;
    - "packed": classes side by side, rows follow each other without gaps, each array starts at a multiple of 16 bytes,
      and all have the same itemsize;
    - "alike": classes side by side, all arrays have the same itemsize, and where a row starts leaves the same remainder
      modulo 16 bytes in each;
    - "apart": classes side by side, anything else;
    - "across": classes are not side by side in some array.
    """
    row_bytes, n = classes * ITEM_BYTES[problem.dtype], _VECTOR_BYTES // ITEM_BYTES[problem.dtype]
    if memory == "across":
        return _product_across(problem, classes) if problem.verb in PRODUCTS else _across(problem, classes, writes)
    whole = memory == "aligned" or (memory == "packed" and row_bytes % _VECTOR_BYTES == 0)
    if memory == "packed" and not whole and row_bytes < _SHORT_BYTES:
        return _tiled(problem, classes)
    if memory == "apart" or (not whole and row_bytes < _SHORT_BYTES):
        n = 1
    room = classes if whole else classes + n - 1  # the first vector may start before the row
    if problem.verb in PRODUCTS:
        return _product(problem, room, n)
    if row_bytes >= 2 * _SLICE_BYTES and 2 * rows < device.multiprocessors:
        return _sliced(problem, rows, row_bytes, n, device)
    if not writes:
        lanes = min(_WARP, _power_of_two(-(-room // (4 * n))))
        return _swept(problem, lanes if row_bytes <= _STREAMED_BYTES else _BLOCK, n)
    return _resident(problem, room, n) or _shared(problem, room, n, device) or _swept(problem, _BLOCK, n)


def _tiled(problem: Template, classes: int) -> Launch:
    lanes = _power_of_two(-(-classes // _kept(problem)))
    chunks = _power_of_two(-(-classes // lanes))
    rows = _LANES_THREADS // lanes * (_RESIDENT // chunks)
    arrays = 2 if problem.verb in ("target_loss", *PRODUCTS) else 1
    return Launch(
        (_name("tiled", problem, f"xsoftmax::Lanes<{lanes}>", chunks),),
        _LANES_THREADS,
        rows_per_block=rows,
        shared_bytes=arrays * rows * classes * ITEM_BYTES[problem.dtype],
    )


def _across(problem: Template, classes: int, writes: bool) -> Launch:
    fitting = [chunks for chunks in _COLUMN_CHUNKS if classes <= chunks * _COLUMN_THREADS]
    if writes and fitting:
        return _columns("resident", problem, fitting[0])
    return _columns("swept", problem)


def _product_across(problem: Template, classes: int) -> Launch:
    chunks = _power_of_two(-(-classes // _COLUMN_THREADS))
    if chunks > _RESIDENT // 2:
        return _columns("product_swept", problem)
    return _columns("product_resident", problem, chunks)


def _columns(kernel: str, problem: Template, *chunks: int) -> Launch:
    name = _name(kernel, problem, f"xsoftmax::Columns<{_COLUMN_THREADS}>", 1, *chunks)
    return Launch((name,), _WARP * _COLUMN_THREADS, rows_per_block=_WARP)


def _product(problem: Template, classes: int, n: int) -> Launch:
    lanes = _power_of_two(-(-classes // _kept(problem)))
    team, threads, together = _team(min(lanes, _RESIDENT_THREADS))
    chunks = _power_of_two(-(-classes // (lanes * n)))
    if lanes > _RESIDENT_THREADS:
        return Launch((_name("product_swept", problem, team, n),), threads, rows_per_block=together)
    return Launch((_name("product_resident", problem, team, n, chunks),), threads, rows_per_block=together)


def _sliced(problem: Template, rows: int, row_bytes: int, n: int, device: Device) -> Launch:
    slices = max(1, min(4 * device.multiprocessors // rows, row_bytes // _SLICE_BYTES))
    kernels = (_name("piece", problem, _BLOCK, n), _name("joined", problem, _BLOCK, n))
    return Launch(
        kernels, _BLOCK, blocks_per_row=slices, slices=slices, piece_bytes=_PIECE_NUMBERS * problem.real_bytes
    )


def _swept(problem: Template, lanes: int, n: int) -> Launch:
    team, threads, together = _team(lanes)
    return Launch((_name("swept", problem, team, n),), threads, rows_per_block=together)


def _resident(problem: Template, classes: int, n: int) -> Launch | None:
    lanes = _power_of_two(-(-classes // _kept(problem)))
    if lanes > _RESIDENT_THREADS:
        return None
    # whole vectors, and no more lanes than vectors
    lanes = max(lanes, min(_WARP, _power_of_two(-(-classes // (4 * n)))))
    chunks = _power_of_two(-(-classes // (lanes * n)))
    team, threads, together = _team(lanes)
    return Launch((_name("resident", problem, team, n, chunks),), threads, rows_per_block=together)


def _shared(problem: Template, classes: int, n: int, device: Device) -> Launch | None:
    vectors = -(-classes // n)
    for blocks in (1, *(_CLUSTERS if device.clusters else ())):
        each = -(-vectors // (blocks * _SHARED_THREADS)) * _SHARED_THREADS * n * ITEM_BYTES[problem.dtype]
        if each <= min(_SHARED_BYTES, device.shared_bytes - STATIC_BYTES):
            name = _name("shared", problem, _SHARED_THREADS, n)
            if blocks > 1:
                name = _name("clustered", problem, blocks, _SHARED_THREADS, n)
            return Launch((name,), _SHARED_THREADS, blocks_per_row=blocks, shared_bytes=each)
    return None


def _kept(problem: Template) -> int:
    """Elements of a row that a thread keeps: products keep two arrays, and options need registers of their own."""
    return _RESIDENT // 2 if problem.options or problem.verb in PRODUCTS else _RESIDENT


def _team(lanes: int) -> tuple[str, int, int]:
    """Its name, its threads in a block, and its rows."""
    if lanes <= _WARP:
        return f"xsoftmax::Lanes<{lanes}>", _LANES_THREADS, _LANES_THREADS // lanes
    return f"xsoftmax::Block<{lanes}>", lanes, 1


def _name(kernel: str, problem: Template, *parameters: str | int) -> str:
    return f"xsoftmax::{kernel}<{', '.join(map(str, (problem.name, *parameters)))}>"


def _power_of_two(n: int) -> int:
    """The least that is no smaller."""
    return 1 << max(0, n - 1).bit_length()
