"""Exact results in extended precision, on a sample of rows, and how far a contender is from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..verify.extended import REFERENCES, Long, screen
from ..verify.formats import FORMATS
from .inputs import Inputs

SAMPLE = 1 << 18  # elements that are compared
PIECE = 1 << 20  # elements that are exponentiated at a time
DEVICE_PIECE = 1 << 26  # on a device, in float64
HALF = ("float16", "bfloat16")


class Wrong(Exception):
    """A result of another shape or dtype, or far off."""


class Part(NamedTuple):
    """One array of a result, on the sampled rows: exact values, what their ulps are those of, what is large there."""

    shape: tuple[int, ...]
    value: np.ndarray
    unit: np.ndarray
    scale: np.ndarray


class Reference:
    """The exact result of a verb."""

    def __init__(self, verb: str, inputs: Inputs):
        self.inputs = inputs
        self.which = inputs.once(sampled)
        x = inputs.rows(inputs.x, self.which)
        if verb == "logsumexp":
            value, unit = REFERENCES[verb]({"x": x})[0]
            self.parts = [Part(inputs.labels.shape, value, unit, unit)]
        elif not verb.startswith("cross_entropy"):
            value, unit = REFERENCES[verb]({"x": x})[0]
            self.parts = [Part(inputs.x.shape, value, unit, unit.max(axis=-1, keepdims=True))]
        else:
            loss = inputs.once(mean_loss)
            self.parts = [Part((), loss, loss, loss)]
            if verb == "cross_entropy_and_grad":
                rows = {"logits": x, "targets": inputs.rows(inputs.labels, self.which)}
                value, unit = (a / Long(inputs.labels.size) for a in REFERENCES["cross_entropy_grad"](rows)[0])
                # a confident, right row is all small: p − 1 is poor there, not wrong
                self.parts.append(Part(inputs.x.shape, value, unit, np.asarray(1 / Long(inputs.labels.size))))

    def ulps(self, results: tuple[Any, ...]) -> float:
        """The worst error in ulps of the exact result, of logsumexp in those of max(|m|, log s).

        Raises Wrong where less than half of the digits are right, measured at what is large in a row.
        """
        if len(results) != len(self.parts):
            raise Wrong(f"returns {len(results)} arrays, expected {len(self.parts)}")
        return max(self._worst(got, part) for got, part in zip(results, self.parts, strict=True))

    def _worst(self, got: Any, part: Part) -> float:
        dtype, shape = self.inputs.x.dtype.name, part.shape
        dtypes = (dtype, "float32") if dtype in HALF and shape == () else (dtype,)
        if got.shape != shape or got.dtype.name not in dtypes:
            raise Wrong(f"returns {got.dtype.name} of shape {got.shape}, expected {dtype} of shape {shape}")
        got = self.inputs.rows(got, self.which) if shape else self.inputs.to_host(got)
        error = np.max(np.abs(got.astype(Long) - part.value) / part.scale)
        if not error <= 2.0 ** (-FORMATS[dtype].digits / 2):
            raise Wrong(f"is off by {float(error):.2g} of what is large in a row")
        return float(np.max(screen(got, part.value, part.unit)))


def sampled(inputs: Inputs) -> tuple[np.ndarray, ...]:
    """Indices of some rows: the first and last one, where blocks begin and end, and random ones; all of few."""
    shape, size = inputs.labels.shape, inputs.labels.size
    count = max(4, SAMPLE // inputs.x.shape[inputs.axis])
    if size <= count:
        return np.unravel_index(np.arange(size), shape)
    chosen = np.random.default_rng(1).integers(0, size, count - 2)
    return np.unravel_index(np.unique([0, *chosen, size - 1]), shape)


def mean_loss(inputs: Inputs) -> np.ndarray:
    """Mean of log Σ exp(x_i − m) + (m − x_t) over all rows; on a device in float64."""
    xp, on_host = inputs.xp, inputs.xp is np
    wide, piece = (Long, PIECE) if on_host else (xp.float64, DEVICE_PIECE)
    step = max(1, piece // inputs.x[0].size)
    total = Long(0)
    for start in range(0, len(inputs.x), step):
        part = slice(start, start + step)
        x = xp.moveaxis(inputs.x[part], inputs.axis, -1).astype(wide)
        m = x.max(axis=-1, keepdims=True)
        far = (m - xp.take_along_axis(x, inputs.labels[part][..., None], -1))[..., 0]
        total += Long(inputs.to_host(xp.sum(xp.log(xp.sum(xp.exp(x - m), axis=-1)) + far)))
    return np.asarray(total / inputs.labels.size)
