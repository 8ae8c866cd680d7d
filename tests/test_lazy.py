"""Lazy arrays stay lazy: no computation, no truth value, no shape that depends on values."""

import functools

import numpy as np
import pytest
from calls import ARRAYS, CALLS, CLASSES, ROWS, Arrays, parts

import xsoftmax as xs

VERBS = pytest.mark.parametrize("verb", CALLS)
BAD = np.array([0, CLASSES, -1, 3])


@functools.cache
def expected(verb):
    """From NumPy, in float64 inside and rounded once: correct to half an ulp, so others may differ by one."""
    return parts(CALLS[verb](ARRAYS))


def check(found, verb, *, native=False):
    """`native`: without float64, where the contract allows 8 ulp of magnitudes that may cancel."""
    assert len(found) == len(expected(verb))
    for a, b in zip(found, expected(verb), strict=True):
        a = np.asarray(a)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        tolerance = 8 * np.finfo(np.float32).eps if native else np.finfo(np.float32).eps
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def bad_rows(loss, grad):
    good = [True, False, False, True]
    np.testing.assert_array_equal(np.isfinite(np.asarray(loss)), good)
    np.testing.assert_array_equal(np.isnan(np.asarray(loss)), np.logical_not(good))
    np.testing.assert_array_equal(
        np.isnan(np.asarray(grad)), np.broadcast_to(np.logical_not(good)[:, None], (4, CLASSES))
    )


# ---------------------------------------------------------------------------------------------------------------------
# Dask


def refuse(*args, **kwargs):
    raise RuntimeError("a verb computed its arguments")


def lazily(call, *arrays):
    import dask

    with dask.config.set(scheduler=refuse):
        return call(*arrays)


def in_dask(a, chunks, unknown):
    """`unknown`: chunks whose length along the first axis only a computation would tell."""
    import dask.array as da

    x = da.from_array(a, chunks=chunks[: a.ndim])
    return x[da.ones(x.shape[0], dtype=bool, chunks=x.chunks[0])] if unknown else x


@pytest.mark.backend("dask")
@VERBS
@pytest.mark.parametrize("chunks", [(ROWS, CLASSES), (2, CLASSES), (3, 4)], ids=["one", "rows", "both"])
def test_dask(chunks, verb):
    by_class = (chunks[1],) * 2
    arrays = Arrays(*(in_dask(a, chunks if a.shape[0] == ROWS else by_class, False) for a in ARRAYS))
    found = parts(lazily(CALLS[verb], arrays))
    check([part.compute() for part in found], verb)


@pytest.mark.backend("dask")
@VERBS
def test_dask_rows_of_unknown_number(verb):
    rowwise = [a.shape[0] == ROWS for a in ARRAYS]
    arrays = Arrays(*(in_dask(a, (2 if r else CLASSES, CLASSES), r) for a, r in zip(ARRAYS, rowwise, strict=True)))
    found = parts(lazily(CALLS[verb], arrays))
    check([part.compute() for part in found], verb)


@pytest.mark.backend("dask")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_dask_mean_over_rows_of_unknown_number(reduction):
    x, labels = (in_dask(a, (2, CLASSES), True) for a in (ARRAYS.x, ARRAYS.labels))
    options = {"reduction": reduction, "ignore_index": int(ARRAYS.labels[0]), "z_loss": 0.1}
    loss, grad = lazily(lambda: xs.cross_entropy_and_grad(x, labels, **options))
    reference = xs.cross_entropy_and_grad(ARRAYS.x, ARRAYS.labels, **options)
    np.testing.assert_array_max_ulp(np.asarray(loss.compute()), np.asarray(reference.loss), maxulp=1)
    np.testing.assert_array_max_ulp(grad.compute(), reference.grad, maxulp=1)


@pytest.mark.backend("dask")
def test_dask_bad_labels():
    x, labels = (in_dask(a, (2, CLASSES), False) for a in (ARRAYS.x, BAD))
    loss, grad = lazily(lambda: xs.cross_entropy_and_grad(x, labels, reduction="none"))
    bad_rows(loss.compute(), grad.compute())


@pytest.mark.backend("dask")
def test_dask_computes_where_it_is_asked_to():
    """The scheduler of these tests does refuse."""
    with pytest.raises(RuntimeError, match="a verb computed"):
        lazily(lambda: bool(in_dask(ARRAYS.x, (2, 3), False).any()))


# ---------------------------------------------------------------------------------------------------------------------
# JAX


@pytest.fixture
def in_jax():
    import jax.numpy as jnp

    return Arrays(*(jnp.asarray(a) for a in ARRAYS))


def without_float64():
    import jax

    return not jax.config.jax_enable_x64


