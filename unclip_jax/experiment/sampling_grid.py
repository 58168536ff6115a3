"""Searches the timesteps with which an exported stage samples best in a few steps.

The error of a grid is the distance of its samples from the ends of the exact paths, for the same
noise and the same held-out conditions. The search itself is `diffusion.grid_search`.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from unclip_jax.conditioning import captions
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, in_range, one_of, positive
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Batch, Key, Params
from unclip_jax.diffusion import distillation, grid_search, respace, samplers
from unclip_jax.diffusion.samplers import StepTable
from unclip_jax.experiment import input_pipeline, training_embeddings
from unclip_jax.experiment.config import Experiment
from unclip_jax.handoff import load as handoff
from unclip_jax.handoff import remote
from unclip_jax.inference.load import abstract_params
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.parallel.mesh import MeshConfig, make_mesh, replicated, traced_on
from unclip_jax.parallel.place import global_batch
from unclip_jax.stages.distillation import check_null
from unclip_jax.stages.entry import StageEntry

SAMPLERS = ("ddim", "dpmpp_2m", "dpmpp_3m", "heun")  # without noise, in the steps of the grid
DEFAULT = "dpmpp_2m"  # for an export that samples otherwise
EXAMPLES = 64  # for the search, and as many again to compare its result
MOST_STEPS = 32
REFERENCE = SamplingConfig(sampler="heun")
REFERENCE_STEPS = 40  # 79 evaluations, nearly the exact path


@dataclasses.dataclass(frozen=True)
class SearchedGrid:
    """The result of a search.

    Attributes:
        sampler: for which it was searched.
        errors: grid, as `sampling.steps` -> mean over examples of the root mean square distance
            from the exact path, on examples that the search did not use; for its result and the
            usual grids of as many steps.
        examples: number of these examples.
        evaluations: number of grids that the search tried.
    """

    sampler: str
    errors: dict[str, float]
    examples: int
    evaluations: int

    @property
    def steps(self) -> str:
        """The grid with the smallest error."""
        return min(self.errors, key=lambda name: self.errors[name])


def of_export(
    experiment: Experiment, *, count: int, sampler: str = "", examples: int = EXAMPLES
) -> SearchedGrid:
    """Searches the grid of `count` steps for the export that `experiment.init_from` names.

    Args:
        experiment: names the export and the data.
        count: number of steps, 2 to `MOST_STEPS`.
        sampler: one of `SAMPLERS`; "" = that of the export, or `DEFAULT` if it is another.
        examples: held-out examples for the search, rounded up to whole batches.

    Raises:
        UserError: the stage does not diffuse, was distilled, or is guided away from the empty
            caption; or there are too few held-out examples.
    """
    positive("--examples", examples)
    experiment = experiment.with_local_exports(remote.local_export)
    stage = _checked(experiment)
    exported = experiment.model.sampling.sampler
    sampler = sampler or (exported if exported in SAMPLERS else DEFAULT)
    one_of("--sampler", sampler, SAMPLERS)
    in_range("--steps", count, 2, min(MOST_STEPS, experiment.model.diffusion.num_timesteps))
    inputs = input_pipeline.open_inputs(experiment, stage)
    export = pathlib.Path(experiment.init_from)
    clip_id = inputs.facts.get("clip_id")
    training_embeddings.check_clip(experiment, clip_id, export=handoff.read_manifest(export))
    if inputs.held_out is None:
        raise UserError(
            "there is no held-out split to search on; name one with config.data.eval_split, or for "
            "pairs of arrays their share with config.data.eval_share."
        )
    needed = 2 * math.ceil(examples / experiment.train.batch_size)
    hosts = list(itertools.islice(inputs.held_out(), needed))
    if len(hosts) < 2:
        raise UserError(
            f"split {experiment.data.eval_split!r} fills {len(hosts)} batches of "
            f"{experiment.train.batch_size}, but 2 are needed, to search and to compare; lower "
            "--config.train.batch_size."
        )
    mesh = make_mesh(MeshConfig(), devices=jax.local_devices()[:1])
    params = handoff.read_params(export, abstract=abstract_params(stage))
    params = jax.device_put(params, replicated(mesh))
    batches = [
        global_batch({name: host[name] for name in stage.batch_spec}, mesh) for host in hosts
    ]
    errors = _Errors(experiment.entry, experiment.model, sampler, mesh)
    half, seed = len(batches) // 2, experiment.train.seed
    return _search(
        errors.on(params, batches[:half], seed=seed),
        errors.on(params, batches[half:], seed=seed + 1),
        errors,
        count=count,
        examples=(len(batches) - half) * experiment.train.batch_size,
    )


class _Plan(NamedTuple):
    """The rows of a grid, and its indices."""

    indices: grid_search.Indices
    rows: StepTable


def _search(
    error: Callable[[_Plan], float],
    other: Callable[[_Plan], float],
    errors: "_Errors",
    *,
    count: int,
    examples: int,
) -> SearchedGrid:
    """Searches from the best of the usual grids, then compares on other examples."""
    plan = errors.plan
    usual = {steps: plan(steps) for steps in _usual(count)}
    start = min(usual.values(), key=error)
    length = 1 + int(start.indices[-1])
    with tqdm(total=grid_search.MOST, desc="search", unit="grid") as bar:

        def counted(indices: grid_search.Indices) -> float:
            value = error(plan(respace.listed(indices)))
            bar.update()
            bar.set_postfix(error=f"{value:.4g}")
            return value

        best = grid_search.search(counted, start=start.indices, num_timesteps=length)
    steps = respace.listed(best.indices)
    compared = {steps: plan(steps), **usual}
    return SearchedGrid(
        sampler=errors.sampler,
        errors={name: other(rows) for name, rows in compared.items()},
        examples=examples,
        evaluations=best.evaluations,
    )


@dataclasses.dataclass(frozen=True)
class _Errors:
    """Distances of samples from the exact path, by grid.

    Attributes:
        entry: the stage.
        cfg: its config.
        sampler: name of the sampler.
        mesh: the device.
    """

    entry: StageEntry
    cfg: Any
    sampler: str
    mesh: Any

    @functools.cached_property
    def compiled(self) -> tuple[Callable[..., Array], Callable[..., Array]]:
        """`_exact` and `_distance`, each compiled once for all batches and grids."""
        exact, distance = traced_on(self.mesh, self._exact), traced_on(self.mesh, self._distance)
        return jax.jit(exact), jax.jit(distance)

    def plan(self, steps: str) -> _Plan:
        """Returns the rows of a grid."""
        chain = self.cfg.diffusion.chain()
        solver = SamplingConfig(sampler=self.sampler).solver()
        indices = np.asarray(respace.strided(chain, steps=steps).timesteps)
        return _Plan(indices, samplers.on_device(solver.plan(chain, steps=steps)))

    def on(self, params: Params, batches: Sequence[Batch], *, seed: int) -> Any:
        """Returns the function plan -> error on these batches."""
        keys = [
            jax.device_put(rng.fold(jax.random.key(seed), index), replicated(self.mesh))
            for index in range(len(batches))
        ]
        exact, distance = self.compiled
        ends = [exact(params, *pair) for pair in zip(batches, keys, strict=True)]

        def error(plan: _Plan) -> float:
            inputs = zip(batches, keys, ends, strict=True)
            return float(np.mean([distance(params, *each, plan.rows) for each in inputs]))

        return error

    def _exact(self, params: Params, batch: Batch, key: Key) -> Array:
        """Returns the ends of the paths."""
        chain = self.cfg.diffusion.chain()
        steps = str(min(REFERENCE_STEPS, chain.num_timesteps))
        table = REFERENCE.solver().plan(chain, steps=steps)
        return self._sample(params, batch, key, table, REFERENCE.sampler)

    def _distance(
        self, params: Params, batch: Batch, key: Key, ends: Array, table: StepTable
    ) -> Array:
        """Returns the mean root mean square distance of the samples from the ends of the paths."""
        error = self._sample(params, batch, key, table, self.sampler) - ends
        return jnp.mean(jnp.sqrt(jnp.mean(error**2, axis=range(1, error.ndim))))

    def _sample(
        self, params: Params, batch: Batch, key: Key, table: StepTable, sampler: str
    ) -> Array:
        """Samples with the stage's guidance and threshold."""
        latent, denoiser = self.entry.latent, self.entry.denoiser
        assert latent is not None and denoiser is not None
        sampling, diffusion = self.cfg.sampling, self.cfg.diffusion
        shape = jax.eval_shape(lambda: latent(self.cfg, params, batch)).shape
        keys = rng.per_example(key, jnp.arange(shape[0]))
        denoise = denoiser(
            self.cfg,
            params,
            captions.conditions(batch),
            keys=rng.fold_each(keys, "conditions"),
            scale=sampling.guidance_scale,
        )
        return samplers.run(
            gaussian.thresholded(denoise, diffusion, sampling),
            gaussian.x_T(keys, shape[1:]),
            table=table,
            solver=SamplingConfig(sampler=sampler).solver(),
            keys=keys,
        ).x


