"""The CUDA kernels, run thread by thread on the host, give what the NumPy implementations give."""

import ctypes
import mmap
from functools import partial
from typing import NamedTuple

import host_kernels
import numpy as np
import pytest

import xsoftmax as xs
from xsoftmax.kernels.cuda import launch as cuda
from xsoftmax.kernels.cuda.arguments import ARGUMENTS, Arguments, Place

pytestmark = [
    pytest.mark.backend("numpy"),
    pytest.mark.slow,
    pytest.mark.skipif(host_kernels.COMPILER is None, reason="no g++ here"),
]

RNG = np.random.default_rng(9)
SMALL = cuda.Device(multiprocessors=0, shared_bytes=0, clusters=False)
LARGE = cuda.Device(multiprocessors=0, shared_bytes=100 << 10, clusters=False)
CLUSTERS = cuda.Device(multiprocessors=0, shared_bytes=16 << 10, clusters=True)
FEW_ROWS = cuda.Device(multiprocessors=80, shared_bytes=0, clusters=False)


class Case(NamedTuple):
    """Logits of shape (rows, classes), or (rows, classes, inner), in memory that begins at a multiple of 16 bytes.

    `padding` elements lie between rows, `start` of them before the first.
    """

    verb: str
    dtype: str
    shape: tuple
    device: cuda.Device = LARGE
    options: bool = False
    padding: int = 0
    start: int = 0
    apart: bool = False
    writes: bool = True
    targets: str | None = None

    @property
    def problem(self):
        arithmetic = cuda.arithmetic(self.dtype, self.verb, transformed=self.options, fast_float64=True)
        return cuda.Template(arithmetic, self.dtype, self.verb, self.options, self.targets)

    @property
    def memory(self):
        if self.apart:
            return "apart"
        if len(self.shape) == 3:
            return "across"
        whole = all(n * cuda.ITEM_BYTES[self.dtype] % 16 == 0 for n in (self.start, self.shape[1] + self.padding))
        return "aligned" if whole else "alike" if self.start or self.padding else "packed"

    @property
    def launch(self):
        rows = self.shape[0] * (self.shape[2] if len(self.shape) == 3 else 1)
        return cuda.launch(self.problem, rows, self.shape[1], self.device, memory=self.memory, writes=self.writes)


