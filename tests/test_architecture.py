"""The arrows between modules, what an import may load, and two rules read from syntax trees."""

import ast
import os
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import xsoftmax

PACKAGE = Path(xsoftmax.__file__).parent
TESTS = Path(__file__).parent

# A folder imports only from lower rows; within a row the graph has no circle.
ROWS = [
    {"__main__"},
    {"cli"},
    {"bench"},
    {"verify"},
    {"__init__"},
    {"verbs"},
    {"choose"},
    {"implementations"},
    {"weights", "formulas"},
    {"calls"},
    {"kernels", "libraries", "threads"},
]
RANK = {module: len(ROWS) - row for row, modules in enumerate(ROWS) for module in modules}
ARRAY_LIBRARIES = {
    "numpy",
    "cupy",
    "torch",
    "jax",
    "dask",
    "array_api_strict",
    "ndonnx",
    "mlx",
    "cubed",
    "marray",
    "sparse",
}


def imports(source, module):
    """Dotted names inside the package that `source` imports, or names in a string for a late import.

    `module` is the dotted path of the file: "verify.oracle", "verify.__init__". Imports for type checkers do not count.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (_inside(alias.name) for alias in node.names if alias.name.partition(".")[0] == "xsoftmax")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = ["xsoftmax", *module.split(".")][: -node.level]
                base = ".".join([*parents, *filter(None, [base])])
            if base == "xsoftmax":
                submodules = {path.stem for path in PACKAGE.iterdir()}
                yield from (alias.name if alias.name in submodules else "__init__" for alias in node.names)
            elif base.startswith("xsoftmax."):
                yield _inside(base)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"xsoftmax(\.\w+)+", str(node.value)):
            yield _inside(node.value)


def _inside(dotted):
    return dotted.partition(".")[2] or "__init__"


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def wrong_arrows(source, module):
    """Imports of `source` that point upwards, as text."""
    here = module.partition(".")[0]
    for target in imports(source, module):
        there = target.partition(".")[0]
        if here == there:
            continue
        if RANK[here] < RANK[there]:
            yield f"{module} imports {target}"


SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_every_module_has_a_row():
    found = {module_of(path).partition(".")[0] for path in SOURCES}
    assert found == RANK.keys()


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_arrows(path):
    assert list(wrong_arrows(path.read_text(), module_of(path))) == []


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from xsoftmax.choose import run", "implementations.numpy.blocked"),
        ("from ...calls import records", "kernels.cpu.rows"),
        ("from xsoftmax import softmax", "verbs.losses"),
        ("import xsoftmax.cli", "verify.cases"),
        ("def f():\n    import_module('xsoftmax.verbs.functions')", "choose"),
        ("from .. import choose", "calls.checks"),
        ("from ..calls import checks", "libraries.backends"),
    ],
)
def test_arrows_catch_a_planted_offender(source, module):
    assert len(list(wrong_arrows(source, module))) == 1


def strange_rooms(source, module):
    """Imports of an implementation from another library's folder, or from what is no record of a call, as text."""
    _, here, *_ = module.split(".")
    for target in imports(source, module):
        match target.split("."):
            case ["implementations", there, *_] if there not in ("array_api", here) and (module, there) != CUDA:
                yield f"{module} imports {target}"
            case ["calls", *rest] if rest not in (["records"], ["plan"]):
                yield f"{module} imports {target}"


CUDA = ("implementations.torch.cuda", "cupy")  # the same kernels on another library's memory
WINGS = sorted(path for path in (PACKAGE / "implementations").rglob("*.py") if path.parent.name != "implementations")


@pytest.mark.parametrize("path", WINGS, ids=module_of)
def test_a_library_knows_itself_and_the_formulas(path):
    assert list(strange_rooms(path.read_text(), module_of(path))) == []


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from ..numpy.views import views", "implementations.torch.cpu"),
        ("from ..cupy import launch", "implementations.torch.native"),
        ("from ...calls.arguments import on_logits", "implementations.jax.native"),
        ("from ...calls import checks", "implementations.dask.chunked"),
    ],
)
def test_a_strange_room_is_caught(source, module):
    assert len(list(strange_rooms(source, module))) == 1


