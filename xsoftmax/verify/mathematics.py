"""The mathematics of one row in arbitrary precision, by the definitions, on exact shifts of the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .formats import MP

NAN, INF, ZERO, ONE = MP.mpf("nan"), MP.mpf("inf"), MP.mpf(0), MP.mpf(1)


@dataclass(frozen=True)
class Transform:
    """z = softcap·tanh(x/softcap)/temperature."""

    temperature: float = 1.0
    softcap: float | None = None

    def __call__(self, x: float):
        if math.isinf(x) or math.isnan(x):
            return MP.mpf(x)
        z = MP.mpf(x)
        if self.softcap is not None:
            z = self.softcap * MP.tanh(z / self.softcap)
        return z / self.temperature

    def slopes(self, z):
        """dz/dx and d²z/dx², as functions of z."""
        if self.softcap is None:
            return ONE / self.temperature, ZERO
        t = MP.sign(z) if MP.isinf(z) else z * self.temperature / self.softcap
        slope = (1 - t * t) / self.temperature
        return slope, -2 * t * slope / self.softcap

    @property
    def exact(self) -> bool:
        """True where floating-point arithmetic makes no error: a power of two and no cap."""
        return self.softcap is None and math.frexp(self.temperature)[0] == 0.5

    @property
    def roundings(self) -> str:
        return "temperature" if self.softcap is None else "softcap"


IDENTITY = Transform()


def working_bits(x: np.ndarray, counts: np.ndarray, transform: Transform = IDENTITY) -> int:
    """Bits so that log W and 1 − y keep 200 bits after their cancellation: e^−gap is 1.45·gap bits below 1."""
    finite = np.isfinite(x)
    if not finite.any():
        return 240
    x, counts = x[finite], counts[finite]
    bits = 240.0
    largest = float(np.max(np.abs(x)))
    with np.errstate(all="ignore"):
        if transform.softcap is not None:
            x = transform.softcap * np.tanh(x / transform.softcap)
            # 1 − tanh² = 4·e^−2a is 2.9·a bits below 1
            bits += 3 * min(largest / transform.softcap, 400)
        top = np.max(x)
        gap = (top - np.max(x[x < top], initial=-np.inf)) / transform.temperature
    if counts[x == top].sum() == 1 and x.size > 1:
        bits += 1.45 * min(float(gap), 800)
    return int(bits + max(0.0, math.log2(largest or 1) - math.log2(transform.temperature)))


def exp(a):
    """e^a; a large power goes by one of 2, or mpmath would raise e to it."""
    if not a < -1000 or MP.isinf(a):
        return MP.exp(a)
    k = int(MP.floor(a / MP.ln2))
    return MP.ldexp(MP.exp(a - k * MP.ln2), k)


@dataclass(frozen=True)
class State:
    """The row's maximum, log Σ e^(z − m), logsumexp, probabilities and −log probabilities of its distinct logits."""

    m: Any
    log_w: Any
    lse: Any
    y: list
    nll: list

    @property
    def lse_unit(self):
        return max(abs(self.m), abs(self.log_w), abs(self.lse)) if MP.isfinite(self.lse) else abs(self.lse)


def state(z: Sequence, counts: Sequence[int]) -> State:
    """The state of distinct logits ``z`` that occur ``counts`` times; nan where the row has no probabilities."""
    undefined = [NAN] * len(z)
    if any(MP.isnan(a) for a in z):
        return State(NAN, NAN, NAN, undefined, undefined)
    m = max(z, default=-INF)
    if MP.isinf(m):
        return State(m, NAN, m, undefined, undefined)
    w = [exp(a - m) for a in z]
    total = MP.fsum(n * a for n, a in zip(counts, w, strict=True))
    log_w = MP.log(total)
    return State(m, log_w, m + log_w, [a / total for a in w], [log_w + (m - a) for a in z])


