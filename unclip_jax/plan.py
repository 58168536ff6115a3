r"""Compile a stage for devices that need not be there, and say what it would need and cost.

    python -m unclip_jax.plan --config=experiments/decoder.py --topology=v5p:4x4x8 \
        --mesh=data=8,fsdp=16

Compiles the real train step (--what=train) or sampling function (--what=sample) ahead of time; for
TPU slices that needs libtpu (`pip install 'unclip_jax[tpu]'`) and no TPU. Prints and saves memory
per chip, FLOPs, traffic, a roofline and what follows for a whole run. Nothing is run: every time is
an estimate from the compiler's program and published peaks. --search tries meshes, microbatches and
remat policies, and compiles the most promising ones.
"""

import argparse
import dataclasses
import json
import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from unclip_jax.cli import entry
from unclip_jax.core.checks import UserError, divisible, one_of, positive, suggest
from unclip_jax.experiment import loading
from unclip_jax.experiment.config import Experiment
from unclip_jax.parallel.mesh import MeshConfig, batch_shards, check_batch, make_mesh
from unclip_jax.planning import compile_target, plan_report, program, search
from unclip_jax.planning.compile_target import CompileTarget

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> None:
    """Plan, print, write."""
    args, rest = parse(argv)
    experiment = loading.read(args.config, overrides=rest)
    if args.mesh:
        experiment = dataclasses.replace(experiment, mesh=read_mesh(args.mesh))
    target = find(args.topology, slices=args.slices)
    if args.search is None:
        made = [one(experiment, target, args)]
    else:
        made = tried(experiment, target, args)
    for each in made:
        sys.stdout.write(plan_report.as_text(each) + "\n")
    write(args.out, made[0] if args.search is None else made)
    sys.stdout.write(f"wrote {args.out}\n")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Command-line arguments, and overrides of the config.

    Raises:
        UserError: an argument that is neither, or one that means nothing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m unclip_jax.plan",
        description="What a stage would need and cost on given devices; runs nothing.",
        epilog="Any value of the config can be overridden: --config.train.batch_size=1024",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="experiment, FILE.py:SIZE")
    parser.add_argument(
        "--topology", default="", help="TPU slice such as v5p:4x4x8; default: the device at hand"
    )
    parser.add_argument("--slices", type=int, default=1, help="so many of --topology, over DCN")
    parser.add_argument("--mesh", default="", help="data=4,fsdp=16,tensor=1; default: the config's")
    parser.add_argument("--what", default="train", choices=("train", "sample"))
    parser.add_argument("--batch", type=int, help="images at once for --what=sample; 8 per chip")
    parser.add_argument(
        "--effort", default="default", help="of the compiler: default, or low (minutes, not hours)"
    )
    parser.add_argument(
        "--search", type=int, nargs="?", const=3, help="compile the best N candidates (3)"
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("plan.json"))
    args, rest = loading.parse_known(parser, argv)
    one_of("--effort", args.effort, program.EFFORTS)
    positive("--slices", args.slices)
    if args.search is not None:
        positive("--search", args.search)
        if args.what == "sample":
            raise UserError("--search is about training; leave out --what=sample.")
    return args, rest


def read_mesh(text: str) -> MeshConfig:
    """A mesh from "data=4,fsdp=16".

    Raises:
        UserError: an unknown axis, or a size that is no integer.
    """
    known = [field.name for field in dataclasses.fields(MeshConfig)]
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in known:
            raise UserError(f"--mesh has no axis {name!r}.{suggest(name, known)}")
        if not size.removeprefix("-").isdigit():
            raise UserError(f"--mesh gives {name} the size {size!r}; give an integer, -1 = rest.")
        sizes[name] = int(size)
    return MeshConfig(**sizes)


def find(name: str, *, slices: int = 1) -> CompileTarget:
    """The slice called `name`, or the device at hand if none is given or libtpu is missing."""
    if not name:
        return compile_target.at_hand()
    compile_target.parse(name)
    if compile_target.can_compile_for_tpu():
        return compile_target.tpu(name, slices=slices)
    target = compile_target.at_hand()
    sys.stderr.write(
        f"libtpu is not installed (pip install 'unclip_jax[tpu]'), so {name} cannot be compiled "
        f"for; planning for the device at hand, {target.name}, instead\n"
    )
    return target


def one(experiment: Experiment, target: CompileTarget, args: argparse.Namespace) -> dict[str, Any]:
    """The plan of one program.

    Raises:
        UserError: a mesh that does not divide the chips or the batch.
    """
    mesh = make_mesh(experiment.mesh, devices=target.devices)
    if args.what == "train":
        train = experiment.train
        check_batch(mesh, batch_size=train.batch_size, accumulate=train.accumulate)
        made = program.train(experiment, mesh=mesh)
    else:
        batch = args.batch or 8 * batch_shards(mesh)
        divisible("--batch", positive("--batch", batch), batch_shards(mesh), "the mesh splits it.")
        made = program.sample(experiment, mesh=mesh, batch_size=batch)
    found = plan_report.make(made, target, effort=args.effort)
    named = {"experiment": experiment.name, "size": experiment.size, "rules": experiment.rules}
    return {**named, "accumulate": experiment.train.accumulate, **found}


def tried(
    experiment: Experiment, target: CompileTarget, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """The plans of the most promising candidates, the best first: it fits, and it is fastest."""
    ranked = search.screen(experiment, target)
    log.info("%d candidates may fit; compiling %d", len(ranked), min(args.search, len(ranked)))
    made = []
    for each in ranked[: args.search]:
        found = one(search.chosen(experiment, each.candidate), target, args)
        made.append({**found, "candidate": each.candidate.line()})
    return sorted(made, key=lambda each: (not each["fits"], _seconds(each)))


def _seconds(made: dict[str, Any]) -> float:
    found = made.get("estimate")
    return found["step_seconds"][0] if found else float("inf")


def write(path: pathlib.Path, value: Any) -> None:
    """Write the plan.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another --out.") from None


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
