"""Arrays as they come: any memory layout in, `out=` written in place, inputs left alone."""

import numpy as np
import pytest
from calls import ARRAYS, CALLS, SHAPE, Arrays, parts
from support import put

import xsoftmax as xs
from xsoftmax.libraries import facts
from xsoftmax.libraries.arrays import library_of

X, Q, MASK, LABELS = ARRAYS.x, ARRAYS.q, ARRAYS.mask, ARRAYS.labels


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def strided(a):
    wide = np.zeros([2 * n for n in a.shape], a.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def backwards(a):
    reverse = (slice(None, None, -1),) * a.ndim
    return np.ascontiguousarray(a[reverse])[reverse]


def unaligned(a):
    memory = np.zeros(a.nbytes + 1, np.uint8)
    view = memory[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def broadcast(a):
    """A stride of 0, along an axis of length 1."""
    return np.broadcast_to(a.copy()[..., None], (*a.shape, 3))[..., 1]


def swapped(a):
    return a.astype(a.dtype.newbyteorder())


LAYOUTS = {
    "read-only": read_only,
    "non-contiguous": strided,
    "negative strides": backwards,
    "Fortran order": np.asfortranarray,
    "unaligned": unaligned,
    "broadcast": broadcast,
    "swapped bytes": swapped,
    "a subclass": lambda a: a.copy().view(type("Subclass", (np.ndarray,), {})),
}


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("verb", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(layout, verb):
    arrays = Arrays(*map(LAYOUTS[layout], ARRAYS))
    for found, expected in zip(parts(CALLS[verb](arrays)), parts(CALLS[verb](ARRAYS)), strict=True):
        assert found.dtype == np.float32
        assert found.dtype.isnative
        # float32 goes through float64 and is rounded once: only a near-tie may show the order of a sum
        # a copy may take another path, and products may cancel
        np.testing.assert_array_max_ulp(found, expected, maxulp=2)


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("verb", CALLS)
def test_swapped_bytes_of_float64(verb):
    wide = Arrays(*(a.astype(np.float64) if a.dtype.kind == "f" else a for a in ARRAYS))
    found, expected = parts(CALLS[verb](Arrays(*map(swapped, wide)))), parts(CALLS[verb](wide))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == np.float64
        assert a.dtype.isnative
        np.testing.assert_array_equal(a, b)


@pytest.mark.backend("numpy")
def test_swapped_bytes_of_nothing():
    empty = swapped(np.empty((0, 3)))
    for result in (xs.softmax(empty), xs.log_softmax(empty), xs.logsumexp(empty)):
        assert result.dtype.isnative


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("verb", CALLS)
def test_memory_map(tmp_path, verb):
    maps = []
    for i, a in enumerate(ARRAYS):
        path = tmp_path / f"{i}.npy"
        np.save(path, a)
        maps.append(np.load(path, mmap_mode="r"))
    for found, expected in zip(parts(CALLS[verb](Arrays(*maps))), parts(CALLS[verb](ARRAYS)), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert not isinstance(found, np.memmap)
    del maps


@pytest.mark.parametrize("verb", CALLS)
def test_inputs_are_left_alone(xb, verb):
    if not hasattr(xb.xp, "arange"):
        pytest.skip(f"{xb.name} has no arange, which class indices need")
    arrays = Arrays(*(xb.asarray(a.copy()) for a in ARRAYS))
    result = parts(CALLS[verb](arrays))
    for given, a in zip(arrays, ARRAYS, strict=True):
        np.testing.assert_array_equal(xb.to_numpy(given), a)
        assert all(part is not given for part in result)


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("verb", CALLS)
def test_results_are_arrays_of_their_own(verb):
    arrays = Arrays(*(a.copy() for a in ARRAYS))
    for part in parts(CALLS[verb](arrays)):
        assert not any(np.shares_memory(part, a) for a in arrays)


@pytest.mark.parametrize("verb", ["softmax", "log_softmax"])
def test_empty_results_are_arrays_of_their_own(xb, verb):
    x = put(xb, np.empty((0, 3)))
    assert getattr(xs, verb)(x) is not x


# ---------------------------------------------------------------------------------------------------------------------
# out


def grad_into(x, **options):
    return xs.cross_entropy_grad(x, np.arange(len(x)) % 6, **options)


def both_into(x, **options):
    return xs.cross_entropy_and_grad(x, np.arange(len(x)) % 6, **options).grad


WRITERS = {"softmax": xs.softmax, "log_softmax": xs.log_softmax, "cross_entropy_grad": grad_into, "both": both_into}


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
class TestOut:
    def test_is_returned(self, write):
        out = np.full_like(X, np.nan)
        assert write(X, out=out) is out
        np.testing.assert_array_equal(out, write(X))

    def test_may_be_the_input(self, write):
        x = X.copy()
        assert write(x, out=x) is x
        np.testing.assert_array_equal(x, write(X))

    def test_may_be_the_input_through_another_view(self, write):
        x = X.copy()
        write(x, out=x[:])
        np.testing.assert_array_equal(x, write(X))

    @pytest.mark.parametrize("layout", ["non-contiguous", "negative strides", "Fortran order", "unaligned"])
    def test_may_have_any_layout(self, write, layout):
        out = LAYOUTS[layout](np.full_like(X, np.nan))
        assert write(X, out=out) is out
        np.testing.assert_array_equal(out, write(X))

    def test_empty(self, write):
        out = np.empty((0, 6), np.float32)
        assert write(out, out=out) is out

    @pytest.mark.parametrize(
        "out, error",
        [
            (np.zeros((6, 4), np.float32), ValueError),
            (np.zeros((4, 1), np.float32), ValueError),
            (np.zeros((1, 4, 6), np.float32), ValueError),
            (np.zeros(SHAPE, np.float64), TypeError),
            (np.zeros(SHAPE, np.int32), TypeError),
            (read_only(np.zeros(SHAPE, np.float32)), TypeError),
            ([[0.0] * 6] * 4, TypeError),
        ],
        ids=["shape", "broadcasts", "dimensions", "float64", "int32", "read-only", "list"],
    )
    def test_wrong(self, write, out, error):
        before = np.array(out)
        with pytest.raises(error, match="out"):
            write(X, out=out)
        np.testing.assert_array_equal(out, before)

    @pytest.mark.parametrize("shift", [1, 7])
    def test_overlaps_in_part(self, write, shift):
        memory = np.zeros(X.size + shift, np.float32)
        x, out = memory[: X.size].reshape(SHAPE), memory[shift:].reshape(SHAPE)
        x[...] = X
        before = memory.copy()
        with pytest.raises(ValueError, match="out overlaps"):
            write(x, out=out)
        np.testing.assert_array_equal(memory, before)

    def test_is_the_input_transposed(self, write):
        x = np.ascontiguousarray(X[:, :4])
        with pytest.raises(ValueError, match="out overlaps"):
            write(x, out=x.T)
        np.testing.assert_array_equal(x, X[:, :4])

    def test_is_the_input_in_other_byte_order(self, write):
        x = swapped(X)
        with pytest.raises((TypeError, ValueError), match="out"):
            write(x, out=x.view(np.float32))
        np.testing.assert_array_equal(x, X)

    def test_untouched_after_an_error_elsewhere(self, write):
        out = np.zeros_like(X)
        with pytest.raises(ValueError, match="temperature"):
            write(X, temperature=0.0, out=out)
        np.testing.assert_array_equal(out, 0.0)


@pytest.mark.backend("numpy")
def test_out_is_untouched_after_a_bad_label():
    x = X.copy()
    for verb in (xs.cross_entropy_grad, xs.cross_entropy_and_grad):
        with pytest.raises(ValueError, match="label 6"):
            verb(x, np.array([0, 1, 6, 2]), out=x)
        np.testing.assert_array_equal(x, X)


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("name", ["targets", "sample_weight", "weight"])
def test_out_overlaps_another_input(name):
    memory = np.zeros(2 * X.size, np.float32)
    out = memory[: X.size].reshape(SHAPE)
    others = {
        "targets": memory[6 : 6 + X.size].reshape(SHAPE),
        "sample_weight": memory[1:5],
        "weight": memory[20:26],
    }
    targets = others.pop("targets") if name == "targets" else LABELS
    options = {name: others[name]} if name in others else {}
    with pytest.raises(ValueError, match=f"out overlaps {name}"):
        xs.cross_entropy_grad(X, targets, out=out, **options)
    np.testing.assert_array_equal(memory, 0.0)


@pytest.mark.backend("numpy")
def test_out_may_be_the_probability_targets():
    q = Q.copy()
    xs.cross_entropy_grad(X, q, out=q)
    np.testing.assert_array_equal(q, xs.cross_entropy_grad(X, Q))


@pytest.mark.backend("numpy")
def test_out_under_a_mask():
    out = np.full_like(X, np.nan)
    xs.softmax(X, where=MASK, out=out)
    np.testing.assert_array_equal(out, xs.softmax(X, where=MASK))


def test_out_on_any_backend(xb):
    """Written where arrays can be written, refused where not."""
    x = xb.asarray(X)
    out = xb.xp.zeros_like(x)
    if not facts.of(library_of(xb.xp)).writeable:
        with pytest.raises(TypeError, match="out is a read-only or lazy array"):
            xs.softmax(x, out=out)
        return
    assert xs.softmax(x, out=out) is out
    np.testing.assert_array_equal(xb.to_numpy(out), xb.to_numpy(xs.softmax(x)))


@pytest.mark.backend("torch")
def test_torch_views_that_overlap():
    import torch

    memory = torch.arange(25, dtype=torch.float32)
    before = memory.clone()
    with pytest.raises(ValueError, match="out overlaps x in part"):
        xs.softmax(memory[:24].reshape(4, 6), out=memory[1:].reshape(4, 6))
    assert torch.equal(memory, before)
    x = torch.tensor(X)
    assert xs.softmax(x, out=x) is x
    assert torch.equal(x, xs.softmax(torch.tensor(X)))


@pytest.mark.backend("torch")
def test_torch_out_while_gradients_are_recorded():
    import torch

    x = torch.tensor(X, requires_grad=True)
    with pytest.raises(ValueError, match="out was given while gradients are recorded"):
        xs.softmax(x, out=torch.empty_like(x))
    with torch.no_grad():
        out = torch.empty_like(x)
        assert xs.softmax(x, out=out) is out
