"""Pictures of measured rows: time over copy against row length, and error beside speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report import OURS, label, unique

Row = dict[str, Any]
COLOURS = "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown"
OUR_COLOURS = "black", "tab:gray", "tab:cyan", "tab:olive"
LEAST = 0.3  # ulps; smaller errors are drawn there


def draw(rows: Sequence[Row], folder: Path, name: str) -> list[Path]:
    """Two pictures of each dtype, a panel for each verb."""
    colours = _colours(unique(rows, "contender"))
    timed = [row for row in rows if row["status"] == "timed"]
    paths = []
    for dtype in unique(timed, "dtype"):
        of_dtype = [row for row in timed if row["dtype"] == dtype]
        for kind, panel in (("time", _lines), ("ulps", _points)):
            paths.append(folder / f"{name}-{kind}-{dtype}.png")
            _picture(of_dtype, dtype, panel, colours).savefig(paths[-1], dpi=110)
    return paths


def _colours(names: Sequence[str]) -> dict[str, str]:
    ours = [name for name in names if name.startswith(OURS)]
    others = [name for name in names if name not in ours]
    return {
        name: palette[i % len(palette)]
        for palette, some in ((COLOURS, others), (OUR_COLOURS, ours))
        for i, name in enumerate(some)
    }


def _picture(rows: Sequence[Row], dtype: str, panel: Callable, colours: dict[str, str]) -> Figure:
    verbs = unique(rows, "verb")
    figure = Figure(figsize=(2 + 3.6 * len(verbs), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    handles: dict[str, Any] = {}
    for ax, verb in zip(figure.subplots(1, len(verbs), squeeze=False, sharey=True)[0], verbs, strict=True):
        panel(ax, [row for row in rows if row["verb"] == verb], colours)
        ax.set_title(f"{verb}, {dtype}")
        ax.grid(alpha=0.3)
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    return figure


def _lines(ax: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """The largest matrix of each row length."""
    matrices = [row for row in rows if len(row["shape"]) == 2]
    for name in unique(matrices, label):
        largest: dict[int, Row] = {}
        for row in (r for r in matrices if label(r) == name):
            length = row["shape"][1]
            if length not in largest or row["shape"] > largest[length]["shape"]:
                largest[length] = row
        lengths = sorted(largest)
        style = "--" if largest[lengths[0]]["out"] else "-"
        colour = colours[largest[lengths[0]]["contender"]]
        ax.loglog(lengths, [largest[n]["over_copy"] for n in lengths], f"{style}o", color=colour, ms=3, label=name)
    ax.axhline(1, color="black", linewidth=0.6)
    ax.set(xlabel="classes in a row, largest matrix of each", ylabel="time over copy")


def _points(ax: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """One point for each shape."""
    for name in unique(rows, label):
        same = [row for row in rows if label(row) == name]
        filled = "none" if same[0]["out"] else colours[same[0]["contender"]]
        ax.scatter(
            [row["over_copy"] for row in same],
            [max(row["ulps"], LEAST) for row in same],
            s=18,
            facecolors=filled,
            edgecolors=colours[same[0]["contender"]],
            label=name,
        )
    ax.set(xscale="log", yscale="log", xlabel="time over copy", ylabel="worst error in ulps of the exact result")