@dataclass(frozen=True)
class LossRow:
    """Value and unit of each result of a row of cross-entropy; the lists go by distinct class."""

    loss: tuple
    grad: list[tuple]
    hessian_diag: list[tuple]
    hvp: list[tuple]

    def values(self) -> list:
        return [value for value, _ in (self.loss, *self.grad, *self.hessian_diag, *self.hvp)]


def loss_row(z, counts, coefs, transform: Transform, scale, z_scale, v, masked=ZERO) -> LossRow:
    """scale·Σ coef·nll + z_scale·lse² and its derivatives with respect to the logits before ``transform``.

    ``masked`` is the coefficient of a target class that ``where`` took out: it has no nll, but a share of the gradient.
    """
    if not z:  # nothing kept
        return LossRow((ZERO, ZERO), [], [], [])
    s = state(z, counts)
    big = s.lse_unit
    weight = abs(masked) + MP.fsum(n * abs(q) for n, q in zip(counts, coefs, strict=True))
    q_sum = masked + MP.fsum(n * q for n, q in zip(counts, coefs, strict=True))
    one_hot = sum(n for n, q in zip(counts, coefs, strict=True) if q) <= 1

    undefined = any(MP.isnan(a) for a in s.y)
    terms = [n * q * a for n, q, a in zip(counts, coefs, s.nll, strict=True) if q]
    loss = NAN if undefined else INF if masked else scale * MP.fsum(terms)
    loss_unit = abs(scale) * MP.fsum(abs(a) for a in terms)
    if z_scale and not undefined:
        loss += z_scale * s.lse**2
        loss_unit += 2 * abs(z_scale * s.lse) * big

    slopes = [transform.slopes(a) for a in z]
    u = [slope * b for (slope, _), b in zip(slopes, v, strict=True)]
    mean_u = MP.fsum(n * y * a for n, y, a in zip(counts, s.y, u, strict=True))
    mean_abs_u = MP.fsum(n * y * abs(a) for n, y, a in zip(counts, s.y, u, strict=True))
    curvature, curvature_unit = scale * q_sum, abs(scale) * weight
    z_pull, z_unit = 2 * z_scale, 2 * abs(z_scale)
    if z_scale:
        curvature += z_pull * s.lse
        curvature_unit += z_unit * big

    grad, diag, hvp = [], [], []
    for y, q, (slope, bend), a, b in zip(s.y, coefs, slopes, u, v, strict=True):
        g = scale * (q_sum * y - q)
        g_unit = abs(g) if one_hot else abs(scale) * max(weight * y, abs(q))
        if z_scale:
            g += z_pull * s.lse * y
            g_unit = max(g_unit, z_unit * big * y)
        spread = y * (1 - y)
        h, h_unit = curvature * spread + z_pull * y * y, curvature_unit * spread + z_unit * y * y
        k = curvature * y * (a - mean_u) + z_pull * y * mean_u
        k_unit = curvature_unit * y * (abs(a) + mean_abs_u) + z_unit * y * mean_abs_u
        grad.append((slope * g, slope * g_unit))
        diag.append((slope * slope * h + bend * g, slope * slope * h_unit + abs(bend) * g_unit))
        hvp.append((slope * k + bend * g * b, slope * k_unit + abs(bend * b) * g_unit))
    return LossRow((loss, loss_unit), grad, diag, hvp)


def sensitivities(function, z: list) -> list:
    """Σ_j |∂F_i/∂z_j · z_j| of every value of ``function(z)``, by differences of relative size 2^−80."""
    base = function(z)
    sums = [ZERO] * len(base)
    step = MP.ldexp(ONE, -80)
    for j, a in enumerate(z):
        if MP.isinf(a) or not a:
            continue
        moved = function([*z[:j], a * (1 + step), *z[j + 1 :]])
        sums = [s + abs(p - q) / step if MP.isfinite(q) else s for s, p, q in zip(sums, moved, base, strict=True)]
    return sums
