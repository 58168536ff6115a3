"""One picture per finding: bars with intervals, or curves."""

import pathlib
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LABELS = {
    "frechet": "Fréchet distance in CLIP space",
    "followed": "share of the caption followed",
    "cosine": "cosine to the true z_img",
    "diversity": "diversity within a caption",
    "guidance": "guidance scale",
    "components": "principal components",
    "coarse": "coarse: background, count, colour",
    "fine": "fine: shape, size, relation",
}


def draw(chart: Sequence[Any], rows: Sequence[dict[str, Any]], out: pathlib.Path) -> None:
    """Draw the `CHART` of a finding: ("bars", column, ...) or ("curves", x, (column, ...))."""
    kind, *what = chart
    columns = what if kind == "bars" else what[1]
    figure = Figure(figsize=(4.2 * len(columns), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, column in zip(
        figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True
    ):
        if kind == "bars":
            _bars(axis, rows, column)
        else:
            _curves(axis, rows, x=what[0], column=column)
    figure.savefig(out, dpi=100)


def _bars(axis: Axes, rows: Sequence[dict[str, Any]], column: str) -> None:
    found = [row for row in rows if known(row.get(column))]
    names = [row["name"] for row in found]
    axis.barh(names, [value(row[column]) for row in found], color="#7fa8c9")
    for index, row in enumerate(found):
        axis.plot(ends(row[column]), [index, index], color="#22384a")
    axis.invert_yaxis()
    axis.set_xlabel(LABELS.get(column, column))
    axis.tick_params(axis="y", labelsize=8)


def _curves(axis: Axes, rows: Sequence[dict[str, Any]], *, x: str, column: str) -> None:
    for line in dict.fromkeys(row.get("line", "") for row in rows):
        found = [row for row in rows if row.get("line", "") == line and known(row.get(column))]
        if not found:
            continue
        at = [row[x] for row in found]
        axis.plot(at, [value(row[column]) for row in found], marker="o", label=line or None)
        low, high = zip(*(ends(row[column]) for row in found), strict=True)
        axis.fill_between(at, low, high, alpha=0.2)
    if x in ("components", "steps"):
        axis.set_xscale("symlog" if x == "components" else "log", base=2)
    axis.set_xlabel(LABELS.get(x, x))
    axis.set_ylabel(LABELS.get(column, column))
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=8)


def known(cell: Any) -> bool:
    """Whether a cell holds a number, with an interval or without."""
    return isinstance(cell, float) or (isinstance(cell, dict) and None not in cell.values())


def value(cell: Any) -> float:
    """Its number."""
    return cell["value"] if isinstance(cell, dict) else cell


def ends(cell: Any) -> tuple[float, float]:
    """Its interval; none is one of no width."""
    return (cell["low"], cell["high"]) if isinstance(cell, dict) else (cell, cell)
