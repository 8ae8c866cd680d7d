"""Pictures of rows measured on a GPU: percent of a copy's speed against row length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from plots import Styles, lines_by_length, picture

from xsoftmax.bench.rows import Row, unique

DRAWN: Styles = {
    "xsoftmax:cupy_cuda": ("xsoftmax on CuPy", {"color": "black", "marker": "o"}),
    "xsoftmax:torch_cuda": ("xsoftmax on PyTorch", {"color": "black", "marker": "x", "linestyle": ":"}),
    "xsoftmax:array_api": ("xsoftmax, formulas", {"color": "tab:gray", "marker": "v"}),
    "cupyx": ("cupyx", {"color": "tab:blue", "marker": "s"}),
    "torch": ("PyTorch", {"color": "tab:green", "marker": "D"}),
    "torch.compile": ("torch.compile", {"color": "tab:olive", "marker": "d"}),
    "triton": ("Triton", {"color": "tab:purple", "marker": "^"}),
    "jax": ("JAX", {"color": "tab:orange", "marker": "P"}),
    "liger": ("Liger", {"color": "tab:brown", "marker": "<"}),
    "quack": ("quack", {"color": "tab:pink", "marker": ">"}),
}
LARGE = 1e8  # bytes moved; of less, the launch is what is seen


def draw(rows: Sequence[Row], folder: Path, name: str) -> list[Path]:
    """A picture of each dtype, a panel for each verb."""
    seen = [row | {"percent": 100 * row["of_copy"]} for row in rows if _large(row)]
    paths = []
    for dtype in unique(seen, "dtype"):
        paths.append(folder / f"{name}-copy-{dtype}.png")
        figure = picture([row for row in seen if row["dtype"] == dtype], dtype, _lines, "arrays of 256 MB and more")
        figure.savefig(paths[-1], dpi=110)
    return paths


def _large(row: Row) -> bool:
    moved = 1e9 * row.get("gigabytes_per_second", 0) * row.get("seconds", 0)
    return row["contender"] in DRAWN and moved >= LARGE


def _lines(ax: Axes, rows: Sequence[Row]) -> None:
    ax.axhline(100, color="tab:red", linestyle="--", label="copy on the device")
    lines_by_length(ax, rows, "percent", DRAWN)
    ax.set(ylabel="percent of a copy's bytes per second")
    ax.set_ylim(bottom=0)
