"""The points of a sweep, and the folder that holds them.

A point is there or it is not: files are written whole. A folder belongs to one protocol.
"""

import argparse
import csv
import itertools
import json
import pathlib
from typing import Any, NamedTuple

from unclip_jax.core.checks import UserError, one_of
from unclip_jax.core.files import write_atomically
from unclip_jax.evaluation import sweep_plots
from unclip_jax.stages.gaussian import SAMPLERS


class Point(NamedTuple):
    """One way to sample; None = as the decoder was exported."""

    guidance: float
    steps: str | None
    sampler: str | None

    @property
    def name(self) -> str:
        """For files and legends."""
        parts = [f"guidance{self.guidance:g}"]
        parts += [] if self.steps is None else [f"steps{self.steps}".replace(",", "-")]
        return "_".join([*parts, *([] if self.sampler is None else [self.sampler])])


def of(args: argparse.Namespace) -> list[Point]:
    """Every combination of what was given.

    Raises:
        UserError: a guidance that is no number or negative, or an unknown sampler.
    """
    try:
        scales = [float(word) for word in args.guidance.split(",")]
    except ValueError:
        raise UserError(f"--guidance is {args.guidance!r}; give numbers such as 1,2,4.") from None
    for scale in scales:
        if not 0 <= scale < float("inf"):
            raise UserError(f"--guidance holds {scale:g}; scales are 0 or more, 1 = off.")
    samplers = args.sampler.split(",") if args.sampler else [None]
    for name in samplers:
        if name is not None:
            one_of("--sampler", name, SAMPLERS)
    steps = args.steps.split(",") if args.steps else [None]
    found = [Point(*each) for each in itertools.product(scales, steps, samplers)]
    return list(dict.fromkeys(found))


def claim(
    out: pathlib.Path, protocol: dict[str, Any], *, first: bool, what: str = "points"
) -> None:
    """Mark the folder with its protocol, or compare with the one that is there.

    Args:
        out: the folder.
        protocol: JSON-ready.
        first: whether this is the process that writes.
        what: what the folder holds, and the name of the folder inside it.

    Raises:
        UserError: the folder holds such things of another protocol.
    """
    where = out / "protocol.json"
    if where.is_file():
        there = json.loads(where.read_text())
        for name in sorted(protocol.keys() | there.keys()):
            if protocol.get(name) != there.get(name):
                raise UserError(
                    f"{out} holds {what} of another protocol: {name} is {there.get(name)!r} there "
                    f"and {protocol.get(name)!r} here; give another --out."
                )
    elif first:
        (out / what).mkdir(parents=True, exist_ok=True)
        write(where, json.dumps(protocol, indent=2) + "\n")


def read(out: pathlib.Path) -> list[dict[str, Any]]:
    """All points of a folder, by sampler, steps and guidance."""
    found = [json.loads(path.read_text()) for path in sorted((out / "points").glob("*.json"))]

    def order(made: dict[str, Any]) -> tuple[str, str, float]:
        point = made["point"]
        return str(point["sampler"]), str(point["steps"]), point["guidance"]

    return sorted(found, key=order)


def finish(out: pathlib.Path) -> None:
    """Write sweep.json, sweep.csv and sweep.png from the points that are there."""
    points = read(out)
    warned = sorted({line for made in points for line in made["warnings"]})
    protocol = json.loads((out / "protocol.json").read_text())
    plain = [{"point": made["point"], "scores": made["scores"]} for made in points]
    whole = {"protocol": protocol, "warnings": warned, "points": plain}
    write(out / "sweep.json", json.dumps(whole, indent=2) + "\n")
    rows = [{**made["point"], **made["scores"]} for made in plain]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (out / "sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    sweep_plots.draw([("", whole)], out / "sweep.png")


def table(whole: dict[str, Any]) -> str:
    """The points as a person reads them."""
    distance = sweep_plots.distance_of(whole)
    shown = [distance, "kid", "precision", "recall", "coverage", "clip_score", "diversity"]
    if any("checker_joint" in made["scores"] for made in whole["points"]):
        shown.append("checker_joint")
    lines = [f"WARNING: {line}" for line in whole["warnings"]]
    lines.append(f"{'':28}" + "".join(f"{name:>14}" for name in shown))
    for made in whole["points"]:
        cells = [made["scores"].get(name) for name in shown]
        text = "".join(f"{'-' if c is None else format(c, '.4g'):>14}" for c in cells)
        lines.append(f"{Point(**made['point']).name:28}{text}")
    return "\n".join(lines) + "\n"


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all, so that a point is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
