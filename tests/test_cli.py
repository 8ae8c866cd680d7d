"""The commands: what they print, and the exit status a user's own CI would see."""

import inspect
import io
import json
import os
import subprocess
import sys

import pytest
from calls import CALLS

import xsoftmax
from xsoftmax.cli import main
from xsoftmax.libraries.backends import Status
from xsoftmax.verbs import functions

SMALL = ["verify", "--backend", "numpy", "--verb", "softmax", "--dtype", "float32"]
BENCH = ["bench", "--shape", "4,10", "20,30", "--repeats", "2", "--pause", "0"]


def test_backends(capsys):
    assert main(["backends"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "numpy" in line and "yes" in line]
    assert "array-api-strict:no_x64" in out


def test_backends_say_what_to_install(capsys, monkeypatch):
    """The brackets of an extra are no markup."""
    absent = Status("cupy", False, None, None, 'pip install "xsoftmax[cuda13x]"', "")
    monkeypatch.setattr("xsoftmax.cli.backends", lambda: [absent])
    assert main(["backends"]) == 0
    out = capsys.readouterr().out
    assert "xsoftmax[cuda13x]" in out
    assert "cupy_cuda (where asked" in out


def has_axis(verb):
    return "axis" in inspect.signature(getattr(xsoftmax, verb)).parameters


@pytest.mark.parametrize("verb", CALLS)
@pytest.mark.parametrize("shape", ["4,10,3", "5"])
def test_explain(capsys, verb, shape):
    options = ["--backend", "numpy", "--shape", shape, "--dtype", "float16"]
    for axis in ("0", "-1") if has_axis(verb) else ("-1", str(shape.count(","))):
        assert main(["explain", verb, *options, "--axis", axis]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{verb}: ")
        assert "float16, computed in" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "hardmax"], "xsoftmax explain: verb is 'hardmax', expected one of cross_entropy, "),
        (["explain", "softmax", "--backend", "abacus"], "xsoftmax explain: backend: name is 'abacus', expected"),
        (["explain", "softmax", "--backend", "array-api-strict", "--dtype", "float16"], "asarray: dtype is float16"),
        (
            ["explain", "softmax", "--backend", "numpy", "--dtype", "half"],
            "asarray: dtype is half, expected one of float16",
        ),
        (["explain", "softmax", "--backend", "numpy", "--dtype", ""], "asarray: dtype is '', expected one of float16"),
        (["explain", "softmax", "--dtype", "complex64"], "softmax: x has dtype complex64, expected"),
        (["explain", "softmax", "--axis", "2"], "softmax: axis is 2, expected values from -2 to 1 for x"),
        (["explain", "cross_entropy", "--axis", "7"], "cross_entropy: axis is 7, expected values from -2 to 1"),
        (
            ["explain", "linear_cross_entropy", "--axis", "0"],
            "explain: axis is 0, expected -1: classes of linear_cross",
        ),
        (["explain", "set_num_threads"], "verb is 'set_num_threads', expected one of cross_entropy, "),
        (["explain", "backend"], "verb is 'backend', expected one of cross_entropy, "),
        (["explain", "softmax", "--shape", "0,10"], "softmax: nothing would run: the arrays are empty"),
        (["explain", "cross_entropy", "--shape", "10,0"], "logits has shape (10, 0), expected at least one class"),
        (["explain", "softmax", "--backend", "numpy", "--shape", "1000000,1000000,1000000"], "xsoftmax explain: "),
        (["explain", "softmax", "--backend", "numpy", "--shape", f"{10**30}"], "xsoftmax explain: "),
        (["explain", "linear_cross_entropy", "--backend", "numpy", "--shape", f"2,{10**15}"], "xsoftmax explain: "),
        (["verify", "--backend", "abacus"], "xsoftmax verify: backend: name is 'abacus', expected"),
        (["verify", "--backend", "numpy", "--verb", "hardmax"], "unknown verb 'hardmax'"),
        (["verify", "--backend", "numpy", "--dtype", "float8"], "unknown dtype 'float8'"),
        (["bench", "--contender", "abacus"], "bench: unknown contender 'abacus', expected one of numpy, "),
        (["bench", "--json", "nowhere/times.json"], "No such file or directory: 'nowhere/times.json'"),
        (["bench", "--json", "."], "Is a directory: '.'"),
    ],
)
def test_what_cannot_run_is_status_2(capsys, arguments, message):
    if "array-api-strict" in arguments:
        pytest.importorskip("array_api_strict")
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


