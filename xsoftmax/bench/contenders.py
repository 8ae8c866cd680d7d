"""Who is timed: each library's own way to compute a verb, as a call without arguments.

`xsoftmax:NAME` is xsoftmax with the implementation NAME on NumPy arrays; `xsoftmax:torch` and `xsoftmax:jax` are given
tensors of PyTorch and arrays of JAX.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

import xsoftmax as xs

from ..implementations import REGISTRY
from .inputs import Inputs
from .options import VERBS
from .tensors import from_torch, to_torch

COPY = "copy"
ON_LOGITS = ("softmax", "log_softmax", "logsumexp")
Thunk = Callable[[], Any]


class Unavailable(Exception):
    """The contender has no such verb, dtype or shape."""


@dataclass(frozen=True)
class Call:
    """What is timed, and what has to hold around it; `finish` waits for a result that is not on the device's stream."""

    run: Thunk
    context: Callable[[], AbstractContextManager] = nullcontext
    finish: Callable[[Any], Any] | None = None


class Contender:
    """One library. Making one imports it."""

    # Arrays of the logits' size that a call makes, as measured, and more of them for some verbs.
    arrays = 2.0
    more: ClassVar[dict[str, float]] = {}

    def calls(self, inputs: Inputs, out: Any) -> dict[str, Thunk]:
        """The verbs that it has, with or without `out=`; results are (loss, gradient) or one array."""
        raise NotImplementedError

    def call(self, verb: str, inputs: Inputs, *, out: bool) -> Call:
        found = self.calls(inputs, inputs.buffer if out else None)
        if verb not in found:
            raise Unavailable(f"has no {verb}{' with out=' if out else ''}")
        return Call(found[verb])

    def to_array(self, array: Any, inputs: Inputs) -> Any:
        """A result as an array of the inputs' library."""
        return inputs.xp.asarray(array)

    def needs(self, verb: str, x: Any) -> float:
        """Bytes that a call makes."""
        return self.more.get(verb, self.arrays) * x.nbytes


def copy(inputs: Inputs) -> Call:
    """What the ratios refer to."""
    return Call(partial(inputs.xp.copyto, inputs.buffer, inputs.x))


def arguments(verb: str, x: Any, labels: Any) -> tuple:
    return (x,) if verb in ON_LOGITS else (x, labels)


def _at_labels(x: Any, labels: Any, axis: int, xp: Any = np) -> Any:
    return xp.take_along_axis(x, xp.expand_dims(labels, axis), axis).squeeze(axis)


class NumPy(Contender):
    """The formulas of textbooks, with the maximum subtracted."""

    def calls(self, inputs: Inputs, out: np.ndarray | None) -> dict[str, Thunk]:
        x, labels, axis = inputs.x, inputs.labels, inputs.axis
        found: dict[str, Thunk] = {
            "softmax": partial(self.softmax, x, axis, out),
            "log_softmax": partial(self.log_softmax, x, axis, out),
            "cross_entropy_and_grad": partial(self.cross_entropy_and_grad, x, labels, axis, out),
        }
        if out is None:
            found["logsumexp"] = partial(self.logsumexp, x, axis)
            found["cross_entropy"] = partial(self.cross_entropy, x, labels, axis)
        return found

    @staticmethod
    def softmax(x: np.ndarray, axis: int, out: np.ndarray | None) -> np.ndarray:
        e = np.subtract(x, x.max(axis, keepdims=True), out=out)
        np.exp(e, out=e)
        e /= e.sum(axis, keepdims=True)
        return e

    @staticmethod
    def log_softmax(x: np.ndarray, axis: int, out: np.ndarray | None) -> np.ndarray:
        d = np.subtract(x, x.max(axis, keepdims=True), out=out)
        d -= np.log(np.exp(d).sum(axis, keepdims=True))
        return d

    @staticmethod
    def logsumexp(x: np.ndarray, axis: int) -> np.ndarray:
        m = x.max(axis, keepdims=True)
        return (m + np.log(np.exp(x - m).sum(axis, keepdims=True))).squeeze(axis)

    @classmethod
    def cross_entropy(cls, x: np.ndarray, labels: np.ndarray, axis: int) -> np.ndarray:
        return (cls.logsumexp(x, axis) - _at_labels(x, labels, axis)).mean()

    @classmethod
    def cross_entropy_and_grad(cls, x: np.ndarray, labels: np.ndarray, axis: int, out: np.ndarray | None) -> tuple:
        m = x.max(axis, keepdims=True)
        g = np.subtract(x, m, out=out)
        np.exp(g, out=g)
        s = g.sum(axis, keepdims=True)
        loss = ((m + np.log(s)).squeeze(axis) - _at_labels(x, labels, axis)).mean()
        g /= s
        at = np.expand_dims(labels, axis)
        np.put_along_axis(g, at, np.take_along_axis(g, at, axis) - g.dtype.type(1), axis)
        g /= g.dtype.type(labels.size)
        return loss, g


