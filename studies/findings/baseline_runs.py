"""The baselines: run folders with one stage of their own each, and links to the rest.

They are trained by `python -m unclip_jax.train` with the flags of launch/env.sh, so an interrupted
one continues. A baseline is compared only with a stage of equal length; where the models' own stage
has another length, its twin of that length is trained too.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from unclip_jax.core.checks import UserError
from unclip_jax.evaluation import protocol_folder
from unclip_jax.handoff import load
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.stages import registry

ROOT = pathlib.Path(__file__).parents[2]
MAIN = "main"  # the models as they are


@dataclasses.dataclass(frozen=True)
class Baseline:
    """One stage to compare with.

    Attributes:
        name: of its run folder.
        part: which stage of the cascade it takes the place of.
        experiment: its file.
        about: what differs, for the page.
        changes: overrides of the config.
    """

    name: str
    part: str
    experiment: str
    about: str
    changes: tuple[str, ...] = ()


BASELINES = (
    Baseline("unclip", "decoder", "decoder", "unCLIP's decoder, as long as its baselines"),
    Baseline("glide", "decoder", "glide", "GLIDE: the decoder on captions alone"),
    Baseline(
        "z_txt",
        "decoder",
        "decoder",
        "the decoder trained on z_txt in the place of z_img",
        ("--config.model.condition=z_txt",),
    ),
    Baseline("x_0", "prior", "prior", "the diffusion prior, as long as its baselines"),
    Baseline(
        "eps",
        "prior",
        "prior",
        "the diffusion prior, predicting eps",
        ("--config.model.diffusion.target=eps",),
    ),
    Baseline("autoregressive", "prior_ar", "prior_ar", "the autoregressive prior"),
)


def named(name: str) -> Baseline:
    """The baseline of that name."""
    return next(each for each in BASELINES if each.name == name)


def steps_of(baseline: Baseline, args: argparse.Namespace) -> int:
    """How long it is trained."""
    return getattr(args, f"{baseline.part}_steps")


def make(baseline: Baseline, args: argparse.Namespace, rest: Sequence[str]) -> pathlib.Path:
    """Its run folder, with the stage linked from the models or trained; returns the folder.

    Raises:
        UserError: training failed, or an export there has another length.
    """
    folder = args.work / "runs" / baseline.name
    folder.mkdir(parents=True, exist_ok=True)
    for part in registry.default_chain():
        if part != baseline.part and (args.models / part).is_dir():
            _link(folder / part, args.models / part)
    steps, export = steps_of(baseline, args), folder / baseline.part / "export"
    theirs = args.models / baseline.part / "export"
    if not baseline.changes and baseline.experiment == baseline.part and _length(theirs) == steps:
        _link(folder / baseline.part, args.models / baseline.part)
        return folder
    if (there := _length(export)) is None:
        _train(baseline, args, rest, workdir=folder / baseline.part)
    elif there != steps:
        raise UserError(
            f"{export} was trained for {there} steps, and {steps} are asked for; give another "
            "--work, or the same steps."
        )
    return folder


def facts(args: argparse.Namespace) -> list[dict[str, object]]:
    """Name, difference, steps and minutes of every baseline that is there, for the page."""
    known, found = minutes(args.work), []
    for baseline in BASELINES:
        export = args.work / "runs" / baseline.name / baseline.part / "export"
        if (length := _length(export)) is not None:
            row = {"name": baseline.name, "about": baseline.about, "steps": length}
            found.append({**row, "minutes": known.get(baseline.name)})
    return found


def command(
    baseline: Baseline, args: argparse.Namespace, rest: Sequence[str], *, workdir: pathlib.Path
) -> list[str]:
    """The training command, with the flags of launch/env.sh around it."""
    size = load.read_manifest(args.models / "clip" / "export").size
    return [
        *("bash", "-c", '. launch/env.sh "" && exec "$@"', "bash", "launch/until_done"),
        *(sys.executable, "-m", "unclip_jax.train"),
        f"--config=experiments/{baseline.experiment}.py:{size}",
        f"--workdir={workdir.absolute()}",
        f"--config.data.path={args.data.absolute()}",
        f"--config.data.embeddings={args.embeddings.absolute()}",
        f"--config.train.steps={steps_of(baseline, args)}",
        "--config.train.sample_every=0",
        *baseline.changes,
        *rest,
    ]


def _train(
    baseline: Baseline, args: argparse.Namespace, rest: Sequence[str], *, workdir: pathlib.Path
) -> None:
    told = command(baseline, args, rest, workdir=workdir)
    sys.stderr.write(f"\n$ {' '.join(told[5:])}\n")
    began = time.monotonic()
    try:
        done = subprocess.run(told, cwd=ROOT, check=False)
    finally:  # an interrupted run counts too
        known = minutes(args.work)
        known[baseline.name] = known.get(baseline.name, 0.0) + (time.monotonic() - began) / 60
        protocol_folder.write(args.work / "minutes.json", json.dumps(known, indent=1) + "\n")
    if done.returncode:
        raise UserError(
            f"training {baseline.name!r} ended with status {done.returncode} (see above); run the "
            "same command again to continue."
        )


def minutes(work: pathlib.Path) -> dict[str, float]:
    """What training has cost so far, by baseline."""
    where = work / "minutes.json"
    return json.loads(where.read_text()) if where.is_file() else {}


def _length(export: pathlib.Path) -> int | None:
    """Steps of an export, or None where there is none."""
    if not export.is_dir():
        return None
    card: Manifest = load.read_manifest(export)
    return card.step


def _link(link: pathlib.Path, target: pathlib.Path) -> None:
    if not link.exists():
        link.unlink(missing_ok=True)  # one that leads nowhere
        link.symlink_to(target.resolve())


def folder_of(args: argparse.Namespace) -> pathlib.Path:
    """Where the numbers of findings lie."""
    return args.work / "findings"
