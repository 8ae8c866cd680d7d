"""Verdicts in ulps: a computed array against an exact one, under the accuracy contract."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .exact import Exact, Total, amount
from .formats import FORMATS, MP, Format
from .rows import AsRows, distinct

COLUMNS = ("half", "half native", "float32", "float32 native", "float64")

# Largest error in ulps, column by column; "native" is without float64 at hand. None: not promised.
CONTRACT: dict[str, tuple[float | None, ...]] = {
    "softmax": (1, 1, 1, 8, 6),
    "log_softmax": (1, 1, 1, 8, 6),
    "logsumexp": (1, 1, 1, 4, 4),  # of max(|m|, |log s|, |result|); signed b: times Σ |b|e^x / |Σ b e^x|
    "sign": (0, 0, 0, 0, 0),
    "cross_entropy": (1, 8, 1, 8, 6),  # half logits: float32 ulps
    "reduced loss": (2, 10, 2, 10, 8),  # the rows' and on top of them 1, 2, 2, of Σ |terms|
    "gradient": (1, 1, 1, 8, 6),  # integer or one-hot targets, the target entry included
    "general_gradient": (1, 1, 1, 8, 6),  # of max(y·Q, q)
    "hessian_diag": (1, 1, 1, 8, 6),
    "vector_product": (1, 1, 1, 8, 6),  # of y_i(|v_i| + Σ y|v|)
    "log_product": (1, 1, 1, 8, 6),  # of |v_i|(1 − y_i) and Σ_{j≠i} of y_i|v_j| (vjp) or y_j|v_j| (jvp)
    "jacobian": (1, 1, 1, 8, 6),
    "linear_gradient": (1, 1, 2, 8, 6),  # g @ w and gᵀ @ x, of n Σ |terms|: half of one is the product's, in any order
    "divergence": (1, 1, 1, 8, 6),  # of Σ |terms|
    "sum of softmax": (None, None, 1, 2, 2),  # Σ softmax − 1, in eps
    "row sum of gradient": (None, None, 2, 4, 4),  # in ulp(max |g|)
    "row sum of general gradient": (None, None, 4, 4, 4),  # in eps·Q
}

# What may be off by more, and by how much.
EXCEPTIONS: dict[str, float] = {
    "underflowing sums": 1,  # times C smallest subnormals (smallest normals where flushed) in q
    "signed terms": 4,  # roundings of each b e^x below the maximum, which a sum near ±1 makes much of
    "flushed subnormals": 0,  # a subnormal result may be this, where the backend flushes
    "temperature": 2,  # roundings u·|z| of each transformed logit, in the compute dtype: a reciprocal and a product
    "softcap": 8,  # likewise: two divisions, a product and a tanh of 2.5 ulp
    "off the simplex": 1,  # times |1 − Σ y| of the y given
    "missing dtype": 0,  # reported as absent, not as passed
}

NON_NEGATIVE = ("softmax", "cross_entropy", "reduced loss")
SHOWN = 3  # failures of a kind in one result
POSITIVE_ZERO = ("cross_entropy", "reduced loss")


@dataclass(frozen=True)
class Arithmetic:
    """What the bounds depend on: the logits' dtype, and what the backend computes with."""

    dtype: str
    float64: bool = True
    flushes: bool = False

    @property
    def column(self) -> str:
        if self.dtype == "float64":
            return "float64"
        kind = "float32" if self.dtype == "float32" else "half"
        return kind if self.float64 else f"{kind} native"

    def compute(self, result: str) -> Format:
        """The dtype computed in: half logits in float32, their loss and float32 logits in float64 where at hand."""
        wide = self.float64 and result in ("float32", "float64")
        return FORMATS["float64" if wide or self.dtype == "float64" else "float32"]

    def bound(self, kind: str) -> float | None:
        return CONTRACT[kind][COLUMNS.index(self.column)]


@dataclass
class Verdict:
    """What a comparison found; ``worst`` leaves out what an exception covered."""

    worst: float = 0.0
    bound: float = 0.0
    compared: int = 0
    exempted: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def merge(self, other: Verdict) -> None:
        if other.worst / (other.bound or 1) >= self.worst / (self.bound or 1):
            self.worst, self.bound = other.worst, other.bound
        self.compared += other.compared
        self.exempted += other.exempted
        self.failures += other.failures


