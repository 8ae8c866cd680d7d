"""The dtypes that kernels read by a number: those of weights and targets, and those of labels."""

from __future__ import annotations

import numpy as np

FLOATS = {np.dtype(kind): i for i, kind in enumerate((np.float32, np.float64))}
INTEGERS = {
    np.dtype(kind): i for i, kind in enumerate((np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32))
}
