"""Compare, then time: all contenders on one verb, shape and dtype."""

from __future__ import annotations

import numpy as np

from .contenders import COPY, Call, Contender, Unavailable, copy
from .inputs import Inputs
from .reference import Reference, Wrong
from .rows import Row
from .timing import interleaved

GIGABYTE = 1e9


class Group:
    """All contenders on one verb, shape and dtype."""

    def __init__(self, verb: str, inputs: Inputs, memory: float, held: int):
        self.verb, self.inputs, self.memory, self.held = verb, inputs, memory, held
        self.reference = Reference(verb, inputs)
        self.calls: dict[tuple[str, bool], Call] = {(COPY, False): copy(inputs)}
        self.rows: dict[tuple[str, bool], Row] = {}

    def admit(self, name: str, contender: Contender | str, *, out: bool) -> None:
        """Run a contender once and compare its result; a str is the reason why there is none."""
        row = self.rows[name, out] = {
            "verb": self.verb,
            "shape": list(self.inputs.x.shape),
            "axis": self.inputs.axis,
            "dtype": self.inputs.x.dtype.name,
            "contender": name,
            "out": out,
        }
        try:
            if isinstance(contender, str):
                raise Unavailable(contender)
            call, row["ulps"] = self._checked(contender, out=out)
        except Wrong as error:
            row.update(status="wrong", reason=str(error))
        except Unavailable as error:
            row.update(status="skipped", reason=str(error))
        except Exception as error:  # each library has its own for what it can't do
            first, _, _ = str(error).partition("\n")
            row.update(status="skipped", reason=f"{type(error).__name__}: {first}")
        else:
            row["status"] = "timed"
            self.calls[name, out] = call

    def _checked(self, contender: Contender, *, out: bool) -> tuple[Call, float]:
        x, buffer = self.inputs.x, self.inputs.buffer
        call = contender.call(self.verb, self.inputs, out=out)
        needed = self.held * x.nbytes + contender.needs(self.verb, x)
        if needed > self.memory:
            raise Unavailable(f"needs {needed / GIGABYTE:.1f} GB, allowed are {self.memory / GIGABYTE:.1f}")
        buffer.fill(np.nan)  # what another contender wrote there would pass for the result
        with call.context():
            result = call.run()
        results = tuple(contender.to_numpy(a) for a in (result if isinstance(result, tuple) else (result,)))
        if out and not np.may_share_memory(results[-1], buffer):
            raise Wrong("did not write to out")
        return call, self.reference.ulps(results)

    def time(self, repeats: int, pause: float) -> None:
        """Add the times to the rows."""
        runs, batches = interleaved(self.calls, repeats, pause)
        copied = float(np.median(runs[COPY, False]))
        for key, times in runs.items():
            if key in self.rows:
                low, middle, high = map(float, np.percentile(times, (25, 50, 75)))
                figures = {"seconds": middle, "quartiles": [low, high], "best": min(times), "batch": batches[key]}
                self.rows[key].update(figures, copy_seconds=copied, over_copy=middle / copied)
