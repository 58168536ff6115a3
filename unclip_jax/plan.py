r"""Compiles a stage for devices that need not be present, and estimates its memory and time.

    python -m unclip_jax.plan --config=decoder --topology=v5p:4x4x8 --mesh=data=8,fsdp=16

Compiles the real train step (--what=train) or sampling function (--what=sample) ahead of time; for
TPU slices this requires libtpu (`pip install 'unclip_jax[tpu]'`) but no TPU. Prints and saves
memory per chip, FLOPs, traffic, a roofline and the estimate for a whole run. Nothing is run: every
time is an estimate from the compiler's program and published peaks. --search tries meshes,
microbatches and remat policies, and compiles the most promising ones.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from unclip_jax.cli import entry
from unclip_jax.cli.experiment_flags import ExperimentParser
from unclip_jax.core.checks import UserError, positive
from unclip_jax.core.files import check_output


def parser() -> ExperimentParser:
    """Returns the parser of the command line."""
    parser = ExperimentParser(
        "plan", description="Estimate memory and time of a stage on chosen devices; runs nothing."
    )
    add = parser.add_argument
    add("--topology", default="", help="TPU slice such as v5p:4x4x8; default: the local devices")
    add("--slices", type=int, default=1, help="number of slices, connected over DCN")
    add("--mesh", default="", help="mesh such as data=4,fsdp=16; default: the config's")
    add("--what", default="train", choices=("train", "sample"), help="program to compile")
    add("--batch", type=int, help="batch size of --what=sample; default: 8 per chip")
    add("--effort", default="default", help="effort of the compiler; low is much faster")
    add("--plain-attention", action="store_true", help="use plain XLA in place of fused attention")
    add(
        "--search",
        type=int,
        nargs="?",
        const=3,
        help="compile the SEARCH best candidates, 3 without a number",
    )
    add("--out", type=pathlib.Path, default=pathlib.Path("plan.json"), help="JSON to write")
    return parser


def main(argv: Sequence[str]) -> None:
    """Prints the plan and writes it."""
    args, overrides = parser().parse(argv)
    _check(args)
    from unclip_jax.backbones import attention
    from unclip_jax.experiment import loading
    from unclip_jax.planning import plan_report, plans

    options = plans.PlanOptions(args.what, args.batch, args.effort)
    experiment = loading.read(args.config, overrides=overrides)
    if args.mesh:
        experiment = dataclasses.replace(experiment, mesh=plans.parse_mesh(args.mesh))
    target = plans.find_target(args.topology, slices=args.slices)
    with attention.plain() if args.plain_attention else contextlib.nullcontext():
        if args.search is None:
            results = [plans.plan(experiment, target, options)]
        else:
            results = plans.plan_candidates(experiment, target, options, count=args.search)
    for result in results:
        sys.stdout.write(plan_report.as_text(result) + "\n")
    verb = "replaced" if args.out.exists() else "wrote"
    plans.write(args.out, results[0] if args.search is None else results)
    sys.stdout.write(f"{verb} {args.out}\n")


def _check(args: argparse.Namespace) -> None:
    """Rejects arguments that are not valid together.

    Raises:
        UserError: naming the argument.
    """
    positive("--slices", args.slices)
    check_output(args.out)
    if args.search is not None:
        positive("--search", args.search)
        if args.what == "sample":
            raise UserError("--search is for training; leave out --what=sample.")


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
