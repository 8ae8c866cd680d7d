"""No floating-point warnings."""

from __future__ import annotations

import numpy as np

# a decorator; each thread has warnings of its own, and infinite and 0 are results as others
quietly = np.errstate(all="ignore")
