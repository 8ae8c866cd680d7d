"""Who is timed on a GPU: CuPy's arrays, and PyTorch's tensors and JAX's arrays made from them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any, ClassVar

import xsoftmax as xs

from ...verify.inputs import numpy_dtype
from ..contenders import JAX, Call, Contender, PyTorch, SciPy, Thunk, Unavailable, XSoftmax, XSoftmaxTorch, arguments
from ..inputs import Inputs
from ..tensors import to_torch

ROTATED = 256e6  # bytes that JAX's logits are in all, so that those of a call have left the cache
MOST_COPIES = 64


class CuPyX(SciPy):
    """The formulas of `cupyx.scipy.special`, by the library's own kernels."""

    def __init__(self) -> None:
        import cupyx.scipy.special

        self.special = cupyx.scipy.special


class Compiled(PyTorch):
    """`torch.compile`, for each shape anew: a program that has seen many shapes gives up."""

    def prepared(self, function: Callable) -> Callable:
        return self.torch.compile(function, fullgraph=True, dynamic=False)

    def call(self, verb: str, inputs: Inputs, *, out: bool) -> Call:
        self.torch.compiler.reset()
        return super().call(verb, inputs, out=out)


class Triton(PyTorch):
    """A kernel written for this comparison, triton_softmax.py."""

    def __init__(self) -> None:
        super().__init__()
        from . import triton_softmax

        self.kernels = triton_softmax

    def calls(self, inputs: Inputs, out: Any) -> dict[str, Thunk]:
        if inputs.x.ndim != 2:
            raise Unavailable("takes matrices only")
        return {"softmax": partial(self.kernels.softmax, to_torch(inputs.x))}


class Fused(PyTorch):
    """A library of kernels for PyTorch: softmax of rows, and a mean loss whose gradient autograd asks for."""

    arrays = 1.0
    more: ClassVar[dict[str, float]] = {"cross_entropy_and_grad": 2.0}
    softmax: Callable
    cross_entropy: Callable

    def calls(self, inputs: Inputs, out: Any) -> dict[str, Thunk]:
        if inputs.x.ndim != 2:
            raise Unavailable("takes matrices only")
        x, labels = to_torch(inputs.x), to_torch(inputs.labels)

        def loss_and_grad(leaf: Any) -> tuple:
            value = self.cross_entropy(leaf, labels)
            return value.detach(), self.torch.autograd.grad(value, leaf)[0]

        return {
            "softmax": partial(self.softmax, x),
            "cross_entropy": partial(self.cross_entropy, x, labels),
            "cross_entropy_and_grad": partial(loss_and_grad, self.leaf(x)),
        }

    def leaf(self, x: Any) -> Any:
        return x.detach().requires_grad_()


class Liger(Fused):
    def __init__(self) -> None:
        super().__init__()
        from liger_kernel.ops.softmax import LigerSoftmaxFunction
        from liger_kernel.transformers.functional import liger_cross_entropy

        self.softmax, self.cross_entropy = LigerSoftmaxFunction.apply, liger_cross_entropy

    def leaf(self, x: Any) -> Any:
        """Logits of its own, which its gradient overwrites: from the second call on, others of the same size."""
        return x.clone().requires_grad_()


class Quack(Fused):
    def __init__(self) -> None:
        super().__init__()
        from quack.cross_entropy import cross_entropy
        from quack.softmax import softmax

        self.softmax, self.cross_entropy = softmax, partial(cross_entropy, reduction="mean")


class JAXOnDevice(JAX):
    """Compiled for each shape, on a stream of its own: the host's clock tells, over calls in a queue.

    Copies of the logits take turns.
    """

    def __init__(self) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the others need the memory too
        super().__init__()

    def call(self, verb: str, inputs: Inputs, *, out: bool) -> Call:
        copies, labels = inputs.once(self.arrays_of)
        function, turns = self.compiled(inputs.axis)[verb], cycle(copies)
        return Call(
            lambda: function(*arguments(verb, next(turns), labels)),
            finish=self.jax.block_until_ready,
        )

    @staticmethod
    def arrays_of(inputs: Inputs) -> tuple:
        import jax
        from jax import numpy as jnp

        number = min(MOST_COPIES, math.ceil(ROTATED / inputs.x.nbytes))
        if inputs.x.dtype.name != "bfloat16":
            copies = [jnp.array(jnp.from_dlpack(inputs.x), copy=True) for _ in range(number)]
        else:
            bits = jnp.from_dlpack(inputs.x.view("int16"))
            copies = [jax.lax.bitcast_convert_type(bits, jnp.bfloat16) for _ in range(number)]
        return jax.block_until_ready((copies, jnp.from_dlpack(inputs.labels)))

    def to_array(self, array: Any, inputs: Inputs) -> Any:
        if array.dtype.name != "bfloat16":
            return inputs.xp.from_dlpack(array)
        bits = self.jax.lax.bitcast_convert_type(array, "int16")
        return inputs.xp.from_dlpack(bits).view(numpy_dtype("bfloat16"))


class XSoftmaxTorchOnDevice(XSoftmaxTorch):
    """PyTorch's tensors, by the implementation for those on a CUDA device and no other."""

    def call(self, verb: str, inputs: Inputs, *, out: bool) -> Call:
        found = super().call(verb, inputs, out=out)
        return replace(found, context=partial(xs.use_implementation, "torch_cuda"))


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "xsoftmax:cupy_cuda": partial(XSoftmax, "cupy_cuda"),
    "xsoftmax:torch_cuda": XSoftmaxTorchOnDevice,
    "xsoftmax:array_api": partial(XSoftmax, "array_api"),
    "cupyx": CuPyX,
    "torch": PyTorch,
    "torch.compile": Compiled,
    "triton": Triton,
    "jax": JAXOnDevice,
    "liger": Liger,
    "quack": Quack,
}
