"""Which tensors are plain memory of a device, to be handed to compiled code."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.autograd import forward_ad

from ...calls.records import Rows

PLAIN = ("Tensor", "Parameter")


def are_plain(device: str, *values: Any) -> bool:
    """Whether every tensor is memory of such a device, and nothing traces, wraps or records it."""
    return not torch._C._len_torch_dispatch_stack() and all(_is_plain(device, value) for value in values)


def have_tangents(*values: Any) -> bool:
    """Whether forward mode has a tangent of one of them."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    inside = forward_ad._current_level >= 0
    return inside and any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def _is_plain(device: str, value: Any) -> bool:
    if isinstance(value, Rows):
        return are_plain(device, *value)
    if not isinstance(value, torch.Tensor):
        return True
    keys = torch._C._dispatch_keys(value).raw_repr()
    return keys in plain_keys(device) and not (torch.is_grad_enabled() and value.requires_grad)


@lru_cache(maxsize=8)
def plain_keys(device: str) -> frozenset[int]:
    """How PyTorch dispatches plain memory, in inference mode too: nothing batched, wrapped, negated or zero."""
    with torch.inference_mode():
        inference = torch.empty(0, device=device)
    return frozenset(torch._C._dispatch_keys(t).raw_repr() for t in (torch.empty(0, device=device), inference))
