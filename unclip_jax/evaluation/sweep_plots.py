"""Curves of a sweep: distance against guidance and CLIP score, diversity against guidance.

These are figures 10 and 11 of unCLIP without human raters. Several sweeps share a figure only if
their features and their reference agree.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unclip_jax.core.checks import UserError

AGREE = ("features", "weights", "resize", "real", "clip", "captions", "images")
DISTANCES = ("fid", "frechet")

NamedSweeps = Sequence[tuple[str, dict[str, Any]]]


def plot_sweeps(folders: Sequence[pathlib.Path], *, out: pathlib.Path) -> None:
    """Plots several sweeps together.

    Raises:
        UserError: a folder without a sweep, or sweeps that cannot be compared.
    """
    sweeps = [(folder.name, read(folder)) for folder in folders]
    check_comparable(sweeps)
    plot(sweeps, out)


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the result of a sweep.

    Raises:
        UserError: there is no sweep, or it is damaged.
    """
    try:
        return json.loads((folder / "sweep.json").read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no sweep.json; give a folder that `python -m unclip_jax.evaluate "
            "sweep` wrote with --out."
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{folder}/sweep.json is damaged ({error}); sweep again.") from None


def check_comparable(sweeps: NamedSweeps) -> None:
    """Checks that all sweeps have the same protocol.

    Raises:
        UserError: naming the part of the protocol that differs.
    """
    first, reference = sweeps[0]
    for name, sweep in sweeps[1:]:
        for part in AGREE:
            expected, value = reference["protocol"].get(part), sweep["protocol"].get(part)
            if expected != value:
                raise UserError(
                    f"protocols are mixed: {part} is {expected!r} in {first} and {value!r} in "
                    f"{name}; plot them separately, or sweep again with equal settings."
                )


def distance_of(sweep: dict[str, Any]) -> str:
    """Returns the name of the distance in a sweep."""
    return next(n for n in DISTANCES if all(n in p["scores"] for p in sweep["points"]))


def plot(sweeps: NamedSweeps, out: pathlib.Path) -> None:
    """Plots three panels, with one line per sweep, sampler and number of steps."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    distance = distance_of(sweeps[0][1])
    label = "FID" if distance == "fid" else "Fréchet distance in CLIP space"
    for name, sweep in sweeps:
        for line, points in lines(sweep).items():
            legend = " ".join(word for word in (name, line) if word)
            _curve(axes[0], points, "guidance", distance, legend)
            _curve(axes[1], points, "clip_score", distance, legend)
            _curve(axes[2], points, "guidance", "diversity", legend)
            for point in points:
                if point.get("clip_score") is not None:
                    at = (point["clip_score"], point[distance])
                    axes[1].annotate(f"{point['guidance']:g}", at, fontsize=7)
    names = (("guidance scale", label), ("CLIP score", label))
    for axis, (x, y) in zip(axes, (*names, ("guidance scale", "diversity")), strict=True):
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.grid(alpha=0.3)
    if axes[0].get_legend_handles_labels()[1]:
        axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=110)


def lines(sweep: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Groups points into curves: equal sampler and steps, in order of guidance."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(sweep["points"], key=lambda entry: entry["point"]["guidance"]):
        point = entry["point"]
        words = [point["sampler"], point["steps"] and f"{point['steps']} steps"]
        name = " ".join(word for word in words if word)
        curves.setdefault(name, []).append({**point, **entry["scores"]})
    return curves


def _curve(axis: Axes, points: list[dict[str, Any]], x: str, y: str, label: str) -> None:
    pairs = [(p[x], p[y]) for p in points if p.get(x) is not None and p.get(y) is not None]
    if pairs:
        axis.plot(*zip(*pairs, strict=True), marker="o", markersize=4, label=label or None)
