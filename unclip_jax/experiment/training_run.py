"""A training run: from an experiment to a trained stage and its export."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from unclip_jax.core.stage import Stage
from unclip_jax.core.storage import Location, Url
from unclip_jax.experiment import analytic_variance, input_pipeline
from unclip_jax.experiment.config import Experiment
from unclip_jax.experiment.input_pipeline import Inputs
from unclip_jax.handoff import export, load, remote
from unclip_jax.handoff.manifest import Manifest, require
from unclip_jax.inference.load import abstract_params
from unclip_jax.stages.registry import stage_entry
from unclip_jax.training import bucket_workdir, loop, workdir_lock
from unclip_jax.training.state import TrainState
from unclip_jax.training.workdir import Workdir, as_workdir

log = logging.getLogger(__name__)


def train_and_export(
    experiment: Experiment, workdir: Location, *, export_only: bool = False
) -> None:
    """Trains a stage in `workdir`, or continues there, and writes WORKDIR/export.

    Args:
        experiment: settings of the run.
        workdir: a folder that all processes share, or a URL.
        export_only: exports the newest checkpoint as it is.

    Raises:
        UserError: data, embeddings or an initial export that are missing or do not fit; or
            `workdir` holds a run of another experiment, or another trainer is at work there.
    """
    experiment = experiment.with_local_exports(remote.local_export)
    initial = experiment.init_from
    licence = load.read_manifest(pathlib.Path(initial)).licence if initial else ""
    with _opened(workdir, export_only=export_only) as run_dir:
        state, stage, inputs = train(experiment, run_dir, export_only=export_only)
        write_export(experiment, stage, state, inputs=inputs, workdir=run_dir, licence=licence)
        analytic_variance.after_training(experiment, state.ema_params, workdir=run_dir.folder)


@contextlib.contextmanager
def _opened(workdir: Location, *, export_only: bool) -> Iterator[Workdir]:
    """Opens and locks a workdir."""
    if isinstance(workdir, Url):
        with bucket_workdir.open_workdir(workdir) as run_dir:
            yield run_dir
        return
    nothing_there = export_only and not workdir.exists()  # `train` says so
    with contextlib.nullcontext() if nothing_there else workdir_lock.locked(workdir):
        yield as_workdir(workdir)


def train(
    experiment: Experiment, workdir: pathlib.Path | Workdir, *, export_only: bool = False
) -> tuple[TrainState, Stage, Inputs]:
    """Trains the stage of `experiment` to its last step; `export_only`: restores it as it is.

    Raises:
        UserError: see `train_and_export`.
    """
    settings = {
        "config": experiment.train,
        "optim": experiment.optim,
        "mesh": experiment.mesh,
        "rules": experiment.rules,
    }
    loop.check_fit(experiment.build_stage(), **settings)
    experiment = input_pipeline.resolve(experiment)
    stage = experiment.build_stage()
    inputs = input_pipeline.open_inputs(experiment, stage)
    place = {
        "workdir": workdir,
        "identity": identity(experiment, inputs),
        "earlier": experiment.identity_by_paths(),
    }
    if not export_only:
        input_pipeline.check_held_out(experiment, inputs)
    else:
        return loop.newest(stage, **settings, **place), stage, inputs
    state = loop.train(
        stage,
        **settings,
        **place,
        train_data=inputs.train,
        eval_data=inputs.held_out,
        initial=_initial(experiment, stage),
        fitted=input_pipeline.fit_params(experiment, stage),
        teacher=None if stage.teacher is None else _initial(experiment, stage),
        labels=lambda batch: [str(caption) for caption in batch["caption"]],
    )
    return state, stage, inputs


def identity(experiment: Experiment, inputs: Inputs) -> dict[str, Any]:
    """Returns the facts that make two runs the same run: settings, and inputs by content.

    Raises:
        UserError: there is no export at `init_from`.
    """
    contents = dict(inputs.train.origin)
    if experiment.init_from:
        contents["init_from"] = load.content_digest(pathlib.Path(experiment.init_from))
    return {**experiment.identity(), "inputs": contents}


def _initial(experiment: Experiment, stage: Stage) -> Any:
    """Returns a function that reads the export named by `init_from`; None without one."""
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
    inputs: Inputs,
    workdir: Workdir,
    licence: str = "",
) -> None:
    """Writes the averaged parameters and their manifest to WORKDIR/export.

    In an object store parameters are a single object.
    """
    manifest = Manifest(
        stage=experiment.stage,
        size=experiment.size,
        step=int(jax.device_get(state.step)),
        licence=licence,
        **stage.describe,
        **inputs.facts,
    )
    target, entry = workdir.folder / "export", stage_entry(experiment.stage)
    require(manifest, entry.required_fields(experiment.model))
    written = export.write_export(
        target,
        params=state.ema_params,
        manifest=manifest,
        tokenizer_dir=inputs.tokenizer_dir,
        identity=entry.identity,
        layout="safetensors" if isinstance(workdir.checkpoints, Url) else "orbax",
    )
    log.info("exported %s parameters to %s/export", f"{written.parameters:,}", workdir)
