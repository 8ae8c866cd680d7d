"""A softmax of contiguous rows in Triton, one program for each: held in registers, or read twice if it is long."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

RESIDENT = 32_768  # classes; of longer rows maximum and sum are found in a first pass
CHUNK = 8_192
WARPS = ((2_048, 4), (8_192, 8), (RESIDENT, 16))


@triton.jit
def _resident(y, x, classes: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * classes
    at = tl.arange(0, BLOCK)
    kept = at < classes
    v = tl.load(x + start + at, mask=kept, other=-float("inf")).to(WIDE)
    w = tl.exp(v - tl.max(v, axis=0))
    tl.store(y + start + at, (w / tl.sum(w, axis=0)).to(y.dtype.element_ty), mask=kept)


@triton.jit
def _online(y, x, classes: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * classes
    m = tl.full((), -float("inf"), WIDE)
    s = tl.full((), 0.0, WIDE)
    for first in range(0, classes, BLOCK):
        at = first + tl.arange(0, BLOCK)
        v = tl.load(x + start + at, mask=at < classes, other=-float("inf")).to(WIDE)
        top = tl.maximum(m, tl.max(v, axis=0))
        s = s * tl.exp(m - top) + tl.sum(tl.exp(v - top), axis=0)
        m = top
    for first in range(0, classes, BLOCK):
        at = first + tl.arange(0, BLOCK)
        v = tl.load(x + start + at, mask=at < classes, other=-float("inf")).to(WIDE)
        tl.store(y + start + at, (tl.exp(v - m) / s).to(y.dtype.element_ty), mask=at < classes)


def softmax(x: Any) -> Any:
    """Of a contiguous matrix on a CUDA device, along its rows."""
    rows, classes = x.shape
    y = torch.empty_like(x)
    long = classes > RESIDENT
    block = CHUNK if long else triton.next_power_of_2(classes)
    warps = next(warps for widest, warps in WARPS if block <= widest)
    wide = tl.float64 if x.dtype is torch.float64 else tl.float32
    (_online if long else _resident)[(rows,)](y, x, classes, BLOCK=block, WIDE=wide, num_warps=warps)
    return y
