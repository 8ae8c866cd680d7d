"""Arrays of a backend in and out, for tests that compare with another library."""

import numpy as np
import pytest

from xsoftmax import choose


def forget_choices():
    """After this, the registry is read anew."""
    choose.forget()


def skip_inexact(xb):
    if xb.name == "mlx":
        pytest.skip("the float32 exp of mlx is off by up to 42 ulp")


def widest(xb):
    return "float64" if xb.float64 else "float32"


def default_float(xb):
    device = {} if xb.name == "mlx" else {"device": xb.device}
    return xb.xp.zeros(1, **device).dtype


def put(xb, a):
    """Floats in the backend's widest dtype, anything else as it is."""
    a = np.asarray(a)
    return xb.asarray(a, dtype=widest(xb) if a.dtype.kind == "f" else None)


def get(xb, result):
    """NumPy array, or a tuple of them."""
    return tuple(map(xb.to_numpy, result)) if isinstance(result, tuple) else xb.to_numpy(result)


def assert_close(xb, found, expected, *, scale=1.0):
    """Within a few roundings of the other library, which promises no bound of its own."""
    eps = np.finfo(widest(xb)).eps
    np.testing.assert_allclose(found, expected, rtol=32 * eps, atol=32 * eps * scale)
