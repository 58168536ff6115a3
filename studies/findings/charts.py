"""One figure per finding: bars with intervals, or curves."""

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
    "coarse": "coarse attributes",
    "fine": "fine attributes",
}


def plot(chart: Sequence[Any], rows: Sequence[dict[str, Any]], out: pathlib.Path) -> None:
    """Plots the `CHART` of a finding: ("bars", column, ...) or ("curves", x, (column, ...))."""
    kind, *layout = chart
    columns = layout if kind == "bars" else layout[1]
    figure = Figure(figsize=(4.2 * len(columns), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, column in zip(
        figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True
    ):
        if kind == "bars":
            _bars(axis, rows, column)
        else:
            _curves(axis, rows, x=layout[0], column=column)
    figure.savefig(out, dpi=100)


def _bars(axis: Axes, rows: Sequence[dict[str, Any]], column: str) -> None:
    measured = [row for row in rows if is_number(row.get(column))]
    names = [row["name"] for row in measured]
    axis.barh(names, [value(row[column]) for row in measured], color="#7fa8c9")
    for index, row in enumerate(measured):
        axis.plot(ends(row[column]), [index, index], color="#22384a")
    axis.invert_yaxis()
    axis.set_xlabel(LABELS.get(column, column))
    axis.tick_params(axis="y", labelsize=8)


def _curves(axis: Axes, rows: Sequence[dict[str, Any]], *, x: str, column: str) -> None:
    for line in dict.fromkeys(row.get("line", "") for row in rows):
        of_line = [row for row in rows if row.get("line", "") == line]
        points = [row for row in of_line if is_number(row.get(column))]
        if not points:
            continue
        at = [row[x] for row in points]
        axis.plot(at, [value(row[column]) for row in points], marker="o", label=line or None)
        low, high = zip(*(ends(row[column]) for row in points), strict=True)
        axis.fill_between(at, low, high, alpha=0.2)
    if x in ("components", "steps"):
        axis.set_xscale("symlog" if x == "components" else "log", base=2)
    axis.set_xlabel(LABELS.get(x, x))
    axis.set_ylabel(LABELS.get(column, column))
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=8)


def is_number(cell: Any) -> bool:
    """True if a cell contains a number, with or without an interval."""
    return isinstance(cell, float) or (isinstance(cell, dict) and None not in cell.values())


def value(cell: Any) -> float:
    """Returns the number of a cell."""
    return cell["value"] if isinstance(cell, dict) else cell


def ends(cell: Any) -> tuple[float, float]:
    """Returns the interval of a cell; of zero width if it has none."""
    return (cell["low"], cell["high"]) if isinstance(cell, dict) else (cell, cell)
