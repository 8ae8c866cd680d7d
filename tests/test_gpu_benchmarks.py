"""The GPU benchmark without a GPU: NumPy and the host's clock in its place, and the parts that need neither."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import xsoftmax as xs

for module in ("rich", "mpmath", "ml_dtypes"):
    pytest.importorskip(module, reason='pip install ".[cli]"')

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OURS = "xsoftmax:array_api"


class HostDevice:
    """The processor in the GPU's place."""

    xp = np

    def __init__(self, memory=1 << 30):
        self.memory = memory
        self.flushed = self.synchronized = 0
        self.spoiled = []

    def describe(self):
        numbers = dict.fromkeys(("multiprocessors", "l2", "cuda_driver", "cuda_runtime"), 13020)
        return {"device": "Host 1", "compute_capability": "0.0", "driver": None, "memory": self.memory} | numbers

    def seconds(self, run):
        self.flushed += 1
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def synchronize(self):
        self.synchronized += 1

    def release(self):
        pass

    def spoil(self, size):
        self.spoiled.append(size)


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def run(tmp_path):
    """The document of a run, and its folder."""
    import gpu

    def run(*arguments, status=0, device=None):
        given = ["--repeats", "2", "--output", str(tmp_path), "--name", "here", *arguments]
        assert gpu.main(given, device or HostDevice()) == status
        return json.loads((tmp_path / "here.json").read_text())

    return run


@pytest.fixture
def contenders(monkeypatch):
    from xsoftmax.bench.gpu import contenders

    def plant(name, **verbs):
        """A contender of these verbs, each a function of the inputs."""

        class Planted(contenders.Contender):
            def calls(self, inputs, out):
                return {verb: lambda function=function: function(inputs) for verb, function in verbs.items()}

        monkeypatch.setitem(contenders.CONTENDERS, name, Planted)

    return plant


def test_files(run, tmp_path, capsys):
    device = HostDevice()
    shapes = ["--shape", "4,10", "30,50", "3,5,2"]
    document = run(*shapes, "--dtype", "float32", "bfloat16", "--contender", OURS, device=device)
    assert document["machine"]["device"] == "Host 1"
    assert document["machine"]["libraries"]["numpy"] == np.__version__

    rows = document["rows"]
    assert len(rows) == 5 * 3 * 2  # verbs, shapes, dtypes
    for row in rows:
        assert (row["status"], row["out"]) == ("timed", False)
        assert row["ulps"] <= 1
        if row["shape"] == [4, 10]:
            assert (row["clock"], row["batch"]) == ("host", 200)
            assert "of_copy" not in row
        else:
            assert (row["clock"], row["batch"]) == ("device", 1)
            passes = 1 if row["verb"] in ("logsumexp", "cross_entropy") else 2
            nbytes = np.prod(row["shape"]) * (2 if row["dtype"] == "bfloat16" else 4)
            assert row["gigabytes_per_second"] == pytest.approx(passes * nbytes / row["seconds"] / 1e9)
            assert row["of_copy"] == pytest.approx(passes / 2 * row["copy_seconds"] / row["seconds"])
    assert device.flushed == 5 * 2 * 2 * (2 + 2) * 2  # verbs, shapes, dtypes; warm and timed turns of copy and xsoftmax
    assert set(device.spoiled) == {4 * 10 * n for n in (2, 4)} | {30 * 50 * n for n in (2, 4)} | {60, 120}

    text = (tmp_path / "here.md").read_text()
    for part in ("Host 1, 13020 multiprocessors", "### logsumexp, bfloat16", "| shape | copy | xsoftmax:array_api |"):
        assert part in text
    assert text.endswith("## Not timed\n\nNothing.\n")
    assert "softmax bfloat16 30 × 50: xsoftmax:array_api " in capsys.readouterr().out


def test_torch(run):
    pytest.importorskip("torch")
    shapes = ["--shape", "30,64", "3,5,2"]
    rows = run(*shapes, "--dtype", "float32", "bfloat16", "--contender", "torch", "xsoftmax:torch_cuda")["rows"]
    for row in rows:
        if row["contender"] == "torch":
            assert row["status"] == "timed"
        else:
            assert row["status"] == "skipped"
            assert "torch_cuda" in row["reason"]


def test_jax(run):
    pytest.importorskip("jax")
    verbs = ["--verb", "softmax", "cross_entropy_and_grad"]
    rows = run(*verbs, "--shape", "30,64", "--dtype", "bfloat16", "float32", "--contender", "jax")["rows"]
    assert [(row["status"], row["clock"], row["batch"]) for row in rows] == [("timed", "host", 20)] * 4


def test_jax_takes_copies_in_turn():
    pytest.importorskip("jax")
    from xsoftmax.bench.gpu import contenders
    from xsoftmax.bench.inputs import Inputs

    jax = contenders.JAXOnDevice()
    for shape, number in (((1000, 16_000), 4), ((4, 10), 64)):
        copies, _ = jax.arrays_of(Inputs.random(shape, "float32", 1))
        assert len({copy.unsafe_buffer_pointer() for copy in copies}) == number
    assert jax.call("softmax", Inputs.random((4, 10), "float32", 1), out=False).finish is not None


