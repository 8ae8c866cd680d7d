"""Tables and ratios of measured rows, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import geometric_mean
from typing import Any

from xsoftmax.bench.options import SMALL
from xsoftmax.bench.rows import Line, Row, by_verb_and_dtype, dimensions, label, not_timed, over_copy, times, unique

OURS_ON_NUMPY = "xsoftmax:numpy_", "xsoftmax:array_api"


# ---------------------------------------------------------------------------------------------------------------------
# ratios


def ratios(rows: Sequence[Row], other: str, *, out: bool = False) -> list[Row]:
    """Time of xsoftmax's fastest implementation on NumPy arrays over that of another, where both were timed."""
    times: dict[tuple, dict[str, float]] = {}
    for row in rows:
        if row["status"] == "timed" and row["out"] == out:
            key = row["verb"], row["dtype"], tuple(row["shape"])
            times.setdefault(key, {})[row["contender"]] = row["seconds"]
    found = []
    for (verb, dtype, shape), by_name in times.items():
        ours = [seconds for name, seconds in by_name.items() if name.startswith(OURS_ON_NUMPY)]
        if ours and other in by_name:
            ratio = min(ours) / by_name[other]
            found.append({"verb": verb, "dtype": dtype, "shape": list(shape), "out": out, "ratio": ratio})
    return found


def summary(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Mean ratios per verb and dtype, the worst per shape, and microseconds of small calls."""
    torch = ratios(rows, "torch")
    torch_out = ratios(rows, "torch", out=True)
    scipy = [row | {"ratio": 1 / row["ratio"]} for row in ratios(rows, "scipy")]
    means = [
        {
            "verb": verb,
            "dtype": dtype,
            "xsoftmax/torch": _mean(torch, verb, dtype),
            "xsoftmax/torch out=": _mean(torch_out, verb, dtype),
            "scipy/xsoftmax": _mean(scipy, verb, dtype),
        }
        for verb, dtype in unique(rows, lambda row: (row["verb"], row["dtype"]))
    ]
    worst = [
        {
            "shape": shape,
            "xsoftmax/torch": _extreme(max, torch + torch_out, shape),
            "scipy/xsoftmax": _extreme(min, scipy, shape),
        }
        for shape in unique(rows, "shape")
    ]
    return {"geometric means": means, "worst": worst, "small calls": small_calls(rows)}


def small_calls(rows: Sequence[Row]) -> list[Row]:
    return [
        {key: row[key] for key in ("verb", "dtype", "contender", "out")} | {"microseconds": row["seconds"] * 1e6}
        for row in rows
        if row["status"] == "timed" and row["shape"] == list(SMALL)
    ]


def _mean(found: Sequence[Row], verb: str, dtype: str) -> float | None:
    values = [row["ratio"] for row in found if (row["verb"], row["dtype"]) == (verb, dtype)]
    return geometric_mean(values) if values else None


def _extreme(choose: Callable, found: Sequence[Row], shape: list[int]) -> Row | None:
    return choose((row for row in found if row["shape"] == shape), key=lambda row: row["ratio"], default=None)


# ---------------------------------------------------------------------------------------------------------------------
# text


def markdown(document: dict[str, Any]) -> str:
    """The machine, the summary, a table for each verb and dtype, and what was not timed."""
    machine, rows = document["machine"], document["rows"]
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    parts = [
        f"# Softmax and cross-entropy on {machine['name']}",
        f"{machine['processor']}, {machine['cores']} cores ({caches or 'caches unknown'}), "
        f"{machine['threads']} threads; {machine['system']}, Python {machine['python']}; {libraries(machine)}; "
        f"Numba {'on' if machine['numba'] else 'off'}; load before: {machine['load']}. "
        f"Medians of {document['repeats']} runs.",
        summary_text(document["summary"]),
        "## Times",
        "Time over a single-threaded copy of the logits, and in brackets the worst error in ulps of the exact result. "
        "✗ wrong, – not timed: the reasons are below. Results smaller than the logits have no `out=` here. "
        "Losses are the mean over the rows. The classes of more than two dimensions are on axis 1.",
    ]
    for title, some in by_verb_and_dtype(rows):
        parts += [f"### {title}", table(*times(some, over_copy))]
    return "\n\n".join([*parts, *missing(rows)]) + "\n"


def missing(rows: Sequence[Row]) -> list[str]:
    """Who was not timed, and why."""
    header, lines = not_timed(rows)
    return ["## Not timed", table(header, lines) if lines else "Nothing."]


def libraries(machine: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())


def summary_text(found: dict[str, list[Row]]) -> str:
    means = [
        (row["verb"], row["dtype"], *map(_ratio, list(row.values())[2:]))  # the ratios come last
        for row in found["geometric means"]
    ]
    worst = [
        (dimensions(row["shape"]), _where(row["xsoftmax/torch"]), _where(row["scipy/xsoftmax"]))
        for row in found["worst"]
    ]
    parts = [
        "## Summary",
        "Ratios of times, geometric means over the shapes; xsoftmax is its fastest implementation on NumPy arrays.",
        table(("verb", "dtype", "xsoftmax / PyTorch", "xsoftmax / PyTorch, out=", "SciPy / xsoftmax"), means),
        "The worst ratio of each shape:",
        table(("shape", "xsoftmax / PyTorch, largest", "SciPy / xsoftmax, smallest"), worst),
        f"Microseconds of a call, {dimensions(SMALL)}:",
        *small_text(found["small calls"]),
    ]
    return "\n\n".join(parts)


def table(header: Line, lines: Iterable[Line]) -> str:
    rows = (header, ("---",) * len(header), *lines)
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _where(row: Row | None) -> str:
    if row is None:
        return "–"
    return f"{row['ratio']:.3g} ({row['verb']}, {row['dtype']}{', out=' if row['out'] else ''})"


def small_text(calls: Sequence[Row]) -> list[str]:
    """A table for each dtype."""
    return [_small(calls, dtype) for dtype in unique(calls, "dtype")] or ["not measured"]


def _small(calls: Sequence[Row], dtype: str) -> str:
    calls = [row for row in calls if row["dtype"] == dtype]
    verbs = unique(calls, "verb")
    lines = []
    for name in unique(calls, label):
        cells = {row["verb"]: f"{row['microseconds']:.1f}" for row in calls if label(row) == name}
        lines.append((name, *(cells.get(verb, "–") for verb in verbs)))
    return table((dtype, *verbs), lines)
