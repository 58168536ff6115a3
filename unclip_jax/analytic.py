"""Estimates the reverse variance of a trained prior (Analytic-DPM) and stores it in its export.

    python -m unclip_jax.analytic --config=prior:shapes --workdir=runs/shapes/prior

Streams over training data, without guidance, and writes WORKDIR/export/variance.json, which
sampling.variance "table" uses. With that setting, training does this itself.
"""

import pathlib
import sys
from collections.abc import Sequence

from unclip_jax.cli import entry
from unclip_jax.cli.experiment_flags import ExperimentParser
from unclip_jax.core.checks import positive


def parser() -> ExperimentParser:
    """Returns the parser of the command line."""
    parser = ExperimentParser(
        "analytic",
        config_help="; its training data are read",
        description="Estimate the Analytic-DPM variance of a trained prior.",
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="workdir of the prior")
    parser.add_argument(
        "--examples", type=int, default=4096, help="training examples to average over"
    )
    parser.add_argument("--steps", help="steps, as model.sampling.steps; default: as exported")
    return parser


def main(argv: Sequence[str]) -> None:
    """Measures the table and writes it."""
    args, overrides = parser().parse(argv)
    positive("--examples", args.examples)
    from unclip_jax.experiment import analytic_variance, loading

    experiment = loading.read(args.config, overrides=overrides)
    export = args.workdir / "export"
    table = analytic_variance.of_export(
        experiment, export, examples=args.examples, steps=args.steps or ""
    )
    path = analytic_variance.write(export, table)
    sys.stdout.write(f"wrote {path}: {len(table.timesteps)} steps, {table.examples} examples\n")


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
