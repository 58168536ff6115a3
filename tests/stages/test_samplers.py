"""Every stage that diffuses samples with every sampler."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from tests.diffusion.solvers import SOLVERS
from tests.stages import tiny
from unclip_jax.planning import sampling as planning
from unclip_jax.stages import registry


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("folder", ["prior", "decoder", "upsampler_256"])
def test_every_stage_samples_with_every_sampler(folder, sampler):
    """Traced, not run: shapes and types hold at fractional timesteps, too."""
    experiment = tiny.experiment(folder)
    cfg = experiment.model
    settings = dataclasses.replace(cfg.sampling, steps="4", sampler=sampler)
    cfg = dataclasses.replace(cfg, sampling=settings)
    if folder == "upsampler_256":
        cfg = dataclasses.replace(cfg, last_step=True)
    entry = registry.folder_entry(folder)
    run, inputs = planning.function(entry.name, cfg, batch_size=2)
    params = nn.meta.unbox(jax.eval_shape(entry.make(cfg).init, jax.random.key(0)))
    samples = jax.eval_shape(run, params, inputs)
    assert samples.shape[0] == 2 and samples.dtype == jnp.float32
