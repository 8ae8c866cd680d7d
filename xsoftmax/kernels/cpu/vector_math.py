"""Functions of one number that LLVM vectorises, for Numba: exp, log1p, maximum, and memory at an address.

No branch, no call: selections and bit patterns only. `contract` allows a fused multiply-add, nothing is re-associated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from .kept import Kept

EXACT = {"error_model": "numpy", "fastmath": {"contract"}, "nogil": True}
SUMS = {"error_model": "numpy", "fastmath": {"contract", "reassoc"}, "nogil": True}


def jit(**flags: Any) -> Callable[[Any], Any]:
    """Compile and keep the result on disk, where some directory can be written to."""

    def decorate(function: Any) -> Any:
        compiled = numba.njit(**flags)(function)
        with suppress(RuntimeError):  # no place for a cache
            compiled._cache = Kept(function)
        return compiled

    return decorate


@intrinsic
def _bits(typing: Any, x: Any) -> Any:
    """The bit pattern of a float64."""
    return types.int64(types.float64), lambda context, builder, signature, a: builder.bitcast(a[0], ir.IntType(64))


@intrinsic
def float_bits(typing: Any, x: Any) -> Any:
    """The bit pattern of a float32."""
    return types.uint32(types.float32), lambda context, builder, signature, a: builder.bitcast(a[0], ir.IntType(32))


@intrinsic
def float_from_bits(typing: Any, n: Any) -> Any:
    return types.float32(types.uint32), lambda context, builder, signature, a: builder.bitcast(a[0], ir.FloatType())


@intrinsic
def _from_bits(typing: Any, n: Any) -> Any:
    return types.float64(types.int64), lambda context, builder, signature, a: builder.bitcast(a[0], ir.DoubleType())


def _of_alike(name: str, builder: Any, a: Any, **flags: Any) -> Any:
    kind = a[0].type
    name = f"{name}.f32" if isinstance(kind, ir.FloatType) else f"{name}.f64"
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(kind, [kind] * len(a)), name
    )
    return builder.call(function, a, **flags)


@intrinsic
def maximum(typing: Any, x: Any, y: Any) -> Any:
    """The larger; nan if one is nan. Only this form, and the next, becomes a vector reduction."""
    return x(x, x), lambda context, builder, signature, a: _of_alike("llvm.maximum", builder, a)


@intrinsic
def larger(typing: Any, x: Any, y: Any) -> Any:
    """The larger of two numbers, in one instruction instead of five; any number if one is nan."""

    def generate(context: Any, builder: Any, signature: Any, a: Any) -> Any:
        return _of_alike("llvm.maxnum", builder, a, fastmath=("nnan", "nsz"))

    return x(x, x), generate


@intrinsic
def fused(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once where the processor does so. For a b + c d, of which LLVM would fuse either product: one in
    the body of a loop, the other in what is left of it, so that equal elements differed.
    """
    return x(x, x, x), lambda context, builder, signature, a: _of_alike("llvm.fmuladd", builder, a)


@intrinsic
def fetch(typing: Any, address: Any) -> Any:
    """Tell the cache that the memory at an address, which need not be any, will be used."""

    def generate(context: Any, builder: Any, signature: Any, a: Any) -> Any:
        place = builder.inttoptr(a[0], ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        name = "llvm.prefetch.p0i8"
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), [place.type, number, number, number]), name
        )
        builder.call(function, [place, number(0), number(3), number(1)])  # to be read, into all caches, as data
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _number_type(dtype: Any) -> Any:
    return dtype.dtype if isinstance(dtype, types.NumberClass) else dtype


@intrinsic
def pointer(typing: Any, address: Any, dtype: Any) -> Any:
    """Numbers of a dtype from an address on; indexed without bounds, and without a wrap-around that stops LLVM.

    `dtype` is a class or a number: NumPy's scalars reach a kernel in 0.2 µs, its classes in 3.
    """
    kind = types.CPointer(_number_type(dtype))

    def generate(context: Any, builder: Any, signature: Any, a: Any) -> Any:
        return builder.inttoptr(a[0], context.get_value_type(kind))

    return kind(types.int64, dtype), generate


