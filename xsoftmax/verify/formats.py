"""Binary floating-point formats, and the arbitrary-precision context in which their ulps are taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import mpmath

MP = mpmath.MPContext()  # a context of its own: the user's mpmath.mp keeps its precision


@dataclass(frozen=True)
class Format:
    """A binary floating-point format."""

    digits: int
    lowest: int  # exponent of the smallest normal number
    highest: int  # exponent of the largest binade

    @property
    def tiny(self) -> float:
        return math.ldexp(1, self.lowest)

    @property
    def quantum(self) -> float:
        """The smallest subnormal number."""
        return math.ldexp(1, self.lowest - self.digits + 1)

    @cached_property
    def overflow(self):
        """The smallest magnitude that rounds to infinity."""
        return MP.ldexp(MP.mpf(2) ** (self.digits + 1) - 1, self.highest - self.digits)

    def ulp(self, magnitude) -> float:
        """The unit in the last place of the binade of ``magnitude``, an mpf."""
        if not magnitude or not MP.isfinite(magnitude):
            return self.quantum
        _, _, exponent, bits = magnitude._mpf_
        return math.ldexp(1, min(max(exponent + bits - 1, self.lowest), self.highest) - self.digits + 1)


FORMATS = {
    "float16": Format(11, -14, 15),
    "bfloat16": Format(8, -126, 127),
    "float32": Format(24, -126, 127),
    "float64": Format(53, -1022, 1023),
}


def promoted(*names: str) -> str:
    """The narrowest format that holds all of `names`: float16 and bfloat16 meet in float32."""
    return names[0] if len(set(names)) == 1 else "float64" if "float64" in names else "float32"