def _usual(count: int) -> tuple[str, ...]:
    """Returns the usual grids of that many steps."""
    return str(count), f"{respace.LOG_SNR}{count}", distillation.trailing(count)


def _checked(experiment: Experiment) -> Stage:
    """Returns the stage, after rejecting those without a grid, or with one that may not change."""
    model, export = experiment.model, experiment.init_from
    if not export:
        raise UserError("config.init_from is empty; give the export to search the steps of.")
    diffuses = experiment.entry.denoiser is not None and experiment.entry.latent is not None
    if not diffuses or getattr(model, "method", "diffusion") != "diffusion":
        raise UserError(
            f"{export} is a {experiment.stage} that does not diffuse, so it has no steps; give the "
            "export of a prior, decoder or upsampler that does."
        )
    if getattr(model, "last_step", False):
        raise UserError(
            f"{export} has a second network for its last step, which fixes its steps; give an "
            "upsampler without one."
        )
    distilled = model.diffusion.distillation
    if distilled is not None:
        raise UserError(
            f"{export} was distilled to {distilled.steps} steps, which may not change; give the "
            "model that it was distilled from."
        )
    stage = experiment.entry.make(model)
    advice = "search with --config.model.sampling.guidance_scale=1"
    check_null(stage, model, model.sampling.guidance_scale, advice=advice)
    return stage
