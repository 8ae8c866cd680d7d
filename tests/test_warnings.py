"""No floating-point warning from any verb, whatever the arrays hold, whoever computes, and no error where NumPy's
are turned on."""

import functools

import numpy as np
import pytest
from calls import ARRAYS, CALLS, CLASSES, ROWS, SHAPE, parts

import xsoftmax as xs
from xsoftmax.implementations.numpy import views as blocks
from xsoftmax.libraries.backends import backends
from xsoftmax.verify.inputs import numpy_dtype

IMPLEMENTATIONS = ("numpy_numba", "numpy_blocked", "array_api")
DTYPES = ("float16", "bfloat16", "float32", "float64")


def largest(dtype):
    return {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38, "float64": 1.7e308}[dtype]


def inputs(dtype):
    """Logits, directions and probabilities of a kind, by name."""
    big, rng = largest(dtype), np.random.default_rng(5)
    tiny = {"float16": 6e-8, "float64": 5e-324}.get(dtype, 1e-40)
    base = rng.normal(size=SHAPE)
    p = rng.dirichlet(np.ones(CLASSES), size=ROWS)
    far = np.resize([big, -big, 0.0, -big], SHAPE)
    infinite = np.where(base > 0.5, np.inf, np.where(base < -0.5, -np.inf, base))
    infinite[0] = -np.inf
    odd = np.where(base > 1.0, np.nan, infinite)
    yield "ordinary", base, base, p
    yield "far apart", far, -far, np.where(p > 0.2, p, tiny)
    yield "underflowing", 300.0 * base, big * base / 8, np.where(p > 0.1, p, 0.0)
    yield "subnormal", tiny * np.round(3 * base), tiny * np.round(5 * base), np.resize([1.0, tiny, 0.0], SHAPE)
    yield "infinite", infinite, far, np.resize([0.0, 1.0, 0.0], SHAPE)
    yield "no numbers", odd, odd, np.where(base > 0.5, np.nan, p)


def masks():
    some = ARRAYS.mask.copy()
    some[0], some[1] = False, True
    return some


def arrays(dtype):
    narrow = numpy_dtype(dtype)
    with np.errstate(all="ignore"):
        for name, x, v, p in inputs(dtype):
            x, v, q = (a.astype(narrow) for a in (x, v, p))
            s = np.array([1.0, -0.0, largest(dtype), 0.5]).astype(narrow)
            w = np.array([np.inf, 1.0, 0.0, -0.0, 3.0, largest(dtype)]).astype(narrow)
            a = ARRAYS._replace(x=x, v=v, q=q, p=q[::-1], labels=np.array([1, 2, 5, 3]), s=s, w=w, mask=masks())
            yield name, a._replace(factor=ARRAYS.factor.astype(narrow))


MORE = {
    "softmax, temperature": lambda a: xs.softmax(a.x, temperature=1e-3),
    "log_softmax, axis 0": lambda a: xs.log_softmax(a.x, axis=0),
    "logsumexp, all axes": lambda a: xs.logsumexp(a.x, axis=None),
    "cross_entropy, plain": lambda a: xs.cross_entropy(a.x, a.labels),
    "cross_entropy, weights": lambda a: xs.cross_entropy(a.x, a.labels, weight=a.w, sample_weight=a.s, z_loss=0.1),
    "cross_entropy, smoothing": lambda a: xs.cross_entropy(a.x, a.labels, label_smoothing=0.1, where=a.mask),
    "cross_entropy_and_grad, plain": lambda a: xs.cross_entropy_and_grad(a.x, a.labels),
    "cross_entropy_and_grad, cap": lambda a: xs.cross_entropy_and_grad(a.x, a.q, softcap=2.0, temperature=3.0),
    "cross_entropy_grad, weights": lambda a: xs.cross_entropy_grad(a.x, a.q, weight=a.w, reduction="sum"),
    "cross_entropy_hvp, z_loss": lambda a: xs.cross_entropy_hvp(a.x, a.labels, a.v, z_loss=0.5, where=a.mask),
    "hessian_diag, z_loss": lambda a: xs.cross_entropy_grad_and_hessian_diag(
        a.x, a.labels, z_loss=0.5, sample_weight=a.s, reduction="sum"
    ),
    "linear, parts": lambda a: xs.linear_cross_entropy_and_grad(
        a.x, a.factor, a.labels, weight=a.w, where=a.mask, chunk_size=(3, 4), z_loss=0.1
    ),
    "from_probs, weights": lambda a: xs.cross_entropy_from_probs(a.q, a.p, weight=a.w, sample_weight=a.s),
}