def test_one_module_wraps_namespaces():
    """The compatibility layer is asked in one place."""
    found = {
        module_of(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if any(re.fullmatch(r"array_api_compat(\.\w*)*", name) for name in _named(node))
    }
    assert found == {"libraries.arrays"}


def _named(node):
    """What an import or a string of its own names."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            return [node.module or ""]
        case ast.Constant(value=str(text)):
            return [text]
    return []


ALONE = (
    "formulas",
    "weights",
    "implementations/array_api",
    "libraries/sums",
    "libraries/arrays",
    "libraries/facts",
    "calls/records",
)


def test_the_mathematics_can_be_vendored(tmp_path):
    """Formulas, weights, sums and the operations by them need the records and what is known of libraries alone."""
    new = tmp_path / "vendored"
    for name in ALONE:
        source = PACKAGE / name if (PACKAGE / name).is_dir() else (PACKAGE / name).with_suffix(".py")
        target = new / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    modules = ("formulas", "weights", "libraries.sums", "implementations.array_api.operations")
    code = "import " + ", ".join(f"vendored.{module}" for module in modules)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)


def test_type_checking_imports_are_no_arrows():
    source = "if TYPE_CHECKING:\n    from xsoftmax.choose import run"
    assert list(wrong_arrows(source, "formulas")) == []


def test_no_circles():
    graph = {}
    for path in SOURCES:
        here = module_of(path).partition(".")[0]
        targets = {target.partition(".")[0] for target in imports(path.read_text(), module_of(path))}
        graph.setdefault(here, set()).update(targets - {here})
    TopologicalSorter(graph).prepare()


def test_oracle_never_goes_through_the_code_under_test():
    mathematics = [PACKAGE / "verify" / f"{name}.py" for name in ("oracle", "exact", "extended", "mathematics")]
    for path in mathematics:
        assert {target.partition(".")[0] for target in imports(path.read_text(), module_of(path))} <= {"verify"}


def loaded_by(code):
    """Array libraries in sys.modules after `code` ran in a fresh interpreter."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    # Numba, where it is here, loads the libraries that register with it
    environment = {**os.environ, "XSOFTMAX_IMPLEMENTATION": "numpy_blocked"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return ARRAY_LIBRARIES & set(run.stdout.split())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import xsoftmax", set()),
        ("import xsoftmax; dir(xsoftmax)", set()),
        ("import xsoftmax.cli", set()),
        ("import xsoftmax; xsoftmax.softmax", set()),
        ("import xsoftmax as xs; xs.backend('numpy')", {"numpy"}),
        ("import xsoftmax as xs, numpy as np; xs.softmax(np.zeros(3))", {"numpy"}),
        ("import xsoftmax as xs, numpy as np; xs.cross_entropy(np.zeros((2, 3)), np.zeros(2, int))", {"numpy"}),
    ],
)
def test_libraries_loaded(code, expected):
    assert loaded_by(code) == expected


VERDICT = re.compile(r"(?!assert)(is_.*|isclose|.*allclose.*|.*array_equal.*|.*array_equiv.*|.*_equal|equal|all|any)")