class SciPy(Contender):
    arrays = 3.0
    more: ClassVar[dict[str, float]] = {"logsumexp": 5.3}

    def __init__(self) -> None:
        import scipy.special

        self.special = scipy.special

    def calls(self, inputs: Inputs, out: Any) -> dict[str, Thunk]:
        if out is not None:
            return {}
        found: dict[str, Thunk] = {
            verb: partial(getattr(self.special, verb), inputs.x, axis=inputs.axis) for verb in ON_LOGITS
        }
        return found | {"cross_entropy": partial(self.cross_entropy, inputs.x, inputs.labels, inputs.axis)}

    def cross_entropy(self, x: np.ndarray, labels: np.ndarray, axis: int) -> np.ndarray:
        return -_at_labels(self.special.log_softmax(x, axis=axis), labels, axis).mean()


class PyTorch(Contender):
    arrays = 1.0
    more: ClassVar[dict[str, float]] = {"cross_entropy_and_grad": 3.0}

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def prepared(self, function: Callable) -> Callable:
        return function

    def calls(self, inputs: Inputs, out: Any) -> dict[str, Thunk]:
        torch, axis = self.torch, inputs.axis
        self.torch.set_num_threads(inputs.threads)
        x, labels = to_torch(inputs.x), to_torch(inputs.labels)
        if out is not None:
            to = to_torch(out)
            return {verb: partial(getattr(torch, verb), x, axis, out=to) for verb in ("softmax", "log_softmax")}
        loss = self.prepared(torch.nn.functional.cross_entropy)
        leaf = x.detach().requires_grad_()

        def loss_and_grad() -> tuple:
            value = loss(leaf, labels)
            return value.detach(), torch.autograd.grad(value, leaf)[0]

        return {
            **{verb: partial(self.prepared(getattr(torch, verb)), x, axis) for verb in ON_LOGITS},
            "cross_entropy": partial(loss, x, labels),
            "cross_entropy_and_grad": loss_and_grad,
        }

    def to_array(self, array: Any, inputs: Inputs) -> Any:
        return from_torch(array, inputs.xp)


class JAX(Contender):
    """Compiled for each shape; a call ends when its result is there."""

    def __init__(self) -> None:
        import jax

        self.jax = jax
        jax.config.update("jax_enable_x64", True)

    def compiled(self, axis: int) -> dict[str, Callable]:
        jax = self.jax

        def loss(x: Any, labels: Any) -> Any:
            return (jax.nn.logsumexp(x, axis) - _at_labels(x, labels, axis, jax.numpy)).mean()

        return {
            **{verb: jax.jit(partial(getattr(jax.nn, verb), axis=axis)) for verb in ON_LOGITS},
            "cross_entropy": jax.jit(loss),
            "cross_entropy_and_grad": jax.jit(jax.value_and_grad(loss)),
        }

    def calls(self, inputs: Inputs, out: np.ndarray | None) -> dict[str, Thunk]:
        if out is not None:
            return {}
        arrays = inputs.once(self.arrays_of)
        return {
            verb: partial(self._waited, partial(function, *arguments(verb, *arrays)))
            for verb, function in self.compiled(inputs.axis).items()
        }

    def _waited(self, call: Thunk) -> Any:
        return self.jax.block_until_ready(call())

    @staticmethod
    def arrays_of(inputs: Inputs) -> tuple:
        from jax import numpy as jnp

        return jnp.asarray(inputs.x), jnp.asarray(inputs.labels)


OPERATORS = {
    "softmax": "Softmax",
    "log_softmax": "LogSoftmax",
    "logsumexp": "ReduceLogSumExp",
    "cross_entropy": "SoftmaxCrossEntropyLoss",
}


