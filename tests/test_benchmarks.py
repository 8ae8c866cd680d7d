"""The CPU benchmark compares before it times, leaves nothing out silently, and its arithmetic is right."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import xsoftmax as xs

for module in ("rich", "mpmath", "ml_dtypes"):
    pytest.importorskip(module, reason='pip install ".[cli]"')

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
QUICKLY = ["--repeats", "2", "--pause", "0"]
CONTENDERS = ["numpy", "xsoftmax:numpy_blocked", "xsoftmax:array_api"]


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def run(tmp_path):
    """The document of a run, and its folder."""
    import cpu

    def run(*arguments, status=0):
        assert cpu.main([*QUICKLY, "--output", str(tmp_path), "--name", "here", *arguments]) == status
        return json.loads((tmp_path / "here.json").read_text())

    return run


def test_files(run, tmp_path, capsys):
    document = run("--shape", "4,10", "3,5,2", "--dtype", "float32", "bfloat16", "--contender", *CONTENDERS)
    assert document["machine"].keys() >= {"name", "processor", "cores", "caches", "python", "libraries", "threads"}
    assert document["machine"]["libraries"]["numpy"] == np.__version__
    assert document["repeats"] == 2

    rows = document["rows"]
    assert len(rows) == (3 * 2 + 2) * 2 * 2 * len(CONTENDERS)  # verbs with and without out=, shapes, dtypes
    assert {row["status"] for row in rows} == {"timed"}
    assert {row["axis"] for row in rows if len(row["shape"]) == 3} == {1}
    for row in rows:
        assert 0 < row["best"] <= row["seconds"]
        assert row["over_copy"] == row["seconds"] / row["copy_seconds"]
        if row["contender"] != "numpy":
            assert row["ulps"] <= 1

    summary = document["summary"]
    assert len(summary["geometric means"]) == 5 * 2
    assert [row["shape"] for row in summary["worst"]] == [[4, 10], [3, 5, 2]]
    assert len(summary["small calls"]) == len(rows) / 2
    text = (tmp_path / "here.md").read_text()
    for part in ("## Summary", "### cross_entropy_and_grad, bfloat16", "| copy |", "| xsoftmax:array_api out= |"):
        assert part in text
    assert text.endswith("## Not timed\n\nNothing.\n")
    assert "SciPy / xsoftmax" in capsys.readouterr().out


def test_plots(run, tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    run("--shape", "200,500", "1000,100", "4,10", "--dtype", "float64", "--contender", *CONTENDERS)
    for kind in ("time", "ulps"):
        pixels = plt.imread(tmp_path / f"here-{kind}-float64.png")[..., :3]
        assert 0.005 < np.mean(np.any(pixels < 0.99, axis=-1)) < 0.9


def test_small_matrices_are_not_drawn(run, tmp_path):
    pytest.importorskip("matplotlib.pyplot")
    run("--shape", "4,10", "--dtype", "float32", "--verb", "softmax", "--contender", "numpy")
    assert list(tmp_path.glob("*.png")) == []


def test_without_matplotlib(run, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    run("--shape", "4,10", "--dtype", "float32", "--verb", "softmax", "--contender", "numpy")
    assert "no plots: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda y: y * np.float32(1.01), "is off by "),
        (lambda y: y * np.float32(np.nan), "is off by nan"),
        (lambda y: y.astype(np.float64), "returns float64 of shape"),
        (lambda y: y[:-1], "returns float32 of shape (3, 10), expected float32 of shape (4, 10)"),
        (lambda y: (y, y), "returns 2 arrays, expected 1"),
    ],
)
def test_wrong_result(run, monkeypatch, spoil, reason):
    from xsoftmax.bench import contenders

    calls = []

    class Planted(contenders.Contender):
        def calls(self, inputs, out):
            def softmax():
                calls.append(None)
                return spoil(xs.softmax(inputs.x, axis=inputs.axis))

            return {"softmax": softmax}

    monkeypatch.setitem(contenders.CONTENDERS, "planted", Planted)
    document = run("--shape", "4,10", "--dtype", "float32", "--verb", "softmax", "--contender", "numpy", "planted")
    right, *_ = (row for row in document["rows"] if row["contender"] == "numpy")
    assert right["status"] == "timed"
    for wrong in (row for row in document["rows"] if row["contender"] == "planted"):
        assert wrong["status"] == "wrong"
        assert wrong["reason"].startswith("did not write to out" if wrong["out"] else reason)
        assert "seconds" not in wrong
    assert len(calls) == 2  # with and without out=


def test_bfloat16_of_torch(run):
    pytest.importorskip("torch")
    rows = run("--shape", "4,10", "3,5,2", "--dtype", "bfloat16", "--contender", "torch", "xsoftmax:torch")["rows"]
    for row in rows:
        if row["status"] != "timed":
            reason = "has no cross_entropy_and_grad with out="
            assert (row["contender"], row["reason"]) == ("torch", reason)
        elif row["contender"] == "xsoftmax:torch":
            assert row["ulps"] <= 1


def test_missing_contender(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    document = run("--shape", "4,10", "--dtype", "float32", "--verb", "softmax", "--contender", "numpy", "scipy")
    missing = [row for row in document["rows"] if row["contender"] == "scipy"]
    assert [row["status"] for row in missing] == ["skipped", "skipped"]
    assert missing[0]["reason"].startswith("not installed: ")
    assert "| scipy | skipped | not installed: " in (tmp_path / "here.md").read_text()


def test_missing_verb_and_error(run, monkeypatch):
    from xsoftmax.bench import contenders

    class Planted(contenders.Contender):
        def calls(self, inputs, out):
            def logsumexp():
                raise RuntimeError("no kernel\nfor this")

            return {"logsumexp": logsumexp}

    monkeypatch.setitem(contenders.CONTENDERS, "planted", Planted)
    document = run(
        *("--shape", "4,10", "--dtype", "float32", "--verb", "softmax", "logsumexp", "--contender", "planted"), status=1
    )
    assert [(row["status"], row["reason"]) for row in document["rows"]] == [
        ("skipped", "has no softmax"),
        ("skipped", "has no softmax with out="),
        ("skipped", "RuntimeError: no kernel"),
    ]


@pytest.mark.parametrize("memory, reason", [("0.000001", "logits and copies need "), ("0.001", "needs ")])
def test_memory(run, memory, reason):
    size = ["--shape", "200,300", "--dtype", "float32", "--verb", "logsumexp"]
    (row,) = run(*size, "--memory", memory, "--contender", "xsoftmax:array_api", status=1)["rows"]
    assert row["status"] == "skipped"
    assert row["reason"].startswith(reason)


@pytest.mark.parametrize(
    "arguments",
    [["--shape", "10"], ["--shape", "0,10"], ["--repeats", "0"], ["--threads", "0"], ["--contender", "abacus"]],
)
def test_usage(run, arguments):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2


def test_threads_are_put_back(run):
    before = xs.get_num_threads()
    document = run(
        *("--threads", "1", "--shape", "4,10", "--dtype", "float32", "--verb", "softmax", "--contender", "numpy")
    )
    assert document["machine"]["threads"] == 1
    assert xs.get_num_threads() == before


class TestReference:
    @pytest.fixture
    def inputs(self):
        from xsoftmax.bench.inputs import Inputs

        return Inputs.random((2000, 200), "float32", 1)

    def test_first_and_last_row_are_sampled(self, inputs):
        from xsoftmax.bench.reference import sampled

        (rows,) = sampled(inputs)
        assert {0, 1999} <= set(rows) < set(range(2000))

    def test_an_ulp(self, inputs):
        from xsoftmax.bench.reference import Reference

        reference = Reference("softmax", inputs)
        y = xs.softmax(inputs.x)
        assert 0.4 < reference.ulps((y,)) <= 0.51
        y[-1, 7] = np.nextafter(y[-1, 7], 1)
        assert 0.51 < reference.ulps((y,)) <= 1.51

    @pytest.mark.parametrize("shape", [(2000, 200), (2, 7, 30, 40)])
    def test_loss_and_gradient(self, shape):
        from xsoftmax.bench.inputs import Inputs
        from xsoftmax.bench.reference import Reference

        inputs = Inputs.random(shape, "float64", 1)
        reference = Reference("cross_entropy_and_grad", inputs)
        loss, grad = xs.cross_entropy_and_grad(inputs.x, inputs.labels, axis=inputs.axis)
        assert reference.ulps((np.asarray(loss), grad)) <= 6
        grad = grad * (1 + 2.0**-45)
        assert 200 < reference.ulps((np.asarray(loss), grad)) < 520


class TestTiming:
    def test_turns(self, monkeypatch):
        from xsoftmax.bench import timing
        from xsoftmax.bench.contenders import Call

        monkeypatch.setattr(timing, "SHORTEST", 0)
        order = []
        calls = {name: Call(lambda name=name: order.append(name)) for name in "abc"}
        runs, batches = timing.interleaved(calls, 3, 0)
        assert batches == {"a": 1, "b": 1, "c": 1}
        assert "".join(order[-18:]) == "aabbcc" * 3  # untimed, timed
        assert [len(times) for times in runs.values()] == [3, 3, 3]

    def test_small_calls_are_batched(self):
        from xsoftmax.bench import timing
        from xsoftmax.bench.contenders import Call

        call = Call(lambda: None)
        assert timing.batch(call) > 100


class TestSummary:
    def rows(self, shape, times, **changes):
        row = {"verb": "softmax", "dtype": "float32", "shape": shape, "out": False, "status": "timed"} | changes
        return [row | {"contender": name, "seconds": seconds} for name, seconds in times.items()]

    def test_ratios(self):
        import report

        rows = [
            *self.rows([4, 10], {"torch": 2e-6, "xsoftmax:numpy_numba": 1e-6, "xsoftmax:torch": 1e-9, "scipy": 6e-6}),
            *self.rows([8, 99], {"torch": 1.0, "xsoftmax:array_api": 9.0, "xsoftmax:numpy_blocked": 8.0}),
            *self.rows([8, 99], {"torch": 1.0, "xsoftmax:array_api": 20.0}, out=True),
            *self.rows([8, 99], {"torch": 1.0}, dtype="float64"),
            {**self.rows([8, 99], {"scipy": 0.0})[0], "status": "skipped"},
        ]
        found = report.summary(rows)
        single, double = found["geometric means"]
        assert single["xsoftmax/torch"] == pytest.approx(2)  # √(½ · 8)
        assert single["xsoftmax/torch out="] == pytest.approx(20)
        assert single["scipy/xsoftmax"] == pytest.approx(6)
        assert [double[key] for key in list(double)[2:]] == [None] * 3
        small, large = found["worst"]
        assert small["xsoftmax/torch"]["ratio"] == pytest.approx(0.5)
        assert (large["xsoftmax/torch"]["ratio"], large["xsoftmax/torch"]["out"]) == (pytest.approx(20), True)
        assert large["scipy/xsoftmax"] is None
        assert [row["microseconds"] for row in found["small calls"]] == pytest.approx([2, 1, 1e-3, 6])

        text = report.summary_text(found)
        assert "| softmax | float32 | 2 | 20 | 6 |" in text
        assert "| softmax | float64 | – | – | – |" in text
        assert "| 8 × 99 | 20 (softmax, float32, out=) | – |" in text

    def test_nothing(self):
        import report

        assert "not measured" in report.summary_text(report.summary([]))
