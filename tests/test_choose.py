"""Which implementation runs, and who says why."""

import ast
import asyncio
import os
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from support import forget_choices

import xsoftmax as xs
from xsoftmax import choose, implementations
from xsoftmax.calls import recipes
from xsoftmax.implementations import REGISTRY, Entry

pytestmark = pytest.mark.backend("numpy")

X = np.array([[0.0, 1.0], [2.0, 0.0]])
LABELS = np.array([0, 1])
MINE, STRICT = "mine", "for_strict"
USUAL = xs.explain("softmax", X).implementation


@pytest.fixture
def registry(monkeypatch):
    """A registry with more entries: modules given as namespaces, cached choices forgotten before and after."""

    def install(*entries):
        table = []
        for name, library, operations, reasons, *off in entries:
            module = types.ModuleType(f"xsoftmax.implementations.{name}")
            module.refuses = lambda problem, reasons=reasons: list(reasons)
            module.OPERATIONS, module.ENTRIES = operations, operations.get("ENTRIES", {})
            monkeypatch.setitem(sys.modules, module.__name__, module)
            table.append(Entry(name, library, name, off=off[0] if off else None))
        full = (*table, *implementations.REGISTRY)
        monkeypatch.setattr(choose, "REGISTRY", full)
        forget_choices()

    yield install
    forget_choices()


def ones(problem, x, where, *, xp, run):
    return xp.ones_like(x)


def test_registry_is_literal_and_ends_with_the_formulas():
    assert REGISTRY[-1] == Entry("array_api", "*", "array_api.operations")
    assert [entry.library for entry in REGISTRY].count("*") == 1
    assert len({entry.name for entry in REGISTRY}) == len(REGISTRY)
    here = Path(implementations.__file__).parent
    with_refuses = {
        ".".join(path.relative_to(here).with_suffix("").parts)
        for path in here.rglob("*.py")
        if any(
            isinstance(node, ast.FunctionDef) and node.name == "refuses" for node in ast.parse(path.read_text()).body
        )
    }
    assert {entry.module for entry in REGISTRY} == with_refuses


def test_the_first_that_takes_the_problem_runs(registry):
    registry((MINE, "numpy", {"softmax": ones}, []))
    np.testing.assert_array_equal(xs.softmax(X), 1.0)
    assert xs.explain("softmax", X).implementation == MINE


def test_one_that_is_off_runs_only_where_asked_for(registry):
    registry((MINE, "numpy", {"softmax": ones}, [], "untried"))
    np.testing.assert_array_equal(xs.softmax(X).sum(axis=-1), 1.0)
    assert xs.explain("softmax", X).refused[MINE] == ("untried",)
    with xs.use_implementation(MINE):
        np.testing.assert_array_equal(xs.softmax(X), 1.0)
        assert xs.explain("softmax", X).implementation == MINE


@pytest.mark.parametrize(
    ("off", "asked", "own"), [(None, None, True), ("untried", None, False), ("untried", MINE, True)]
)
def test_work_around_the_operations(registry, monkeypatch, off, asked, own):
    """An implementation may weigh rows and sum their losses itself."""
    monkeypatch.setattr(choose, "_SMALL", 0)  # no entry, which does all by itself
    registry((MINE, "numpy", {"reduce_rows": lambda p, loss, w, reduction, dtype: np.float64(7.0)}, [], off))
    with xs.use_implementation(asked) if asked else nullcontext():
        loss = xs.cross_entropy(np.zeros((2, 2)), LABELS, sample_weight=np.ones(2))
    assert loss == (7.0 if own else pytest.approx(np.log(2)))


@pytest.mark.parametrize(
    ("dtype", "size", "taken"), [("float16", 1 << 20, True), ("int32", 8, False), ("float32", 0, False)]
)
def test_the_entry_of_a_device(registry, dtype, size, taken):
    entries = {"softmax": lambda p, ndim, entry_of: "entry" if p.axes == (-1,) else None}
    registry((MINE, "cupy", {"softmax": ones, "ENTRIES": entries}, []))
    kind = type("ndarray", (), {"__module__": "cupy"})
    x = kind()
    x.ndim, x.size, x.dtype = 2, size, np.dtype(dtype)
    assert (choose.entry("softmax", x, -1) is not None) == taken
    assert choose.entry("softmax", x, 1) == choose.entry("softmax", x, -1)
    assert choose.entry("softmax", x, 0) is None


