"""Tensors of PyTorch on the memory of other arrays, and back; bfloat16 crosses as int16, which all libraries know."""

from __future__ import annotations

from typing import Any

from ..verify.inputs import numpy_dtype


def to_torch(array: Any) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view("int16")).view(torch.bfloat16)
    return torch.from_dlpack(array)


def from_torch(tensor: Any, xp: Any) -> Any:
    import torch

    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        return xp.from_dlpack(tensor.view(torch.int16)).view(numpy_dtype("bfloat16"))
    return xp.from_dlpack(tensor)