INTERPRETED = """
import torch
from xsoftmax.bench.gpu.triton_softmax import softmax
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for shape in ((5, 10), (3, 1), (2, 50_257)):
        x = (3 * torch.randn(shape)).to(dtype)
        torch.testing.assert_close(softmax(x), torch.softmax(x, 1))
"""


def test_triton_kernel_interpreted():
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, check=True)


@pytest.mark.parametrize("name, library", [("liger", "liger_kernel"), ("quack", "quack"), ("triton", "triton")])
def test_absent(run, monkeypatch, name, library):
    pytest.importorskip("torch")
    for loaded in [loaded for loaded in sys.modules if loaded.endswith(".triton_softmax")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, library, None)
    document = run("--shape", "5,10", "--dtype", "float32", "--verb", "softmax", "--contender", OURS, name)
    row = next(row for row in document["rows"] if row["contender"] == name)
    assert row["status"] == "skipped"
    assert row["reason"].startswith("not installed: ")
    assert library in row["reason"]


def test_another_library_may_be_wrong(run, contenders, tmp_path):
    contenders("planted", softmax=lambda inputs: xs.softmax(inputs.x) * np.float32(1.01))
    rows = run("--shape", "5,10", "--dtype", "float32", "--verb", "softmax", "--contender", OURS, "planted")["rows"]
    wrong = next(row for row in rows if row["contender"] == "planted")
    assert wrong["status"] == "wrong"
    assert wrong["reason"].startswith("is off by ")
    assert "seconds" not in wrong
    assert "| planted | wrong | is off by " in (tmp_path / "here.md").read_text()


def test_an_error_when_timed(run, contenders):
    calls = []

    def softmax(inputs):
        calls.append(None)
        if len(calls) > 1:
            raise MemoryError("full\nof what")
        return xs.softmax(inputs.x)

    contenders("planted", softmax=softmax)
    rows = run("--shape", "5,10", "--dtype", "float32", "--verb", "softmax", "--contender", "planted", OURS)["rows"]
    assert [row["status"] for row in rows] == ["skipped", "timed"]
    assert rows[0]["reason"] == "when timed: MemoryError: full"


def test_xsoftmax_may_not(run, contenders):
    contenders("xsoftmax:planted", softmax=lambda inputs: xs.softmax(inputs.x) * np.float32(1.01))
    contenders("planted", softmax=lambda inputs: xs.softmax(inputs.x))
    names = ["--contender", "xsoftmax:planted", "planted"]
    run("--shape", "5,10", "--dtype", "float32", "--verb", "softmax", *names, status=1)


def test_mean_loss_on_a_device():
    """Held together by float64 there, by extended precision on the host."""
    from xsoftmax.bench import reference
    from xsoftmax.bench.inputs import Inputs

    class Elsewhere:
        """NumPy, but not the module."""

        def __getattr__(self, name):
            return getattr(np, name)

    for shape in ((50, 30), (3, 7, 4, 5)):
        here = Inputs.random(shape, "bfloat16", 1)
        there = Inputs.random(shape, "bfloat16", 1, Elsewhere())
        assert float(reference.mean_loss(there)) == pytest.approx(float(reference.mean_loss(here)), rel=1e-14)


def test_time_is_up_and_goes_on(run, tmp_path, monkeypatch):
    from xsoftmax.bench.gpu import measure

    arguments = ["--shape", "5,10", "6,10", "--dtype", "float32", "--verb", "softmax", "--contender", OURS]
    with monkeypatch.context() as patch:
        minutes = iter([0.0, 30.0, 30.0, 90.0])  # begun, two looks at the first shape, one at the second
        patch.setattr(measure.time, "monotonic", lambda: 60 * next(minutes))
        first, second = run(*arguments, "--minutes", "60")["rows"]
    assert (first["status"], second["status"]) == ("timed", "skipped")
    assert second["reason"] == "no time was left"
    assert "no time was left" in (tmp_path / "here.md").read_text()

    kept, now = run(*arguments, "--resume")["rows"]
    assert kept == first
    assert (now["shape"], now["status"]) == ([6, 10], "timed")


def test_resume_on_another_device(run):
    class Other(HostDevice):
        def describe(self):
            return super().describe() | {"device": "Host 2"}

    arguments = ["--shape", "5,10", "--dtype", "float32", "--verb", "softmax", "--contender", OURS, "--resume"]
    run(*arguments)
    with pytest.raises(SystemExit, match="Host 1, this is Host 2"):
        run(*arguments, device=Other())


