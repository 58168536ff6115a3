"""Curves of a sweep: distance against guidance, against CLIP score; diversity against guidance.

    python -m unclip_jax.evaluate plot sweeps/unclip sweeps/glide --out=both.png

These are figures 10 and 11 of unCLIP without raters. Several sweeps share a picture only where
their features and their reference agree.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError

AGREE = ("features", "weights", "resize", "real", "clip", "captions", "images")
DISTANCES = ("fid", "frechet")

Named = Sequence[tuple[str, dict[str, Any]]]


def parser() -> Parser:
    """Command-line arguments."""
    made = Parser("evaluate plot", description="Plot sweeps together.")
    made.add_argument("sweeps", nargs="+", type=pathlib.Path, help="folders that `sweep` wrote")
    made.add_argument("--out", type=pathlib.Path, default=pathlib.Path("sweeps.png"))
    return made


def run(args: argparse.Namespace) -> None:
    """Plot sweeps together.

    Raises:
        UserError: a folder without a sweep, or sweeps that do not compare.
    """
    named = [(path.name, read(path)) for path in args.sweeps]
    check_same(named)
    draw(named, args.out)
    sys.stdout.write(f"wrote {args.out}\n")


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The result of a sweep.

    Raises:
        UserError: there is none.
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


def check_same(named: Named) -> None:
    """Refuse to draw together what does not compare.

    Raises:
        UserError: naming the part of the protocol that differs.
    """
    first, one = named[0]
    for name, other in named[1:]:
        for part in AGREE:
            here, there = one["protocol"].get(part), other["protocol"].get(part)
            if here != there:
                raise UserError(
                    f"protocols are mixed: {part} is {here!r} in {first} and {there!r} in {name}; "
                    "plot them apart or sweep again alike."
                )


def distance_of(whole: dict[str, Any]) -> str:
    """The name of the distance that a sweep has."""
    return next(n for n in DISTANCES if all(n in p["scores"] for p in whole["points"]))


def draw(named: Named, out: pathlib.Path) -> None:
    """Three panels; one line per sweep, sampler and number of steps."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    distance = distance_of(named[0][1])
    label = "FID" if distance == "fid" else "Fréchet distance in CLIP space"
    for name, whole in named:
        for line, points in lines(whole).items():
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


def lines(whole: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Points by what does not change along a curve, in the order of guidance."""
    found: dict[str, list[dict[str, Any]]] = {}
    for made in sorted(whole["points"], key=lambda made: made["point"]["guidance"]):
        point = made["point"]
        words = [point["sampler"], point["steps"] and f"{point['steps']} steps"]
        name = " ".join(word for word in words if word)
        found.setdefault(name, []).append({**point, **made["scores"]})
    return found


def _curve(axis: Axes, points: list[dict[str, Any]], x: str, y: str, label: str) -> None:
    pairs = [(p[x], p[y]) for p in points if p.get(x) is not None and p.get(y) is not None]
    if pairs:
        axis.plot(*zip(*pairs, strict=True), marker="o", markersize=4, label=label or None)
