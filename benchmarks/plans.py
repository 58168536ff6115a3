"""The table of docs/plan.md: every stage at the paper's size and batch, planned for TPU slices.

    python -m benchmarks.plans --out=docs/plan.md [--only=decoder] [--again]

Runs `python -m unclip_jax.plan` once per row, each in a process of its own (a U-Net takes minutes
and gigabytes), and after every row writes the table between the marks of OUT.md and all plans to
OUT.json. Rows that are there already are kept, so it can be stopped and goes on where it was.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks import markdown_page
from unclip_jax.cli import entry
from unclip_jax.core.checks import UserError
from unclip_jax.planning import compile_target
from unclip_jax.stages import registry

TITLE = "# What the stages need and cost on TPUs\n\nMade by `python -m benchmarks.plans`.\n\n"
SLICES = ("v4:4x4x4", "v5e:16x16", "v5p:4x4x4", "v6e:8x8")
OTHERS = {
    # Convolutions of fewer than eight images per chip are padded: 512 images, 64 chips.
    ("upsampler_1024", "v5e:16x16"): "v5e:8x8",
    # A replica of 64 pairs (SAM) has parameters of its own: 32,768 pairs are 512 replicas.
    ("clip", "v4:4x4x4"): "v4:8x8x4",
    ("clip", "v5p:4x4x4"): "v5p:4x4x8",
    ("clip", "v6e:8x8"): "v6e:16x16",
}
# The prior, one scanned block, compiles in minutes as it is; a U-Net would take hours.
EFFORT = {"prior": "default"}
EXPERIMENTS = sorted(registry.default_chain(), key=lambda name: name not in EFFORT)  # quick first
GIB = 2.0**30


class Row(NamedTuple):
    """One plan.

    Attributes:
        experiment: its file's name.
        topology: the slice.
    """

    experiment: str
    topology: str

    @property
    def name(self) -> str:
        """Of the row, in the JSON file and on the command line."""
        return f"{self.experiment} {self.topology}"

    def command(self) -> list[str]:
        """What to run; parameters and their state are split over 16 chips."""
        return [
            *("python", "-m", "unclip_jax.plan", f"--config=experiments/{self.experiment}.py"),
            f"--topology={self.topology}",
            "--mesh=data=-1,fsdp=16",
            f"--effort={EFFORT.get(self.experiment, 'low')}",
        ]


def rows() -> list[Row]:
    """All of them, in the order of the table."""
    pairs = [(name, where) for name in EXPERIMENTS for where in SLICES]
    return [Row(name, OTHERS.get((name, where), where)) for name, where in pairs]


def main(argv: Sequence[str]) -> None:
    """Plan what is missing; write after every row."""
    args = markdown_page.parse(
        argv,
        prog="benchmarks.plans",
        description="Plan every stage at the paper's size.",
        out="docs/plan.md",
        example="decoder v5e",
    )
    wanted = markdown_page.chosen(rows(), args.only)
    markdown_page.around(args.out, title=TITLE)
    found = markdown_page.read(args.out.with_suffix(".json"))
    missing = [row for row in wanted if args.again or row.name not in found]
    if missing and not compile_target.can_compile_for_tpu():
        raise UserError("libtpu is not installed; pip install 'unclip_jax[tpu]' brings it.")
    for row in missing:
        sys.stderr.write(f"{row.name} ...\n")
        found[row.name] = plan(row)
        markdown_page.write(args.out, table(found), found, title=TITLE)
    markdown_page.write(args.out, table(found), found, title=TITLE)


def plan(row: Row) -> dict[str, Any]:
    """One plan, as `unclip_jax.plan` writes it, with its command and the seconds of its process.

    Raises:
        UserError: the command failed.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "plan.json"
        _, *arguments = row.command()
        command = [sys.executable, *arguments, f"--out={out}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"the plan of {row.name} ended with {done.returncode}: {last}")
        made = json.loads(out.read_text(encoding="utf-8"))
    seconds = round(time.monotonic() - began)
    return {"command": " ".join(row.command()), "process_seconds": seconds, **made}


def table(found: dict[str, Any]) -> str:
    """The rows that were planned, and the names of those that were not."""
    heads = ("stage", "slice (data x fsdp)", "batch", "fits: peak of HBM per chip, GiB")
    heads += ("ms per step: compute", "memory", "links", "binds", "step, ms", "MFU, %", "days")
    there = [row for row in rows() if row.name in found]
    text = markdown_page.table(heads, [cells(row, found[row.name]) for row in there])
    left = [row for row in rows() if row.name not in found]
    if there:
        made = found[there[0].name]["compiler"]
        text += f"\njax {made['jax']}, libtpu {made.get('libtpu', '-')}; nothing was run."
        text += " All figures: plan.json.\n"
    groups = {
        name: [row.topology for row in left if row.experiment == name] for name in EXPERIMENTS
    }
    missing = [f"{name} on {', '.join(where)}" for name, where in groups.items() if where]
    return text + (f"\nNot planned: {'; '.join(missing)}.\n" if missing else "")


def cells(row: Row, made: dict[str, Any]) -> list[str]:
    """One line of the table."""
    mesh, sizes = made["mesh"], made["memory_per_chip"]
    peak = "?" if sizes["peak"] is None else f"{sizes['peak'] / GIB:.1f}"
    fits = "yes" if made["fits"] else "**no**"
    line = [
        row.experiment,
        f"{row.topology} ({mesh['data']} x {mesh['fsdp']})",
        f"{made['examples_per_step']:,}",
        f"{fits}: {peak} of {sizes['available'] / GIB:.1f}",
    ]
    found = made.get("estimate")
    if not found:
        return [*line, *[""] * 7]
    roof = found["roofline_seconds"]
    line += [f"{1e3 * roof[name]:.0f}" for name in ("compute", "memory", "interconnect")]
    line += [{"interconnect": "links"}.get(roof["binds"], roof["binds"])]
    line += [span(found["step_seconds"], 1e3), span(found["mfu"], 100), span(found["days"], 1)]
    return line


def span(bounds: Sequence[float | None], scale: float) -> str:
    """'59 to 82', '≥ 59' or '≤ 83'."""
    low, high = ("" if each is None else _three(each * scale) for each in bounds)
    if low and high:
        return f"{low} to {high}"
    return f"≥ {low}" if low else f"≤ {high}"


def _three(value: float) -> str:
    """Three significant digits, never as a power of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
