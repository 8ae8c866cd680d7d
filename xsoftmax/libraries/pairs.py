"""Numbers of rows in two parts, high + low: what a sum, a product or a quotient was rounded by is kept."""

from __future__ import annotations

from typing import Any, NamedTuple

from .arrays import constant, dtype_name

Array = Any

_SPLIT = {"float32": 2.0**12, "float64": 2.0**27}  # half of the digits, and one


class Pair(NamedTuple):
    """No derivative is taken of what is low: it is that of a rounding."""

    high: Array
    low: Array | float = 0.0

    def value(self) -> Array:
        return self.high + self.low


def plus(a: Pair, b: Pair, *, xp: Any) -> Pair:
    s = a.high + b.high
    part = s - a.high
    return Pair(s, _rounded_by((a.high - (s - part)) + (b.high - part) + (a.low + b.low), xp=xp))


def times(a: Pair, b: Pair, *, xp: Any) -> Pair:
    p = a.high * b.high
    (a1, a2), (b1, b2) = _halves(a.high), _halves(b.high)
    # products of halves are exact, so that no compiler changes them by fusing them with a sum
    error = ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2
    return Pair(p, _rounded_by(error + (a.high * b.low + a.low * b.high), xp=xp))


def divided(a: Pair, b: Array, *, xp: Any) -> Pair:
    q = a.high / b
    p = times(Pair(q), Pair(b), xp=xp)
    return Pair(q, _rounded_by(((a.high - p.high) - p.low + a.low) / b, xp=xp))


def _halves(a: Array) -> tuple[Array, Array]:
    far = a * _SPLIT.get(dtype_name(a), _SPLIT["float64"])
    high = (a + far) - far
    return high, a - high


def _rounded_by(low: Array, *, xp: Any) -> Array:
    """0 beside a result that is not finite, or nearly"""
    return constant(xp.where(xp.isfinite(low), low, xp.zeros_like(low)), xp)
