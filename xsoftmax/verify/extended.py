"""Values and units of results in extended precision: less exact than the oracle, and for millions of elements."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .formats import FORMATS

Long = np.longdouble


def screen(got: np.ndarray, value: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Errors in ulps, to a few thousandths."""
    form = FORMATS[got.dtype.name]
    _, exponent = np.frexp(np.maximum(np.abs(value), unit))
    ulp = np.ldexp(Long(1), np.maximum(exponent - 1, form.lowest) - form.digits + 1)
    with np.errstate(invalid="ignore"):
        error = np.where(got == value, 0, np.abs(got.astype(Long) - value) / ulp)
    return np.where(np.isnan(error), np.inf, error)


class Row:
    """Exponentials of rows, the maximum kept out of the sum; the rounding of x − m is put back."""

    def __init__(self, logits: np.ndarray):
        x = logits.astype(Long)
        rows = np.arange(len(x)), x.argmax(axis=1)
        self.m = x[rows][:, None]
        d = x - self.m
        back = d - x
        lost = (x - (d - back)) - (self.m + back)
        w = np.exp(d) * (1 + lost)
        self.top = np.zeros(x.shape, bool)
        self.top[rows] = True
        self.q = np.sum(np.where(self.top, 0, w), axis=1, keepdims=True)
        self.y = np.where(self.top, 1, w) / (1 + self.q)
        self.rest = np.where(self.top, self.q / (1 + self.q), 1 - self.y)  # 1 − y
        self.log_sum = np.log1p(self.q)
        self.far = -d
        self.log_y = d - self.log_sum


Reference = Callable[[dict], list[tuple[np.ndarray, np.ndarray]]]


def _own(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return value, np.abs(value)


def _logsumexp(a: dict) -> list:
    r = Row(a["x"])
    m, log_sum = r.m[:, 0], r.log_sum[:, 0]
    return [(m + log_sum, np.maximum(np.abs(m), log_sum))]


class Loss(Row):
    """Cross-entropy and its derivatives."""

    def __init__(self, arrays: dict):
        super().__init__(arrays["logits"])
        t = arrays["targets"]
        self.t = (np.arange(self.y.shape[1]) == t[:, None] if t.ndim == 1 else t).astype(Long)
        self.total = np.sum(self.t, axis=1, keepdims=True)
        self.v: Any = arrays.get("v")

    def loss(self):
        return _own((self.total * self.log_sum + np.sum(self.t * self.far, axis=1, keepdims=True))[:, 0])

    def grad(self):
        others = np.sum(np.where(self.top, 0, self.t), axis=1, keepdims=True)
        g = np.where(self.top, others - self.total * self.rest, self.total * self.y - self.t)
        one_hot = np.count_nonzero(self.t, axis=1)[:, None] <= 1
        return g, np.where(one_hot, np.abs(g), np.maximum(self.total * self.y, self.t))

    def hessian_diag(self):
        return _own(self.total * self.y * self.rest)

    def hvp(self):
        return _product(self.y, self.v.astype(Long), self.total)


def _product(y: np.ndarray, v: np.ndarray, total=1) -> tuple:
    mean, mean_abs = (np.sum(y * a, axis=1, keepdims=True) for a in (v, np.abs(v)))
    return total * y * (v - mean), total * y * (np.abs(v) + mean_abs)


def _log_product(verb: str, a: dict) -> list:
    """The sum of the others is added anew for the class with more than half of y, where a difference would lose it."""
    log_y, v = a["log_y"].astype(Long), a["v"].astype(Long)
    y, not_y = np.exp(log_y), -np.expm1(log_y)
    factor = y if verb == "log_softmax_vjp" else np.ones((), Long)
    terms = v if verb == "log_softmax_vjp" else y * v
    others, others_abs = (_sum_of_others(t, y > 0.5) for t in (terms, np.abs(terms)))
    return [(v * not_y - factor * others, np.abs(v * not_y) + factor * others_abs)]


def _sum_of_others(terms: np.ndarray, top: np.ndarray) -> np.ndarray:
    rest = np.sum(np.where(top, 0, terms), axis=1, keepdims=True)
    at_top = np.sum(np.where(top, terms, 0), axis=1, keepdims=True)
    return np.where(top, rest, rest + at_top - terms)


def _arrays(a: dict) -> list[np.ndarray]:
    return [value.astype(Long) for value in a.values()]


def _log(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(p)


def _summed(terms: np.ndarray) -> list:
    return [(np.sum(terms, axis=1), np.sum(np.abs(terms), axis=1))]


def _from_probs(a: dict) -> list:
    p, t = a["probs"].astype(Long), a["targets"]
    t = (np.arange(p.shape[1]) == t[:, None] if t.ndim == 1 else t).astype(Long)
    with np.errstate(invalid="ignore"):
        return _summed(np.where(t == 0, 0, -t * _log(np.where(t == 0, 1, p))))


def _entropy(a: dict) -> list:
    (p,) = _arrays(a)
    return _summed(-p * _log(np.where(p == 0, 1, p)))


def _kl_divergence(a: dict) -> list:
    p, q = _arrays(a)
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.abs(p - q) < q / 2
        ratio = np.where(near, np.log1p((p - q) / q), np.log(p) - np.log(q))
        return _summed(np.where(p == 0, 0, p * ratio))


REFERENCES: dict[str, Reference] = {
    "softmax": lambda a: [_own(Row(a["x"]).y)],
    "log_softmax": lambda a: [_own(Row(a["x"]).log_y)],
    "logsumexp": _logsumexp,
    "softmax_vjp": lambda a: [_product(*_arrays(a))],
    "softmax_jvp": lambda a: [_product(*_arrays(a))],
    "log_softmax_vjp": partial(_log_product, "log_softmax_vjp"),
    "log_softmax_jvp": partial(_log_product, "log_softmax_jvp"),
    "cross_entropy": lambda a: [Loss(a).loss()],
    "cross_entropy_grad": lambda a: [Loss(a).grad()],
    "cross_entropy_and_grad": lambda a: [Loss(a).loss(), Loss(a).grad()],
    "cross_entropy_hvp": lambda a: [Loss(a).hvp()],
    "cross_entropy_grad_and_hessian_diag": lambda a: [Loss(a).grad(), Loss(a).hessian_diag()],
    "cross_entropy_from_probs": _from_probs,
    "entropy": _entropy,
    "kl_divergence": _kl_divergence,
}
