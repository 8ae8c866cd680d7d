"""Compare, then time: all contenders on one verb, shape and dtype."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .contenders import COPY, Call, Contender, Unavailable, copy
from .inputs import Inputs
from .reference import Reference, Wrong
from .rows import Row

GIGABYTE = 1e9
Key = tuple[str, bool]
Clock = Callable[[dict[Key, Call]], tuple[dict[Key, list[float]], dict[Key, int]]]  # seconds of a call, calls in a run


def summed_up(error: Exception) -> str:
    first, _, _ = str(error).partition("\n")
    return f"{type(error).__name__}: {first}"


class Group:
    """All contenders on one verb, shape and dtype."""

    def __init__(self, verb: str, inputs: Inputs, memory: float, held: int, spoil: Callable[[], None]):
        self.verb, self.inputs, self.memory, self.held, self.spoil = verb, inputs, memory, held, spoil
        self.reference = Reference(verb, inputs)
        self.calls: dict[Key, Call] = {(COPY, False): copy(inputs)}
        self.rows: dict[Key, Row] = {}

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
            row.update(status="skipped", reason=summed_up(error))
        else:
            row["status"] = "timed"
            self.calls[name, out] = call

    def _checked(self, contender: Contender, *, out: bool) -> tuple[Call, float]:
        x = self.inputs.x
        call = contender.call(self.verb, self.inputs, out=out)
        needed = self.held * x.nbytes + contender.needs(self.verb, x)
        if needed > self.memory:
            raise Unavailable(f"needs {needed / GIGABYTE:.1f} GB, allowed are {self.memory / GIGABYTE:.1f}")
        self.spoil()  # what another contender wrote would pass for the result
        with call.context():
            result = call.run()
        several = result if isinstance(result, tuple) else (result,)
        results = tuple(contender.to_array(array, self.inputs) for array in several)
        if out and not np.may_share_memory(results[-1], self.inputs.buffer):
            raise Wrong("did not write to out")
        return call, self.reference.ulps(results)

    def time(self, clock: Clock) -> None:
        """Add the times to the rows of those admitted since."""
        runs, batches = clock(self.calls)
        copied = float(np.median(runs[COPY, False]))
        for key, times in runs.items():
            if key in self.rows:
                low, middle, high = map(float, np.percentile(times, (25, 50, 75)))
                figures = {"seconds": middle, "quartiles": [low, high], "best": min(times), "batch": batches[key]}
                self.rows[key].update(figures, copy_seconds=copied, over_copy=middle / copied)
        self.forget()

    def forget(self) -> None:
        """All calls but the copy, and what they hold."""
        self.calls = {(COPY, False): self.calls[COPY, False]}
