"""The table of docs/plan.md: every stage at the paper's size and batch, planned for TPU slices.

    python -m benchmarks.plans --out=docs/plan.md [--only=decoder] [--again]

Runs `python -m unclip_jax.plan` once per row in a process of its own (a U-Net takes minutes and
gigabytes), and after every row writes the table between the marks of OUT.md and all plans to
OUT.json. Existing rows are kept, so an interrupted run continues.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks import markdown_page, row_page
from unclip_jax.cli import entry
from unclip_jax.core.checks import UserError
from unclip_jax.planning import compile_target
from unclip_jax.stages import registry

TITLE = "# Memory and cost on TPUs\n\nWritten by `python -m benchmarks.plans`.\n\n"
SLICES = ("v4:4x4x4", "v5e:16x16", "v5p:4x4x4", "v6e:8x8")
OTHERS = {
    # Convolutions of fewer than eight images per chip are padded: 512 or 1,024 images, 64 chips.
    ("upsampler_256", "v5e:16x16"): "v5e:8x8",
    ("upsampler_1024", "v5e:16x16"): "v5e:8x8",
    # A replica of 64 pairs (SAM) has parameters of its own: 32,768 pairs are 512 replicas.
    ("clip", "v4:4x4x4"): "v4:8x8x4",
    ("clip", "v5p:4x4x4"): "v5p:4x4x8",
    ("clip", "v6e:8x8"): "v6e:16x16",
    # 12 billion parameters: 64 chips of 32 GB hold their state, but not 16 examples each.
    ("dalle", "v4:4x4x4"): "v4:4x4x8",
    ("dalle", "v6e:8x8"): "v6e:8x16",
}
IMAGEN = ("imagen_base", "imagen_sr256", "imagen_sr1024")
CHAIN = sorted(registry.default_chain(), key=lambda name: name != "prior")  # fastest first
EXPERIMENTS = (*CHAIN, *IMAGEN, "dalle")
FSDP = {"dalle": 64}  # 12 billion parameters; other stages are split over 16 chips
# SAM's copies of the parameters need more memory than a v5e chip has, unless two chips share them.
TENSOR = {("clip", "v5e:16x16", "cached"): 2}
VARIANTS = {
    ("clip", "cached"): ("--config.optim.sam_cached=True",),
    ("prior", "plain attention"): ("--plain-attention",),
    ("decoder", "plain attention"): ("--plain-attention",),
}
GIB = 2.0**30


class Row(NamedTuple):
    """One plan.

    Attributes:
        experiment: name of its file.
        topology: the slice.
        variant: variant of the experiment, a key of `VARIANTS`; "" = as in its file.
    """

    experiment: str
    topology: str
    variant: str = ""

    @property
    def label(self) -> str:
        """The experiment and its variant."""
        return f"{self.experiment} {self.variant}".rstrip()

    @property
    def name(self) -> str:
        """Name of the row in the JSON file and on the command line."""
        return f"{self.label} {self.topology}"

    def command(self) -> list[str]:
        """Returns the command."""
        rules: tuple[str, ...] = ()
        mesh = f"--mesh=data=-1,fsdp={FSDP.get(self.experiment, 16)}"
        if tensor := TENSOR.get((self.experiment, self.topology, self.variant)):
            mesh, rules = f"{mesh},tensor={tensor}", ("--config.rules=fsdp_tp",)
        return [
            *("python", "-m", "unclip_jax.plan", f"--config=experiments/{self.experiment}.py"),
            f"--topology={self.topology}",
            *(mesh, *rules),
            "--effort=low",  # a U-Net would take hours with the default
            *VARIANTS.get((self.experiment, self.variant), ()),
        ]


def rows() -> list[Row]:
    """Returns all rows, in the order of the table."""
    result = []
    for name in EXPERIMENTS:
        for variant in ("", *(own for experiment, own in VARIANTS if experiment == name)):
            slices = [where if variant else OTHERS.get((name, where), where) for where in SLICES]
            result += [Row(name, where, variant) for where in slices]
    return result


def main(argv: Sequence[str]) -> None:
    """Plans the missing rows, and writes the page after each."""
    args = row_page.parse(
        argv,
        prog="benchmarks.plans",
        description="Plan every stage at the paper's size.",
        out="docs/plan.md",
        example="decoder v5e",
    )
    selected = row_page.select(rows(), args.only)
    markdown_page.split(args.out, title=TITLE)
    plans = markdown_page.read_json(args.out.with_suffix(".json"))
    missing = [row for row in selected if args.again or row.name not in plans]
    if missing and not compile_target.can_compile_for_tpu():
        raise UserError("libtpu is not installed; run `pip install 'unclip_jax[tpu]'`.")
    for row in missing:
        sys.stderr.write(f"{row.name} ...\n")
        plans[row.name] = plan(row)
        markdown_page.write(args.out, table(plans), plans, title=TITLE)
    markdown_page.write(args.out, table(plans), plans, title=TITLE)


def plan(row: Row) -> dict[str, Any]:
    """Runs `unclip_jax.plan`; returns its plan with the command and its duration.

    Raises:
        UserError: the command failed.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "plan.json"
        _, *arguments = row.command()
        command = [sys.executable, *arguments, f"--out={out}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"the plan of {row.name} ended with {done.returncode}: {last}")
        result = json.loads(out.read_text(encoding="utf-8"))
    seconds = round(time.monotonic() - started)
    return {"command": " ".join(row.command()), "process_seconds": seconds, **result}


def table(plans: dict[str, Any]) -> str:
    """Formats the planned rows, and the names of the others."""
    heads = ("stage", "slice (data x fsdp x tensor)", "batch", "fits: peak of HBM per chip, GiB")
    heads += ("ms per step: compute", "memory", "links", "binds", "step, ms", "MFU, %", "days")
    planned = [row for row in rows() if row.name in plans]
    text = markdown_page.table(heads, [cells(row, plans[row.name]) for row in planned])
    left = [row for row in rows() if row.name not in plans]
    if planned:
        compiler = plans[planned[0].name]["compiler"]
        text += f"\njax {compiler['jax']}, libtpu {compiler.get('libtpu', '-')}; nothing was run."
        text += " All figures: plan.json.\n"
    groups: dict[str, list[str]] = {}
    for row in left:
        groups.setdefault(row.label, []).append(row.topology)
    missing = [f"{name} on {', '.join(where)}" for name, where in groups.items()]
    return text + (f"\nNot planned: {'; '.join(missing)}.\n" if missing else "")


def cells(row: Row, result: dict[str, Any]) -> list[str]:
    """Formats one line of the table."""
    mesh, sizes = result["mesh"], result["memory_per_chip"]
    peak = "?" if sizes["peak"] is None else f"{sizes['peak'] / GIB:.1f}"
    fits = "yes" if result["fits"] else "**no**"
    axes = [mesh[axis] for axis in ("data", "fsdp", "tensor")]
    sizes_of_mesh = " x ".join(str(size) for size in (axes if axes[2] > 1 else axes[:2]))
    line = [
        row.label,
        f"{row.topology} ({sizes_of_mesh})",
        f"{result['examples_per_step']:,}",
        f"{fits}: {peak} of {sizes['available'] / GIB:.1f}",
    ]
    estimate = result.get("estimate")
    if not estimate:
        return [*line, *[""] * 7]
    roof = estimate["roofline_seconds"]
    line += [f"{1e3 * roof[name]:.0f}" for name in ("compute", "memory", "interconnect")]
    line += [{"interconnect": "links"}.get(roof["binds"], roof["binds"])]
    line += [
        span(estimate["step_seconds"], 1e3),
        span(estimate["mfu"], 100),
        span(estimate["days"], 1),
    ]
    return line


def span(bounds: Sequence[float | None], scale: float) -> str:
    """Formats bounds as '59 to 82', '≥ 59' or '≤ 83'."""
    low, high = ("" if bound is None else _three(bound * scale) for bound in bounds)
    if low and high:
        return f"{low} to {high}"
    return f"≥ {low}" if low else f"≤ {high}"


def _three(value: float) -> str:
    """Formats three significant digits, never as a power of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
