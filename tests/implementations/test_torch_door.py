"""PyTorch tensors that are not dense, and dtypes for which it has few operations."""

import re

import pytest

torch = pytest.importorskip("torch")

import xsoftmax as xs  # noqa: E402

pytestmark = [
    pytest.mark.backend("torch"),
    pytest.mark.filterwarnings(
        "ignore:.*(prototype|beta state|quantize|sparse|Sparse|masked)",
    ),
]

X = torch.tensor([[0.5, -1.0, 2.0, 0.0], [0.0, 1.0, 0.25, -2.0], [1.0, 1.0, -1.0, 0.5]])
LABELS = torch.tensor([1, 0, 3])
ONE_HOT = torch.nn.functional.one_hot(LABELS, 4)
WIDTH_4 = torch.ones(4)

ODD = {
    "coo": (lambda a: a.to_sparse(), "a sparse torch.Tensor (sparse_coo)", "{}.to_dense()"),
    "csr": (lambda a: a.to_sparse_csr(), "a sparse torch.Tensor (sparse_csr)", "{}.to_dense()"),
    "csc": (lambda a: a.to_sparse_csc(), "a sparse torch.Tensor (sparse_csc)", "{}.to_dense()"),
    "mkldnn": (lambda a: a.to_mkldnn(), "an mkldnn torch.Tensor (_mkldnn)", "{}.to_dense()"),
    "quantized": (
        lambda a: torch.quantize_per_tensor(a, 0.1, 0, torch.qint8),
        "a quantized torch.Tensor (qint8)",
        "{}.dequantize()",
    ),
    "jagged": (
        lambda a: torch.nested.nested_tensor(list(a), layout=torch.jagged),
        "a nested torch.NestedTensor (jagged)",
        "torch.nested.to_padded_tensor({}, 0.0) and a mask as where",
    ),
    "nested": (
        lambda a: torch.nested.nested_tensor(list(a)),
        "a nested torch.Tensor (strided)",
        "torch.nested.to_padded_tensor({}, 0.0) and a mask as where",
    ),
    "masked": (
        lambda a: torch.masked.masked_tensor(a, a > 0),
        "a masked torch.MaskedTensor",
        "{0}.get_data() and where={0}.get_mask()",
    ),
}
ARGUMENTS = {
    "x": lambda a: xs.softmax(a),
    "where": lambda a: xs.log_softmax(X, where=a),
    "b": lambda a: xs.logsumexp(X, b=a),
    "out": lambda a: xs.softmax(X, out=a),
    "y": lambda a: xs.softmax_vjp(a, X),
    "dx": lambda a: xs.log_softmax_jvp(X, a),
    "logits": lambda a: xs.cross_entropy(a, LABELS),
    "targets": lambda a: xs.cross_entropy_and_grad(X, a),
    "v": lambda a: xs.cross_entropy_hvp(X, LABELS, a),
    "sample_weight": lambda a: xs.cross_entropy_grad(X, LABELS, sample_weight=a),
    "weight": lambda a: xs.cross_entropy_grad_and_hessian_diag(X, LABELS, weight=a),
    "probs": lambda a: xs.cross_entropy_from_probs(a, LABELS),
    "p": lambda a: xs.entropy(a),
    "q": lambda a: xs.kl_divergence(X, a),
    "input": lambda a: xs.linear_cross_entropy(a, X, LABELS),
    "linear_weight": lambda a: xs.linear_cross_entropy_and_grad(X, a, LABELS),
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("kind", ODD)
def test_not_dense(kind, name):
    make, what, fix = ODD[kind]
    message = f": {name} is {what}, expected a dense one; pass {fix.format(name)}"
    with pytest.raises(TypeError, match=rf"^\w+{re.escape(message)}$"):
        ARGUMENTS[name](make(X))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_other_dtypes(dtype):
    with pytest.raises(TypeError, match=r"^softmax: x has dtype .*; convert x first, for example to float64$"):
        xs.softmax(X.to(dtype))


def test_out_that_overlaps_itself():
    for out in (torch.zeros(4).expand(3, 4), torch.zeros(6).as_strided((3, 4), (1, 1))):
        for verb, arrays in ((xs.softmax, (X,)), (xs.log_softmax, (X,)), (xs.cross_entropy_grad, (X, LABELS))):
            with pytest.raises(ValueError, match=rf"^{verb.__name__}: out overlaps itself, expected memory of its own"):
                verb(*arrays, out=out)
    for out in (torch.zeros(4, 3).T, torch.zeros(20).as_strided((3, 4), (2, 5)), torch.zeros(3, 8)[:, ::2]):
        torch.testing.assert_close(xs.softmax(X, out=out), xs.softmax(X))


def test_out_of_zeros_without_memory():
    with pytest.raises(TypeError, match=r"^softmax: out is a read-only or lazy array"):
        xs.softmax(X, out=torch._efficientzerotensor(X.shape))


META = {
    **dict.fromkeys(("softmax", "log_softmax", "logsumexp", "softmax_jacobian", "entropy"), (X,)),
    **dict.fromkeys(("softmax_vjp", "log_softmax_jvp", "kl_divergence"), (X, X)),
    **dict.fromkeys(("cross_entropy", "cross_entropy_and_grad", "cross_entropy_from_probs"), (X, LABELS)),
    "cross_entropy_hvp": (X, ONE_HOT, X),
    "cross_entropy_grad_and_hessian_diag": (X, LABELS),
    "linear_cross_entropy": (X, X, LABELS.clamp(max=2)),
    "linear_cross_entropy_and_grad": (X, X, LABELS.clamp(max=2)),
}


@pytest.mark.parametrize("verb", META)
def test_meta_tensors_have_shapes(verb):
    def seen(arrays):
        found = getattr(xs, verb)(*arrays)
        return [(r.shape, r.dtype) for r in (found if isinstance(found, tuple) else (found,)) if r is not None]

    assert seen([a.to("meta") for a in META[verb]]) == seen(META[verb])


def test_meta_out():
    out = X.to("meta")
    assert xs.cross_entropy_grad(out, LABELS.to("meta"), out=out) is out


# ---------------------------------------------------------------------------------------------------------------------
# dtypes

INTEGERS = [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64]
WEIGHTS = {"weight": torch.tensor([1.0, 2.0, 0.0, 1.0]), "sample_weight": torch.tensor([1.0, 0.0, 2.0])}
MIX = WEIGHTS | {"softcap": 2.0, "temperature": 2.0, "where": torch.tensor([True, True, False, True])}
LOSSES = {
    "cross_entropy": (X,),
    "cross_entropy_grad": (X,),
    "cross_entropy_and_grad": (X,),
    "cross_entropy_hvp": (X,),
    "cross_entropy_grad_and_hessian_diag": (X,),
    "cross_entropy_from_probs": (X.softmax(-1),),
    "linear_cross_entropy": (X, X.repeat(2, 1)[:4]),
    "linear_cross_entropy_and_grad": (X, X.repeat(2, 1)[:4]),
}


def derived(verb, targets, options, v=X):
    """Results, and the cotangent of the first array."""
    first, *others = LOSSES[verb]
    given = first.clone().requires_grad_()
    found = getattr(xs, verb)(given, *others, targets, *([v] if verb.endswith("hvp") else []), **options)
    found = [r for r in (found if isinstance(found, tuple) else (found,)) if r is not None]
    return [*found, *torch.autograd.grad(sum(r.sum() for r in found), given)]


@pytest.mark.parametrize("verb", LOSSES)
@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=str)
@pytest.mark.parametrize("implementation", ["torch_cpu", "array_api"])
def test_targets_of_any_dtype(verb, dtype, implementation):
    for options in ({}, WEIGHTS, MIX):
        if verb == "cross_entropy_from_probs":
            options = {name: value for name, value in options.items() if name in WEIGHTS}
        with xs.use_implementation(implementation):
            found, expected = (derived(verb, ONE_HOT.to(d), options) for d in (dtype, torch.float32))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            if dtype != torch.bool:
                found, expected = (derived(verb, LABELS.to(d), options) for d in (dtype, torch.int64))
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=str)
def test_vectors_and_weights_of_any_dtype(dtype):
    for options in ({}, WEIGHTS, MIX):
        found, expected = (
            derived("cross_entropy_hvp", ONE_HOT.to(d), options, ONE_HOT.to(d)) for d in (dtype, X.dtype)
        )
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for verb in LOSSES:
        for name in WEIGHTS:
            ones = (WEIGHTS[name] != 0).to(dtype)
            found, expected = (derived(verb, LABELS, {name: a}) for a in (ones, ones.to(X.dtype)))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
