"""The commands ``xsoftmax backends``, ``explain``, ``verify`` and ``bench``."""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bench.options import QUICK, VERBS, add_options
from .calls import table
from .libraries.backends import Backend, backend, backends

if TYPE_CHECKING:
    from .verify.run import Summary

FAILED = 1
UNUSABLE = 2  # as argparse, for wrong usage
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
UNREAD = 141  # 128 + SIGPIPE


class Unusable(Exception):
    """What was asked for does not exist or cannot run here."""


@contextmanager
def _asked() -> Iterator[None]:
    """Errors within are about what was asked for, not ours."""
    try:
        yield
    except (ImportError, MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise Unusable(_line(error)) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0: fine, 1: a result is off, or nothing was compared or timed, 2: it could not run.

    And as shells have it, 130: interrupted, 141: whoever read the output has gone.
    """
    _spell_out()
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        status = UNREAD
    except OSError as error:
        status = _complain("", error)
    except KeyboardInterrupt:
        return INTERRUPTED
    _discard()
    return status


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "mpmath", "ml_dtypes"):
            raise
        return _complain(options.command, f'{error.name} is not installed; pip install "xsoftmax[cli]"')
    except (MemoryError, Unusable) as error:
        return _complain(options.command, error)
    return status


def _complain(command: str, what: BaseException | str) -> int:
    line = what if isinstance(what, str) else _line(what)
    with suppress(OSError):  # stderr may be full too
        print(f"{f'xsoftmax {command}'.strip()}: {line}", file=sys.stderr)
    return UNUSABLE


_ASCII = {"✗": "x", "–": "-", "−": "-", "…": "..."}


def _spell_out() -> None:
    """Streams that lack a character get another one for it, not an error."""

    def spelled(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        return "".join(_ASCII.get(c, "?") for c in error.object[error.start : error.end]), error.end

    codecs.register_error("xsoftmax", spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="xsoftmax")


def _discard() -> None:
    """What stdout could not write, which Python would try again at its end."""
    with suppress(OSError, ValueError):  # it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xsoftmax", description="Softmax and cross-entropy for any array library.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("backends", help="which array libraries and devices are here, usable or why not")
    command.set_defaults(run=_show_backends)

    command = commands.add_parser("explain", help="which implementation runs a call, and why the others do not")
    command.add_argument("verb", help="a public function, such as softmax or cross_entropy")
    command.add_argument("--backend", default="auto", metavar="NAME", help="default: %(default)s")
    command.add_argument("--shape", type=_shape, default=(32, 10), metavar="N,C", help="of the logits; default: 32,10")
    command.add_argument("--dtype", default="float32", help="of the logits; default: %(default)s")
    command.add_argument("--axis", type=int, default=-1, help="default: %(default)s")
    command.set_defaults(run=_explain)

    command = commands.add_parser("verify", help="compare every result with the exact one, under the accuracy contract")
    for option, what in (
        ("--backend", "'all', the default: every usable one"),
        ("--verb", "default: all"),
        ("--dtype", "default: all"),
    ):
        command.add_argument(option, nargs="+", action="extend", metavar="NAME", help=what)
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    command.set_defaults(run=_verify)

    command = commands.add_parser(
        "bench",
        help="time this library beside the others that are here, on this machine",
        description="Time this library beside the others that are here, every result compared with the exact one "
        "first. Where not told otherwise: all verbs but logsumexp, four shapes, float32, 5 runs; a few minutes.",
    )
    add_options(command)
    command.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    command.set_defaults(run=_bench, verb=[verb for verb in VERBS if verb != "logsumexp"], **QUICK)
    return parser


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = (-1,)
    if min(shape) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} has to be sizes >= 0, such as 32,10")
    return shape


def _console(**options: Any) -> Any:
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # to `main`; rich would exit

    console = Plain(**options)
    return console if console.is_terminal else Plain(width=120, **options)


def _show_backends(options: argparse.Namespace) -> int:
    from rich.markup import escape
    from rich.table import Table

    from .implementations import REGISTRY

    table = Table("backend", "version", "device", "usable", "implementations")
    for status in backends():
        library = status.name.partition(":")[0].replace("-", "_")
        serving = [entry for entry in REGISTRY if entry.library in (library, "*")]
        names = [f"{entry.name} (where asked for)" if entry.off else entry.name for entry in serving]
        table.add_row(
            status.name,
            status.version or "–",
            status.device or "–",
            "yes" if status.usable else escape(f"no: {status.reason}"),
            ", ".join(names),
        )
    _console().print(table)
    return 0


def _explain(options: argparse.Namespace) -> int:
    from .verbs.explain import explain

    with _asked():
        chosen = backend(options.backend)
        if (asked := table.VERBS.get(options.verb)) is None:
            raise ValueError(f"verb is {options.verb!r}, expected one of {', '.join(sorted(table.VERBS))}")
        names = asked.arrays
        arrays = [_zeros(chosen, name, names, options) for name in names]
        explanation = explain(options.verb, *arrays, **_axis(options))
    print(explanation)
    return 0


def _axis(options: argparse.Namespace) -> dict[str, int]:
    if table.VERBS[options.verb].family != "linear":
        return {"axis": options.axis}
    if options.axis not in (-1, len(options.shape) - 1):
        raise ValueError(f"axis is {options.axis}, expected -1: classes of {options.verb} are on the last axis")
    return {}


_WIDTH = 4  # of the input of a linear loss


def _zeros(chosen: Backend, name: str, names: tuple[str, ...], options: argparse.Namespace) -> Any:
    import numpy

    shape, axis = options.shape, options.axis % len(options.shape)
    if name == "targets":
        return chosen.asarray(numpy.zeros(shape[:axis] + shape[axis + 1 :], "int32"))
    if "linear_weight" in names:
        shape = (*shape[:-1], _WIDTH) if name == "input" else (shape[-1], _WIDTH)
    return chosen.asarray(numpy.zeros(shape, "float32"), dtype=options.dtype)


def _verify(options: argparse.Namespace) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .verify.run import plan, summarise, verify

    wanted = {"verbs": options.verb, "dtypes": options.dtype}
    with _asked():
        chosen, skipped = _chosen(options.backend)
        total = sum(len(plan(one, **wanted)) for one in chosen)
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        for one in chosen:
            progress.update(task, description=one.name)
            for result in verify(one, **wanted):
                results.append(result)
                progress.advance(task)
    summaries = summarise(results)
    ok = all(summary.ok for summary in summaries) and any(summary.compared for summary in summaries)
    if options.json:
        rows = [_finite(dataclasses.asdict(summary) | {"ok": summary.ok}) for summary in summaries]
        print(json.dumps({"ok": ok, "skipped": skipped, "results": rows}, indent=1, allow_nan=False))
    else:
        _print_verdict(summaries, skipped, ok)
    return 0 if ok else FAILED


def _chosen(names: list[str] | None) -> tuple[list[Backend], dict[str, str]]:
    """Backends to verify, and those that 'all' leaves out with their reasons; one asked for by name must be usable."""
    if names is not None and "all" not in names:
        return [backend(name) for name in dict.fromkeys(names)], {}
    statuses = backends()
    skipped = {status.name: str(status.reason) for status in statuses if not status.usable}
    return [backend(status.name) for status in statuses if status.usable], skipped


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    # JSON has no infinity.
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def _print_verdict(summaries: list[Summary], skipped: dict[str, str], ok: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = _console()
    verbs = list(dict.fromkeys(summary.verb for summary in summaries))
    dtypes = list(dict.fromkeys(summary.dtype for summary in summaries))
    for name in dict.fromkeys(summary.backend for summary in summaries):
        cells = {(s.verb, s.dtype): s for s in summaries if s.backend == name}
        console.print(f"{name}: worst error / contract, in ulps", highlight=False)
        table = Table("verb", *dtypes)
        for verb in verbs:
            table.add_row(verb, *(_cell(cells.get((verb, dtype))) for dtype in dtypes))
        console.print(table)
        console.print(_counts(list(cells.values())), highlight=False, soft_wrap=True)
        for summary in cells.values():
            for failure in summary.failures[:3]:
                console.print(
                    f"[red]✗[/] {summary.verb} {summary.dtype}: {escape(failure)}", highlight=False, soft_wrap=True
                )
            if len(summary.failures) > 3:
                console.print(f"  … and {len(summary.failures) - 3} more", highlight=False, soft_wrap=True)
    for name, reason in skipped.items():
        console.print(f"skipped: {name}: {escape(reason)}", highlight=False, soft_wrap=True)
    if not any(summary.compared for summary in summaries):
        console.print("[red]nothing was compared[/]")
    else:
        console.print("[green]all within the contract[/]" if ok else "[red]off the contract[/]")


def _cell(summary: Summary | None) -> str:
    if summary is None or summary.absent:
        return "–"
    if not summary.compared:
        return "[red]✗ nothing compared[/]" if not summary.refused else "refused"
    text = f"{summary.worst:.2f} / {summary.bound:g}"
    return text if summary.ok else f"[red]✗ {text}[/]"


def _counts(summaries: list[Summary]) -> str:
    """How much was compared, refused and exempted."""
    compared = sum(summary.compared for summary in summaries)
    text = [f"compared {compared:,} values in {sum(summary.cases for summary in summaries):,} cases"]
    for what in ("refused", "exempted"):
        counts: Counter[str] = sum((getattr(summary, what) for summary in summaries), Counter())
        detail = ", ".join(f"{reason}: {count:,}" for reason, count in counts.most_common())
        text.append(f"{what} {counts.total():,}" + (f" ({detail})" if detail else ""))
    absent = list(dict.fromkeys(summary.dtype for summary in summaries if summary.absent))
    if absent:
        text.append(f"not here: {', '.join(absent)}")
    return "; ".join(text)


def _bench(options: argparse.Namespace) -> int:
    from .bench.measure import Plan, measure
    from .bench.rows import failed

    with _asked():
        plan = Plan.of(options)
        if options.json:
            options.json.open("a").close()
    for document in measure(plan, "this machine"):
        if options.json:
            options.json.write_text(json.dumps(document, indent=1, allow_nan=False))
    rows = document["rows"]
    _print_times(document["machine"], rows)
    return FAILED if failed(rows) else 0


def _print_times(machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from .bench.rows import OURS, by_verb_and_dtype, label, over_copy, times, unique

    console = _console()
    console.print(
        f"{machine['processor']}, {machine['threads']} threads: time over a single-threaded copy of the logits, "
        "in brackets the worst error in ulps of the exact result; – not timed, ✗ wrong",
        highlight=False,
    )
    for title, some in by_verb_and_dtype(rows):
        header, lines = times(some, over_copy)
        table = Table(*header, title=title, title_justify="left")
        for line in lines:
            table.add_row(*line, style="bold" if line[0].startswith(OURS) else "")
        console.print(table)
    for row in rows:
        if row["status"] == "wrong":
            where = f"{row['verb']} {row['dtype']} {row['shape']}"
            reason = escape(f"{label(row)}, {where}: {row['reason']}")
            console.print(f"[red]✗[/] {reason}", highlight=False, soft_wrap=True)
    timed = {row["contender"] for row in rows if row["status"] == "timed"}
    absent = [row for row in rows if row["status"] == "skipped" and row["contender"] not in timed]
    for name, reason in unique(absent, lambda row: (row["contender"], row["reason"])):
        console.print(f"skipped: {name}: {escape(reason)}", highlight=False, soft_wrap=True)