@pytest.mark.parametrize("memory, reason", [(40_000, "logits and copies need "), (200_000, "needs ")])
def test_memory(run, memory, reason):
    arguments = ["--shape", "50,100", "--dtype", "float32", "--verb", "logsumexp", "--contender", OURS]
    (row,) = run(*arguments, device=HostDevice(memory), status=1)["rows"]
    assert row["status"] == "skipped"
    assert row["reason"].startswith(reason)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_shapes(dtype):
    from xsoftmax.bench.gpu.shapes import shapes

    itemsize = 4 if dtype == "float32" else 2
    found = shapes(dtype)
    assert len(found) == len(set(found)) == 1 + 11 + 6 + 9
    assert found[0] == (4, 10)
    for rows, classes in found[1:18]:
        assert rows * classes * itemsize >= 256e6
        assert (rows - 1) * classes * itemsize < 256e6 or rows in (32_768, 16_384, 8_192)
    assert {(8, 128_256), (1_000_000, 100), (8, 21, 512, 512)} <= set(found)


def test_shapes_of_float64():
    from xsoftmax.bench.gpu.shapes import shapes

    assert shapes("float64") == [(4, 10), (4_096, 4_096), (1_024, 131_072)]


class TestTiming:
    def test_each_call_after_a_flush(self):
        from xsoftmax.bench.contenders import Call
        from xsoftmax.bench.gpu.timing import on_device

        order = []

        class Device(HostDevice):
            def seconds(self, run):
                order.append("-")
                run()
                return 1.5

        calls = {name: Call(lambda name=name: order.append(name)) for name in "ab"}
        runs, batches = on_device(calls, Device(), 3)
        assert "".join(order) == "-a-b" * (2 + 3)
        assert runs == {"a": [1.5] * 3, "b": [1.5] * 3}
        assert batches == {"a": 1, "b": 1}

    def test_a_stream_of_its_own(self):
        from xsoftmax.bench.contenders import Call
        from xsoftmax.bench.gpu.timing import on_device

        calls, finished = [], []
        call = Call(lambda: calls.append(None) or len(calls), finish=finished.append)
        device = HostDevice()
        runs, batches = on_device({"a": call}, device, 3)
        assert finished == [20, 40, 60, 80, 100]
        assert (len(runs["a"]), batches, device.flushed) == (3, {"a": 20}, 0)

    def test_the_host_does_not_wait(self):
        from xsoftmax.bench.contenders import Call
        from xsoftmax.bench.gpu.timing import on_host

        class Slow(HostDevice):
            def synchronize(self):
                time.sleep(0.02)

        def wait(result):
            raise AssertionError("waited")

        runs, batches = on_host({"a": Call(lambda: None, finish=wait)}, Slow(), 2)
        assert max(runs["a"]) < 0.02 / 200
        assert batches == {"a": 200}


class TestReport:
    @pytest.fixture
    def rows(self):
        def row(contender, classes, of_copy, **changes):
            seconds = 1e-3 / of_copy
            figures = {"seconds": seconds, "copy_seconds": 1e-3, "of_copy": of_copy, "gigabytes_per_second": 400.0}
            where = {"verb": "softmax", "dtype": "float32", "shape": [1000, classes], "contender": contender}
            return where | figures | {"out": False, "status": "timed", "ulps": 0.5} | changes

        return [
            row("xsoftmax:cupy_cuda", 100, 0.9),
            row("xsoftmax:cupy_cuda", 9000, 0.4),
            row("xsoftmax:torch_cuda", 100, 2.0),
            row("torch", 100, 0.45),
            row("torch", 9000, 0.8),
            row("jax", 9000, 0.2),
            row("torch", 10, 0.1, gigabytes_per_second=1e-3),
        ]

    def test_summary(self, rows):
        import gpu_report

        found = gpu_report.summary(rows)
        (speed,) = found["speeds"]
        assert speed["of copy"] == pytest.approx(0.6)  # √(0.9 · 0.4)
        assert speed["lowest"] == {"shape": [1000, 9000], "of_copy": 0.4}
        assert speed["over fastest"]["ratio"] == pytest.approx(2)
        assert speed["over fastest"]["contender"] == "torch"
        text = gpu_report.summary_text(found)
        assert "| softmax | float32 | 60 % | 40 % (1,000 × 9,000) | 2.00 (torch, 1,000 × 9,000) |" in text

    def test_nothing(self):
        import gpu_report

        assert "not measured" in gpu_report.summary_text(gpu_report.summary([]))

    def test_plot(self, rows, tmp_path):
        plt = pytest.importorskip("matplotlib.pyplot")
        import gpu_plots

        (found,) = gpu_plots.draw(rows, tmp_path, "here")
        assert found.name == "here-copy-float32.png"
        pixels = plt.imread(found)[..., :3]
        green = np.array([44, 160, 44]) / 255  # PyTorch's line
        assert np.sum(np.abs(pixels - green).max(axis=-1) < 0.01) > 100

    def test_small_arrays_are_not_drawn(self, rows, tmp_path):
        pytest.importorskip("matplotlib")
        import gpu_plots

        assert gpu_plots.draw(rows[-1:], tmp_path, "here") == []


@pytest.mark.parametrize("arguments", [["--contender", "scipy"], ["--dtype", "int8"], ["--shape", "10"]])
def test_usage(run, arguments):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2


def test_no_array_library_is_imported_for_help():
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"cupy", "torch", "jax", "triton"} & set(loaded)
