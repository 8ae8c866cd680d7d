"""The README keeps its promises: the support table is the registry's, the example prints what it shows."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _support():
    spec = importlib.util.spec_from_file_location("support", ROOT / "docs" / "support.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_support_table_is_the_registry_s():
    support = _support()
    assert support.START in README
    assert support.updated(README) == README, "out of date: run python docs/support.py"


def test_support_table_names_every_backend():
    table = _support().table()
    from xsoftmax.libraries.backends import NAMES

    assert {name.partition(":")[0] for name in NAMES} == set(re.findall(r"^\| `([a-z-]+)`", table, flags=re.M))


def test_first_example_prints_what_it_shows():
    code = re.search(r"```python\n(.*?)```", README, flags=re.S).group(1)
    shown = [line[2:] for line in code.splitlines() if line.startswith("# ")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue().splitlines() == shown


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert target.startswith("https://") or (ROOT / target).exists()