def judge(got: np.ndarray, exact: Exact, arithmetic: Arithmetic) -> Verdict:
    """Compare every element, the sums of rows, the signs and the equalities of one result."""
    bound = arithmetic.bound(exact.kind)
    if bound is None:
        raise LookupError(f"the contract has no bound for {exact.kind} in {arithmetic.column}")
    if got.dtype.name != exact.dtype or not got.dtype.isnative:
        return Verdict(math.inf, bound, failures=[f"dtype {got.dtype}, expected {exact.dtype}"])
    if got.shape != exact.index.shape:
        return Verdict(math.inf, bound, failures=[f"shape {got.shape}, expected {exact.index.shape}"])
    if not got.size:
        # an empty result is its shape and dtype
        return Verdict(0.0, bound, compared=1)
    values = np.atleast_1d(got.astype(np.float64))
    verdict = _elements(values, exact, arithmetic, bound)
    verdict.failures += _signs(values, exact) + _equalities(values, exact)
    if exact.totals:
        verdict.merge(_totals(values, exact, arithmetic))
    return verdict


def _elements(got: np.ndarray, exact: Exact, arithmetic: Arithmetic, bound: float) -> Verdict:
    target = FORMATS[exact.dtype]
    index = np.atleast_1d(exact.index)
    near, rest, ulp = (a[index] for a in exact.pairs)
    with np.errstate(all="ignore"):
        error = np.abs((got - near) / ulp - rest)
    # An exact value that overflows may come back as the largest number only within the bound.
    special = ~np.isfinite(near) | ~np.isfinite(got)
    same = (got == near) | (np.isnan(got) & np.isnan(near))
    error = np.where(special, np.where(same, 0.0, np.inf), error)
    limit = math.ldexp(2 - 2.0 ** (1 - target.digits), target.highest)
    overflowed = np.isinf(near) & (np.abs(got) == limit) & (np.sign(got) == np.sign(near)) & (bound >= 1)
    if overflowed.any():
        finite = np.array([bool(MP.isfinite(v)) and abs(v) < 2 * target.overflow for v in exact.values])
        error[overflowed & finite[index]] = 1.0
    excess = error > bound
    vanished = (got == 0) & ~excess & (exact.kind in POSITIVE_ZERO) & (np.abs(near) > target.quantum / 2)
    suspects = excess | vanished
    exempted: Counter = Counter()
    places = np.nonzero(suspects)
    columns = index[places], got[places], error[places], np.where(excess[places], bound, 0.0)
    kinds, codes, counts = distinct(*columns)
    entries = zip(*(a.tolist() for a in kinds), strict=True)
    covers = [_exemption(code, found, off, most, exact, arithmetic) for code, found, off, most in entries]
    for cover, count in zip(covers, counts.tolist(), strict=True):
        if cover:
            exempted[cover] += count
    suspects[places] = np.array([cover is None for cover in covers], bool)[codes]
    counted = ~(excess & ~suspects)
    worst = float(np.max(error, where=counted, initial=0.0))
    failures = _report(
        suspects,
        lambda p: (
            f"got {got[p]:.9g}, exact {_digits(exact.values[index[p]])}, "
            + (f"{error[p]:.3g} ulp, at most {bound:g}" if excess[p] else "0 only if the true loss rounds to 0")
        ),
    )
    return Verdict(worst, bound, got.size, exempted, failures)


