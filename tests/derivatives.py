"""Derivatives of softmax and log_softmax at the exact logits, by mpmath, with the units of their products."""

import numpy as np

from xsoftmax.verify.exact import Exact
from xsoftmax.verify.formats import MP
from xsoftmax.verify.inputs import numpy_dtype
from xsoftmax.verify.rows import as_float64


def logits(dtype, shape=(60, 5), seed=0):
    """Rows of margins from 0 to 100, some with two equal maxima, some with −∞."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    x[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] += np.linspace(0, 100, shape[0])
    x[::9, 0] = x[::9, 1] = 3
    x[4::9, 2] = -np.inf
    return x.astype(numpy_dtype(dtype))


def vectors(dtype, shape=(60, 5), seed=1):
    """Entries alone, alike, and of any size."""
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(2, *shape)) * np.exp(rng.uniform(-3, 3, (2, *shape)))
    v[:, ::4] = np.eye(shape[1])[rng.integers(shape[1], size=(2, len(v[0, ::4])))]
    v[:, 1::4] = 1.5
    return v.astype(numpy_dtype(dtype))


def exact(order, x, u, w=None, temperature=1.0, where=None):
    """`order`: "softmax", "log_softmax vjp", "log_softmax jvp", or the second derivatives "… twice" along u and w."""
    kind = "log_product" if order in ("log_softmax vjp", "log_softmax jvp") else "vector_product"
    result = Exact(kind, x.dtype.name)
    columns = [as_float64(a) for a in (x, u, u if w is None else w)]
    kept = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    with MP.workprec(700):
        for row, a, b, keep in zip(*columns, kept, strict=True):
            z = [MP.mpf(i) / temperature if k else MP.mpf("-inf") for i, k in zip(row.tolist(), keep, strict=True)]
            a, b = ([MP.mpf(i) if k else MP.mpf(0) for i, k in zip(c.tolist(), keep, strict=True)] for c in (a, b))
            e = [MP.exp(i - max(z)) for i in z]
            y = [i / MP.fsum(e) for i in e]
            for i, k in enumerate(keep):
                value, unit = _ENTRIES[order](i, y, a, b)
                scale = temperature ** (2 if order.endswith("twice") else 1)
                lost = (1 + MP.fsum(_size(a))) * (1 + MP.fsum(_size(b) if order.endswith("twice") else [])) / scale
                result.add(value / scale if k else MP.mpf(0), unit / scale, **{"underflowing sums": lost})
    result.index = np.arange(x.size).reshape(x.shape)
    return result


def _mean(y, v):
    return MP.fsum(a * b for a, b in zip(y, v, strict=True))


def _size(v):
    return [abs(a) for a in v]


def _softmax(i, y, u, _):
    return y[i] * (u[i] - _mean(y, u)), y[i] * (abs(u[i]) + _mean(y, _size(u)))


def _log_softmax(i, y, u, vjp):
    factors = [y[i]] * len(y) if vjp else y
    others = [(f, a) for j, (f, a) in enumerate(zip(factors, u, strict=True)) if j != i]
    not_y = MP.fsum(a for j, a in enumerate(y) if j != i)
    return u[i] * not_y - MP.fsum(f * a for f, a in others), abs(u[i]) * not_y + MP.fsum(f * abs(a) for f, a in others)


def _softmax_twice(i, y, u, w):
    m, n = _mean(y, u), _mean(y, w)
    value = y[i] * ((u[i] - m) * (w[i] - n) - _mean(y, [(a - m) * (b - n) for a, b in zip(u, w, strict=True)]))
    m, n = _mean(y, _size(u)), _mean(y, _size(w))
    size = [(a + m) * (b + n) for a, b in zip(_size(u), _size(w), strict=True)]
    return value, y[i] * (size[i] + _mean(y, size))


def _log_softmax_twice(i, y, u, w):
    value, unit = _softmax(i, y, w, None)
    return -MP.fsum(u) * value, MP.fsum(_size(u)) * unit


_ENTRIES = {
    "softmax": _softmax,
    "log_softmax vjp": lambda i, y, u, _: _log_softmax(i, y, u, True),
    "log_softmax jvp": lambda i, y, u, _: _log_softmax(i, y, u, False),
    "softmax twice": _softmax_twice,
    "log_softmax twice": _log_softmax_twice,
}