def cases():
    for verb in ("softmax", "label_loss"):
        for shape in ((50, 3), (21, 8), (9, 33), (7, 256), (3, 1001), (2, 4096)):
            yield Case(verb, "float32", shape)
        yield Case(verb, "float64", (3, 300))
        yield Case(verb, "float64", (33, 10), padding=4)
        yield Case(verb, "bfloat16", (5, 264))
        yield Case(verb, "bfloat16", (5, 77))
        yield Case(verb, "bfloat16", (3, 261), padding=2, start=5)
        yield Case(verb, "float64", (3, 301), start=1)
    for verb in ("softmax", "log_softmax", "label_loss", "target_loss"):
        yield Case(verb, "float32", (2, 20_000))
        yield Case(verb, "float32", (2, 20_001), padding=2, start=2)
        yield Case(verb, "float32", (2, 10_003), SMALL)
        yield Case(verb, "float32", (2, 9_000), CLUSTERS)
        yield Case(verb, "float32", (2, 9_001), CLUSTERS)
        yield Case(verb, "float32", (2, 100_004), FEW_ROWS)
        yield Case(verb, "float32", (2, 100_005), FEW_ROWS, start=3)
        yield Case(verb, "float32", (3, 5, 20), options=True)
        yield Case(verb, "float32", (2, 100, 19), options=True)
        yield Case(verb, "float32", (2, 300, 19), options=True)
        yield Case(verb, "float32", (6, 50), options=True)
        yield Case(verb, "float32", (6, 51), options=True, apart=True)
        yield Case(verb, "float32", (3, 212), options=True)
        yield Case(verb, "float32", (3, 301), options=True)
        yield Case(verb, "bfloat16", (260, 13))
    for verb in ("softmax", "label_loss"):
        yield Case(verb, "float32", (2100, 2))
    for targets, dtype in (("float32", "bfloat16"), ("float64", "bfloat16"), ("bfloat16", "float64")):
        yield Case("target_loss", dtype, (3, 264), targets=targets)
    for shape in ((30, 13), (4, 301)):
        yield Case("target_loss", "float32", shape, options=True, targets="float32")
    yield Case("target_loss", "float32", (3, 301), apart=True, targets="float64")
    for verb in ("logsumexp", "label_loss", "target_loss"):
        for shape in ((9, 5), (5, 1000), (2, 5003)):
            yield Case(verb, "float32", shape, SMALL, writes=False)
        yield Case(verb, "float32", (2, 5003), padding=2, start=1, writes=False)
        yield Case(verb, "float32", (2, 70_000), FEW_ROWS, writes=False)
    yield Case("logsumexp", "bfloat16", (3, 129), writes=False)
    yield Case("logsumexp", "bfloat16", (3, 5001), writes=False)
    for verb in cuda.PRODUCTS:
        for shape in ((50, 3), (9, 8), (3, 1001), (2, 5000)):
            yield Case(verb, "float32", shape)
        yield Case(verb, "float64", (3, 300))
        yield Case(verb, "bfloat16", (4, 264))
        yield Case(verb, "bfloat16", (4, 301))
        yield Case(verb, "float32", (9, 21), options=True)
        yield Case(verb, "float32", (3, 301), start=1, options=True)
        yield Case(verb, "float32", (3, 20, 20), options=True)
        yield Case(verb, "float32", (2, 100, 19), options=True)


CASES = list(cases())
NAMES = list(dict.fromkeys(name for case in CASES for name in case.launch.kernels))


@pytest.fixture(autouse=True)
def seeded():
    RNG.bit_generator.state = np.random.default_rng(9).bit_generator.state


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return host_kernels.build(NAMES, tmp_path_factory.mktemp("kernels"))


def address(array):
    return 0 if array is None else array.ctypes.data


