"""Curves of a sweep: distance against guidance and CLIP score, diversity against guidance.

These are figures 10 and 11 of unCLIP without human raters. Where a setting of the upsamplers has
more values than guidance, it is the axis in place of guidance (as in Imagen, appendix D.2). Several
sweeps share a figure only if their features and their reference agree.
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
AXES = {
    "guidance": "guidance scale",
    "upsampler_guidance": "guidance scale of the upsamplers",
    "upsampler_level": "noise on low-res images",
}

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
    """Plots three panels, with one line per sweep and combination of the other settings."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    distance = distance_of(sweeps[0][1])
    label = "FID" if distance == "fid" else "Fréchet distance in CLIP space"
    setting = axis_of(sweeps)
    for name, sweep in sweeps:
        for line, points in lines(sweep, setting).items():
            legend = " ".join(word for word in (name, line) if word)
            _curve(axes[0], points, setting, distance, legend)
            _curve(axes[1], points, "clip_score", distance, legend)
            _curve(axes[2], points, setting, "diversity", legend)
            for point in points:
                if point.get("clip_score") is not None and point.get(setting) is not None:
                    at = (point["clip_score"], point[distance])
                    axes[1].annotate(f"{point[setting]:g}", at, fontsize=7)
    names = ((AXES[setting], label), ("CLIP score", label), (AXES[setting], "diversity"))
    for axis, (x, y) in zip(axes, names, strict=True):
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.grid(alpha=0.3)
    if axes[0].get_legend_handles_labels()[1]:
        axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=110)


def axis_of(sweeps: NamedSweeps) -> str:
    """Returns the setting with the most values, the first of `AXES` among equals."""
    points = [entry["point"] for _, sweep in sweeps for entry in sweep["points"]]
    return max(AXES, key=lambda name: len({point.get(name) for point in points}))


def lines(sweep: dict[str, Any], setting: str = "guidance") -> dict[str, list[dict[str, Any]]]:
    """Groups points that differ in one setting alone into curves, in its order."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(sweep["points"], key=lambda entry: entry["point"].get(setting) or 0.0):
        point = entry["point"]
        curves.setdefault(_label(point, setting), []).append({**point, **entry["scores"]})
    return curves


def _label(point: dict[str, Any], setting: str) -> str:
    """Returns the settings of a point except one, as words; "" if the others are as exported."""
    words = [point["sampler"], point["steps"] and f"{point['steps']} steps"]
    words.append(point.get("threshold") and f"threshold {point['threshold']}")
    others = (name for name in AXES if name != setting and point.get(name) is not None)
    words += [f"{name.replace('_', ' ')} {point[name]:g}" for name in others]
    return " ".join(word for word in words if word)


def _curve(axis: Axes, points: list[dict[str, Any]], x: str, y: str, label: str) -> None:
    pairs = [(p[x], p[y]) for p in points if p.get(x) is not None and p.get(y) is not None]
    if pairs:
        axis.plot(*zip(*pairs, strict=True), marker="o", markersize=4, label=label or None)
