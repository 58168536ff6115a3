"""Effect of XLA's flags on the time of a train step or of sampling.

    python -m benchmarks.compiler_flags --config=experiments/decoder.py:shapes \
        --flags=--xla_cpu_prefer_vector_width=512 --flags='--xla_cpu_enable_fast_math=true'

Compiles the same program with the flags of XLA_FLAGS alone, and once with each --flags after them,
every time in a process of its own, and runs these processes in turns. Prints a table of seconds,
and of the ratio between the time without and with the flags in neighbouring turns: above 1, they
make the program faster.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import interleaved, markdown_page
from benchmarks.compare import SIDES, UNITS, machine
from unclip_jax.cli import entry
from unclip_jax.cli.experiment_flags import ExperimentParser
from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.experiment import loading
from unclip_jax.stages import registry

BASELINE = "none"


def main(argv: Sequence[str]) -> None:
    """Measures the flags of the command line; prints the table and writes all figures.

    Raises:
        UserError: an argument is wrong, or the program fails without further flags.
    """
    args, overrides = parse(argv)
    experiment = loading.read(args.config, overrides=overrides)
    if args.what == "sample":
        registry.generator_entry(experiment.stage)
    batch = experiment.train.batch_size if args.what == "train" else args.batch
    task = {"config": args.config, "overrides": overrides, "what": args.what, "batch": batch}
    rows = measure(task, args.flags, rounds=args.rounds, count=args.count)
    sys.stdout.write(f"{experiment.name}:{experiment.size}, {args.what}, {machine()}\n\n")
    sys.stdout.write(table(rows, UNITS[args.what]))
    if args.json:
        result = {"task": task, "machine": machine(), "rows": rows}
        markdown_page.save(args.json, json.dumps(result, indent=1) + "\n")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line; returns its arguments and overrides of the config.

    Raises:
        UserError: there are no flags, flags are repeated, or a number is not positive.
    """
    parser = ExperimentParser("compare", prog="python -m benchmarks.compiler_flags")
    parser.add_argument(
        "--flags",
        action="append",
        default=[],
        help="flags of XLA to measure together, separated by spaces; repeat it for further sets",
    )
    parser.add_argument("--what", default="train", help="program: train or sample [train]")
    parser.add_argument("--batch", type=int, default=4, help="images per batch of sample [4]")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each process [5]")
    parser.add_argument("--count", type=int, default=4, help="runs per turn; median counts [4]")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures to this file")
    args, rest = parser.parse(argv)
    one_of("--what", args.what, UNITS)
    for name in ("rounds", "count", "batch"):
        positive(f"--{name}", getattr(args, name))
    sets = {BASELINE, *(flags.strip() for flags in args.flags)}
    if not args.flags or "" in sets or len(sets) != len(args.flags) + 1:
        raise UserError(
            f"--flags are {args.flags}; give at least one set of flags, each set once, such as "
            "--flags=--xla_cpu_prefer_vector_width=512."
        )
    return args, rest


def measure(
    task: dict[str, Any], sets: Sequence[str], *, rounds: int, count: int
) -> dict[str, dict[str, Any]]:
    """Runs the program of `task` without and with each set of flags, in turns.

    Returns:
        One row per set, the one without flags first: "seconds" and "ratio" (spreads) and
        "compile_seconds"; or "error" if the process ended, for example as XLA has no such flag.
    """
    rows: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        sides = []
        for name in [BASELINE, *sets]:
            sys.stderr.write(f"compiling with flags: {name} ...\n")
            try:
                side = _start(name, task)
            except UserError as error:
                if name == BASELINE:
                    raise
                rows[name] = {"error": str(error)}
                continue
            stack.callback(side.kill)
            sides.append(side)
        durations = interleaved.alternate(sides, rounds=rounds, count=count)
    for side in sides:
        ratios = interleaved.ratios(durations[BASELINE], durations[side.name])
        rows[side.name] = {
            "seconds": interleaved.spread([each.wall for each in durations[side.name]]),
            "ratio": interleaved.spread(ratios["wall"]),
            "compile_seconds": side.facts["compile_seconds"],
        }
    return {name: rows[name] for name in [BASELINE, *sets]}


def _start(name: str, task: dict[str, Any]) -> interleaved.Side:
    flags = os.environ.get("XLA_FLAGS", "")
    if name != BASELINE:
        flags = f"{flags} {name}"
    environment = {"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return interleaved.Side(name, SIDES["ours"], task, environment=environment)


def table(rows: dict[str, dict[str, Any]], unit: str) -> str:
    """Formats the rows of `measure` as a Markdown table."""
    cells = []
    for name, row in rows.items():
        if "error" in row:
            cells.append([f"`{name}`", "failed", "", ""])
            continue
        ratio = "" if name == BASELINE else interleaved.spread_text(row["ratio"])
        flags = name if name == BASELINE else f"`{name}`"
        cells.append(
            [flags, interleaved.spread_text(row["seconds"]), ratio, f"{row['compile_seconds']:.0f}"]
        )
    heads = ["flags", f"s per {unit}", "time without / with", "s to compile"]
    return markdown_page.table(heads, cells)


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
