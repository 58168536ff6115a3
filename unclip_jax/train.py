"""Train one stage.

    python -m unclip_jax.train --config=experiments/prior.py:shapes --workdir=runs/shapes/prior

Any value can be overridden: --config.optim.learning_rate=3e-4. The same command continues an
interrupted run, bit for bit. When training ends, the averaged parameters are exported to
WORKDIR/export with a manifest; --export_only exports the newest checkpoint of an unfinished run.
A prior that samples with the analytic variance gets its table there too.
On several machines every process runs this command; see `unclip_jax.parallel.cluster`.
"""

import argparse
import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from unclip_jax import analytic
from unclip_jax.cli import entry, flags
from unclip_jax.core.config import as_dict
from unclip_jax.experiment import input_pipeline, loading
from unclip_jax.experiment.config import Experiment
from unclip_jax.handoff import export, load
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.inference.load import abstract_params
from unclip_jax.parallel import cluster, multihost
from unclip_jax.stages.base import Stage
from unclip_jax.training import loop
from unclip_jax.training.state import TrainState

CACHE = "~/.cache/unclip_jax/xla"

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> None:
    """Train, then export."""
    args, rest = parse(argv)
    _show_our_log()
    use_cache(args.compilation_cache)
    flags.start_processes(args)
    experiment = loading.read(args.config, overrides=rest)
    place = {"workdir": str(args.workdir), "export_only": args.export_only}
    multihost.check_same({"config": as_dict(experiment), **place, **cluster.facts()})
    begun = experiment.init_from
    licence = load.read_manifest(pathlib.Path(begun)).licence if begun else ""
    state, stage, read = run(experiment, args.workdir, export_only=args.export_only)
    write_export(experiment, stage, state, facts=read, workdir=args.workdir, licence=licence)
    analytic.after_training(experiment, state.ema_params, workdir=args.workdir)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Command-line arguments, and overrides of the config.

    Raises:
        UserError: an argument that is neither.
    """
    parser = argparse.ArgumentParser(
        prog="python -m unclip_jax.train",
        description="Train one stage; the same command continues an interrupted run.",
        epilog="Any value of the config can be overridden: --config.optim.learning_rate=3e-4",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="experiment, FILE.py:SIZE")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of this run")
    parser.add_argument("--compilation_cache", default=CACHE, help="folder; empty = none")
    parser.add_argument(
        "--export_only", action="store_true", help="export the newest checkpoint, do not train"
    )
    flags.add_processes(parser)
    return loading.parse_known(parser, argv)


def _show_our_log() -> None:
    """Our own lines on stderr; of others only what is wrong."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("unclip_jax").setLevel(logging.INFO)
    log.setLevel(logging.INFO)  # as a script this module is called __main__


def use_cache(folder: str) -> None:
    """Keep compiled programs between runs, where JAX_COMPILATION_CACHE_DIR says nothing else."""
    if folder and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def run(
    experiment: Experiment, workdir: pathlib.Path, *, export_only: bool = False
) -> tuple[TrainState, Stage, input_pipeline.Inputs]:
    """Train the stage of `experiment` to its last step, or take its newest checkpoint as it is."""
    how = {
        "config": experiment.train,
        "optim": experiment.optim,
        "mesh": experiment.mesh,
        "rules": experiment.rules,
    }
    loop.check_fit(experiment.build_stage(), **how)
    experiment = input_pipeline.settled(experiment)
    stage = experiment.build_stage()
    read = input_pipeline.open_inputs(experiment, stage)
    mine = {"workdir": workdir, "identity": experiment.identity()}
    if export_only:
        return loop.newest(stage, **how, **mine), stage, read
    state = loop.train(
        stage,
        **how,
        **mine,
        train_data=read.train,
        eval_data=read.held_out,
        initial=_initial(experiment, stage),
        fitted=input_pipeline.fitted(experiment, stage),
        labels=lambda batch: [str(caption) for caption in batch["caption"]],
    )
    return state, stage, read


def _initial(experiment: Experiment, stage: Stage) -> Any:
    """Parameters to start from, when `init_from` names an export."""
    if not experiment.init_from:
        return None
    return lambda: load.read_params(
        pathlib.Path(experiment.init_from), abstract=abstract_params(stage), grows=stage.grows
    )


def write_export(
    experiment: Experiment,
    stage: Stage,
    state: TrainState,
    *,
    facts: input_pipeline.Inputs,
    workdir: pathlib.Path,
    licence: str = "",
) -> None:
    """Hand the averaged parameters on: WORKDIR/export, under the terms of what they began as."""
    manifest = Manifest(
        stage=experiment.stage,
        size=experiment.size,
        step=int(jax.device_get(state.step)),
        licence=licence,
        **stage.describe,
        **facts.facts,
    )
    target = workdir / "export"
    written = export.write_export(
        target, params=state.ema_params, manifest=manifest, tokenizer_dir=facts.tokenizer_dir
    )
    log.info("exported %s parameters to %s", f"{written.parameters:,}", target)


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
