"""Choosing a backend, and carrying arrays in and out of it."""

import copy
import dataclasses
import pickle
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest

from xsoftmax.libraries.backends import NAMES, Backend, Status, backend, backends

VALUES = np.asarray([[-1.5, 0.0, 2.0], [3.0, -0.25, 96.0]])  # exact in every floating dtype


def numpy_dtype(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def held(xb, x):
    """The dtype in which `xb` holds `x` when none is asked for."""
    name = x.dtype.name
    narrow = {"float64": "float32"} if not xb.float64 else {}
    if xb.name == "array-api-strict:no_x64" or (xb.name == "jax" and not xb.float64):
        narrow |= {"int64": "int32", "uint64": "uint32"}
    return narrow.get(name, name)


def test_carries_every_dtype_it_names(xb):
    assert "float32" in xb.dtypes()
    for name in xb.dtypes():
        x = VALUES.astype(numpy_dtype(name))
        for made in (xb.asarray(x), xb.asarray(VALUES, dtype=name), xb.asarray(VALUES.astype("float32"), dtype=name)):
            back = xb.to_numpy(made)
            assert isinstance(back, np.ndarray)
            assert back.dtype == x.dtype
            np.testing.assert_array_equal(back, x)


def test_dtype_may_be_the_library_s_own(xb):
    made = xb.asarray(VALUES, dtype=xb.asarray(0.0, dtype="float32").dtype)
    assert xb.to_numpy(made).dtype == np.float32


def test_refuses_a_dtype_it_lacks(xb):
    for name in {"float16", "bfloat16", "float64"} - set(xb.dtypes()):
        with pytest.raises(TypeError, match=f"asarray: dtype is {name}, expected one of .*float32"):
            xb.asarray([1.0], dtype=name)
    with pytest.raises(TypeError, match="asarray: dtype is float128, expected one of"):
        xb.asarray([1.0], dtype="float128")


@pytest.mark.parametrize(
    "x",
    [
        VALUES[::-1, ::-1],
        np.asfortranarray(VALUES),
        VALUES[:, ::2],
        VALUES.astype(">f8"),
        VALUES.astype(">i4"),
        np.frombuffer(b"x" + VALUES.tobytes(), np.uint8)[1:].view(np.float64),
        np.asarray(2.5),
        np.zeros((0, 3)),
        VALUES > 0,
        *(np.arange(3).astype(name) for name in ("int8", "uint8", "int64", "uint64")),
    ],
    ids=lambda x: f"{x.dtype.str}{list(x.shape)}{list(x.strides)}",
)
def test_carries_numpy_arrays_of_every_layout(xb, x):
    made = xb.asarray(x)
    back = xb.to_numpy(made)
    assert back.dtype.name == held(xb, x)
    np.testing.assert_array_equal(back, x)


def test_read_only_input_stays_as_it_is(xb):
    x = VALUES.copy()
    x.flags.writeable = False
    np.testing.assert_array_equal(xb.to_numpy(xb.asarray(x)), VALUES)
    assert not x.flags.writeable


def test_takes_lists_numbers_and_other_backends_arrays(xb, live_backends):
    np.testing.assert_array_equal(xb.to_numpy(xb.asarray([[1.0, 2.0]])), [[1.0, 2.0]])
    assert xb.to_numpy(xb.asarray(3.0)).shape == ()
    for other in live_backends:
        made = xb.asarray(other.asarray(VALUES, dtype="float32"))
        assert type(made) is type(xb.asarray(VALUES))
        np.testing.assert_array_equal(xb.to_numpy(made), VALUES.astype("float32"))


def test_labels_too_wide_for_the_device_are_an_error(xb):
    wide = np.asarray([1, 2**40])
    if held(xb, wide) == "int64":
        np.testing.assert_array_equal(xb.to_numpy(xb.asarray(wide)), wide)
    else:
        with pytest.raises(OverflowError, match="asarray: x holds int64 values beyond int32"):
            xb.asarray(wide)


def test_arrays_are_on_its_device_and_of_its_namespace(xb):
    import array_api_compat

    made = xb.asarray(VALUES)
    assert array_api_compat.array_namespace(made) is xb.xp
    if xb.name != "mlx":  # its arrays have no device
        assert array_api_compat.device(made) == xb.device


def test_computes_and_synchronizes(xb):
    made = xb.xp.exp(xb.asarray([[0.0, 0.0]], dtype="float32"))
    xb.synchronize()
    np.testing.assert_array_equal(xb.to_numpy(made), np.ones((1, 2), "float32"))


@pytest.mark.backend("torch")
def test_torch_tensor_that_requires_grad():
    import torch

    xb = backend("torch")
    x = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    np.testing.assert_array_equal(xb.to_numpy(x), [1.0, 1.0])


@pytest.mark.backend("jax")
def test_jax_reports_its_64_bit_mode():
    import jax

    assert backend("jax").float64 == jax.config.jax_enable_x64


@pytest.mark.backend("marray")
def test_marray_with_masked_entries_is_refused():
    xb = backend("marray")
    x = xb.xp.asarray(np.zeros(2), mask=np.asarray([True, False]))
    with pytest.raises(NotImplementedError, match="to_numpy: x has masked entries"):
        xb.to_numpy(x)


@pytest.mark.backend("cupy")
def test_auto_is_cupy_where_a_device_answers():
    assert backend() == backend("auto")
    assert backend().name == "cupy"
    assert next(s.device for s in backends() if s.name == "cupy").startswith("cuda:0")


def test_flags():
    numpy = backend("numpy")
    assert isinstance(numpy, Backend)
    assert (numpy.float64, numpy.lazy, numpy.checks_labels, numpy.flushes_subnormals) == (True, False, True, False)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles(xb, protocol):
    again = pickle.loads(pickle.dumps(xb, protocol))
    assert again == xb
    assert hash(again) == hash(xb)
    assert again.xp is xb.xp
    np.testing.assert_array_equal(again.to_numpy(xb.asarray(VALUES)), VALUES)


def test_copies(xb):
    for again in (copy.copy(xb), copy.deepcopy(xb), copy.deepcopy([xb])[0], dataclasses.replace(xb)):
        assert again == xb
    assert {xb: 1}[copy.deepcopy(xb)] == 1


def test_goes_to_another_process(xb):
    """As a spawned worker gets it, which has imported nothing."""
    code = """if True:
        import pickle, sys
        xb = pickle.load(sys.stdin.buffer)
        sys.stdout.buffer.write(pickle.dumps((xb, xb.to_numpy(xb.asarray([1.0, 2.0])))))
    """
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(xb), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    again, values = pickle.loads(done.stdout)
    assert again == xb
    np.testing.assert_array_equal(values, [1.0, 2.0])


def test_what_is_known_of_one_pickles():
    found = backends()
    assert pickle.loads(pickle.dumps(found)) == found
    assert copy.deepcopy(found) == found
    assert len({*found, *pickle.loads(pickle.dumps(found))}) == len(found)


def test_results_and_explanations_pickle():
    import xsoftmax as xs

    x, labels = np.linspace(-1.0, 1.0, 12).reshape(3, 4), np.array([0, 3, 1])
    for found in (
        xs.cross_entropy_and_grad(x, labels),
        xs.cross_entropy_grad_and_hessian_diag(x, labels),
        xs.linear_cross_entropy_and_grad(x, x, labels % 3, linear_bias=x[:, 0]),
    ):
        again = pickle.loads(pickle.dumps(found))
        assert type(again) is type(found)
        for a, b in zip(again, found, strict=True):
            np.testing.assert_array_equal(a, b)
    explanation = xs.explain("softmax", x)
    assert pickle.loads(pickle.dumps(explanation)) == explanation


def test_the_module_does_not_hide_the_function():
    import xsoftmax as xs
    import xsoftmax.cli

    assert xs.backends is backends


def test_backends_lists_every_name_once():
    found = backends()
    assert tuple(status.name for status in found) == NAMES
    assert all(status.usable == (status.reason is None) for status in found)
    assert all(status.version for status in found if status.usable)
    assert found[0] == Status("numpy", True, np.__version__, "cpu", None, "pip install numpy")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorflow", "backend: name is 'tensorflow', expected 'auto' or one of numpy, cupy, torch"),
        ("numpy:cuda", "backend: name is 'numpy:cuda', expected 'numpy', which has no other device"),
        ("numpy:", "backend: name is 'numpy:', expected 'numpy', or a device after the colon"),
        ("", "backend: name is '', expected 'auto' or one of numpy, cupy, torch"),
        (":cuda", "backend: name is ':cuda', expected 'auto' or one of numpy, cupy, torch"),
        ("auto:cuda", "backend: name is 'auto:cuda', expected 'auto' or one of numpy, cupy, torch"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError) as caught:
        backend(name)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", [5, None, b"numpy", ["numpy"], np])
def test_a_name_is_a_str(name):
    with pytest.raises(TypeError, match=f"^backend: name is a {type(name).__name__}, expected a str such as 'numpy'"):
        backend(name)


@pytest.mark.backend("torch")
@pytest.mark.parametrize("device", ["moon", "-1", "5", "cuda:x"])
def test_unknown_torch_device(device):
    with pytest.raises(ValueError, match=f"^backend: name is 'torch:{device}', expected a device"):
        backend(f"torch:{device}")


@pytest.mark.parametrize("device", ["x", "-1", "1.0"])
def test_unknown_cupy_device(tmp_path, device):
    code = f"try: b.backend('cupy:{device}')\nexcept ValueError as e: print(e)"
    message = run_with(tmp_path, "cupy", NO_DEVICE, code)
    assert message == f"backend: name is 'cupy:{device}', expected 'cupy', or a device number such as 'cupy:1'"


def test_unknown_strict_device():
    pytest.importorskip("array_api_strict")
    with pytest.raises(ValueError, match="array-api-strict has no device 'moon', expected one of CPU_DEVICE, device1"):
        backend("array-api-strict:moon")


@pytest.mark.parametrize(
    ("name", "module", "install"),
    [
        ("torch", "torch", 'pip install "xsoftmax[torch]"'),
        ("torch:cuda", "torch", 'pip install "xsoftmax[torch]"'),
        ("jax", "jax", 'pip install "xsoftmax[jax]"'),
        ("dask", "dask.array", 'pip install "xsoftmax[dask]"'),
        ("cupy", "cupy", 'pip install "xsoftmax[cuda13x]" or pip install "xsoftmax[cuda12x]"'),
        ("sparse", "sparse", "pip install sparse"),
    ],
)
def test_an_absent_library_says_what_to_install(monkeypatch, name, module, install):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as caught:
        backend(name)
    assert str(caught.value) == f"backend: {name!r} is not installed; {install}"
    assert {s.name: s.reason for s in backends()}[name] == f"{name!r} is not installed; {install}"


def run_with(tmp_path, module, source, code):
    """Output of `code` in an interpreter where `module` is the given source."""
    path = tmp_path / module / "__init__.py"
    path.parent.mkdir()
    path.write_text(textwrap.dedent(source))
    load = "b = importlib.import_module('xsoftmax.libraries.backends')"
    code = f"import importlib, sys; sys.path.insert(0, {str(tmp_path)!r})\n{load}\n{code}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


BROKEN = "raise AttributeError('half an upgrade')"

NO_DEVICE = """
    class cuda:
        class runtime:
            class CUDARuntimeError(RuntimeError): ...
            def getDeviceCount():
                raise cuda.runtime.CUDARuntimeError("cudaErrorInsufficientDriver")
"""


def test_a_broken_library_is_reported_not_raised(tmp_path):
    code = "print(next(s.reason for s in b.backends() if s.name == 'sparse'))"
    reason = run_with(tmp_path, "sparse", BROKEN, code)
    assert reason == "'sparse' cannot be imported (AttributeError: half an upgrade); pip install sparse"


def test_cupy_without_a_device_says_so(tmp_path):
    code = "try: b.backend('cupy')\nexcept RuntimeError as e: print(e)"
    message = run_with(tmp_path, "cupy", NO_DEVICE, code)
    assert message == "backend: cupy is installed, but no CUDA device answers (cudaErrorInsufficientDriver)"


@pytest.mark.parametrize("source", [NO_DEVICE, BROKEN])
def test_auto_is_numpy_where_no_device_answers(tmp_path, source):
    assert run_with(tmp_path, "cupy", source, "print(b.backend().name)") == "numpy"


@pytest.mark.backend("torch")
def test_torch_without_a_device_says_so():
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device answers")
    with pytest.raises(RuntimeError, match=r"backend: 'torch:cuda' was asked for, but PyTorch .* has no such device"):
        backend("torch:cuda")