class ONNXRuntime(Contender):
    """One operator each; `out=` is an output bound to memory."""

    arrays = 1.1
    more: ClassVar[dict[str, float]] = {"cross_entropy": 3.2}

    def __init__(self) -> None:
        import onnx
        import onnxruntime

        self.onnx, self.runtime = onnx, onnxruntime

    def calls(self, inputs: Inputs, out: np.ndarray | None) -> dict[str, Thunk]:
        if inputs.x.dtype.name not in ("float32", "float64"):
            raise Unavailable("has float32 and float64 only")
        verbs = OPERATORS if out is None else ("softmax", "log_softmax")
        return {verb: partial(self._prepared, verb, inputs, out) for verb in verbs}

    def call(self, verb: str, inputs: Inputs, *, out: bool) -> Call:
        """A session takes milliseconds to make, so only that of `verb` is made."""
        return Call(super().call(verb, inputs, out=out).run())

    def _prepared(self, verb: str, inputs: Inputs, out: np.ndarray | None) -> Thunk:
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = inputs.threads
        model = self._model(verb, inputs).SerializeToString()
        session = self.runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feeds = {"x": inputs.x} | ({"labels": inputs.labels} if verb == "cross_entropy" else {})
        if out is None:
            return lambda: session.run(None, feeds)[0]
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, self.runtime.OrtValue.ortvalue_from_numpy(array))
        binding.bind_ortvalue_output("y", self.runtime.OrtValue.ortvalue_from_numpy(out))

        def run() -> np.ndarray:
            session.run_with_iobinding(binding)
            return out

        return run

    def _model(self, verb: str, inputs: Inputs) -> Any:
        helper, integers = self.onnx.helper, self.onnx.TensorProto.INT64
        kind = helper.np_dtype_to_tensor_dtype(inputs.x.dtype)
        names, constants = ["x"], []
        given = [helper.make_tensor_value_info("x", kind, inputs.x.shape)]
        attributes: dict[str, Any] = {"axis": inputs.axis}
        if verb == "logsumexp":
            names, attributes = ["x", "axes"], {"keepdims": 0}
            constants = [helper.make_tensor("axes", integers, [1], [inputs.axis])]
        elif verb == "cross_entropy":
            names, attributes = ["x", "labels"], {"reduction": "mean"}
            given.append(helper.make_tensor_value_info("labels", integers, inputs.labels.shape))
        node = helper.make_node(OPERATORS[verb], names, ["y"], **attributes)
        result = helper.make_tensor_value_info("y", kind, None)
        graph = helper.make_graph([node], verb, given, [result], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


class ScikitLearn(Contender):
    """The loss under LogisticRegression, which is not public."""

    arrays = 1.0

    def __init__(self) -> None:
        from sklearn._loss import HalfMultinomialLoss

        self.loss = HalfMultinomialLoss

    def calls(self, inputs: Inputs, out: np.ndarray | None) -> dict[str, Thunk]:
        x, dtype, threads = inputs.x, inputs.x.dtype, inputs.threads
        if dtype.name not in ("float32", "float64"):
            raise Unavailable("has float32 and float64 only")
        if x.ndim != 2:
            raise Unavailable("takes matrices only")
        loss = self.loss(n_classes=x.shape[1])
        labels = inputs.labels.astype(dtype)
        share = np.full(len(x), 1 / len(x), dtype)  # makes the mean of it, as its callers do

        def loss_and_grad() -> tuple:
            losses, grad = loss.loss_gradient(labels, x, sample_weight=share, gradient_out=out, n_threads=threads)
            return losses.sum(), grad

        found: dict[str, Thunk] = {"cross_entropy_and_grad": loss_and_grad}
        return found if out is not None else found | {"cross_entropy": partial(loss, labels, x, n_threads=threads)}


class XSoftmax(Contender):
    """One implementation, asked for by name."""

    def __init__(self, implementation: str) -> None:
        self.implementation = implementation

    def calls(self, inputs: Inputs, out: Any) -> dict[str, Thunk]:
        return _ours(inputs.x, inputs.labels, inputs.axis, out)

    def call(self, verb: str, inputs: Inputs, *, out: bool) -> Call:
        return Call(super().call(verb, inputs, out=out).run, partial(xs.use_implementation, self.implementation))

    def needs(self, verb: str, x: Any) -> float:
        return _formulas_need(verb, x) if self.implementation == "array_api" else super().needs(verb, x)


class XSoftmaxTorch(PyTorch):
    """PyTorch's tensors, by NumPy's implementations."""

    arrays = 2.0
    more: ClassVar[dict[str, float]] = {}

    def calls(self, inputs: Inputs, out: Any) -> dict[str, Thunk]:
        self.torch.set_num_threads(inputs.threads)
        to = None if out is None else to_torch(out)
        return _ours(to_torch(inputs.x), to_torch(inputs.labels), inputs.axis, to)


class XSoftmaxJAX(JAX):
    """JAX's arrays, as a user calls it outside of `jit`."""

    def calls(self, inputs: Inputs, out: Any) -> dict[str, Thunk]:
        if out is not None:
            return {}
        x, labels = inputs.once(self.arrays_of)
        ours = _ours(x, labels, inputs.axis, None)
        return {verb: partial(self._waited, call) for verb, call in ours.items()}

    def needs(self, verb: str, x: Any) -> float:
        return _formulas_need(verb, x)


def _ours(x: Any, labels: Any, axis: int, out: Any) -> dict[str, Thunk]:
    found: dict[str, Thunk] = {}
    for verb in VERBS:
        function = getattr(xs, verb)
        given = arguments(verb, x, labels)
        if out is None:
            found[verb] = partial(function, *given, axis=axis)
        elif "out" in inspect.signature(function).parameters:
            found[verb] = partial(function, *given, axis=axis, out=out)
    return found


def _formulas_need(verb: str, x: Any) -> float:
    """Measured, in bytes an element: 34 for float64 and 42 for float32; with a gradient 58 and 66."""
    return (45 if verb in ON_LOGITS else 70) * x.size


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "numpy": NumPy,
    "scipy": SciPy,
    "torch": PyTorch,
    "jax": JAX,
    "onnxruntime": ONNXRuntime,
    "scikit-learn": ScikitLearn,
    **{
        f"xsoftmax:{entry.name}": partial(XSoftmax, entry.name)
        for entry in REGISTRY
        if entry.library in ("numpy", "*") and not entry.derivatives
    },
    "xsoftmax:torch": XSoftmaxTorch,
    "xsoftmax:jax": XSoftmaxJAX,
}
