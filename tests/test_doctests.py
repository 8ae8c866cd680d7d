"""The examples in docstrings are true."""

import doctest
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import xsoftmax

pytestmark = pytest.mark.backend("numpy")

PACKAGE = Path(xsoftmax.__file__).parent
PUBLIC = [
    "__init__",
    "choose",
    "libraries.backends",
    "threads",
    "verbs.explain",
    "verbs.functions",
    "verbs.linear",
    "verbs.losses",
]


@pytest.mark.parametrize("module", PUBLIC)
def test_examples(module, monkeypatch):
    monkeypatch.setattr("xsoftmax.threads._threads", None)
    name = "xsoftmax" if module == "__init__" else f"xsoftmax.{module}"
    with np.printoptions(legacy=False):
        assert doctest.testmod(import_module(name)).failed == 0


# shown with set_num_threads; what backends() returns depends on the machine
WITHOUT = {"get_num_threads", "backends"}


@pytest.mark.parametrize("name", sorted({name for name in xsoftmax.__all__ if name.islower()} - WITHOUT))
def test_every_function_shows_an_example(name):
    found = doctest.DocTestFinder(recurse=False).find(getattr(xsoftmax, name), name)
    assert any(test.examples for test in found)