def place(array):
    """Of (rows, classes) or (rows, classes, inner)."""
    if array is None:
        return Place()
    outer, step, *inner = (stride // array.itemsize for stride in array.strides)
    return Place(address(array), outer, inner[0] if inner else 0, step)


def run(library, case, x, y=None, *, targets=None, labels=None, where=None, weight=None, scale=None, **numbers):
    """What the launch leaves in y; the numbers of the rows are returned."""
    inner = x.shape[2] if x.ndim == 3 else 1
    rows, launch = x.shape[0] * inner, case.launch
    value = np.full(rows, -7.0, x.dtype if case.verb == "logsumexp" else np.float64)
    zeta = np.array([numbers.get("z_loss", 0.0)])
    space = np.zeros(rows * launch.slices * launch.piece_bytes, np.uint8)
    record = Arguments(
        *(rows, inner, x.shape[1]),
        *map(place, (x, y, targets, where)),
        *map(address, (labels, weight, zeta, scale, value, space)),
        softcap=numbers.get("softcap", 0.0),
        temperature=numbers.get("temperature", 1.0),
        smoothing=numbers.get("label_smoothing", 0.0),
        label_kind=0 if labels is None else labels.itemsize * (-1 if labels.dtype.kind == "u" else 1),
        scale_step=1,
        slices=launch.slices,
    ).record()
    blocks = -(-rows // launch.rows_per_block)
    blocks = (blocks if launch.slices else min(blocks, 2)) * launch.blocks_per_row  # so that a block has several turns
    for name in launch.kernels:
        kernel = getattr(library, f"kernel_{NAMES.index(name)}")
        kernel(ctypes.c_void_p(address(record)), blocks, launch.threads, launch.shared_bytes)
    shape = x.shape[:1] + x.shape[2:]
    return value.reshape(shape)


def fenced(case, dtype, fill=np.nan):
    """An array for the classes of a case, and all memory around it; beyond are pages that no access may reach."""
    item, page, (rows, row, *inner) = dtype.itemsize, mmap.PAGESIZE, case.shape
    row += case.padding
    elements = case.start + rows * row * (inner[0] if inner else 1)
    pages = -(-elements * item // page)
    space = np.frombuffer(mmap.mmap(-1, (pages + 2) * page), np.uint8)
    for fence in (0, pages + 1):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(space.ctypes.data + fence * page), page, 0) == 0
    memory = space[page:-page]
    memory = memory[memory.size - -(-elements * item // 16) * 16 :].view(dtype)
    memory[...] = fill
    return memory[case.start : elements].reshape(rows, row, *inner)[:, : case.shape[1]], memory


def like(case, array):
    """A copy that lies as the case says."""
    copy, _ = fenced(case, array.dtype)
    copy[...] = array
    return copy


def checked(case, dtype, run):
    """What `run` leaves in an array, and what it returns; it may write nowhere else."""
    y, memory = fenced(case, dtype, fill=3)
    returned = run(y)
    found = y.copy()
    y[...] = 3
    assert (memory == 3).all()
    return found, returned


def dtype_of(name):
    return np.dtype(name if name != "bfloat16" else pytest.importorskip("ml_dtypes").bfloat16)


def logits(case):
    """Among them are peaked rows, and one of each corner."""
    x, _ = fenced(case, dtype_of(case.dtype))
    x[...] = RNG.normal(size=case.shape) * 3
    x[0, 1] = 30
    if case.shape[0] > 5:
        x[1, 0], x[2, -1], x[3], x[4, 0] = np.nan, np.inf, -np.inf, -np.inf
        x[5] = x[5] * 300
    return x


def assert_close(found, expected, bound=2.0, scale=0.0):
    """Within `bound` roundings of the expected, or of `scale`; nan and infinities the same."""
    eps = 2.0**-7 if found.dtype.kind != "f" else np.finfo(found.dtype).eps
    bound += 2.0 if found.dtype == np.float64 else 0.0  # what is expected is itself float64
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    size = np.maximum(np.abs(expected), scale)[finite] + np.finfo(np.float32).smallest_normal
    assert np.max(np.abs(found[finite] - expected[finite]) / size, initial=0.0) <= bound * eps


def assert_same(found, expected):
    np.testing.assert_array_equal(found.astype(np.float64), expected.astype(np.float64))


def chosen(case):
    """Options of a case: all of them, or z-loss alone, which every kernel has."""
    if not case.options:
        return {"z_loss": 1e-3} if case.verb in cuda.LOSSES else {}
    if case.verb not in cuda.LOSSES:
        return {"temperature": 0.7}
    smoothing = {"label_smoothing": 0.1} if case.verb == "target_loss" else {}
    return {"z_loss": 1e-3, "temperature": 0.7, "softcap": 20.0, **smoothing}


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.verb not in cuda.PRODUCTS],
    ids=lambda case: "-".join(map(str, case[:3])) + f"-{case.launch.kernels[0][10:18]}",
)
def test_kernel(library, case):
    x = logits(case)
    numbers = chosen(case)
    where = RNG.random(x.shape) < 0.8 if case.options else None
    if where is not None:
        where[0, 1] = True
    if case.verb not in cuda.LOSSES:
        expected = getattr(xs, case.verb)(x, axis=1, where=where, **numbers)
        if not case.writes:
            assert_close(run(library, case, x, where=where, **numbers), expected)
            return
        y, _ = checked(case, x.dtype, lambda y: run(library, case, x, y, where=where, **numbers))
        assert_close(y, expected)
        run(library, case, x, x, where=where, **numbers)
        assert_same(x, y)
        return
    shape = x.shape[:1] + x.shape[2:]
    labels = RNG.integers(0, x.shape[1], shape).astype(np.uint8 if x.shape[1] < 128 else np.int32)
    labels[0] = 1
    targets = None
    if case.verb == "target_loss" and (case.targets or not case.options):
        probabilities = RNG.dirichlet(np.ones(x.shape[1]), x.shape[0])
        targets = like(case, probabilities.astype(dtype_of(case.targets or case.dtype)))
    weight = RNG.uniform(0.5, 2, x.shape[1]) if case.verb == "label_loss" or case.options else None
    scale = RNG.uniform(0.5, 2, shape)
    scale[-1] = 0.0
    given = {"targets": targets, "labels": None if targets is not None else labels, "weight": weight}
    options = {"axis": 1, "where": where, "weight": weight, "reduction": "none", **numbers}
    launched = partial(run, library, case, where=where, scale=scale, **given, **numbers)
    y, loss = checked(case, x.dtype, lambda y: launched(x, y)) if case.writes else (None, launched(x))
    expected = xs.cross_entropy(x.astype(np.float64), labels if targets is None else targets, **options)
    assert_close(loss.astype(np.float32), expected.astype(np.float32))
    if y is None:
        return
    grad = xs.cross_entropy_grad(
        x.astype(np.float64), labels if targets is None else targets, sample_weight=scale, **options
    )
    cancels = np.full(x.shape, 1e-3 if case.options else 0.0)
    if targets is not None:  # T y − t
        cancels = np.maximum(cancels, np.maximum(np.nan_to_num(xs.softmax(x.astype(np.float64), axis=1)), targets))
    assert_close(y, grad, 4.0, np.expand_dims(scale, 1) * cancels)
    launched(x, x)
    assert_same(x, y)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.verb in cuda.PRODUCTS], ids=lambda case: "-".join(map(str, case[:3]))
)
def test_product(library, case):
    x = np.ascontiguousarray(np.nan_to_num(logits(case).astype(np.float64), posinf=1, neginf=-1) / 3)
    where = RNG.random(x.shape) < 0.8 if case.options else None
    if where is not None:
        where[:, 0] = True
    of_logits = xs.softmax if case.verb == "softmax_product" else xs.log_softmax
    v = RNG.normal(size=x.shape).astype(logits(case).dtype)
    y = of_logits(x, axis=1, where=where).astype(v.dtype)
    y, v = (like(case, a) for a in (y, v))
    found, _ = checked(case, v.dtype, lambda found: run(library, case, y, found, targets=v, where=where))
    verb = xs.softmax_vjp if case.verb == "softmax_product" else getattr(xs, case.verb)
    wide_y, wide_v = y.astype(np.float64), v.astype(np.float64)
    p = wide_y if case.verb == "softmax_product" else np.exp(wide_y)
    hidden = 1.0 if where is None else where
    mean = np.sum(p * np.abs(wide_v) * hidden, axis=1, keepdims=True)
    total = np.sum(np.abs(wide_v) * hidden, axis=1, keepdims=True)
    scale = {
        "softmax_product": p * (np.abs(wide_v) + mean),
        "log_softmax_vjp": np.abs(wide_v) + p * total,
        "log_softmax_jvp": np.abs(wide_v) + mean,
    }[case.verb]
    assert_close(found, verb(wide_y, wide_v, axis=1, where=where), 2.0, scale)
    run(library, case, y, v, targets=v, where=where)
    np.testing.assert_array_equal(v, found)


def test_labels_out_of_range(library):
    case = next(case for case in CASES if case.verb == "label_loss" and case.shape == (9, 33))
    x = logits(case)
    labels = RNG.integers(0, 33, 9)
    labels[6:] = [-1, 33, -100]
    y = like(case, x)
    loss = run(library, case, x, y, labels=labels)
    assert np.isnan(loss[6:]).all()
    assert np.isnan(y[6:]).all()
    assert np.isfinite(loss[0])


def test_arguments_are_those_of_the_kernels(library):
    assert library.bytes_of_arguments() == ARGUMENTS.itemsize
