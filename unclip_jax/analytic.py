"""Estimate the reverse variance of a trained prior (Analytic-DPM) and store it in its export.

    python -m unclip_jax.analytic --config=experiments/prior.py:shapes --workdir=runs/shapes/prior

Streams over training data, without guidance, and writes WORKDIR/export/variance.json, which
sampling.variance "table" uses. Training does this by itself when its config samples that way.
"""

import argparse
import itertools
import math
import pathlib
import sys
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from unclip_jax.cli import entry
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, positive
from unclip_jax.core.config import as_dict
from unclip_jax.core.types import HostBatch, Params
from unclip_jax.diffusion import respace
from unclip_jax.diffusion.analytic import VarianceTable
from unclip_jax.experiment import input_pipeline, loading
from unclip_jax.experiment.config import Experiment
from unclip_jax.handoff import sidecar
from unclip_jax.inference.load import load_prior
from unclip_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from unclip_jax.parallel.place import global_batch
from unclip_jax.stages import prior
from unclip_jax.stages.prior import PriorStageConfig

EXAMPLES = (
    4096  # the mean over 64 steps x 128 dimensions is then known to a few tenths of a percent
)


def main(argv: Sequence[str]) -> None:
    """Measure, write."""
    args, rest = parse(argv)
    positive("--examples", args.examples)
    experiment = loading.read(args.config, overrides=rest)
    export = args.workdir / "export"
    cfg, params, card = load_prior(export)
    read = input_pipeline.open_inputs(experiment, prior.make(cfg))
    if read.facts["clip_id"] != card.clip_id:
        raise UserError(
            f"{export} was trained on embeddings of CLIP {str(card.clip_id)[:12]}; "
            f"{experiment.data.embeddings} holds those of {read.facts['clip_id'][:12]}. Give the "
            "embeddings that the prior was trained on."
        )
    mesh = make_mesh(MeshConfig(), devices=jax.local_devices()[:1])
    table = measure(
        cfg,
        params,
        itertools.islice(read.train, _batches(experiment, args.examples)),
        mesh=mesh,
        steps=args.steps or cfg.sampling.steps,
        seed=experiment.train.seed,
    )
    path = sidecar.write(export, sidecar.VARIANCE, as_dict(table))
    sys.stdout.write(f"wrote {path}: {len(table.timesteps)} steps, {table.examples} examples\n")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Command-line arguments, and overrides of the config."""
    parser = argparse.ArgumentParser(
        prog="python -m unclip_jax.analytic",
        description="Estimate the Analytic-DPM variance of a trained prior.",
        epilog="Any value of the config can be overridden: --config.data.embeddings=FOLDER",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="experiment, FILE.py:SIZE; for its data")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of its run")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="behind each number")
    parser.add_argument("--steps", help="grid, as sampling.steps; default: the export's own")
    return loading.parse_known(parser, argv)


def after_training(experiment: Experiment, params: Params, *, workdir: pathlib.Path) -> None:
    """Give a fresh export the table that its own sampling settings need, if they need one."""
    cfg = experiment.model
    if not isinstance(cfg, PriorStageConfig) or not cfg.sampling.needs_table:
        return
    read = input_pipeline.open_inputs(experiment, prior.make(cfg))
    count = _batches(experiment, EXAMPLES)
    table = measure(
        cfg,
        params,
        itertools.islice(read.train, count),
        mesh=make_mesh(experiment.mesh),
        steps=cfg.sampling.steps,
        seed=experiment.train.seed,
    )
    if jax.process_index() == 0:
        sidecar.write(workdir / "export", sidecar.VARIANCE, as_dict(table))


def measure(
    cfg: PriorStageConfig,
    params: Params,
    batches: Iterable[HostBatch],
    *,
    mesh: Mesh,
    steps: str,
    seed: int,
) -> VarianceTable:
    """The table of one model from a stream of batches, all of one size.

    Args:
        cfg: the trained prior.
        params: its (EMA) parameters, on the devices of `mesh`.
        batches: this process's part of training batches.
        mesh: where to compute.
        steps: grid of timesteps (`respace.strided`).
        seed: of the noise.
    """
    grid = respace.strided(cfg.diffusion.chain(), steps=steps).timesteps
    fields = prior.make(cfg).batch_spec

    def power(params, batch, key):
        return prior.eps_power(cfg, params, batch, timesteps=grid, key=key)

    run = jax.jit(power, out_shardings=replicated(mesh))
    key = rng.fold(jax.random.key(seed), "analytic")
    means: list[np.ndarray] = []
    examples = 0
    silent = jax.process_index() != 0
    for index, host in enumerate(tqdm(batches, desc="analytic", unit="batch", disable=silent)):
        batch = global_batch({name: host[name] for name in fields}, mesh)
        here = jax.device_put(rng.fold(key, index), replicated(mesh))
        means.append(np.asarray(jax.device_get(run(params, batch, here)), np.float64))
        examples += batch["z_img"].shape[0]
    return VarianceTable(
        origin=cfg.origin,
        timesteps=tuple(int(t) for t in grid),
        eps_power=tuple(float(mean) for mean in np.mean(means, axis=0)),
        examples=examples,
    )


def _batches(experiment: Experiment, examples: int) -> int:
    return math.ceil(examples / experiment.train.batch_size)


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
