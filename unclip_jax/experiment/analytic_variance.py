"""Estimates the reverse variance of a trained prior from its training data (Analytic-DPM).

The table of variances lies beside the parameters in the export; sampling.variance "table" uses it.
Formulas are in `diffusion.analytic`.
"""

import itertools
import math
import pathlib
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from unclip_jax.core import rng
from unclip_jax.core.config import as_dict
from unclip_jax.core.types import HostBatch, Params
from unclip_jax.diffusion import respace
from unclip_jax.diffusion.analytic import VarianceTable
from unclip_jax.experiment import input_pipeline, training_embeddings
from unclip_jax.experiment.config import Experiment
from unclip_jax.handoff import sidecar
from unclip_jax.inference.load import load_prior
from unclip_jax.parallel.mesh import MeshConfig, make_mesh, replicated, traced_on
from unclip_jax.parallel.place import global_batch
from unclip_jax.stages import prior
from unclip_jax.stages.prior import PriorStageConfig

# The mean over 64 steps x 128 dimensions is then accurate to a few tenths of a percent.
EXAMPLES = 4096


def of_export(
    experiment: Experiment, export: pathlib.Path, *, examples: int = EXAMPLES, steps: str = ""
) -> VarianceTable:
    """Measures the table of an exported prior on one device.

    Args:
        experiment: names the training data.
        export: folder of the export.
        examples: number of examples behind each mean, rounded up to whole batches.
        steps: grid of timesteps; "" = the export's own.

    Raises:
        UserError: no prior there, or the embeddings are of another CLIP than the prior's.
    """
    cfg, params, manifest = load_prior(export)
    inputs = input_pipeline.open_inputs(experiment, prior.make(cfg))
    training_embeddings.check_clip(experiment, inputs.facts["clip_id"], export=manifest)
    return measure(
        cfg,
        params,
        itertools.islice(inputs.train, _batches(experiment, examples)),
        mesh=make_mesh(MeshConfig(), devices=jax.local_devices()[:1]),
        steps=steps or cfg.sampling.steps,
        seed=experiment.train.seed,
    )


def after_training(experiment: Experiment, params: Params, *, workdir: pathlib.Path) -> None:
    """Writes the table into the export of a run, if its sampling settings need one."""
    cfg = experiment.model
    if not isinstance(cfg, PriorStageConfig) or not cfg.sampling.needs_table:
        return
    if experiment.distill is not None:  # the student samples without noise
        return
    inputs = input_pipeline.open_inputs(experiment, prior.make(cfg))
    table = measure(
        cfg,
        params,
        itertools.islice(inputs.train, _batches(experiment, EXAMPLES)),
        mesh=make_mesh(experiment.mesh),
        steps=cfg.sampling.steps,
        seed=experiment.train.seed,
    )
    if jax.process_index() == 0:
        write(workdir / "export", table)


def write(export: pathlib.Path, table: VarianceTable) -> pathlib.Path:
    """Writes the table into an export; returns the file."""
    return sidecar.write(export, sidecar.VARIANCE, as_dict(table))


def measure(
    cfg: PriorStageConfig,
    params: Params,
    batches: Iterable[HostBatch],
    *,
    mesh: Mesh,
    steps: str,
    seed: int,
) -> VarianceTable:
    """Measures the table of one model on a stream of batches, all of one size.

    Args:
        cfg: the trained prior.
        params: its (EMA) parameters, on the devices of `mesh`.
        batches: this process's part of training batches.
        mesh: devices to compute on.
        steps: grid of timesteps (`respace.strided`).
        seed: of the noise.
    """
    grid = respace.strided(cfg.diffusion.chain(), steps=steps).timesteps
    fields = prior.make(cfg).batch_spec

    def power(params, batch, key):
        return prior.eps_power(cfg, params, batch, timesteps=grid, key=key)

    compiled = jax.jit(traced_on(mesh, power), out_shardings=replicated(mesh))
    key = rng.fold(jax.random.key(seed), "analytic")
    means: list[np.ndarray] = []
    examples = 0
    silent = jax.process_index() != 0
    for index, host in enumerate(tqdm(batches, desc="analytic", unit="batch", disable=silent)):
        batch = global_batch({name: host[name] for name in fields}, mesh)
        batch_key = jax.device_put(rng.fold(key, index), replicated(mesh))
        mean = jax.device_get(compiled(params, batch, batch_key))
        means.append(np.asarray(mean, np.float64))
        examples += batch["z_img"].shape[0]
    return VarianceTable(
        origin=cfg.origin,
        timesteps=tuple(int(t) for t in grid),
        eps_power=tuple(float(mean) for mean in np.mean(means, axis=0)),
        examples=examples,
    )


def _batches(experiment: Experiment, examples: int) -> int:
    return math.ceil(examples / experiment.train.batch_size)