@pytest.mark.parametrize(
    "arguments",
    [
        *(["explain", "softmax", f"--shape={shape}"] for shape in ("", ",", "3,", "-3", "-3,4", "3.0", "x")),
        *(["bench", f"--shape={shape}"] for shape in ("", "5", "0,1", "4,x")),
        *(["bench", f"--repeats={number}"] for number in ("0", "-1", "x", "")),
        *(["bench", f"--{option}={number}"] for option in ("pause", "memory") for number in ("-1", "nan", "inf", "x")),
    ],
    ids=" ".join,
)
def test_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(f"xsoftmax {arguments[0]}: error: argument --")
    assert "_" not in err.splitlines()[-1]  # no function's name


WITH_NUMPY_ALONE = """
import sys, xsoftmax.cli
sys.modules["xsoftmax.libraries.backends"].NAMES = ("numpy",)
sys.exit(xsoftmax.cli.main())
"""


def run(*arguments, **options):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | options.pop("env", {})
    command = [sys.executable, "-c", WITH_NUMPY_ALONE, *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, env=environment, check=False, **options)


ALL = [["backends"], ["explain", "softmax", "--backend", "numpy"], SMALL, [*SMALL, "--json"], ["bench", "--help"]]


@pytest.mark.parametrize("arguments", ALL, ids=" ".join)
def test_a_reader_who_has_gone(arguments):
    """As `head` does; 141 is what shells make of a program that SIGPIPE ended."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        done = run(*arguments, stdout=stdout)
    assert (done.returncode, done.stderr.strip()) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
@pytest.mark.parametrize("arguments", ALL, ids=" ".join)
def test_a_full_device(arguments):
    with open("/dev/full", "w") as full:
        done = run(*arguments, stdout=full)
    assert done.returncode == 2
    assert done.stderr.strip() == b"xsoftmax: [Errno 28] No space left on device"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
def test_stderr_may_be_full_too():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "xsoftmax", "explain", "hardmax"]
        assert subprocess.run(command, stderr=full, check=False).returncode == 2


@pytest.mark.parametrize("arguments", ALL, ids=" ".join)
def test_ascii(arguments):
    done = run(*arguments, stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr.strip()) == (0, b"")
    assert done.stdout.isascii()
    assert b"?" not in done.stdout


def test_marks_of_failures_in_ascii(monkeypatch):
    right = functions.softmax
    monkeypatch.setattr(functions, "softmax", lambda x, **options: _spoilt(right(x, **options), 1 + 2**-20))
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert main(SMALL) == 1
    out = sys.stdout.buffer.getvalue()
    assert b"\nx softmax float32: " in out
    assert b"... and " in out
    assert b"| x " in out
    assert out.endswith(b"off the contract\n")


@pytest.mark.parametrize("arguments", [["backends"], SMALL, BENCH], ids=" ".join)
def test_an_interrupt_is_status_130(capsys, monkeypatch, arguments):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    for name in (
        "xsoftmax.cli.backends",
        "xsoftmax.cli.Counter",
        "xsoftmax.bench.measure.Group",
        "xsoftmax.verify.run._run",
    ):
        monkeypatch.setattr(name, interrupt)
    assert main(arguments) == 130
    out, err = capsys.readouterr()
    assert (out.strip(), "Traceback" in err) == ("", False)


def test_too_much_memory_is_status_2(capsys):
    big = ["--shape", f"{10**7},{10**7}", "--memory", "1e9", "--verb", "softmax", "--contender", "numpy"]
    assert main(["bench", *big]) == 2
    assert "xsoftmax bench: Unable to allocate " in capsys.readouterr().err.splitlines()[-1]


def test_verify(capsys):
    assert main(SMALL) == 0
    out = capsys.readouterr().out
    assert "numpy: worst error / contract, in ulps" in out
    assert "/ 1" in next(line for line in out.splitlines() if "softmax" in line)
    assert "compared " in out
    assert out.endswith("all within the contract\n")


def test_verify_json_is_all_of_stdout(capsys):
    assert main([*SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (row,) = report["results"]
    assert report["ok"]
    assert (row["backend"], row["verb"], row["dtype"], row["ok"]) == ("numpy", "softmax", "float32", True)
    assert 0 < row["worst"] <= row["bound"] == 1
    assert row["compared"] > 100


def test_verify_all_reports_what_it_skips(capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["xsoftmax.libraries.backends"], "NAMES", ("numpy", "cupy"))
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["verify", *SMALL[3:]]) == 0
    assert "skipped: cupy: 'cupy' is not installed; pip install" in capsys.readouterr().out
    assert main(["verify", *SMALL[3:], "--backend", "all", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["skipped"]) == ["cupy"]


def _spoilt(y, factor):
    y[(0,) * y.ndim] *= factor
    return y


def test_a_wrong_result_is_status_1(capsys, monkeypatch):
    right = functions.softmax
    monkeypatch.setattr(functions, "softmax", lambda x, **options: _spoilt(right(x, **options), 1 + 2**-20))
    assert main(SMALL) == 1
    out = capsys.readouterr().out
    assert "✗" in out
    assert out.endswith("off the contract\n")
    assert main([*SMALL, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert not report["results"][0]["ok"]
    assert report["results"][0]["failures"]


def test_infinite_errors_are_valid_json(capsys, monkeypatch):
    right = functions.softmax
    monkeypatch.setattr(functions, "softmax", lambda x, **options: _spoilt(right(x, **options), float("nan")))
    assert main([*SMALL, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["results"][0]["worst"] is None


def test_nothing_compared_is_status_1(capsys, monkeypatch):
    def refuse(x, **options):
        raise NotImplementedError("not on Sundays")

    monkeypatch.setattr(functions, "softmax", refuse)
    assert main(SMALL) == 1
    out = capsys.readouterr().out
    assert "refused" in out
    assert "not on Sundays" in out
    assert out.endswith("nothing was compared\n")


def test_only_an_absent_dtype_is_status_1(capsys):
    pytest.importorskip("array_api_strict")
    assert main(["verify", "--backend", "array-api-strict", "--verb", "softmax", "--dtype", "float16"]) == 1
    assert "not here: float16" in capsys.readouterr().out


@pytest.fixture
def no_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.special", None)


def test_bench(capsys, no_scipy, tmp_path):
    file = tmp_path / "times.json"
    contenders = ["--contender", "numpy", "scipy", "xsoftmax:numpy_blocked"]
    assert main([*BENCH, "--verb", "softmax", "cross_entropy", *contenders, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    for text in ("time over a single-threaded copy", "softmax, float32", "cross_entropy, float32"):
        assert text in out
    named = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    ours = "xsoftmax:numpy_blocked"
    assert named == ["copy", "numpy", "numpy out=", ours, f"{ours} out=", "copy", "numpy", ours]
    assert out.splitlines()[-1].startswith("skipped: scipy: not installed: ")

    document = json.loads(file.read_text())
    assert document["repeats"] == 2
    timed = [row for row in document["rows"] if row["status"] == "timed"]
    assert len(timed) == (2 + 1) * 2 * 2  # softmax with and without out=, contenders, shapes
    assert all(row["ulps"] <= 1 for row in timed if row["contender"] == ours)


@pytest.mark.parametrize(("name", "status"), [("xsoftmax:planted", 1), ("planted", 0)])
def test_bench_tells_a_wrong_result(capsys, monkeypatch, name, status):
    from xsoftmax.bench import contenders

    class Planted(contenders.Contender):
        def calls(self, inputs, out):
            return {} if out is not None else {"softmax": lambda: functions.softmax(inputs.x) * 2}

    monkeypatch.setitem(contenders.CONTENDERS, name, Planted)
    assert main([*BENCH, "--verb", "softmax", "--contender", "numpy", name]) == status
    assert f"✗ {name}, softmax float32 [4, 10]: is off by " in capsys.readouterr().out


def test_nothing_timed_is_status_1(capsys, no_scipy):
    assert main([*BENCH, "--verb", "softmax", "--contender", "scipy"]) == 1
    assert "skipped: scipy: not installed: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "command"),
    [("rich", "backends"), ("rich", "verify"), ("mpmath", "verify"), ("rich", "bench"), ("mpmath", "bench")],
)
def test_a_missing_extra_says_what_to_install(module, command):
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Absent())
from xsoftmax.cli import main
sys.exit(main([{command!r}]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f'xsoftmax {command}: {module} is not installed; pip install "xsoftmax[cli]"\n'


def test_runs_as_a_module():
    run = subprocess.run([sys.executable, "-m", "xsoftmax"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "usage: xsoftmax" in run.stderr
