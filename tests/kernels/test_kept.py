"""Compiled kernels on disk: what is not as it was written is written anew; several processes that compile at once."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba")

pytestmark = pytest.mark.backend("numpy")

CODE = """
from xsoftmax.kernels.cpu import small
import numpy as np
print(small.total(np.arange(4.0)), *small.total.stats.cache_hits)
"""
ANEW, FROM_DISK = ["6.0"], ["6.0", "(Array(float64, 1, 'C', False, aligned=True),)"]


def start(cache, code=CODE, **environment):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-W", "error", "-c", code], env=environment, text=True, **pipes)


def answer(process):
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out.split(maxsplit=1)


@pytest.fixture(scope="module", name="kept")
def _kept(tmp_path_factory):
    """One kernel, in a directory of its own."""
    cache = tmp_path_factory.mktemp("kernels")
    assert [part.strip() for part in answer(start(cache))] == ANEW
    return cache


def found(cache):
    return [part.strip() for part in answer(start(cache))]


def damaged(content):
    return {
        "truncated": content[: len(content) // 2],
        "one bit": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "something else": b"\x80\x04}q\x00.",
    }


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", damaged(bytes(16)))
def test_damaged_files_are_written_anew(kept, suffix, damage):
    files = list(kept.rglob(f"*{suffix}"))
    assert files
    for file in files:
        file.write_bytes(damaged(file.read_bytes())[damage])
    assert found(kept) == ANEW


def test_a_directory_in_the_place_of_a_file(kept):
    for file in list(kept.rglob("*.nb?")):
        file.unlink()
        file.mkdir()
    assert found(kept) == ANEW
    for file in list(kept.rglob("*.nb?")):
        file.rmdir()
    assert found(kept) == ANEW
    assert found(kept) == FROM_DISK


def test_several_processes_at_once(tmp_path):
    """One signature each, of one function: their files are apart."""
    code = """
import sys, numpy as np
from xsoftmax.kernels.cpu import exponentials
print(exponentials.joined(*map(getattr(np, sys.argv[1]), (2.0, 1.0))))
"""
    kinds = ["float32", "float64"] * 2
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen([*command, kind], env=environment, stdout=subprocess.PIPE, text=True) for kind in kinds
    ]
    assert {float(process.communicate()[0]) for process in processes} == {3.0}
    for kind in kinds[:2]:
        run = subprocess.run([*command, kind], env=environment, capture_output=True, text=True, check=True)
        assert float(run.stdout) == 3.0


def test_told_not_to_compile(tmp_path):
    code = """
import numpy as np, xsoftmax as xs
x = np.zeros((2, 4))
print(xs.softmax(x)[0, 0], xs.explain("softmax", x).implementation, *xs.explain("softmax", x).refused["numpy_numba"])
"""
    out = " ".join(answer(start(tmp_path, code, NUMBA_DISABLE_JIT="1"))).strip()
    assert out == "0.25 numpy_blocked Numba is told not to compile: NUMBA_DISABLE_JIT"


def test_numba_that_cannot_be_imported(tmp_path):
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs another NumPy')")
    code = """
import numpy as np, xsoftmax as xs
x = np.zeros((2, 4))
print(xs.softmax(x)[0, 0], *xs.explain("softmax", x).refused["numpy_numba"])
"""
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    out = " ".join(answer(start(tmp_path, code, PYTHONPATH=path))).strip()
    assert out == "0.25 Numba can't be imported: Numba needs another NumPy"
