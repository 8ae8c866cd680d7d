"""Measured rows as tables of text: one line for a contender, one column for a shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .inputs import class_axis

Row = dict[str, Any]
Line = tuple[str, ...]
OURS = "xsoftmax:"


def dimensions(shape: Iterable[int]) -> str:
    return " × ".join(f"{n:,}" for n in shape)


def label(row: Row) -> str:
    return row["contender"] + (" out=" if row["out"] else "")


def unique(rows: Iterable[Row], key: str | Callable[[Row], Any]) -> list:
    """Distinct values in the order of the rows."""
    found: list = []
    for row in rows:
        value = key(row) if callable(key) else row[key]
        if value not in found:
            found.append(value)
    return found


def by_verb_and_dtype(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows that make a table, under its title."""
    for verb, dtype in unique(rows, lambda row: (row["verb"], row["dtype"])):
        yield f"{verb}, {dtype}", [row for row in rows if (row["verb"], row["dtype"]) == (verb, dtype)]


def skipped(verb: str, shape: Sequence[int], dtype: str, names: Iterable[str], reason: str) -> list[Row]:
    """Rows of contenders that were not tried."""
    row = {"verb": verb, "shape": list(shape), "axis": class_axis(shape), "dtype": dtype, "out": False}
    return [row | {"contender": name, "status": "skipped", "reason": reason} for name in names]


def failed(rows: Sequence[Row]) -> bool:
    """Whether xsoftmax is wrong somewhere, or nothing was timed."""
    off = any(row["status"] == "wrong" and row["contender"].startswith(OURS) for row in rows)
    return off or all(row["status"] != "timed" for row in rows)


def times(rows: Sequence[Row], figures: Callable[[Row], str]) -> tuple[Line, list[Line]]:
    """Header and lines: the copy's times, and the figures of each contender; who was never timed has no line."""
    shapes = [dimensions(shape) for shape in unique(rows, "shape")]
    copies = {dimensions(r["shape"]): f"{r['copy_seconds'] * 1e3:.3g} ms" for r in rows if r["status"] == "timed"}
    lines = [("copy", *(copies.get(shape, "–") for shape in shapes))]
    for name in unique(rows, label):
        cells = {dimensions(r["shape"]): _cell(r, figures) for r in rows if label(r) == name}
        line = [cells.get(shape, "–") for shape in shapes]
        if set(line) != {"–"}:
            lines.append((name, *line))
    return ("contender", *shapes), lines


def _cell(row: Row, figures: Callable[[Row], str]) -> str:
    if row["status"] != "timed":
        return "✗" if row["status"] == "wrong" else "–"
    return figures(row)


def over_copy(row: Row) -> str:
    return f"{row['over_copy']:.3g} ({row['ulps']:.2g})"


def not_timed(rows: Sequence[Row]) -> tuple[Line, list[Line]]:
    """Header and lines: who was not timed, why and where."""
    found = [row for row in rows if row["status"] != "timed"]
    lines = []
    for name, status, reason in unique(found, lambda row: (label(row), row["status"], row["reason"])):
        same = [r for r in found if (label(r), r["status"], r["reason"]) == (name, status, reason)]
        where = (unique(same, "verb"), unique(same, "dtype"), unique(same, lambda row: dimensions(row["shape"])))
        lines.append((name, status, reason, *(", ".join(values) for values in where)))
    return ("contender", "", "reason", "verbs", "dtypes", "shapes"), lines
