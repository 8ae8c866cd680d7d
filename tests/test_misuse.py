"""Errors as specification: function, argument, what was found, what was expected."""

import ast
import re
from contextlib import nullcontext
from enum import StrEnum
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from calls import ARRAYS, CALLS, parts

import xsoftmax as xs

pytestmark = pytest.mark.backend("numpy")

X = np.linspace(-1.0, 1.0, 12).reshape(3, 4)
LABELS = np.array([0, 3, 1])
REAL = "expected float16, bfloat16, float32, float64, an integer dtype or bool"
CONVERT = "expected an array; convert it first, for example with numpy.asarray({0})"
IMAGES = np.zeros((2, 5, 3, 4))
FACTOR = np.linspace(-1.0, 1.0, 8).reshape(2, 4)
BINARY = np.array([0, 1, 1])


def of_module(module, name):
    """An instance of a class that pretends to come from `module`, which need not be installed."""
    return type(name, (), {"__module__": module, "to_numpy": lambda self: X})()


def check(error, message, call):
    with pytest.raises(error, match=f"^{re.escape(message)}$") as caught:
        call()
    assert type(caught.value) is error


# ---------------------------------------------------------------------------------------------------------------------
# not an array of the one library


@pytest.mark.parametrize(
    "x, message",
    [
        ([1.0, 2.0], "x is a list, " + CONVERT.format("x")),
        ((1.0, 2.0), "x is a tuple, " + CONVERT.format("x")),
        (1.0, "x is a float, " + CONVERT.format("x")),
        (1, "x is a int, " + CONVERT.format("x")),
        (True, "x is a bool, " + CONVERT.format("x")),
        ("ab", "x is a str, " + CONVERT.format("x")),
        (of_module("pandas.core.frame", "DataFrame"), "x is a pandas.DataFrame, expected an array; pass x.to_numpy()"),
        (of_module("scipy.sparse._csr", "csr_array"), "x is a scipy.csr_array, expected an array; pass x.toarray()"),
        (
            of_module("cupyx.scipy.sparse._csr", "csr_matrix"),
            "x is a cupyx.csr_matrix, expected an array; pass x.toarray()",
        ),
        (of_module("jax.experimental.sparse.bcoo", "BCOO"), "x is a jax.BCOO, expected an array; pass x.todense()"),
        (of_module("polars.series.series", "Series"), "x is a polars.Series, expected an array; pass x.to_numpy()"),
        (
            np.ma.array([1.0, 2.0], mask=[True, False]),
            "x is a numpy.MaskedArray, expected an array; pass x.data and where=~x.mask",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_not_an_array(x, message):
    for verb in (xs.softmax, xs.log_softmax, xs.logsumexp):
        check(TypeError, f"{verb.__name__}: {message}", lambda verb=verb: verb(x))


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_matrix():
    message = "softmax: x is a numpy.matrix, expected an array; pass numpy.asarray(x)"
    check(TypeError, message, lambda: xs.softmax(np.matrix(X)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: xs.softmax(None),
        lambda: xs.softmax_vjp(X, None),
        lambda: xs.cross_entropy(X, None),
        lambda: xs.cross_entropy(None, LABELS),
        lambda: xs.cross_entropy_hvp(X, LABELS, None),
        lambda: xs.kl_divergence(X, None),
        lambda: xs.linear_cross_entropy(X, FACTOR, None),
    ],
)
def test_none_is_no_array(call):
    with pytest.raises(TypeError, match=r"^\w+: (x|dy|targets|logits|v|q) is (None|a NoneType), expected an array"):
        call()


@pytest.mark.parametrize(
    "argument, call",
    [
        ("targets", lambda a: xs.cross_entropy(X, a)),
        ("weight", lambda a: xs.cross_entropy(X, LABELS, weight=a)),
        ("sample_weight", lambda a: xs.cross_entropy(X, LABELS, sample_weight=a)),
        ("where", lambda a: xs.cross_entropy(X, LABELS, where=a)),
        ("v", lambda a: xs.cross_entropy_hvp(X, LABELS, a)),
    ],
)
def test_every_argument_must_be_an_array(argument, call):
    verb = "cross_entropy_hvp" if argument == "v" else "cross_entropy"
    check(TypeError, f"{verb}: {argument} is a list, {CONVERT.format(argument)}", lambda: call([1, 2, 3]))


@pytest.mark.parametrize(
    "dtype, shown",
    [("complex128", "complex128"), (object, "object"), ("U3", "<U3"), ("datetime64[s]", "datetime64[s]")],
)
def test_dtype_of_logits(dtype, shown):
    x = np.zeros((3, 4), dtype)
    for verb in (xs.softmax, xs.log_softmax, xs.logsumexp):
        with pytest.raises(TypeError, match=rf"^{verb.__name__}: x has dtype {re.escape(shown)}, {REAL}"):
            verb(x)
    with pytest.raises(TypeError, match=rf"^cross_entropy: logits has dtype {re.escape(shown)}, {REAL}"):
        xs.cross_entropy(x, LABELS)
    with pytest.raises(TypeError, match=rf"^softmax_vjp: dy has dtype {re.escape(shown)}, {REAL}"):
        xs.softmax_vjp(X, x)


@pytest.mark.skipif(np.dtype(np.longdouble) == np.float64, reason="longdouble is float64 here")
def test_longdouble():
    with pytest.raises(TypeError, match=rf"^softmax: x has dtype {np.dtype(np.longdouble).name}, {REAL}"):
        xs.softmax(X.astype(np.longdouble))


def test_dtype_of_labels():
    message = (
        "cross_entropy: targets has dtype {}, expected an integer dtype for class indices, "
        "or shape (3, 4) = logits.shape for probabilities"
    )
    for dtype in ("float64", "float32", "bool"):
        check(TypeError, message.format(dtype), lambda dtype=dtype: xs.cross_entropy(X, LABELS.astype(dtype)))


def test_dtype_of_the_mask():
    message = "softmax: where has dtype int64, expected bool"
    check(TypeError, message, lambda: xs.softmax(X, where=np.ones((3, 4), np.int64)))


def test_mixed_libraries():
    strict = pytest.importorskip("array_api_strict")
    message = "cross_entropy: logits is an array of numpy and targets of array_api_strict, expected one library"
    check(TypeError, message, lambda: xs.cross_entropy(X, strict.asarray(LABELS)))
    message = "softmax: x is an array of array_api_strict and where of numpy, expected one library"
    check(TypeError, message, lambda: xs.softmax(strict.asarray(X), where=X > 0))
    with pytest.raises(TypeError, match=r"^softmax: out is not an array of numpy"):
        xs.softmax(X, out=strict.asarray(X))


def test_mixed_devices():
    strict = pytest.importorskip("array_api_strict")
    x, there = strict.asarray(X), strict.Device("device1")
    labels = strict.asarray(LABELS, device=there)
    with pytest.raises(TypeError, match=r"^cross_entropy: logits is on device .*CPU_DEVICE.* and targets on .*device1"):
        xs.cross_entropy(x, labels)
    with pytest.raises(TypeError, match=r"^softmax: out is on device .*device1.* and x on .*CPU_DEVICE"):
        xs.softmax(x, out=strict.asarray(X, device=there))


# ---------------------------------------------------------------------------------------------------------------------
# shapes


ONES = np.ones


@pytest.mark.parametrize(
    "message, call",
    [
        (
            "cross_entropy: targets has shape (4,), expected (3,) = logits.shape without axis -1",
            lambda: xs.cross_entropy(X, np.zeros(4, int)),
        ),
        (
            "cross_entropy: targets has shape (3,), expected (4,) = logits.shape without axis -2",
            lambda: xs.cross_entropy(X, LABELS, axis=0),
        ),
        (
            "cross_entropy_grad: targets has shape (3, 5), expected (3, 4) = logits.shape",
            lambda: xs.cross_entropy_grad(X, ONES((3, 5))),
        ),
        (
            "cross_entropy: targets has shape (3, 4, 1), expected (3,) = logits.shape without axis -1 (class indices) "
            "or (3, 4) = logits.shape (probabilities)",
            lambda: xs.cross_entropy(X, ONES((3, 4, 1))),
        ),
        (
            "cross_entropy: targets has shape (2, 3, 4), expected (2, 5, 3) = logits.shape without axis -1; "
            "for classes on axis 1 pass axis=1",
            lambda: xs.cross_entropy(IMAGES, np.zeros((2, 3, 4), int)),
        ),
        (
            "cross_entropy: weight has shape (3,), expected (4,) = the number of classes of logits on axis -1",
            lambda: xs.cross_entropy(X, LABELS, weight=ONES(3)),
        ),
        (
            "cross_entropy: sample_weight has shape (4,), expected (3,) = logits.shape without axis -1",
            lambda: xs.cross_entropy(X, LABELS, sample_weight=ONES(4)),
        ),
        (
            "cross_entropy: sample_weight has shape (), expected (3,) = logits.shape without axis -1",
            lambda: xs.cross_entropy(X, LABELS, sample_weight=ONES(())),
        ),
        (
            "cross_entropy: where has shape (3, 5), expected one that broadcasts to (3, 4) = logits.shape",
            lambda: xs.cross_entropy(X, LABELS, where=ONES((3, 5), bool)),
        ),
        (
            "softmax: where has shape (2, 3, 4), expected one that broadcasts to (3, 4) = x.shape",
            lambda: xs.softmax(X, where=ONES((2, 3, 4), bool)),
        ),
        (
            "cross_entropy_hvp: v has shape (4,), expected (3, 4) = logits.shape",
            lambda: xs.cross_entropy_hvp(X, LABELS, ONES(4)),
        ),
        ("softmax_vjp: dy has shape (4,), expected (3, 4) = y.shape", lambda: xs.softmax_vjp(X, ONES(4))),
        ("softmax_jvp: dx has shape (4, 3), expected (3, 4) = y.shape", lambda: xs.softmax_jvp(X, ONES((4, 3)))),
        ("log_softmax_vjp: dy has shape (3,), expected (3, 4) = log_y.shape", lambda: xs.log_softmax_vjp(X, ONES(3))),
        ("log_softmax_jvp: dx has shape (), expected (3, 4) = log_y.shape", lambda: xs.log_softmax_jvp(X, ONES(()))),
        ("kl_divergence: q has shape (4,), expected (3, 4) = p.shape", lambda: xs.kl_divergence(X, ONES(4))),
        (
            "logsumexp: b has shape (3,), expected one that broadcasts with (3, 4) = x.shape",
            lambda: xs.logsumexp(X, b=ONES(3)),
        ),
        (
            "cross_entropy_from_probs: targets has shape (4,), expected (3,) = probs.shape without axis -1",
            lambda: xs.cross_entropy_from_probs(X, np.zeros(4, int)),
        ),
        (
            "cross_entropy: logits has shape (3, 0), expected at least one class on axis -1",
            lambda: xs.cross_entropy(np.empty((3, 0)), LABELS),
        ),
        (
            "cross_entropy_and_grad: logits has shape (0, 3), expected at least one class on axis -2",
            lambda: xs.cross_entropy_and_grad(np.empty((0, 3)), LABELS, axis=0),
        ),
        (
            "cross_entropy_and_grad: out has shape (3, 3), expected (3, 4) = the result's shape",
            lambda: xs.cross_entropy_and_grad(X, LABELS, out=ONES((3, 3))),
        ),
        (
            "softmax: out overlaps x in part, expected x itself or memory of its own",
            lambda: xs.softmax(X[:, :3], out=X[:, 1:]),
        ),
    ],
)
def test_shapes(message, call):
    before = X.copy()
    check(ValueError, message, call)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize(
    "message, call",
    [
        ("softmax: out has dtype float32, expected float64, the result's", np.zeros((3, 4), np.float32)),
        ("softmax: out is a list, " + CONVERT.format("out"), [1.0]),
    ],
)
def test_out(message, call):
    check(TypeError, message, lambda: xs.softmax(X, out=call))


@pytest.mark.parametrize(
    "out",
    [
        np.lib.stride_tricks.as_strided(np.zeros(4), (3, 4), (0, 8)),
        np.lib.stride_tricks.as_strided(np.zeros(6), (3, 4), (8, 8)),
        np.lib.stride_tricks.as_strided(np.zeros(60, np.uint8)[4:].view(np.float64), (3, 4), (16, 4)),
        np.lib.stride_tricks.as_strided(np.zeros(6)[2:], (3, 4), (-8, 8)),
    ],
)
def test_out_that_overlaps_itself(out):
    message = "{}: out overlaps itself, expected memory of its own for each element"
    for verb in (xs.softmax, xs.log_softmax):
        check(ValueError, message.format(verb.__name__), lambda verb=verb: verb(X, out=out))
    for verb in (xs.cross_entropy_grad, xs.cross_entropy_and_grad):
        check(ValueError, message.format(verb.__name__), lambda verb=verb: verb(X, LABELS, out=out))


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((4, 3)).T,
        np.zeros((3, 8))[::-1, ::-2],
        np.lib.stride_tricks.as_strided(np.zeros(20), (3, 4), (16, 40)),  # rows lie between columns
        np.zeros((3, 4), [("a", "u1"), ("b", "f8")])["b"],
    ],
)
def test_out_that_only_looks_so(out):
    np.testing.assert_array_equal(xs.softmax(X, out=out), xs.softmax(X))


def test_out_of_length_one_needs_no_stride():
    out = np.lib.stride_tricks.as_strided(np.zeros(4), (1, 4), (0, 8))
    np.testing.assert_array_equal(xs.softmax(X[:1], out=out), xs.softmax(X[:1]))
    empty = np.lib.stride_tricks.as_strided(np.zeros(4), (0, 4), (0, 0))
    assert xs.softmax(X[:0], out=empty) is empty


def test_out_read_only():
    out = np.zeros((3, 4))
    out.flags.writeable = False
    message = "log_softmax: out is a read-only or lazy array, expected one that can be written to"
    check(TypeError, message, lambda: xs.log_softmax(X, out=out))


# ---------------------------------------------------------------------------------------------------------------------
# axis


@pytest.mark.parametrize(
    "error, message, axis",
    [
        (ValueError, "axis is 2, expected values from -2 to 1 for x of 2 dimensions", 2),
        (ValueError, "axis is -3, expected values from -2 to 1 for x of 2 dimensions", -3),
        (ValueError, "axis is (0, 5), expected values from -2 to 1 for x of 2 dimensions", (0, 5)),
        (ValueError, "axis is (0, -2), expected each axis once", (0, -2)),
        (TypeError, "axis is 1.0, expected an int, a tuple of ints or None", 1.0),
        (TypeError, "axis is '1', expected an int, a tuple of ints or None", "1"),
        (TypeError, "axis is True, expected an int, a tuple of ints or None", True),
        (TypeError, "axis is (0, 1.0), expected an int, a tuple of ints or None", (0, 1.0)),
        *(
            (TypeError, f"axis is {axis!r}, expected an int, a tuple of ints or None", axis)
            for axis in (
                *(b"", b"\0", bytearray(b"\0"), memoryview(b"\0"), "", {0}, ((0,),), (None,), (0, b"\1")),
                *(np.True_, (np.True_,), np.array(True), np.array([0, 1]), np.array([0]), (i for i in (0, 1))),
            )
        ),
        (ValueError, f"axis is {10**30}, expected values from -2 to 1 for x of 2 dimensions", 10**30),
        (ValueError, "axis is an int of 16610 bits, expected values from -2 to 1 for x of 2 dimensions", -(10**5000)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_axis(error, message, axis):
    check(error, f"softmax: {message}", lambda: xs.softmax(X, axis=axis))
    check(error, f"logsumexp: {message}", lambda: xs.logsumexp(X, axis=axis))


@pytest.mark.parametrize("axis", [range(2), [0, 1], (np.int8(0), np.uint64(1)), (np.array(0), 1)])
def test_axes_of_any_sequence_and_integers(axis):
    np.testing.assert_array_equal(xs.softmax(X, axis=axis), xs.softmax(X, axis=(0, 1)))


@pytest.mark.parametrize("axis", [None, (1,), (0, 1), [1], b"\0", range(1), 1.0, np.True_, np.array([0])])
def test_losses_have_one_axis(axis):
    check(
        TypeError, f"cross_entropy: axis is {axis!r}, expected an int", lambda: xs.cross_entropy(X, LABELS, axis=axis)
    )
    check(TypeError, f"entropy: axis is {axis!r}, expected an int", lambda: xs.entropy(X, axis=axis))
    check(TypeError, f"softmax_jacobian: axis is {axis!r}, expected an int", lambda: xs.softmax_jacobian(X, axis=axis))


def test_axis_of_a_loss():
    message = "cross_entropy: axis is 2, expected values from -2 to 1 for logits of 2 dimensions"
    check(ValueError, message, lambda: xs.cross_entropy(X, LABELS, axis=2))


def test_no_dimensions():
    """The default axis is none of a 0-d array: the message says what to pass."""
    with pytest.raises(ValueError, match=r"^softmax: .*None"):
        xs.softmax(np.array(1.0))
    with pytest.raises(ValueError, match=r"^cross_entropy: (axis|logits)(?!.*from 0 to -1)"):
        xs.cross_entropy(np.array(1.0), np.array(0))


# ---------------------------------------------------------------------------------------------------------------------
# options


POSITIVE = "expected a finite number > 0"
NON_NEGATIVE = "expected a finite number >= 0"
FRACTION = "expected a number from 0 to 1"
TINY = Fraction(1, 10**400)
REDUCTION = "expected one of 'none', 'mean', 'sum'"


@pytest.mark.parametrize(
    "option, value, error, message",
    [
        ("temperature", 0, ValueError, f"temperature is 0, {POSITIVE}"),
        ("temperature", -1.0, ValueError, f"temperature is -1.0, {POSITIVE}"),
        ("temperature", float("nan"), ValueError, f"temperature is nan, {POSITIVE}"),
        ("temperature", float("inf"), ValueError, f"temperature is inf, {POSITIVE}"),
        ("temperature", "1", TypeError, f"temperature is a str, {POSITIVE}"),
        ("temperature", True, TypeError, f"temperature is a bool, {POSITIVE}"),
        ("temperature", None, TypeError, f"temperature is a NoneType, {POSITIVE}"),
        ("temperature", np.ones(3), TypeError, f"temperature is a ndarray, {POSITIVE}"),
        ("temperature", 10**400, ValueError, f"temperature is an int of 1329 bits, {POSITIVE}"),
        ("temperature", -(10**5000), ValueError, f"temperature is an int of 16610 bits, {POSITIVE}"),
        ("temperature", np.longdouble(0), ValueError, f"temperature is np.longdouble('0.0'), {POSITIVE}"),
        ("temperature", TINY, ValueError, f"temperature is {TINY!r:.200}…, {POSITIVE}"),
        ("temperature", np.True_, TypeError, f"temperature is a bool, {POSITIVE}"),
        ("temperature", np.timedelta64(2, "s"), TypeError, f"temperature is a timedelta64, {POSITIVE}"),
        ("temperature", np.complex64(2), TypeError, f"temperature is a complex64, {POSITIVE}"),
        ("temperature", np.array(2.0), TypeError, f"temperature is a ndarray, {POSITIVE}"),
        ("temperature", b"2", TypeError, f"temperature is a bytes, {POSITIVE}"),
        ("softcap", 10**400, ValueError, f"softcap is an int of 1329 bits, {POSITIVE}"),
        ("softcap", np.timedelta64(2, "s"), TypeError, f"softcap is a timedelta64, {POSITIVE}"),
        ("z_loss", 10**400, ValueError, f"z_loss is an int of 1329 bits, {NON_NEGATIVE}"),
        ("label_smoothing", 10**400, ValueError, f"label_smoothing is an int of 1329 bits, {FRACTION}"),
        ("label_smoothing", np.True_, TypeError, f"label_smoothing is a bool, {FRACTION}"),
        ("softcap", 0.0, ValueError, f"softcap is 0.0, {POSITIVE}"),
        ("softcap", -30, ValueError, f"softcap is -30, {POSITIVE}"),
        ("softcap", float("inf"), ValueError, f"softcap is inf, {POSITIVE}"),
        ("softcap", "30", TypeError, f"softcap is a str, {POSITIVE}"),
        ("z_loss", float("nan"), ValueError, f"z_loss is nan, {NON_NEGATIVE}"),
        ("z_loss", -0.1, ValueError, f"z_loss is -0.1, {NON_NEGATIVE}"),
        ("z_loss", None, TypeError, f"z_loss is a NoneType, {NON_NEGATIVE}"),
        ("label_smoothing", 1.5, ValueError, f"label_smoothing is 1.5, {FRACTION}"),
        ("label_smoothing", -0.1, ValueError, f"label_smoothing is -0.1, {FRACTION}"),
        ("label_smoothing", float("nan"), ValueError, f"label_smoothing is nan, {FRACTION}"),
        ("label_smoothing", False, TypeError, f"label_smoothing is a bool, {FRACTION}"),
        ("reduction", "avg", ValueError, f"reduction is 'avg', {REDUCTION}"),
        ("reduction", "Mean", ValueError, f"reduction is 'Mean', {REDUCTION}"),
        ("reduction", None, ValueError, f"reduction is None, {REDUCTION}"),
        ("reduction", b"mean", ValueError, f"reduction is b'mean', {REDUCTION}"),
        ("ignore_index", 1.5, TypeError, "ignore_index is 1.5, expected an int or None"),
        ("ignore_index", "1", TypeError, "ignore_index is '1', expected an int or None"),
        ("ignore_index", True, TypeError, "ignore_index is True, expected an int or None"),
        ("ignore_index", np.array(1), TypeError, "ignore_index is array(1), expected an int or None"),
        ("ignore_index", np.array([1]), TypeError, "ignore_index is array([1]), expected an int or None"),
        ("ignore_index", LABELS, TypeError, "ignore_index is array([0, 3, 1]), expected an int or None"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_options(option, value, error, message):
    for verb in (xs.cross_entropy, xs.cross_entropy_grad, xs.cross_entropy_and_grad):
        check(error, f"{verb.__name__}: {message}", lambda verb=verb: verb(X, LABELS, **{option: value}))
    if option == "temperature":
        check(error, f"softmax: {message}", lambda: xs.softmax(X, temperature=value))
        check(error, f"log_softmax: {message}", lambda: xs.log_softmax(X, temperature=value))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.longdouble, np.int8, np.uint64, Fraction])
def test_numbers_of_any_kind(kind):
    expected = xs.cross_entropy(X, LABELS, temperature=2.0, softcap=3.0, z_loss=1.0, label_smoothing=1.0)
    options = {"temperature": kind(2), "softcap": kind(3), "z_loss": kind(1), "label_smoothing": kind(1)}
    np.testing.assert_array_equal(xs.cross_entropy(X, LABELS, **options), expected)


def test_a_reduction_of_an_enum():
    class Reduction(StrEnum):
        SUM = "sum"

    assert xs.cross_entropy(X, LABELS, reduction=Reduction.SUM) == xs.cross_entropy(X, LABELS, reduction="sum")


@pytest.mark.parametrize("option", ["keepdims", "return_sign"])
def test_flags(option):
    found = xs.logsumexp(X, **{option: np.True_})
    np.testing.assert_array_equal(found, xs.logsumexp(X, **{option: True}))
    message = f"logsumexp: {option} is a ndarray, expected a bool"
    check(TypeError, message, lambda: xs.logsumexp(X, **{option: np.array([True, False])}))


def test_an_array_is_no_reduction():
    with pytest.raises((TypeError, ValueError), match=r"^cross_entropy: reduction is"):
        xs.cross_entropy(X, LABELS, reduction=np.array(["mean"]))


def test_ignore_index_with_probabilities():
    message = "cross_entropy: ignore_index is 0, expected None with probability targets"
    check(ValueError, message, lambda: xs.cross_entropy(X, ONES((3, 4)), ignore_index=0))


def test_options_that_do_not_exist():
    with pytest.raises(TypeError, match="unexpected keyword argument 'ignore_class'"):
        xs.cross_entropy(X, LABELS, ignore_class=0)
    with pytest.raises(TypeError, match="positional"):
        xs.softmax(X, -1)
    with pytest.raises(TypeError, match="positional-only"):
        xs.softmax(x=X)


# ---------------------------------------------------------------------------------------------------------------------
# labels


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 4, 5], "targets has label 4 at position (1,), expected 0 <= label < 4"),
        ([0, 1, -1], "targets has label -1 at position (2,), expected 0 <= label < 4"),
        (
            [-100, 4, 0],
            "targets has label -100 at position (0,), expected 0 <= label < 4; "
            "pass ignore_index=-100 to leave such rows out",
        ),
    ],
)
def test_labels(labels, message):
    labels = np.array(labels)
    probs = np.full((3, 4), 0.25)
    check(ValueError, f"cross_entropy: {message}", lambda: xs.cross_entropy(X, labels))
    check(ValueError, f"cross_entropy_hvp: {message}", lambda: xs.cross_entropy_hvp(X, labels, X))
    check(ValueError, f"cross_entropy_from_probs: {message}", lambda: xs.cross_entropy_from_probs(probs, labels))


def test_position_of_a_label_among_many():
    labels = np.zeros((2, 3, 4), np.int16)
    labels[1, 0, 2], labels[1, 2, 3] = 9, 11
    message = "cross_entropy: targets has label 9 at position (1, 0, 2), expected 0 <= label < 5"
    check(ValueError, message, lambda: xs.cross_entropy(IMAGES, labels, axis=1))


def test_ignored_and_weightless_labels_are_not_looked_at():
    labels = np.array([-1, 4, 77])
    message = "cross_entropy: targets has label 77 at position (2,), expected 0 <= label < 4"
    options = {"ignore_index": -1, "sample_weight": np.array([1.0, 0.0, 1.0])}
    check(ValueError, message, lambda: xs.cross_entropy(X, labels, **options))


def test_scalar_label():
    message = "cross_entropy: targets has label 4 at position (), expected 0 <= label < 4"
    check(ValueError, message, lambda: xs.cross_entropy(X[0], np.array(4)))


def test_unsigned_label_past_int64():
    labels = np.array([0, 2**64 - 1, 0], np.uint64)
    with pytest.raises(ValueError, match=r"^cross_entropy: targets has label .* at position \(1,\), expected"):
        xs.cross_entropy(X, labels)


# ---------------------------------------------------------------------------------------------------------------------
# linear losses


@pytest.mark.parametrize(
    "message, call",
    [
        ("input has shape (), expected at least one dimension", lambda f: f(np.array(1.0), FACTOR, BINARY)),
        (
            "linear_weight has shape (2, 3), expected (V, 4) = for each class a row like input's",
            lambda f: f(X, FACTOR[:, :3], BINARY),
        ),
        (
            "linear_weight has shape (4,), expected (V, 4) = for each class a row like input's",
            lambda f: f(X, FACTOR[0], BINARY),
        ),
        (
            "linear_weight has shape (0, 4), expected at least one class on axis 0",
            lambda f: f(X, FACTOR[:0], BINARY),
        ),
        (
            "linear_bias has shape (3,), expected (2,) = the number of rows of linear_weight",
            lambda f: f(X, FACTOR, BINARY, linear_bias=ONES(3)),
        ),
        (
            "targets has shape (4,), expected (3,) = logits.shape without axis -1",
            lambda f: f(X, FACTOR, np.zeros(4, int)),
        ),
        ("targets has shape (3, 4), expected (3, 2) = logits.shape", lambda f: f(X, FACTOR, ONES((3, 4)))),
        (
            "weight has shape (4,), expected (2,) = the number of classes of logits on axis -1",
            lambda f: f(X, FACTOR, BINARY, weight=ONES(4)),
        ),
        (
            "where has shape (3, 4), expected one that broadcasts to (3, 2) = logits.shape",
            lambda f: f(X, FACTOR, BINARY, where=ONES((3, 4), bool)),
        ),
        (
            "targets has label 2 at position (1,), expected 0 <= label < 2",
            lambda f: f(X, FACTOR, np.array([0, 2, 1]), chunk_size=1),
        ),
        ("reduction is 'avg', " + REDUCTION, lambda f: f(X, FACTOR, BINARY, reduction="avg")),
        ("label_smoothing is 2, " + FRACTION, lambda f: f(X, FACTOR, BINARY, label_smoothing=2)),
        *(
            (
                f"chunk_size is {size!r}, expected None, a number of rows >= 1 or a pair (rows, classes)",
                lambda f, size=size: f(X, FACTOR, BINARY, chunk_size=size),
            )
            for size in (
                *(0, -1, 1.5, True, "2", b"2", (), (1,), (1, 0), (1, 2, 3), [1, 2]),
                *(np.True_, np.array([1, 2]), (np.array([1]), 1), np.array(0)),
            )
        ),
    ],
)
def test_linear_loss(message, call):
    for verb in (xs.linear_cross_entropy, xs.linear_cross_entropy_and_grad):
        check(ValueError, f"{verb.__name__}: {message}", lambda verb=verb: call(verb))


def test_arrays_of_a_linear_loss():
    verb = "linear_cross_entropy"
    message = f"{verb}: linear_bias is a list, {CONVERT.format('linear_bias')}"
    check(TypeError, message, lambda: xs.linear_cross_entropy(X, FACTOR, BINARY, linear_bias=[1.0, 2.0]))
    message = f"{verb}: linear_weight has dtype complex128, {REAL}; convert linear_weight first, for example to float64"
    check(TypeError, message, lambda: xs.linear_cross_entropy(X, FACTOR.astype(complex), BINARY))
    strict = pytest.importorskip("array_api_strict")
    message = f"{verb}: input is an array of numpy and linear_weight of array_api_strict, expected one library"
    check(TypeError, message, lambda: xs.linear_cross_entropy(X, strict.asarray(FACTOR), BINARY))


# ---------------------------------------------------------------------------------------------------------------------
# elsewhere


def test_explain():
    with pytest.raises(
        ValueError, match=r"^explain: verb is 'softmaxx', expected one of cross_entropy, .*softmax_vjp$"
    ):
        xs.explain("softmaxx", X)
    message = "softmax: axis is 2, expected values from -2 to 1 for x of 2 dimensions"
    check(ValueError, message, lambda: xs.explain("softmax", X, axis=2))


def test_explain_of_no_verb():
    def softmax(x):
        """Of another library."""

    for verb in ("backend", len, softmax, np.exp, xs.backend):
        with pytest.raises(ValueError, match=r"^explain: verb is .*, expected one of cross_entropy, "):
            xs.explain(verb, X)
    for verb in (5, None, b"softmax", ["softmax"], X, xs):
        message = f"explain: verb is a {type(verb).__name__}, expected a public function or its name"
        check(TypeError, message, lambda verb=verb: xs.explain(verb, X))


def test_implementations_have_names():
    for name in (5, None, b"array_api", ["array_api"]):
        message = f"use_implementation: name is a {type(name).__name__}, expected a str such as 'array_api'"
        with pytest.raises(TypeError, match=f"^{message}$"), xs.use_implementation(name):
            pass
    with (
        pytest.raises(ValueError, match=r"^use_implementation: name is '', expected one of "),
        xs.use_implementation(""),
    ):
        pass


@pytest.mark.parametrize("implementation", ["array_api", "numpy_blocked", None])
@pytest.mark.parametrize("verb", CALLS)
def test_as_many_dimensions_as_numpy_has(verb, implementation):
    call = CALLS[verb]
    arrays = ARRAYS._replace(**{k: v[(None,) * 62] for k, v in ARRAYS._asdict().items() if k not in ("w", "factor")})
    with xs.use_implementation(implementation) if implementation else nullcontext():
        if verb == "softmax_jacobian":
            message = (
                "softmax_jacobian: y has 64 dimensions, expected 63 at most: "
                "the result has one more, and arrays of numpy have 64 at most"
            )
            check(ValueError, message, lambda: call(arrays))
            arrays = arrays._replace(q=arrays.q[0])
        for found, expected in zip(parts(call(arrays)), parts(call(ARRAYS)), strict=True):
            np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("path", sorted(Path(xs.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_nothing_is_validated_by_assert(path):
    """`python -O` drops assertions."""
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text())))
