"""The tables of docs/speed.md: all measurements of speed.

    . launch/env.sh && python -m benchmarks.speed --out=docs/speed.md [--only=decoder] [--again]

Runs `benchmarks.train_step`, `benchmarks.sample` and `benchmarks.loader` with the settings below,
one after the other; after every row writes the tables between the marks of OUT.md and all figures
to OUT.json. Existing rows are kept. The rows of the loader need runs/shapes of `make demo`.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks import markdown_page, row_page
from unclip_jax.cli import entry
from unclip_jax.core.checks import UserError

TITLE = "# Speed\n\nWritten by `python -m benchmarks.speed`.\n\n"
GIB = 2.0**30
UNET = "--config.model.model.unet."
# Networks of Karlo's kind, between the miniature and the full size, which no laptop can train.
MEDIUM = {
    "prior": (
        *("--config.model.model.width=512", "--config.model.model.depth=8"),
        *("--config.model.model.heads=8", "--config.model.model.context=77"),
        "--config.train.batch_size=16",
    ),
    "decoder": (
        *(f"{UNET}image_size=32", "--config.data.load_size=32", f"{UNET}channels=96"),
        *(f"{UNET}multiples=(1,2,3)", f"{UNET}depth=2", f"{UNET}attention_at=(16,8)"),
        "--config.train.batch_size=4",
    ),
    "upsampler_256": (
        *(f"{UNET}channels=64", f"{UNET}multiples=(1,2,3)", f"{UNET}depth=2"),
        "--config.train.batch_size=8",
    ),
}
TURNS = ("--rounds=5", "--count=2")
COMPARED = ("--config.optim.name=adamw", "--peer=diffusers")
# Karlo's upsampler has a second network for its last step; the peer is one network.
ONE = {"upsampler_256": ("--config.model.last_step=False",)}


class Row(NamedTuple):
    """One measurement.

    Attributes:
        name: name of the row.
        module: module that measures it.
        arguments: arguments of that command.
    """

    name: str
    module: str
    arguments: tuple[str, ...]

    def command(self) -> str:
        """Returns the command as typed by a user."""
        quoted = (f"'{word}'" if "(" in word else word for word in self.arguments)
        return " ".join(["python -m", self.module, *quoted])


def rows() -> list[Row]:
    """Returns all rows, the most informative ones first."""
    all_rows = [_step(name, "karlo", COMPARED) for name in MEDIUM]
    all_rows += [_step(name, "shapes", COMPARED) for name in MEDIUM]
    all_rows.append(_load("decoder"))
    all_rows += [_step(name, "medium", COMPARED) for name in MEDIUM]
    all_rows += [_chain(name) for name in MEDIUM]
    all_rows += [
        _step(name, "shapes", (COMPARED[0], "--peer=dalle2")) for name in ("prior", "decoder")
    ]
    all_rows.append(_step("clip", "shapes", ()))
    return [*all_rows, _load("clip"), _load("upsampler_256")]


def _step(name: str, size: str, compared: tuple[str, ...]) -> Row:
    """Returns the row of a train step; the size "medium" is also of Karlo's kind."""
    settings = {"medium": MEDIUM.get(name, ()), "karlo": (), "shapes": ()}[size]
    kind = "shapes" if size == "shapes" else "karlo"
    one = ONE.get(name, ()) if kind == "karlo" else ()
    config = f"--config=experiments/{name}.py:{kind}"
    beside = ", dalle2" if "--peer=dalle2" in compared else ""
    arguments = (config, *one, *settings, *compared, *TURNS)
    return Row(f"train {name} {size}{beside}", "benchmarks.train_step", arguments)


def _chain(name: str) -> Row:
    arguments = (f"--config=experiments/{name}.py:karlo", *ONE.get(name, ()), *COMPARED)
    arguments += ("--batch=4", "--rounds=3", "--count=1")
    return Row(f"sample {name} karlo", "benchmarks.sample", arguments)


def _load(name: str) -> Row:
    config = f"--config=experiments/{name}.py:shapes"
    return Row(f"load {name} shapes", "benchmarks.loader", (config,))


