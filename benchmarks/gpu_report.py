"""Tables of rows measured on a GPU, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import geometric_mean
from typing import Any

from report import libraries, missing, small_calls, small_text, table

from xsoftmax.bench.options import SMALL
from xsoftmax.bench.rows import OURS, Row, by_verb_and_dtype, dimensions, times

KERNELS = "xsoftmax:cupy_cuda"


# ---------------------------------------------------------------------------------------------------------------------
# ratios


def summary(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The kernels' percent of a copy and their time over the fastest other library's, and microseconds of small calls.

    A row for each verb and dtype.
    """
    speeds = []
    for _, some in by_verb_and_dtype(_on_device(rows)):
        ours = [row for row in some if row["contender"] == KERNELS]
        if ours:
            lowest = min(ours, key=lambda row: row["of_copy"])
            speeds.append(
                {
                    "verb": lowest["verb"],
                    "dtype": lowest["dtype"],
                    "of copy": geometric_mean(row["of_copy"] for row in ours),
                    "lowest": {key: lowest[key] for key in ("shape", "of_copy")},
                    "over fastest": max(_over_fastest(ours, some), key=lambda row: row["ratio"], default=None),
                }
            )
    return {"speeds": speeds, "small calls": small_calls(rows)}


def _on_device(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "of_copy" in row]


def _over_fastest(ours: Sequence[Row], rows: Sequence[Row]) -> Iterator[Row]:
    for row in ours:
        same = [r for r in rows if r["shape"] == row["shape"] and not r["contender"].startswith(OURS)]
        if same:
            fastest = min(same, key=lambda row: row["seconds"])
            ratio = row["seconds"] / fastest["seconds"]
            yield {"shape": row["shape"], "contender": fastest["contender"], "ratio": ratio}


# ---------------------------------------------------------------------------------------------------------------------
# text


def markdown(document: dict[str, Any]) -> str:
    """The device, the summary, a table for each verb and dtype, and what was not timed."""
    machine, rows = document["machine"], document["rows"]
    parts = [
        f"# Softmax and cross-entropy on {machine['name']}",
        f"{machine['device']}, {machine['multiprocessors']} multiprocessors, {machine['memory'] / 1e9:.0f} GB, "
        f"driver {machine['driver'] or 'unknown'}, CUDA {_version(machine['cuda_runtime'])} "
        f"(driver's: {_version(machine['cuda_driver'])}); {machine['system']}, Python {machine['python']}; "
        f"{libraries(machine)}. Medians of {document['repeats']} runs, each after {document['flushed'] >> 20} MiB "
        "were written, so that nothing is in the cache.",
        summary_text(document["summary"]),
        "## Speeds",
        "Percent of the bytes per second of a copy of the logits, in brackets GB/s, then the worst error in ulps of "
        "the exact result. The bytes are those that have to be moved: the logits read, and for softmax, log_softmax "
        "and the gradient as much written. ✗ wrong, – not timed: the reasons are below. Losses are the mean over the "
        "rows. The classes of more than two dimensions are on axis 1. JAX has a stream of its own, so it is timed by "
        "the host's clock over calls in a queue, on copies of the logits in turn.",
    ]
    for title, some in by_verb_and_dtype([row for row in rows if row["shape"] != list(SMALL)]):
        header, lines = times(some, _cell)
        first, *others = zip(header, *lines, strict=True)
        parts += [f"### {title}", table(("shape", *first[1:]), others)]
    return "\n\n".join([*parts, *missing(rows)]) + "\n"


def summary_text(found: dict[str, list[Row]]) -> str:
    lines = [
        (row["verb"], row["dtype"], _percent(row["of copy"]), _lowest(row["lowest"]), _fastest(row["over fastest"]))
        for row in found["speeds"]
    ]
    parts = [
        "## Summary",
        f"Of {KERNELS}: the geometric mean over the shapes of its percent of a copy, the lowest, and the largest ratio "
        "of its time to that of the fastest other library.",
        table(("verb", "dtype", "of copy", "lowest", "over fastest other, largest"), lines),
        f"Microseconds that a call takes the host, {dimensions(SMALL)}, the device not being waited for:",
        *small_text(found["small calls"]),
    ]
    return "\n\n".join(parts)


def line(row: Row) -> str:
    """One row for a terminal."""
    where = f"{row['verb']} {row['dtype']} {dimensions(row['shape'])}: {row['contender']}"
    if row["status"] != "timed":
        return f"{where} {row['status']}: {row['reason']}"
    return f"{where} {_cell(row) if 'of_copy' in row else _microseconds(row)}"


def _microseconds(row: Row) -> str:
    return f"{row['seconds'] * 1e6:.1f} µs"


def _cell(row: Row) -> str:
    return f"{_percent(row['of_copy'])} ({row['gigabytes_per_second']:,.0f}) {row['ulps']:.2g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _lowest(row: Row) -> str:
    return f"{_percent(row['of_copy'])} ({dimensions(row['shape'])})"


def _fastest(row: Row | None) -> str:
    return "–" if row is None else f"{row['ratio']:.2f} ({row['contender']}, {dimensions(row['shape'])})"


def _version(number: int) -> str:
    """13020 is 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"
