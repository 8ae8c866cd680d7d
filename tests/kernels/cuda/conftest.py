"""The CUDA kernels, run on the host, in the place of NumPy's implementations."""

import sys
import types

import host_kernels
import pytest
from host_kernels import NAME
from support import forget_choices

import xsoftmax as xs
from xsoftmax import choose
from xsoftmax.implementations import REGISTRY, Entry
from xsoftmax.implementations.cupy.operations import WRITES


@pytest.fixture(scope="session")
def kernels():
    """What every module has compiled."""
    return host_kernels.Host()


@pytest.fixture
def on_host(monkeypatch, kernels):
    """The kernels as an implementation that NumPy's arrays can ask for."""
    module = types.ModuleType(f"xsoftmax.implementations.{NAME}")
    module.refuses = lambda problem: []
    module.OPERATIONS = host_kernels.implementation(kernels)
    module.INTO = WRITES
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(choose, "REGISTRY", (Entry(NAME, "numpy", NAME, off="only here"), *REGISTRY))
    forget_choices()
    with xs.use_implementation(NAME):
        yield kernels
    forget_choices()