def _exemption(code: int, got: float, error: float, bound: float, exact: Exact, arithmetic: Arithmetic) -> str | None:
    """The exception that covers an error, or None."""
    target, compute = FORMATS[exact.dtype], arithmetic.compute(exact.dtype)
    value, slack = exact.values[code], exact.slack[code]
    if arithmetic.flushes and got == EXCEPTIONS["flushed subnormals"] and abs(value) < target.tiny:
        return "flushed subnormals"
    if not math.isfinite(error):
        return None
    size = {
        "underflowing sums": compute.tiny if arithmetic.flushes else compute.quantum,
        "off the simplex": 1,
        "signed terms": math.ldexp(1, -compute.digits),
        "temperature": math.ldexp(1, -compute.digits),
        "softcap": math.ldexp(1, -compute.digits),
    }
    allowed = {name: EXCEPTIONS[name] * a * size[name] for name, given in slack.items() if (a := amount(given))}
    off = abs(MP.mpf(got) - value) - bound * target.ulp(exact.units[code])
    if not allowed or off > sum(allowed.values()):
        return None
    return max(allowed, key=allowed.__getitem__)


def _signs(got: np.ndarray, exact: Exact) -> list[str]:
    failures = []
    if exact.kind in NON_NEGATIVE and not any(v < 0 for v in exact.values):
        failures += _report(got < 0, lambda p: f"{got[p]:.9g} is negative")
    if exact.kind in POSITIVE_ZERO:
        failures += _report((got == 0) & np.signbit(got), lambda p: "−0.0")
    if exact.kind == "softmax":
        failures += _report(got > 1, lambda p: f"{got[p]:.9g} is above 1")
    if exact.kind == "log_softmax":
        failures += _report(got > 0, lambda p: f"{got[p]:.9g} is above 0")
    return failures


def _equalities(got: np.ndarray, exact: Exact) -> list[str]:
    """Equal inputs give bit-equal outputs (up to the sign of a zero)."""
    index = np.atleast_1d(exact.index)
    levels, first = np.unique(index, return_index=True)
    representative = np.empty(len(exact.values))
    representative[levels] = got.reshape(-1)[first]
    other = representative[index]
    different = (other != got) & ~(np.isnan(other) & np.isnan(got))
    return _report(different, lambda p: f"{got[p]!r}, but {other[p]!r} for the same input")


def _totals(got: np.ndarray, exact: Exact, arithmetic: Arithmetic) -> Verdict:
    verdict = Verdict()
    target = FORMATS[exact.dtype]
    rows = AsRows(got.shape, exact.axes).split(got)
    for i, (row, total) in enumerate(zip(rows, exact.totals, strict=True)):
        bound = arithmetic.bound(total.kind) if total else None
        if total is None or bound is None or not np.isfinite(row).all():
            continue
        error, unit = _total_error(row, total, target)
        # C entries are each off by half a quantum, or by all of it where subnormals are flushed
        grain = row.size * (target.tiny if arithmetic.flushes else target.quantum)
        verdict.compared += 1
        excess = max(error - grain, 0.0)
        measured = excess and (excess / unit if unit else math.inf)  # a row of no weight has no unit
        if measured / bound >= verdict.worst / (verdict.bound or 1):
            verdict.worst, verdict.bound = measured, bound
        if measured > bound:
            verdict.failures.append(f"row {i}: {total.kind} is off by {measured:.3g}, at most {bound:g}")
        elif error > bound * unit:
            verdict.exempted["underflowing sums"] += 1
    verdict.failures = _abridged(verdict.failures, len(verdict.failures))
    return verdict


def _total_error(row: np.ndarray, total: Total, target: Format) -> tuple[float, float]:
    error = abs(math.fsum([*row.tolist(), -float(total.value)]))
    if total.kind == "row sum of gradient":
        return error, target.ulp(total.unit)
    return error, float(total.unit) * math.ldexp(1, 1 - target.digits)


def _report(found: np.ndarray, describe: Callable[[tuple[int, ...]], str]) -> list[str]:
    """Where and what, for the first few places, and how many more there are."""
    count = int(np.count_nonzero(found))
    if not count:
        return []
    places = [tuple(map(int, place)) for place in np.argwhere(found)[:SHOWN]]
    return _abridged([f"{list(place)}: {describe(place)}" for place in places], count)


def _abridged(failures: list[str], count: int) -> list[str]:
    return failures if count <= SHOWN else [*failures[:SHOWN], f"… and {count - SHOWN} more"]


def _digits(value) -> str:
    return MP.nstr(value, 9, min_fixed=-4, max_fixed=7)
