"""NumPy by blocks: implementations, layouts and options against the formulas, in place, with any number of threads."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import xsoftmax as xs
from xsoftmax import threads
from xsoftmax.choose import reasons, recorded

pytestmark = pytest.mark.backend("numpy")

RNG = np.random.default_rng(5)
START = RNG.bit_generator.state
IMPLEMENTATIONS = ["numpy_blocked", "numpy_numba"]


@pytest.fixture(params=IMPLEMENTATIONS, autouse=True)
def implementation(request):
    RNG.bit_generator.state = START
    operation, problem, _ = recorded(xs.softmax, np.zeros(2))
    if why := reasons(request.param, operation, problem):
        pytest.skip("; ".join(why))
    with xs.use_implementation(request.param):
        yield request.param


@pytest.fixture(params=[1, 3], name="several_threads")
def _several_threads(request, monkeypatch):
    monkeypatch.setattr(threads, "_threads", request.param)


LAYOUTS = {
    "rows": ((50, 40), -1, lambda x: x),
    "short rows": ((300, 7), -1, lambda x: x),
    "one class": ((30, 1), -1, lambda x: x),
    "one row": ((200,), -1, lambda x: x),
    "two classes": ((3, 2), -1, lambda x: x),
    "columns": ((40, 50), 0, lambda x: x),
    "images": ((3, 21, 17, 16), 1, lambda x: x),
    "wide images": ((2, 5, 70, 70), 1, lambda x: x),
    "reversed": ((20, 50), -1, lambda x: x[::-1, ::-1]),
    "pieces": ((30, 60, 5), 1, lambda x: x[::2, 1::3, ::2]),
    "Fortran": ((30, 45), -1, np.asfortranarray),
    "both axes": ((6, 7, 9), (1, 2), lambda x: x),
    "axes apart": ((6, 7, 9), (0, 2), lambda x: x),
    "unaligned": ((20, 40), -1, lambda x: np.frombuffer(b"." + x.tobytes(), x.dtype, offset=1).reshape(x.shape)),
    "long rows": ((3, 70_000), -1, lambda x: x),
}


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "verb", ["softmax", "log_softmax", "logsumexp", "softmax_vjp", "log_softmax_vjp", "log_softmax_jvp"]
)
def test_layouts(verb, layout, dtype):
    shape, axis, made = LAYOUTS[layout]
    x = made((RNG.normal(size=shape) * 4.0).astype(dtype))
    arrays = (x,)
    if "p" in verb[-3:] and verb != "logsumexp":
        y = xs.log_softmax(x, axis=axis) if verb.startswith("log") else xs.softmax(x, axis=axis)
        arrays = (y, made(RNG.normal(size=shape).astype(dtype)))
    function = getattr(xs, verb)
    found = function(*arrays, axis=axis)
    with xs.use_implementation("array_api"):
        expected = function(*arrays, axis=axis)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    unit = np.abs(expected.astype(np.float64)) + 1.0
    if len(arrays) > 1:  # terms that cancel
        unit = unit + np.sum(np.abs(arrays[1].astype(np.float64)), axis=axis, keepdims=True)
    np.testing.assert_array_less(np.abs(found - expected.astype(np.float64)), 12 * np.finfo(dtype).eps * unit)


OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "weight": {"weight": True},
    "sample_weight": {"sample_weight": True, "reduction": "none"},
    "ignore_index": {"ignore_index": 1},
    "where": {"where": True},
    "label_smoothing": {"label_smoothing": 0.1},
    "temperature": {"temperature": 0.5},
    "softcap": {"softcap": 3.0, "sample_weight": True},
    "z_loss": {"z_loss": 0.01, "weight": True},
    "all": {
        "weight": True,
        "sample_weight": True,
        "where": True,
        "label_smoothing": 0.2,
        "softcap": 9.0,
        "z_loss": 0.1,
    },
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "layout", ["rows", "short rows", "one class", "one row", "columns", "images", "pieces", "reversed"]
)
@pytest.mark.parametrize("targets", ["labels", "probabilities"])
def test_losses(targets, layout, option, dtype):
    shape, axis, made = LAYOUTS[layout]
    x = made((RNG.normal(size=shape) * 4.0).astype(dtype))
    options = dict(OPTIONS[option])
    axis %= x.ndim
    classes, rows = x.shape[axis], x.shape[:axis] + x.shape[axis + 1 :]
    labels = RNG.integers(0, classes, rows)
    t = labels if targets == "labels" else np.moveaxis(RNG.dirichlet(np.ones(classes), rows), -1, axis).astype(dtype)
    if targets != "labels":
        options.pop("ignore_index", None)
    for name, size in (("weight", classes), ("sample_weight", rows), ("where", x.shape)):
        if name in options:
            options[name] = RNG.uniform(0.5, 2.0, size).astype(dtype)
    if "where" in options:
        options["where"] = (options["where"] < 1.5) | (np.moveaxis(np.arange(classes) == labels[..., None], -1, axis))
    if "sample_weight" in options and rows:
        options["sample_weight"].flat[0] = 0.0
    found = xs.cross_entropy_and_grad(x, t, axis=axis, **options)
    alone = xs.cross_entropy(x, t, axis=axis, **options), xs.cross_entropy_grad(x, t, axis=axis, **options)
    with xs.use_implementation("array_api"):
        expected = xs.cross_entropy_and_grad(x, t, axis=axis, **options)
    for a, b, c in zip(found, alone, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a.dtype, a.shape) == (c.dtype, c.shape)
        eps = np.finfo(c.dtype).eps
        np.testing.assert_allclose(a, c, rtol=12 * eps, atol=12 * eps * np.abs(c).max())


@pytest.mark.parametrize("layout", ["rows", "short rows", "columns", "images", "pieces", "long rows"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_in_place_and_inputs_unchanged(layout, dtype):
    shape, axis, made = LAYOUTS[layout]
    x = made((RNG.normal(size=shape) * 4.0).astype(dtype))
    labels = np.zeros(np.moveaxis(x, axis, -1).shape[:-1], int)
    kept = x.copy()
    for verb in (xs.softmax, xs.log_softmax, lambda a, **o: xs.cross_entropy_grad(a, labels, **o)):
        expected = verb(x, axis=axis)
        np.testing.assert_array_equal(x, kept)
        given = np.empty_like(x)
        given[...] = x
        assert verb(given, axis=axis, out=given) is given
        np.testing.assert_array_equal(given, expected)
        into = np.full_like(x, np.nan)
        assert verb(x, axis=axis, out=into) is into
        np.testing.assert_array_equal(into, expected)


@pytest.mark.parametrize("shape", [(20_000, 10), (3000, 100), (5, 100_000)])
def test_same_bits_with_any_number_of_threads(shape, monkeypatch):
    x = (RNG.normal(size=shape) * 4.0).astype(np.float32)
    labels = RNG.integers(0, shape[1], shape[0])
    results = []
    for n in (1, 2, 5):
        monkeypatch.setattr(threads, "_threads", n)
        results.append((xs.softmax(x), *xs.cross_entropy_and_grad(x, labels)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_concurrent_callers():
    x = (RNG.normal(size=(16, 3000, 50)) * 4.0).astype(np.float32)
    expected = [xs.softmax(a) for a in x]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(xs.softmax, [*x] * 3))
    for a, b in zip(found, expected * 3, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "axis"), [((4000, 1000), -1), ((200_000, 20), -1), ((4, 100, 100, 100), 1), ((8, 500_000), -1)]
)
def test_peak_memory(shape, axis, monkeypatch):
    """At most 8 MB a thread besides the result."""
    monkeypatch.setattr(threads, "_threads", 2)
    x = RNG.normal(size=shape).astype(np.float32)
    out = np.empty_like(x)
    labels = np.zeros(np.moveaxis(x, axis, -1).shape[:-1], int)
    for verb in (xs.softmax, xs.log_softmax, lambda a, **o: xs.cross_entropy_grad(a, labels, **o)):
        verb(x, axis=axis, out=out)
        rows = 8 * 4 * labels.size  # a few numbers for each row
        tracemalloc.start()
        verb(x, axis=axis, out=out)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 * 8e6 + rows
