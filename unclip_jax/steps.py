r"""Searches the timesteps with which a trained stage samples best in a few steps.

    python -m unclip_jax.steps --config=finetune:decoder --steps=4 \
        --config.init_from=runs/shapes/decoder/export \
        --config.data.path=runs/shapes/data --config.data.embeddings=runs/shapes/embeddings

Samples held-out examples on many grids, and prints the one that is closest to the exact path of the
model, as a value of sampling.steps. Nothing is written.
"""

import sys
from collections.abc import Sequence

from unclip_jax.cli import entry
from unclip_jax.cli.experiment_flags import ExperimentParser


def parser() -> ExperimentParser:
    """Returns the parser of the command line."""
    parser = ExperimentParser(
        "steps",
        config_help="; finetune:STAGE, with the export as --config.init_from",
        description="Search the timesteps of a sampler of few steps on held-out data.",
    )
    parser.add_argument("--steps", type=int, required=True, help="number of steps, 2 to 32")
    parser.add_argument(
        "--sampler",
        default="",
        help="ddim, dpmpp_2m, dpmpp_3m or heun; default: as exported, or dpmpp_2m",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=64,
        help="held-out examples for the search, and as many to compare; default: 64",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Searches and prints the result."""
    args, overrides = parser().parse(argv)
    from unclip_jax.experiment import loading, sampling_grid

    experiment = loading.read(args.config, overrides=overrides)
    grid = sampling_grid.of_export(
        experiment, count=args.steps, sampler=args.sampler, examples=args.examples
    )
    role = "" if experiment.entry.paired else experiment.entry.role
    width = max(map(len, grid.errors))
    lines = [f"{name:{width}}  {error:.4f}" for name, error in grid.errors.items()]
    sys.stdout.write(
        f"distance from the exact path on {grid.examples} other examples, root mean square:\n"
        + "\n".join(lines)
        + f"\n{grid.evaluations} grids tried; the best: "
        + _settings(role, grid.sampler, grid.steps)
        + "\n"
    )


def _settings(role: str, sampler: str, steps: str) -> str:
    """Returns the flags of `sample` for a role, or keys of the config if there are none."""
    flags = {"prior": "--prior-", "decoder": "--"}.get(role, "--config.model.sampling.")
    return f"{flags}sampler={sampler} {flags}steps={steps}"


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
