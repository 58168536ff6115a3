"""The points of a sweep, one JSON file each, and their tables."""

import csv
import json
import pathlib
from typing import Any, NamedTuple

from unclip_jax.evaluation import protocol_folder, sweep_plots


class SweepPoint(NamedTuple):
    """Sampling settings of the decoder and the upsamplers; None = as exported."""

    guidance: float
    steps: str | None = None
    sampler: str | None = None
    threshold: str | None = None
    upsampler_guidance: float | None = None
    upsampler_level: float | None = None

    @property
    def name(self) -> str:
        """Name for files and legends."""
        parts = [f"guidance{self.guidance:g}"]
        parts += [] if self.steps is None else [f"steps{self.steps}".replace(",", "-")]
        parts += [] if self.sampler is None else [self.sampler.replace(":", "-")]
        parts += [] if self.threshold is None else [f"threshold-{self.threshold}"]
        for name in ("upsampler_guidance", "upsampler_level"):
            value = getattr(self, name)
            parts += [] if value is None else [f"{name.replace('_', '-')}{value:g}"]
        return "_".join(parts)


def read(out: pathlib.Path) -> list[dict[str, Any]]:
    """Reads all points of a folder, in the order of their other settings, then of guidance."""
    points = [json.loads(path.read_text()) for path in sorted((out / "points").glob("*.json"))]

    def order(entry: dict[str, Any]) -> tuple[Any, ...]:
        point = SweepPoint(**entry["point"])
        upsampling = (point.upsampler_guidance, point.upsampler_level)
        levels = (-1.0 if value is None else value for value in upsampling)
        return str(point.sampler), str(point.steps), str(point.threshold), *levels, point.guidance

    return sorted(points, key=order)


def summarise(out: pathlib.Path) -> dict[str, Any]:
    """Writes sweep.json, sweep.csv and sweep.png from the points of a folder; returns the sweep."""
    entries = read(out)
    warnings = sorted({line for entry in entries for line in entry["warnings"]})
    protocol = json.loads((out / protocol_folder.PROTOCOL).read_text())
    points = [{"point": entry["point"], "scores": entry["scores"]} for entry in entries]
    sweep = {"protocol": protocol, "warnings": warnings, "points": points}
    protocol_folder.write(out / "sweep.json", json.dumps(sweep, indent=2) + "\n")
    rows = [{**entry["point"], **entry["scores"]} for entry in points]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (out / "sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    sweep_plots.plot([("", sweep)], out / "sweep.png")
    return sweep


def table(sweep: dict[str, Any]) -> str:
    """Formats a sweep as text, with a line per point."""
    distance = sweep_plots.distance_of(sweep)
    columns = [distance, "kid", "precision", "recall", "coverage", "clip_score", "diversity"]
    if any("checker_joint" in entry["scores"] for entry in sweep["points"]):
        columns.append("checker_joint")
    lines = [f"WARNING: {line}" for line in sweep["warnings"]]
    lines.append(f"{'':28}" + "".join(f"{name:>14}" for name in columns))
    for entry in sweep["points"]:
        cells = [entry["scores"].get(name) for name in columns]
        text = "".join(f"{'-' if c is None else format(c, '.4g'):>14}" for c in cells)
        lines.append(f"{SweepPoint(**entry['point']).name:28}{text}")
    return "\n".join(lines) + "\n"