def test_what_the_kinds_settle_is_kept_and_numbers_are_no_part_of_it():
    choose.forget()
    for i in range(100):
        xs.softmax(X, temperature=1.0 + i)
        xs.cross_entropy(X, LABELS, temperature=1.0 + i, label_smoothing=i / 100, z_loss=i, softcap=1.0 + i)
    assert len(recipes.kept) == 2


def test_no_more_kinds_are_kept_than_have_room(monkeypatch):
    choose.forget()
    monkeypatch.setattr(recipes, "_MOST", 3)
    for ndim in range(1, 9):
        xs.softmax(np.zeros((1,) * ndim))
    assert 0 < len(recipes.kept) <= 3


def test_who_refuses_is_passed_over(registry):
    registry((MINE, "numpy", {"softmax": ones}, ["only odd shapes", "no float64"]))
    np.testing.assert_array_equal(xs.softmax(X).sum(axis=-1), 1.0)
    explanation = xs.explain("softmax", X)
    assert explanation.implementation == USUAL
    assert explanation.refused[MINE] == ("only odd shapes", "no float64")
    assert f"{MINE} refuses: only odd shapes; no float64" in str(explanation)


def test_a_missing_operation_is_a_reason(registry):
    registry((MINE, "numpy", {"softmax": ones}, []))
    explanation = xs.explain("log_softmax", X)
    assert explanation.implementation == USUAL
    assert explanation.refused[MINE] == ("has no log_softmax of its own",)


def test_other_libraries_are_not_asked(registry):
    registry((STRICT, "array_api_strict", {"softmax": ones}, []))
    explanation = xs.explain("softmax", X)
    assert explanation.implementation == USUAL
    assert STRICT not in explanation.refused


def test_forcing(registry):
    registry((MINE, "numpy", {"softmax": ones}, []))
    with xs.use_implementation("array_api"):
        np.testing.assert_array_equal(xs.softmax(X).sum(axis=-1), 1.0)
        with xs.use_implementation(MINE):
            np.testing.assert_array_equal(xs.softmax(X), 1.0)
        np.testing.assert_array_equal(xs.softmax(X).sum(axis=-1), 1.0)
    np.testing.assert_array_equal(xs.softmax(X), 1.0)


def test_forcing_ends_with_an_error(registry):
    registry((MINE, "numpy", {"softmax": ones}, []))
    with pytest.raises(ZeroDivisionError), xs.use_implementation("array_api"):
        raise ZeroDivisionError
    assert xs.explain("softmax", X).implementation == MINE


def test_forced_and_refusing_is_an_error(registry):
    registry((MINE, "numpy", {"softmax": ones, "cross_entropy": ones}, ["only odd shapes", "no float64"]))
    message = rf"^softmax: implementation {MINE} was asked for but refuses: only odd shapes; no float64$"
    with xs.use_implementation(MINE):
        with pytest.raises(ValueError, match=message):
            xs.softmax(X)
        with pytest.raises(ValueError, match=rf"^cross_entropy_grad: implementation {MINE} was asked for but refuses"):
            xs.cross_entropy_grad(X, LABELS)
        explanation = xs.explain("softmax", X)
        assert explanation.implementation is None
        assert str(explanation).startswith("softmax: nobody runs softmax")


def test_forced_without_the_operation_runs_the_formulas(registry):
    """Verbs without an inner operation of that implementation are not its business."""
    registry((MINE, "numpy", {"softmax": ones}, []))
    with xs.use_implementation(MINE):
        np.testing.assert_allclose(np.exp(xs.log_softmax(X)).sum(axis=-1), 1.0)
        assert xs.explain("log_softmax", X).implementation == USUAL


def test_a_forced_name_binds_its_own_library_alone(registry):
    registry((STRICT, "array_api_strict", {"softmax": ones}, ["never"]), (MINE, "numpy", {"softmax": ones}, []))
    with xs.use_implementation(STRICT):
        np.testing.assert_array_equal(xs.softmax(X), 1.0)
        assert xs.explain("softmax", X).implementation == MINE


