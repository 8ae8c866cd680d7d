"""Every verb on every case, against the exact oracle, under the accuracy contract."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np

from ..libraries.backends import Backend
from ..verbs import function
from .cases import DTYPES, POSITIONAL, VERBS, Case, cases
from .compare import Arithmetic, Verdict, judge
from .exact import Exact
from .oracle import expected

__all__ = ["DTYPES", "VERBS", "Result", "Summary", "plan", "summarise", "verify"]

# Options that are arrays of the backend; all others are static.
_ARRAYS = ("where", "weight", "sample_weight", "b", "linear_bias")


@dataclass(frozen=True)
class Result:
    """One verb on one case: the worst error in ulps beside its bound, and what was compared, refused or exempted."""

    backend: str
    verb: str
    dtype: str
    case: str
    worst: float = 0.0
    bound: float = 0.0
    compared: int = 0
    refused: str | None = None
    absent: bool = False
    exempted: Counter[str] = field(default_factory=Counter)
    failures: tuple[str, ...] = ()


@dataclass
class Summary:
    """The results of a backend, verb and dtype."""

    backend: str
    verb: str
    dtype: str
    worst: float = 0.0
    bound: float = 0.0
    cases: int = 0
    compared: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    absent: bool = False
    exempted: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing failed and something was compared, unless the backend has no such dtype."""
        return not self.failures and (self.compared > 0 or self.absent)

    def add(self, result: Result) -> None:
        if result.bound and result.worst / result.bound >= self.worst / (self.bound or 1):
            self.worst, self.bound = result.worst, result.bound
        self.cases += 1
        self.compared += result.compared
        self.absent |= result.absent
        self.exempted += result.exempted
        if result.refused:
            self.refused[result.refused] += 1
        self.failures += [f"{result.case}: {failure}" for failure in result.failures]


@dataclass(frozen=True)
class Step:
    """A verb on a case; without a case, a dtype that the backend lacks."""

    verb: str
    dtype: str
    case: Case | None


def plan(backend: Backend, *, verbs: Iterable[str] | None = None, dtypes: Iterable[str] | None = None) -> list[Step]:
    """What ``verify`` does with the same arguments, step by step: its length is the total of a progress bar."""
    verbs = _chosen("verb", verbs, VERBS)
    here = (*backend.dtypes(), "integer")
    steps = []
    for dtype in _chosen("dtype", dtypes, DTYPES):
        if dtype in here:
            steps += [Step(v, dtype, case) for case in cases(dtype) for v in case.verbs if v in verbs]
        else:
            steps += [Step(v, dtype, None) for v in verbs]
    return steps


def _chosen(what: str, names: Iterable[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    names = known if names is None else tuple(names)
    for name in names:
        if name not in known:
            raise ValueError(f"verify: unknown {what} {name!r}, expected one of {', '.join(known)}")
    return names


def verify(
    backend: Backend,
    *,
    verbs: Iterable[str] | None = None,
    dtypes: Iterable[str] | None = None,
    jit: bool = False,
) -> Iterator[Result]:
    """Call every verb on every case and compare with the exact result; one record per verb and case.

    Exact results are computed once per process and shared by all backends. With ``jit``, JAX compiles each verb.
    """
    if jit and backend.name.partition(":")[0] != "jax":
        raise ValueError(f"verify: jit is for backend jax, found {backend.name!r}")
    default_float = _default_float(backend)
    for step in plan(backend, verbs=verbs, dtypes=dtypes):
        make = partial(Result, backend.name, step.verb, step.dtype)
        if step.case is None:
            yield make("", absent=True)
            continue
        arithmetic = Arithmetic(
            default_float if step.dtype == "integer" else step.dtype, backend.float64, backend.flushes_subnormals
        )
        yield _run(make, backend, step.verb, step.case, arithmetic, default_float, jit)


def _default_float(backend: Backend) -> str:
    default = backend.xp.__array_namespace_info__().default_dtypes(device=backend.device)["real floating"]
    return backend.to_numpy(backend.xp.zeros(1, dtype=default)).dtype.name


@cache
def exact_results(case: Case, default_float: str) -> dict[str, tuple[Exact, ...]]:
    """The oracle's answers, once per process: they depend on the backend only by its default dtype."""
    return expected(case.verbs, case.arrays, case.options, default_float)


def _run(
    make: Callable[..., Result],
    backend: Backend,
    verb: str,
    case: Case,
    arithmetic: Arithmetic,
    default_float: str,
    jit: bool,
) -> Result:
    raises = case.error == "always" or (case.error == "checked" and backend.checks_labels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # a floating-point warning is a failure
            got = _call(backend, verb, case, default_float, jit)
    except NotImplementedError as refusal:
        return make(case.name, refused=str(refusal))
    except ValueError as error:
        failures = () if raises else (f"{type(error).__name__}: {error}",)
        return make(case.name, compared=1, failures=failures)
    except Exception as error:
        return make(case.name, failures=(f"{type(error).__name__}: {error}",))
    if raises:
        return make(case.name, compared=1, failures=("no error, expected ValueError",))
    exact = exact_results(case, default_float)[verb]
    if len(got) != len(exact):
        return make(case.name, failures=(f"{len(got)} results, expected {len(exact)}",))
    verdict = Verdict()
    for part, reference in zip(got, exact, strict=True):
        verdict.merge(judge(part, reference, arithmetic))
    return make(
        case.name,
        verdict.worst,
        verdict.bound,
        verdict.compared,
        exempted=verdict.exempted,
        failures=tuple(verdict.failures),
    )


def _call(backend: Backend, verb: str, case: Case, default_float: str, jit: bool) -> list[np.ndarray]:
    arrays = [_convert(backend, case.arrays[name], case, default_float) for name in POSITIONAL[verb]]
    named = {
        name: _convert(backend, value, case, default_float) for name, value in case.options.items() if name in _ARRAYS
    }
    static = {name: value for name, value in case.options.items() if name not in _ARRAYS}
    verb, _, part = verb.partition(".")
    result = _function(verb, tuple(static.items()), jit)(*arrays, **named)
    if part:
        result = getattr(result, part)
    return [backend.to_numpy(part) for part in (result if isinstance(result, tuple) else (result,))]


def _convert(backend: Backend, a: object, case: Case, default_float: str) -> object:
    a = np.asarray(a)
    name = default_float if case.dtype == "integer" and a.dtype.kind == "f" else None
    try:
        return backend.asarray(a, dtype=name)
    except (OverflowError, TypeError) as unfit:  # the library has no such dtype or holds no such value
        raise NotImplementedError(str(unfit)) from unfit


def _function(verb: str, static: tuple, jit: bool) -> Callable:
    if jit:
        return _jitted(verb, static)
    return partial(function(verb), **dict(static))


@cache
def _jitted(verb: str, static: tuple) -> Callable:
    import jax

    return jax.jit(_function(verb, static, jit=False))


def summarise(results: Iterable[Result]) -> list[Summary]:
    """One row per backend, verb and dtype, in the order of their appearance."""
    rows: dict[tuple[str, str, str], Summary] = {}
    for result in results:
        key = result.backend, result.verb, result.dtype
        rows.setdefault(key, Summary(*key)).add(result)
    return list(rows.values())
