"""Derivatives of softmax and log_softmax by JAX, of both modes and any order, at the exact logits."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from derivatives import exact, logits, vectors  # noqa: E402

import xsoftmax as xs  # noqa: E402
from xsoftmax.libraries.backends import backend  # noqa: E402
from xsoftmax.verify.compare import Arithmetic, judge  # noqa: E402
from xsoftmax.verify.oracle import expected  # noqa: E402

pytestmark = pytest.mark.backend("jax")

FLOATS = ("float16", "bfloat16", "float32", "float64")
MASK = np.random.default_rng(2).random((60, 5)) < 0.8
OPTIONS = {"plain": {}, "temperature": {"temperature": 2.0}, "where": {"where": MASK}}


def failures(found, order, dtype, *arrays, **options):
    xb = backend("jax")
    return judge(
        xb.to_numpy(found),
        exact(order, *arrays, **options),
        Arithmetic(dtype, xb.float64, xb.flushes_subnormals),
    ).failures


def of_dtype(dtype):
    if dtype not in backend("jax").dtypes():
        pytest.skip("no float64 without x64")
    return logits(dtype), *vectors(dtype)


def derivatives(verb, x, u, w, **options):
    """Cotangent, tangent and the derivative of the cotangent along w, by forward over reverse and by reverse twice."""
    x, u, w = map(jnp.asarray, (x, u, w))
    options = {name: jnp.asarray(a) if name == "where" else a for name, a in options.items()}

    def f(x):
        return verb(x, **options)

    def back(x):
        return jax.vjp(f, x)[1](u)[0]

    return {
        "vjp": back(x),
        "jit": jax.jit(back)(x),
        "jvp": jax.jvp(f, (x,), (u,))[1],
        "twice": jax.vjp(back, x)[1](w)[0],
        "mixed": jax.jvp(back, (x,), (w,))[1],
    }


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_log_softmax(dtype, options):
    x, u, w = of_dtype(dtype)
    found = derivatives(xs.log_softmax, x, u, w, **options)
    for name in ("vjp", "jit"):
        assert failures(found[name], "log_softmax vjp", dtype, x, u, **options) == []
    assert failures(found["jvp"], "log_softmax jvp", dtype, x, u, **options) == []
    for name in ("twice", "mixed"):
        assert failures(found[name], "log_softmax twice", dtype, x, u, w, **options) == []


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax(dtype, options):
    x, u, w = of_dtype(dtype)
    found = derivatives(xs.softmax, x, u, w, **options)
    for name in ("vjp", "jit", "jvp"):
        assert failures(found[name], "softmax", dtype, x, u, **options) == []
    for name in ("twice", "mixed"):
        assert failures(found[name], "softmax twice", dtype, x, u, w, **options) == []


@pytest.mark.parametrize("dtype", FLOATS)
def test_transposed_products(dtype):
    """The transpose of the vjp is the jvp, and the other way round."""
    x, u, _ = of_dtype(dtype)
    log_y = np.asarray(xs.log_softmax(jnp.asarray(np.where(np.isneginf(x.astype(float)), 0, x).astype(x.dtype))))
    xb = backend("jax")
    products = expected(("log_softmax_vjp", "log_softmax_jvp"), {"log_y": log_y, "v": u}, {})
    for verb, other in (("log_softmax_vjp", "log_softmax_jvp"), ("log_softmax_jvp", "log_softmax_vjp")):
        (found,) = jax.vjp(lambda v, verb=verb: getattr(xs, verb)(jnp.asarray(log_y), v), jnp.asarray(u))[1](
            jnp.asarray(u)
        )
        arithmetic = Arithmetic(dtype, xb.float64, xb.flushes_subnormals)
        assert judge(xb.to_numpy(found), products[other][0], arithmetic).failures == []