def skip_if_absent(name):
    if name == "numpy_numba":
        pytest.importorskip("numba")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_warns_or_raises_and_the_results_are_the_same(dtype, implementation):
    skip_if_absent(implementation)
    for kind, a in arrays(dtype):
        for verb, call in (CALLS | MORE).items():
            with xs.use_implementation(implementation):
                with np.errstate(all="ignore"):
                    expected = parts(call(a))
                call(a)
                try:
                    with np.errstate(all="raise"):
                        found = parts(call(a))
                except FloatingPointError as error:
                    raise AssertionError(f"{verb} of {kind} logits: {error}") from error
            for one, other in zip(found, expected, strict=True):
                # nan is no number of NumPy's in bfloat16
                one, other = (np.asarray(b, np.float64 if dtype == "bfloat16" else None) for b in (one, other))
                np.testing.assert_array_equal(one, other, err_msg=f"{verb} of {kind}")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nothing_warns_on_the_threads(dtype, implementation, monkeypatch):
    """Blocks of few rows, so that there are many."""
    skip_if_absent(implementation)
    monkeypatch.setattr(blocks, "on_blocks", functools.partial(blocks.on_blocks, elements=CLASSES))
    for _, a in arrays(dtype):
        rows = np.tile(np.arange(ROWS), 6_000)
        many = a._replace(x=a.x[rows], v=a.v[rows], q=a.q[rows], labels=a.labels[rows], mask=a.mask[rows], s=a.s[rows])
        with xs.use_implementation(implementation), np.errstate(all="raise"):
            xs.softmax(many.x, temperature=3.0)
            xs.log_softmax(many.x, where=many.mask)
            xs.softmax_vjp(many.q, many.v, where=many.mask)
            xs.cross_entropy_and_grad(many.x, many.q, label_smoothing=0.1, temperature=0.3)
            xs.cross_entropy_and_grad(many.x, many.labels, where=many.mask, weight=many.w, sample_weight=many.s)


@pytest.mark.skipif("torch" not in {s.name for s in backends() if s.usable}, reason="PyTorch is not here")
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_that_share_memory_do_not_warn(dtype):
    torch = xs.backend("torch")
    for _, a in arrays(dtype):
        x, v, q, labels = (torch.asarray(b) for b in (a.x, a.v, a.q, a.labels))
        with np.errstate(all="raise"):
            xs.softmax(x, temperature=1e-3)
            xs.softmax_vjp(q, v)
            xs.cross_entropy_and_grad(x, labels, softcap=3.0)
            xs.cross_entropy_and_grad(x, q, label_smoothing=0.1)


@pytest.mark.parametrize("name", ["array-api-strict", "marray", "dask"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_libraries_that_compute_by_numpy_do_not_warn(name, dtype):
    if name not in {s.name for s in backends() if s.usable}:
        pytest.skip(f"{name} is not here")
    xb = xs.backend(name)
    for kind, a in arrays(dtype):
        held = type(a)(*map(xb.asarray, a))
        for verb, call in CALLS.items():
            try:
                with np.errstate(all="raise"):
                    for result in parts(call(held)):
                        xb.to_numpy(result)
            except FloatingPointError as error:
                raise AssertionError(f"{verb} of {kind} logits: {error}") from error
