"""The shapes that are timed: of long and short rows as many as make a large array, of others what the shape says."""

from __future__ import annotations

import math

from ...verify.inputs import numpy_dtype
from ..options import SMALL

Shape = tuple[int, ...]

LARGE = 256e6  # bytes of an array
LONG = (
    *((32_768, classes) for classes in (256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)),
    (16_384, 131_072),
    (8_192, 262_144),
)
SHORT = tuple((1, classes) for classes in (10, 16, 33, 64, 100, 128))
AS_SAID = (
    (8_192, 128_256),
    (1, 1_000_000),
    (8, 128_256),
    (32, 152_064),
    (256, 50_257),
    (65_536, 10),
    (65_536, 33),
    (1_000_000, 100),
    (8, 21, 512, 512),
)
DOUBLE = ((4_096, 4_096), (1_024, 131_072))


def shapes(dtype: str) -> list[Shape]:
    """The one of small calls first."""
    if dtype == "float64":
        return [SMALL, *DOUBLE]
    return [SMALL, *(raised(shape, dtype) for shape in (*LONG, *SHORT)), *AS_SAID]


def raised(shape: Shape, dtype: str) -> Shape:
    """With the rows of a large array, if those are more."""
    rows, classes = shape
    return max(rows, math.ceil(LARGE / (classes * numpy_dtype(dtype).itemsize))), classes
