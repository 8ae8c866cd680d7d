"""JAX arrays on eight devices, in a process of its own: see sharded_jax.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend("jax")


# the programs are alike
@pytest.mark.parametrize("x64, names", [("0", "hold_values or classes_that or classes_in"), ("1", "")])
def test_on_eight_devices(request, x64, names):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {
        "JAX_ENABLE_X64": x64,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
    }
    file = Path(__file__).with_name("sharded_jax.py")
    options = ["--backend=jax", "-q", "-p", "no:cacheprovider", f"-k={names}"]
    options += ["--pairs"] if request.config.getoption("--pairs") else []
    command = [sys.executable, "-m", "pytest", *options, str(file)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
