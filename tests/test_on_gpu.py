"""The script of all GPU stages, with other commands in their place."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import on_gpu

    return on_gpu


@pytest.fixture
def run(on_gpu, monkeypatch, tmp_path):
    """The status and the summary of a run of these stages, all of the same share."""

    def run(*arguments, **commands):
        def stages(output, name, benchmark):
            return {stage: on_gpu.Stage(stage, command, 0.5, modules=()) for stage, command in commands.items()}

        monkeypatch.setattr(on_gpu, "stages", stages)
        status = on_gpu.main(["--output", str(tmp_path), *arguments])
        return status, json.loads((tmp_path / "summary.json").read_text())

    return run


def python(code):
    return (sys.executable, "-c", code)


def test_goes_on_and_ends_with_the_worst_status(run, tmp_path, capsys):
    codes = {"first": "print('one')", "second": "print('two'); raise SystemExit(3)", "third": "raise SystemExit(1)"}
    status, summary = run(**{name: python(code) for name, code in codes.items()})
    assert status == 3
    assert [(row["stage"], row["status"], row["tail"]) for row in summary] == [
        ("first", 0, ["one"]),
        ("second", 3, ["two"]),
        ("third", 1, []),
    ]
    assert (tmp_path / "second.log").read_text() == "two\n"
    text = (tmp_path / "summary.txt").read_text()
    assert text == capsys.readouterr().out
    assert "✓ first: status 0" in text
    assert "✗ second: status 3" in text


def test_both_outputs_are_kept_in_order_and_the_tail_shown(run, tmp_path):
    code = "import sys\nfor i in range(40): print(i, file=(sys.stdout, sys.stderr)[i % 2], flush=True)"
    _, (row,) = run(many=python(code))
    assert row["tail"] == [str(i) for i in range(25, 40)]
    assert (tmp_path / "many.log").read_text().split() == [str(i) for i in range(40)]


def test_summary_is_written_as_it_goes(run, tmp_path):
    code = f"assert 'first' in open({str(tmp_path / 'summary.txt')!r}).read()"
    status, _ = run(first=python(""), second=python(code))
    assert status == 0


def test_a_stage_out_of_time_is_stopped_with_its_workers(run, tmp_path):
    started = tmp_path / "started"
    worker = f"import time; open({str(started)!r}, 'w').close(); time.sleep(600)"
    code = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {worker!r}])"
    status, (slow, quick) = run("--minutes", "0.1", slow=python(code), quick=python(""))
    assert status == slow["status"] == 124
    assert slow["tail"] == ["begun", "", "stopped: its 3 s were over"]
    assert quick["status"] == 0
    assert started.exists()
    assert slow["seconds"] < 60


def test_a_signal_is_a_failure(run):
    status, _ = run(killed=python("import os; os.kill(os.getpid(), 9)"))
    assert status == 137


def test_chosen_stages(run):
    _, summary = run("--stages", "b", a=python(""), b=python(""))
    assert [row["stage"] for row in summary] == ["b"]


@pytest.mark.parametrize(
    "needs, reason",
    [
        ({"programs": ("no-such-program",)}, "cannot run: no-such-program is not on the PATH"),
        ({"paths": ("tests/no_such_folder",)}, "cannot run: tests/no_such_folder is not in this checkout"),
        ({"modules": ("no_such_module",)}, "cannot run: no_such_module is not installed"),
    ],
)
def test_a_stage_that_cannot_run_has_failed(on_gpu, tmp_path, needs, reason):
    stage = on_gpu.Stage("a", python("raise AssertionError('run')"), 1.0, **({"modules": ()} | needs))
    outcome = on_gpu.run(stage, tmp_path / "a.log", 60)
    assert (outcome.status, outcome.tail) == (127, [reason])


def test_the_benchmark_is_told_its_time(on_gpu, tmp_path):
    stage = on_gpu.Stage("a", python("import sys; print(sys.argv[1:])"), 1.0, told=True, modules=())
    assert on_gpu.run(stage, tmp_path / "a.log", 600).tail == ["['--minutes', '8.50']"]


def test_real_stages(on_gpu, tmp_path):
    found = on_gpu.stages(tmp_path, "h200", ["--quick"])
    assert list(found) == ["contract", "gpu", "torch", "random", "memcheck", "racecheck", "bench"]
    for name in ("memcheck", "racecheck"):
        command = " ".join(found[name].command)
        assert command.startswith(f"compute-sanitizer --tool {name} --error-exitcode 9 {sys.executable} -c ")
    assert found["bench"].command[1:] == (
        *("benchmarks/gpu.py", "--name", "h200", "--output", str(tmp_path), "--quick"),
    )
    for stage in found.values():
        for part in stage.command:
            assert not part.startswith("tests/") or (on_gpu.ROOT / part).exists()


def test_options_of_the_benchmark(on_gpu, monkeypatch, tmp_path):
    from xsoftmax.bench.gpu import measure

    given = []
    monkeypatch.setattr(on_gpu, "run", lambda stage, log, seconds: given.append(stage) or on_gpu.Outcome("a", 0, 0, []))
    asked = ["--stages", "bench", "--output", str(tmp_path), "--", "--dtype", "bfloat16", "--repeats", "3"]
    assert on_gpu.main(asked) == 0
    import gpu

    plan, options = gpu.parsed([*given[0].command[2:], "--minutes", "4"])
    assert isinstance(plan, measure.Plan)
    assert (plan.dtype, plan.repeats, plan.minutes, options.output) == (["bfloat16"], 3, 4, tmp_path)
