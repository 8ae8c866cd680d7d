"""What the options of a loss mean, row by row, and how rows of losses are reduced."""

from __future__ import annotations

from functools import partial

import numpy as np

from .exact import Exact, Total, amount
from .formats import MP
from .mathematics import NAN, ZERO, Transform
from .rows import AsRows, as_float64, row_mask


class LossProblem:
    """Options of a loss, row by row: which rows are there, their target coefficients and their scales."""

    def __init__(
        self,
        logits: np.ndarray,
        targets: np.ndarray,
        *,
        axis: int = -1,
        where=None,
        weight=None,
        sample_weight=None,
        ignore_index=None,
        label_smoothing=0.0,
        temperature=1.0,
        softcap=None,
        z_loss=0.0,
        reduction="mean",
    ):
        self.rows = AsRows.of(logits.shape, axis)
        self.reduction, self.transform = reduction, Transform(temperature, softcap)
        self.smoothing, self.z_loss = label_smoothing, MP.mpf(z_loss)
        self.mask = row_mask(where, self.rows)
        outer, classes = self.mask.shape
        self.weight = np.ones(classes) if weight is None else as_float64(weight)
        self.sample_weight = np.ones(outer) if sample_weight is None else as_float64(sample_weight).reshape(outer)
        self.present = self.sample_weight != 0
        self.bad, self.masked = np.zeros(outer, bool), np.zeros(outer)
        class_weight = np.ones(outer)
        if targets.ndim == logits.ndim:
            self.targets = self.rows.split(as_float64(targets))
        else:
            labels = [int(t) for t in targets.reshape(-1)]
            self.present = self.present & np.array([t != ignore_index for t in labels], bool)
            self.bad = np.array([not 0 <= t < classes for t in labels], bool)
            self.targets = np.zeros(self.mask.shape)
            for i, t in enumerate(labels):
                if self.present[i] and not self.bad[i]:
                    self.targets[i, t] = 1
                    class_weight[i] = self.weight[t]
            self.masked = np.sum(np.where(self.mask, 0.0, self.weighted()), axis=-1)
        self.one_hot = label_smoothing == 0 and bool(np.all(np.sum(self.weighted() != 0, axis=-1) <= 1))
        counted = self.present & ~self.bad
        with MP.workprec(400):
            self.denominator = MP.fsum(MP.mpf(s) * MP.mpf(w) for s, w in self._pairs(counted, class_weight))
            self.z_denominator = MP.fsum(MP.mpf(s) for s, _ in self._pairs(counted, class_weight))
        if reduction == "mean" and not self.denominator:  # a mean of nothing is nan, and its gradient 0
            self.present = self.present & self.bad

    def weighted(self) -> np.ndarray:
        """Targets times class weights; 0 outweighs any."""
        shown = self.targets != 0
        return np.multiply(self.targets, self.weight, where=shown, out=np.zeros(shown.shape))

    def _pairs(self, counted, class_weight):
        return zip(self.sample_weight[counted].tolist(), class_weight[counted].tolist(), strict=True)

    def coefficients(self, q: list[float], weight: list[float], counts: list[int]) -> list:
        """w_c·((1 − ε)·q_c + ε/K), K the classes kept in this row; 0 of whatever weight is 0."""
        eps = MP.mpf(self.smoothing)
        kept = sum(counts)
        shares = [(1 - eps) * MP.mpf(a) + eps / kept for a in q]
        return [MP.mpf(w) * a if a else a for a, w in zip(shares, weight, strict=True)]

    def masked_coefficient(self, i: int):
        return (1 - MP.mpf(self.smoothing)) * MP.mpf(float(self.masked[i]))

    def scales(self, i: int) -> tuple:
        """Factors of the row's loss and of its lse²."""
        s = MP.mpf(float(self.sample_weight[i]))
        if self.reduction != "mean":
            return s, s * self.z_loss
        return s / self.denominator, s * self.z_loss / self.z_denominator

    def gradient_total(self, exact, coefs, counts, weight) -> Total | None:
        """Without transform, z-loss and masked targets the gradient of a row adds up to 0."""
        if self.z_loss or self.transform.softcap is not None or not exact.grad or not MP.isfinite(exact.loss[0]):
            return None
        largest = max(abs(g) for g, _ in exact.grad)
        if sum(n for n, q in zip(counts, coefs, strict=True) if q) <= 1:
            return Total("row sum of gradient", ZERO, largest)
        return Total("row sum of general gradient", ZERO, weight / self.transform.temperature)


class Reduction:
    """The losses of rows, reduced."""

    def __init__(self, problem, dtype: str):
        self.problem = problem
        self.exact = Exact("cross_entropy" if problem.reduction == "none" else "reduced loss", dtype)
        self.values: list = []
        self.slack: list[dict] = []
        self.units: list = []

    def add(self, i: int, value, unit, slack: dict) -> None:
        if self.problem.reduction == "none":
            self.exact.add(value, unit, **slack)
        self.values.append(value)
        self.units.append(unit)
        self.slack.append(slack)

    def result(self) -> Exact:
        exact = self.exact
        if self.problem.reduction == "none":
            exact.index = np.arange(len(exact.values)).reshape(self.problem.rows.outer_shape)
            return exact
        exact.index = np.zeros((), np.int64)
        names = {name for slack in self.slack for name in slack}
        with MP.workprec(400):
            total = MP.fsum(self.values) if not any(MP.isnan(a) for a in self.values) else NAN
            unit = MP.fsum(u for u, a in zip(self.units, self.values, strict=True) if MP.isfinite(a))
        nothing = self.problem.reduction == "mean" and not self.problem.present.any()
        exact.add(NAN if nothing else total, unit, **{name: partial(self._sum, name) for name in names})
        return exact

    def _sum(self, name: str):
        with MP.workprec(400):
            return MP.fsum(amount(slack.get(name, ZERO)) for slack in self.slack)
