"""Pictures of measured rows: time over copy against row length, and error beside speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from xsoftmax.bench.rows import Row, unique

Styles = dict[str, tuple[str, dict[str, str]]]
# Few enough to be told apart: who, in the legend, and how.
DRAWN: Styles = {
    "numpy": ("NumPy, plain formula", {"color": "tab:blue", "marker": "s"}),
    "scipy": ("SciPy", {"color": "tab:orange", "marker": "^"}),
    "torch": ("PyTorch", {"color": "tab:green", "marker": "D"}),
    "xsoftmax:numpy_blocked": ("xsoftmax, NumPy alone", {"color": "tab:gray", "marker": "v"}),
    "xsoftmax:numpy_numba": ("xsoftmax, Numba", {"color": "black", "marker": "o"}),
}
LARGE = 100_000  # elements; of fewer, the cost of a call is what is seen
LEAST = 0.3  # ulps; smaller errors are drawn there
COLUMNS = 3


def draw(rows: Sequence[Row], folder: Path, name: str) -> list[Path]:
    """Two pictures of each dtype, a panel for each verb."""
    seen = [r for r in rows if r["status"] == "timed" and r["contender"] in DRAWN and math.prod(r["shape"]) >= LARGE]
    paths = []
    for dtype in unique(seen, "dtype"):
        of_dtype = [row for row in seen if row["dtype"] == dtype]
        for kind, panel in (("time", _lines), ("ulps", _points)):
            paths.append(folder / f"{name}-{kind}-{dtype}.png")
            picture(of_dtype, dtype, panel, "with out= where there is one").savefig(paths[-1], dpi=110)
    return paths


def picture(rows: Sequence[Row], dtype: str, panel: Callable, title: str) -> Figure:
    """A panel for each verb, and one legend under its title."""
    verbs = unique(rows, "verb")
    columns = min(COLUMNS, len(verbs))
    lines = math.ceil(len(verbs) / columns)
    figure = Figure(figsize=(1 + 3.6 * columns, 1 + 3.3 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    handles: dict[str, Any] = {}
    for ax, verb in zip(panels, verbs, strict=False):
        panel(ax, [row for row in rows if row["verb"] == verb])
        ax.set_title(f"{verb}, {dtype}")
        ax.grid(alpha=0.3)
        ax.tick_params(labelbottom=True, labelleft=True)
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    for ax in panels[len(verbs) :]:
        ax.set_axis_off()
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, title=title)
    return figure


def series(rows: Sequence[Row], drawn: Styles) -> Iterator[tuple[str, dict[str, str], list[Row]]]:
    """Label, style and rows of each contender: those with `out=`, where it has it."""
    for name, (text, style) in drawn.items():
        same = [row for row in rows if row["contender"] == name]
        with_out = [row for row in same if row["out"]]
        if same:
            yield text, style, with_out or same


def lines_by_length(ax: Axes, rows: Sequence[Row], figure: str, drawn: Styles) -> None:
    """A figure of the largest matrix of each row length."""
    for text, style, same in series([row for row in rows if len(row["shape"]) == 2], drawn):
        largest = {row["shape"][1]: row[figure] for row in sorted(same, key=lambda row: row["shape"])}
        ax.plot(sorted(largest), [largest[n] for n in sorted(largest)], **style, markersize=4, label=text)
    ax.set(xscale="log", xlabel="classes in a row")
    plain(ax.xaxis, 1)


def _lines(ax: Axes, rows: Sequence[Row]) -> None:
    ax.axhline(1, color="tab:red", linestyle="--", label="copy on one thread")
    lines_by_length(ax, rows, "over_copy", DRAWN)
    ax.set(yscale="log", ylabel="time over copy")
    plain(ax.yaxis, 1, 2, 5)


def _points(ax: Axes, rows: Sequence[Row]) -> None:
    """One point for each shape."""
    ax.axhline(0.5, color="tab:red", linestyle="--", label="correctly rounded")
    for text, style, same in series(rows, DRAWN):
        errors = [max(row["ulps"], LEAST) for row in same]
        ax.scatter([row["over_copy"] for row in same], errors, **style, s=24, label=text)
    ax.set(xscale="log", yscale="log", xlabel="time over copy", ylabel="worst error in ulps")
    plain(ax.xaxis, 1, 2, 5)
    plain(ax.yaxis, 1)


def plain(axis: Axis, *leading: int) -> None:
    """Plain numbers along a logarithmic axis, those that begin with one of these digits."""
    axis.set_major_locator(LogLocator(subs=leading))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())
