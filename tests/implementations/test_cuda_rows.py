"""How arrays lie in memory, as the CUDA kernels are told."""

import numpy as np
import pytest

from xsoftmax.implementations.cupy.operations import Layout, _layout, _memory
from xsoftmax.kernels.cuda.arguments import ARGUMENTS, Arguments, Place

pytestmark = pytest.mark.backend("numpy")

X = np.zeros((4, 6, 8, 10), np.float32)


def layout(*arrays, axes=(-1,)):
    strides = tuple(tuple(s // a.itemsize for s in a.strides) for a in arrays)
    return _layout(arrays[0].shape, strides, axes)


def memory(found, *arrays):
    places = (Place(a.ctypes.data % 16, *steps) for a, steps in zip(arrays, found.steps, strict=True))
    return _memory(found, tuple((place, a.itemsize) for place, a in zip(places, arrays, strict=True)))


@pytest.mark.parametrize(
    ("x", "axes", "expected"),
    [
        (X, (-1,), Layout(192, 1, 10, ((10, 0, 1),))),
        (X, (-3,), Layout(320, 80, 6, ((480, 1, 80),))),
        (X, (-4,), Layout(480, 1, 4, ((1, 0, 480),))),
        (X, (-2, -1), Layout(24, 1, 80, ((80, 0, 1),))),
        (X, (-4, -3, -2, -1), Layout(1, 1, 1920, ((0, 0, 1),))),
        (X[:, :, ::2], (-1,), Layout(96, 1, 10, ((20, 0, 1),))),
        (X[:, ::2], (-1,), Layout(96, 8, 10, ((160, 10, 1),))),
        (X[..., ::-1], (-1,), Layout(192, 1, 10, ((10, 0, -1),))),
        (X[:1, :, :1], (-1,), Layout(6, 1, 10, ((80, 0, 1),))),
        (X[0, 0].T, (-1,), Layout(10, 1, 8, ((1, 0, 10),))),
        (X[0, 0, 0], (-1,), Layout(1, 1, 10, ((0, 0, 1),))),
        (np.broadcast_to(X[:, :1], X.shape), (-1,), None),
        (X[:, ::2, ::2], (-4,), None),
        (X[:, ::2, :, ::2], (-3, -1), None),
    ],
)
def test_layout(x, axes, expected):
    assert layout(x, axes=axes) == expected


def test_every_array_walks_the_same_loops():
    mask = np.broadcast_to(np.zeros((4, 1, 1, 10), bool), X.shape)
    assert layout(X, mask) == Layout(192, 48, 10, ((480, 10, 1), (10, 0, 1)))
    assert layout(X, np.asfortranarray(X)) is None


@pytest.mark.parametrize(
    ("arrays", "axes", "expected"),
    [
        ([X[..., :8].copy()], (-1,), "aligned"),
        ([X[..., :8]], (-1,), "alike"),
        ([X], (-1,), "packed"),
        ([X, X.copy()], (-1,), "packed"),
        ([X, X.astype(np.float64)], (-1,), "apart"),
        ([X[..., 1:9]], (-1,), "alike"),
        ([X[..., 1:9], X[..., :8].copy()], (-1,), "apart"),
        ([X], (-2,), "across"),
        ([X[..., ::2]], (-1,), "across"),
        ([X[0, 0, :1]], (-1,), "aligned"),
        ([X[..., :1]], (-2,), "across"),
        ([X[..., :1]], (-1,), "alike"),
    ],
)
def test_memory(arrays, axes, expected):
    assert X.ctypes.data % 16 == 0
    assert memory(layout(*arrays, axes=axes), *arrays) == expected


def test_arguments():
    given = Arguments(3, 2, 5, Place(1 << 60, -7, 8, 9), labels=11, softcap=2.5, factor=0.5, label_kind=-4, slices=6)
    (record,) = given.record()
    assert record.dtype == ARGUMENTS
    assert [int(n) for n in record["x"]] == [1 << 60, -7, 8, 9]
    numbers = {
        name: record[name] for name in ("rows", "inner_rows", "classes", "labels", "softcap", "factor", "slices")
    }
    assert numbers == {
        "rows": 3, "inner_rows": 2, "classes": 5, "labels": 11, "softcap": 2.5, "factor": 0.5, "slices": 6
    }  # fmt: skip
    assert (record["temperature"], record["label_kind"], record["scale_step"]) == (1.0, -4, 0)
