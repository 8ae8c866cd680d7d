"""PyTorch's DTensor, in two processes of their own: see dtensors.py."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend("torch")


@pytest.mark.parametrize("cut", ["rows", "classes"])
def test_two_processes(cut):
    if not pytest.importorskip("torch.distributed").is_available():
        pytest.skip("this PyTorch is built without torch.distributed")
    file = Path(__file__).with_name("dtensors.py")
    run = subprocess.run([sys.executable, str(file), cut], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