def discarded_comparisons(source):
    """Lines of `source` where the outcome of a comparison is thrown away."""
    tree = ast.parse(source)
    verdicts = _verdict_names(tree)
    raising = {id(inner) for node in ast.walk(tree) if _expects_error(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        thrown = isinstance(node, ast.Expr) or (
            isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id == "_" for t in node.targets)
        )
        if thrown and id(node) not in raising and _is_verdict(node.value, verdicts):
            yield node.lineno


def _verdict_names(tree):
    """Names bound to a function that gives a verdict: imported under another name, assigned, or defined here."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom():
                names |= {a.asname or a.name for a in node.names if VERDICT.fullmatch(a.name)}
            case ast.Assign(value=ast.Attribute(attr=name) | ast.Name(id=name)) if VERDICT.fullmatch(name):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case ast.Assign(value=ast.Lambda(body=body)) if _is_verdict(body, names):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case ast.FunctionDef() if not node.name.startswith("test"):
                returned = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return) and inner.value]
                if any(_is_verdict(value, names) for value in returned):
                    names.add(node.name)
    return names


def _is_verdict(node, names):
    match node:
        case ast.Compare() | ast.UnaryOp(op=ast.Not()):
            return True
        case ast.BoolOp():
            return any(_is_verdict(value, names) for value in node.values)
        case ast.Call(func=ast.Name(id="bool"), args=[inner]):
            return _is_verdict(inner, names)
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
            return name in names or VERDICT.fullmatch(name) is not None
    return False


def _expects_error(node):
    return isinstance(node, ast.With) and any("raises" in ast.unparse(item) for item in node.items)


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_comparison_is_discarded(path):
    assert list(discarded_comparisons(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "np.allclose(a, b)",
        "a == b",
        "a.sum() == approx(1)",
        "(a == b).all()",
        "not np.isclose(a, b)",
        "a == b and c == d",
        "from numpy import allclose as same\nsame(a, b)",
        "same = xp.array_equal\nsame(a, b)",
        "same = lambda a, b: np.allclose(a, b)\nsame(a, b)",
        "def assert_close(a, b):\n    return np.allclose(a, b)\nassert_close(a, b)",
        "_ = np.array_equal(a, b)",
        "def test():\n    for a in b:\n        a <= 1",
        "backend.is_equal(a, b)",
    ],
)
def test_discarded_comparison_is_caught(source):
    assert len(list(discarded_comparisons(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "assert a == b",
        "np.testing.assert_array_equal(a, b)",
        "ok = np.allclose(a, b)",
        "with pytest.raises(TypeError):\n    a == b",
        "def check(a, b):\n    assert a == b\ncheck(a, b)",
    ],
)
def test_used_comparison_is_let_through(source):
    assert list(discarded_comparisons(source)) == []


CREATION = {"arange", "asarray", "empty", "eye", "full", "linspace", "ones", "zeros"}
MUST_NAME_DEVICE = [
    path
    for path in SOURCES
    if module_of(path).partition(".")[0] in ("formulas", "verbs", "implementations")
    or module_of(path) == "calls.arguments"
]


def creations_without_device(source):
    """Lines of `source` that make an array on the default device; those of CuPy and JAX follow their operands."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="xp" | "torch"), attr=name)) if name in CREATION:
                if not any(keyword.arg in ("device", None) for keyword in node.keywords):
                    yield node.lineno


@pytest.mark.parametrize("path", MUST_NAME_DEVICE, ids=module_of)
def test_arrays_are_made_on_a_named_device(path):
    assert list(creations_without_device(path.read_text())) == []


@pytest.mark.parametrize(
    "source", ["xp.arange(3)", "torch.zeros((2, 3), dtype=t)", "f(xp.asarray(0.0, dtype=x.dtype))"]
)
def test_array_without_device_is_caught(source):
    assert len(list(creations_without_device(source))) == 1


@pytest.mark.parametrize(
    "source", ["xp.arange(3, device=d)", "xp.zeros_like(x)", "xp.full((), 0, **like)", "np.empty(3)"]
)
def test_array_with_device_is_let_through(source):
    assert list(creations_without_device(source)) == []


# ---------------------------------------------------------------------------------------------------------------------
# sizes

LONGEST, MOST_ARGUMENTS = 600, 8
BESIDE = {"self", "xp", "run", "out"}  # what every operation is given
DOORS = ("kernels", "verbs", "verify")  # numbers for compiled code, public signatures, and the oracle's of the same


def many_arguments(tree):
    """Functions of more arguments than can be told apart by place."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            a = node.args
            names = [argument.arg for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
            if len(set(names) - BESIDE) > MOST_ARGUMENTS:
                yield getattr(node, "name", "lambda")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_calls_are_short(path):
    inside = path.relative_to(PACKAGE).parts
    text = path.read_text()
    if inside != ("formulas.py",) and inside[0] != "verbs":
        assert len(text.splitlines()) <= LONGEST
    if inside[0] not in DOORS:
        assert list(many_arguments(ast.parse(text))) == []


def test_a_row_of_arguments_is_caught():
    assert list(many_arguments(ast.parse("def f(a, b, c, d, e, f, g, h, *, i, xp): pass"))) == ["f"]
    assert list(many_arguments(ast.parse("def f(a, b, c, d, e, f, g, h, *, out, xp): pass"))) == []