def main(argv: Sequence[str]) -> None:
    """Measures the missing rows, and writes the page after each.

    Raises:
        UserError: `--only` matches no row, or commands failed (raised after all other rows).
    """
    args = row_page.parse(
        argv,
        prog="benchmarks.speed",
        description="Write the tables of docs/speed.md.",
        out="docs/speed.md",
        example="train prior",
    )
    selected = row_page.select(rows(), args.only)
    markdown_page.split(args.out, title=TITLE)
    results, failed = markdown_page.read_json(args.out.with_suffix(".json")), []
    for row in selected:
        if args.again or row.name not in results:
            sys.stderr.write(f"{row.name} ...\n")
            try:
                results[row.name] = {"command": row.command(), **measure(row)}
            except UserError as error:  # still measure the others
                failed.append(str(error))
        markdown_page.write(args.out, tables(results), results, title=TITLE)
    if failed:
        raise UserError(
            f"{len(failed)} rows could not be measured: {'; '.join(failed)}; correct the causes, "
            "then run the same command again."
        )


def measure(row: Row) -> dict[str, Any]:
    """Runs the command of a row; returns the JSON that it writes.

    Raises:
        UserError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "result.json"
        command = [sys.executable, "-m", row.module, *row.arguments, f"--json={out}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"{row.name} ended with {done.returncode}: {last}")
        return json.loads(out.read_text(encoding="utf-8"))


def tables(results: dict[str, Any]) -> str:
    """Formats steps and chains with the peer's, then the rows of the loader."""
    measured = [row for row in rows() if row.name in results]
    programs = [
        results[row.name] | {"row": row.name} for row in measured if "ours" in results[row.name]
    ]
    heads = ("what", "parameters", "examples", "s", "examples/s", "GFLOP/s", "MFU, %")
    heads += ("memory, GiB: compiled, process", "time of the peer / ours", "in CPU time")
    text = markdown_page.table(heads, [cells(each) for each in programs])
    loads = [results[row.name] for row in measured if "loader" in results[row.name]]
    heads = ("stage", "step without loading, examples/s")
    heads += ("loader by workers: decoding (cached), examples/s", "time waiting for data")
    text += "\n" + markdown_page.table(heads, [load_cells(each) for each in loads]) if loads else ""
    left = [row.name for row in rows() if row.name not in results]
    return text + (f"\nNot measured: {', '.join(left)}.\n" if left else "")


def cells(result: dict[str, Any]) -> list[str]:
    """Formats a line of the first table."""
    ours = result["ours"]
    memory = (sum(ours["compiled_memory"].values()) / GIB, ours["peak_memory"] / GIB)
    line = [
        result["row"],
        f"{ours['parameters']:,}",
        str(ours["examples"]),
        span(ours["seconds"]),
        f"{ours['examples_per_second']:.3g}",
        f"{ours['flops_per_second'] / 1e9:.3g}",
        f"{100 * ours['mfu']:.0f}",
        f"{memory[0]:.2f}, {memory[1]:.2f}",
    ]
    if "peer" not in result:
        return [*line, "", ""]
    over = result["peer"]["over_ours"]
    return [*line, span(over["wall"]), span(over["cpu"])]


def load_cells(result: dict[str, Any]) -> list[str]:
    """Formats a line of the second table."""
    counts = []
    for row in result["loader"]:
        cached = f" ({row['cached']:,.0f})" if "cached" in row else ""
        counts.append(f"{row['workers']}: {row['decoding']:,.0f}{cached}")
    wait = result["waiting"]
    share = wait["waited_seconds"] / wait["step_seconds"]
    name, alone = result["experiment"], result["step_examples_per_second"]
    return [name, f"{alone:,.0f}", "; ".join(counts), f"{100 * share:.1f} %"]


def span(values: dict[str, float]) -> str:
    """Formats a median and its extremes."""
    return f"{values['median']:.3g} [{values['least']:.3g}, {values['greatest']:.3g}]"


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