def test_unknown_name():
    names = ", ".join(repr(entry.name) for entry in REGISTRY)
    with (
        pytest.raises(ValueError, match=rf"^use_implementation: name is 'magic', expected one of {names}$"),
        xs.use_implementation("magic"),
    ):
        pass


def in_environment(value, code):
    environment = {**os.environ, "XSOFTMAX_IMPLEMENTATION": value}
    code = f"import numpy as np, xsoftmax as xs\nx = np.zeros((2, 2))\n{code}"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_environment():
    name = "print(xs.explain('softmax', x).implementation)"
    assert in_environment("array_api", name).stdout.strip() == "array_api"
    inside = f"with xs.use_implementation('numpy_blocked'):\n    {name}"
    assert in_environment("array_api", inside).stdout.strip() == "numpy_blocked"
    assert in_environment("", name).stdout.strip() == USUAL


def test_wrong_environment():
    assert "XSOFTMAX_IMPLEMENTATION is 'magic', expected one of" in in_environment("magic", "xs.softmax(x)").stderr


def test_threads_do_not_see_the_choice_of_others(registry):
    registry((MINE, "numpy", {"softmax": ones}, []))
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with xs.use_implementation("array_api"):
            inside.set()
            leave.wait(10)
            return xs.explain("softmax", X).implementation

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        assert inside.wait(10)
        seen = xs.explain("softmax", X).implementation
        leave.set()
        assert (seen, held.result()) == (MINE, "array_api")


def test_tasks_do_not_see_the_choice_of_others(registry):
    registry((MINE, "numpy", {"softmax": ones}, []))

    async def hold(name):
        with xs.use_implementation(name):
            await asyncio.sleep(0)
            return xs.explain("softmax", X).implementation

    async def both():
        return await asyncio.gather(hold("array_api"), hold(MINE))

    assert asyncio.run(both()) == ["array_api", MINE]


def test_an_implementation_is_handed_the_choice(registry):
    """`run` asks the chooser again, with the choice of the call, so that an implementation can stand on others."""

    def through(problem, x, where, *, xp, run):
        return 2.0 * run.behind("softmax", problem, x, where, xp=xp)

    registry((MINE, "numpy", {"softmax": through}, []))
    np.testing.assert_array_equal(xs.softmax(X).sum(axis=-1), 2.0)
    with xs.use_implementation(MINE):
        np.testing.assert_array_equal(xs.softmax(X).sum(axis=-1), 2.0)


def test_explain_computes_nothing(registry):
    def refuse(*args, **kwargs):
        raise RuntimeError("it ran")

    registry((MINE, "numpy", {"softmax": refuse, "cross_entropy": refuse}, []))
    explanation = xs.explain(xs.softmax, X)
    assert (explanation.verb, explanation.operation, explanation.implementation) == ("softmax", "softmax", MINE)
    explanation = xs.explain("cross_entropy_and_grad", X, LABELS, reduction="sum")
    assert (explanation.operation, explanation.implementation) == ("cross_entropy", MINE)
    assert explanation.problem.wants == ("loss", "grad")
    with pytest.raises(RuntimeError, match="it ran"):
        xs.softmax(X)


def test_explanation_for_people():
    text = str(xs.explain("cross_entropy", X.astype(np.float32), LABELS))
    assert text.splitlines()[0] == f"cross_entropy: {USUAL} runs cross_entropy of a numpy ndarray"
    assert "float32, computed in float64, class axes (-1,)" in text


def test_the_choice_is_cached(registry):
    """Problems that are alike are asked about once."""
    asked = []
    registry((MINE, "numpy", {"softmax": ones}, []))
    module = choose._module(MINE)
    module.refuses = lambda problem: asked.append(problem) or []
    for _ in range(3):
        xs.softmax(X)
        xs.softmax(np.zeros((5, 7)))
    assert len(asked) == 1
    xs.softmax(X, axis=0)
    xs.softmax(X.astype(np.float32))
    assert len(asked) == 3
