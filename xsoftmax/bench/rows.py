"""Measured rows as tables of text: one line for a contender, one column for a shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

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


def times(rows: Sequence[Row]) -> tuple[Line, list[Line]]:
    """Header and lines: times over copy, worst errors in brackets; who was never timed has no line."""
    shapes = [dimensions(shape) for shape in unique(rows, "shape")]
    copies = {dimensions(r["shape"]): f"{r['copy_seconds'] * 1e3:.3g} ms" for r in rows if r["status"] == "timed"}
    lines = [("copy", *(copies.get(shape, "–") for shape in shapes))]
    for name in unique(rows, label):
        cells = {dimensions(r["shape"]): _cell(r) for r in rows if label(r) == name}
        line = [cells.get(shape, "–") for shape in shapes]
        if set(line) != {"–"}:
            lines.append((name, *line))
    return ("contender", *shapes), lines


def _cell(row: Row) -> str:
    if row["status"] != "timed":
        return "✗" if row["status"] == "wrong" else "–"
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
