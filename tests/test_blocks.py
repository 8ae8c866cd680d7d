"""Views of any layout as rows, and blocks that cover them once."""

import itertools

import numpy as np
import pytest

from xsoftmax.implementations.numpy import views as blocks

X = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)


@pytest.mark.parametrize("axis", [-1, -2, -3, -4])
@pytest.mark.parametrize(
    "x",
    [X, X[::-1], X[:, ::2], X[:, :, ::-2, 1:], X.transpose(2, 0, 3, 1), np.asfortranarray(X), X[:1], X[:, :1, :, :1]],
    ids=["C", "reversed", "every other", "pieces", "transposed", "Fortran", "one", "ones"],
)
def test_views_show_the_rows_in_order_and_are_no_copies(x, axis):
    parts = blocks.views([x, None], (axis,))
    assert all(none is None for _, none in parts)
    assert all(np.shares_memory(part, x) for part, _ in parts)
    rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part, _ in parts])
    np.testing.assert_array_equal(rows, np.moveaxis(x, axis, -1).reshape(rows.shape))


@pytest.mark.parametrize("axes", [(-2, -1), (-4, -3, -2, -1), (-4, -3)])
def test_axes_side_by_side_are_one(axes):
    ((part,),) = blocks.views([X], axes)
    others = [axis for axis in range(-4, 0) if axis not in axes]
    np.testing.assert_array_equal(part.reshape(-1), X.transpose(*others, *axes).reshape(-1))


@pytest.mark.parametrize("axes", [(-3, -1), (-4, -2)])
def test_axes_apart_are_no_axis(axes):
    assert blocks.views([X], axes) is None


def test_arrays_of_unlike_layout_share_the_cut():
    parts = blocks.views([X, np.asfortranarray(X)], (-1,))
    assert len(parts) == 2  # no more than two of the three other axes walk alike
    for a, b in parts:
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("outer", "inner", "classes"), [(1, 1, 1), (1, 200_000, 3), (7, 5, 100), (3, 70_000, 2), (5, 2, 1 << 20)]
)
def test_blocks_cover_every_row_once(outer, inner, classes):
    seen = np.zeros((outer, inner), int)
    for block in blocks.cut(outer, inner, classes):
        seen[block] += 1
        assert seen[block].size * classes <= max(blocks.ELEMENTS, classes * min(inner, 1)) or seen[block].size == 1
    assert (seen == 1).all()


def test_work_sees_the_same_block_of_each_array():
    a = np.arange(100_000.0).reshape(1, -1, 2)
    to = np.empty_like(a)

    def work(x, none, y):
        assert none is None
        y[...] = 2 * x

    blocks.on_blocks(work, a, None, to)
    np.testing.assert_array_equal(to, 2 * a)


def test_views_of_nothing_but_classes():
    for n in range(1, 4):
        for shape in itertools.product((1, 2), repeat=n):
            ((part,),) = blocks.views([np.ones(shape)], tuple(range(-n, 0)))
            assert part.shape == (1, 1, np.prod(shape))