@intrinsic
def item(typing: Any, dtype: Any) -> Any:
    """Bytes of a number."""

    def generate(context: Any, builder: Any, signature: Any, a: Any) -> Any:
        return context.get_constant(types.int64, _number_type(dtype).bitwidth // 8)

    return types.int64(dtype), generate


# ---------------------------------------------------------------------------------------------------------------------
# exp(x) · 2^k for |x| ≤ 2²¹ ln 2: x = n ln 2 + r, |r| ≤ ln(2) / 2, exact by two constants, of which n · _LN2 is exact

_LOG2_E = 1.0 / math.log(2.0)
_ROUND = float.fromhex("0x1.8p52")  # adding it rounds to an integer, found in the lowest bits
_LN2 = float.fromhex("0x1.62e42feep-1")
_LN2_REST = float.fromhex("0x1.a39ef35793c76p-33")

# exp(r) = 1 + r + r² P(r), relative error 2^−61.4 and 2^−32.1: Chebyshev nodes
_P64 = tuple(
    map(
        float.fromhex,
        (
            "0x1.0000000000000p-1",
            "0x1.5555555555557p-3",
            "0x1.5555555555556p-5",
            "0x1.11111111100dcp-7",
            "0x1.6c16c16c162d4p-10",
            "0x1.a01a01abe7fe1p-13",
            "0x1.a01a01a6d889cp-16",
            "0x1.71de0231960ebp-19",
            "0x1.27e4db646b17ep-22",
            "0x1.af4de97ca4194p-26",
            "0x1.1f730349868cep-29",
        ),
    )
)
_P32 = tuple(
    map(
        float.fromhex,
        (
            "0x1.0000000b9129bp-1",
            "0x1.5555555a78ed4p-3",
            "0x1.5554e9063586ep-5",
            "0x1.1110e0f238322p-7",
            "0x1.6d43246b523b4p-10",
            "0x1.a124f19fe89acp-13",
        ),
    )
)


@jit(**EXACT)
def _exp64(x: float, k: int) -> float:
    t = x * _LOG2_E + _ROUND
    n = t - _ROUND
    near, rest = x - n * _LN2, n * _LN2_REST
    r = near - rest
    lost = (near - r) - rest
    p = _P64[10]
    p = p * r + _P64[9]
    p = p * r + _P64[8]
    p = p * r + _P64[7]
    p = p * r + _P64[6]
    p = p * r + _P64[5]
    p = p * r + _P64[4]
    p = p * r + _P64[3]
    p = p * r + _P64[2]
    p = p * r + _P64[1]
    p = p * r + _P64[0]
    one = 1.0 + r
    return _from_bits(_bits(one + (p * (r * r) + ((r - (one - 1.0)) + lost))) + ((_bits(t) + k) << 52))


@jit(**EXACT)
def _exp32(x: float, k: int) -> float:
    t = x * _LOG2_E + _ROUND
    n = t - _ROUND
    r = (x - n * _LN2) - n * _LN2_REST
    p = _P32[5]
    p = p * r + _P32[4]
    p = p * r + _P32[3]
    p = p * r + _P32[2]
    p = p * r + _P32[1]
    p = p * r + _P32[0]
    return _from_bits(_bits(1.0 + (p * (r * r) + r)) + ((_bits(t) + k) << 52))


def exp(x: float, k: int, like: Any) -> float:
    """exp(x) · 2^k in float64, as exact as a result in the dtype of `like` needs."""
    raise NotImplementedError


@overload(exp)
def _exp(x, k, like):  # annotated or not, both must be alike
    if like == types.float32:
        return lambda x, k, like: _exp32(x, k)
    return lambda x, k, like: _exp64(x, k)


@jit(**EXACT)
def exponent(x: float) -> int:
    """The n of exp(x) = 2^n · (0.7 … 1.42)."""
    return _bits(x * _LOG2_E + _ROUND) - _bits(_ROUND)


# ---------------------------------------------------------------------------------------------------------------------
# log1p(u) for 0 ≤ u < 2¹⁰⁰⁰: 1 + u = 2^k (1 + z), s = z / (2 + z), log(1 + z) = 2s + s³ L(s²)

_SQRT_HALF = 0x3FE6A09E667F3BCD  # its bit pattern
_ONE = 0x3FF0000000000000
_L = tuple(
    map(
        float.fromhex,
        (
            "0x1.5555555555555p-1",
            "0x1.9999999999a39p-2",
            "0x1.2492492476a1ap-2",
            "0x1.c71c7201a55d7p-3",
            "0x1.745cf8e4bba1bp-3",
            "0x1.3b1c3c1c81c8fp-3",
            "0x1.0fbde0f4ad17bp-3",
            "0x1.0c0aff044a970p-3",
        ),
    )
)


@jit(**EXACT)
def log1p(u: float) -> float:
    f = 1.0 + u
    lost = u - (f - 1.0) if u < 1.0 else 1.0 - (f - u)
    bits = _bits(f)
    k = (bits + (_ONE - _SQRT_HALF)) >> 52
    k = k - 1023
    reduced = _from_bits(bits - (k << 52))
    z = u if k == 0 else reduced - 1.0
    lost = 0.0 if k == 0 else _from_bits((1023 - k) << 52) * lost * (1.0 - z * (1.0 - z))  # over 1 + z
    s = z / (2.0 + z)
    w = s * s
    p = _L[7]
    p = p * w + _L[6]
    p = p * w + _L[5]
    p = p * w + _L[4]
    p = p * w + _L[3]
    p = p * w + _L[2]
    p = p * w + _L[1]
    p = p * w + _L[0]
    # log(1 + z) = z − (z²/2 − s (z²/2 + s² L)): z itself is exact
    half = 0.5 * z * z
    n = _from_bits(_bits(_ROUND) + k) - _ROUND
    whole = n * _LN2
    high = whole + z
    low = z - (high - whole) if k != 0 else 0.0
    return high + (low + ((n * _LN2_REST + lost) - (half - s * (half + w * p))))