@pytest.mark.backend("jax")
@VERBS
def test_jax_jit(in_jax, verb):
    import jax

    check(parts(jax.jit(CALLS[verb])(in_jax)), verb, native=without_float64())


@pytest.mark.backend("jax")
@VERBS
def test_jax_shapes_alone(in_jax, verb):
    """Nothing but shapes and dtypes is there to look at."""
    import jax

    for found, reference in zip(parts(jax.eval_shape(CALLS[verb], in_jax)), expected(verb), strict=True):
        assert (found.shape, found.dtype) == (reference.shape, reference.dtype)


@pytest.mark.backend("jax")
def test_jax_bad_labels(in_jax):
    import jax
    import jax.numpy as jnp

    verb = functools.partial(xs.cross_entropy_and_grad, reduction="none")
    bad_rows(*jax.jit(verb)(in_jax.x, jnp.asarray(BAD)))
    bad_rows(*verb(in_jax.x, jnp.asarray(BAD)))


@pytest.mark.backend("jax")
@pytest.mark.parametrize("axis", [0, (0, 1), None])
def test_jax_vmap_keeps_the_axes(in_jax, axis):
    import jax

    x = in_jax.x.reshape(2, 2, CLASSES)
    found = jax.vmap(lambda row: xs.softmax(row, axis=axis))(x)
    one_by_one = [xs.softmax(np.asarray(row), axis=axis) for row in x]
    np.testing.assert_allclose(found, one_by_one, rtol=8 * np.finfo(np.float32).eps)


# ---------------------------------------------------------------------------------------------------------------------
# ndonnx


def onnx_model(call, arrays, batch):
    """The graph of a call on traced arrays whose number of rows is a symbol."""
    import ndonnx

    traced = {}
    for name, a in arrays._asdict().items():
        shape = (batch, *a.shape[1:]) if a.shape[0] == ROWS else a.shape
        traced[name] = ndonnx.argument(shape=shape, dtype=getattr(ndonnx, a.dtype.name))
    results = parts(call(Arrays(**traced)))
    return ndonnx.build(traced, {f"result{i}": result for i, result in enumerate(results)}, drop_unused=True)


def run(model, arrays):
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {given.name for given in session.get_inputs()}
    return session.run(None, {name: a for name, a in arrays.items() if name in wanted})


@pytest.mark.backend("ndonnx")
@VERBS
def test_onnx_model_with_a_symbolic_batch(verb):
    check(run(onnx_model(CALLS[verb], ARRAYS, "N"), ARRAYS._asdict()), verb)


@pytest.mark.backend("ndonnx")
def test_onnx_model_of_another_batch_size():
    model = onnx_model(CALLS["cross_entropy_and_grad"], ARRAYS, "N")
    twice = {name: np.concatenate([a, a]) if a.shape[0] == ROWS else a for name, a in ARRAYS._asdict().items()}
    loss, grad = run(model, twice)
    reference = expected("cross_entropy_and_grad")
    np.testing.assert_allclose(loss, reference[0], rtol=np.finfo(np.float32).eps)
    np.testing.assert_allclose(grad, np.concatenate([reference[1]] * 2) / 2, rtol=2 * np.finfo(np.float32).eps)


@pytest.mark.backend("ndonnx")
def test_onnx_bad_labels():
    model = onnx_model(lambda a: xs.cross_entropy_and_grad(a.x, a.labels, reduction="none"), ARRAYS, "N")
    bad_rows(*run(model, {"x": ARRAYS.x, "labels": BAD}))


# ---------------------------------------------------------------------------------------------------------------------
# cubed, array-api-strict


@pytest.mark.backend("cubed")
@VERBS
def test_cubed(monkeypatch, verb):
    import cubed

    arrays = Arrays(*(cubed.from_array(a, chunks=(2, 3)[: a.ndim]) for a in ARRAYS))
    with monkeypatch.context() as patch:
        patch.setattr("cubed.core.array.compute", refuse)
        patch.setattr("cubed.core.plan.FinalizedPlan.execute", refuse)
        found = parts(CALLS[verb](arrays))
        with pytest.raises(RuntimeError, match="a verb computed"):
            found[0].compute()
    check([part.compute() for part in found], verb)


@pytest.mark.backend("array-api-strict")
@VERBS
def test_no_shape_depends_on_values(verb):
    import array_api_strict

    arrays = Arrays(*map(array_api_strict.asarray, ARRAYS))
    with array_api_strict.ArrayAPIStrictFlags(boolean_indexing=False, data_dependent_shapes=False):
        found = parts(CALLS[verb](arrays))
    check([np.from_dlpack(part) for part in found], verb)
