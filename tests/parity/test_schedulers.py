"""Every step of every scheduler setting that Karlo's class has, beside that class."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert import walks
from tests.parity import originals
from tests.parity.originals import torch
from unclip_jax.convert import schedulers
from unclip_jax.core import config as typed
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig

SHAPE = (2, 3, 8, 8)


@pytest.mark.parametrize("steps", [2, 7, 25, 31])
@pytest.mark.parametrize("variance", ["fixed_small_log", "learned_range"])
@pytest.mark.parametrize("target", ["epsilon", "sample"])
@pytest.mark.parametrize("limit", [1.0, 5.0])
def test_steps(target, variance, steps, limit):
    settings = {"prediction_type": target, "variance_type": variance, "clip_sample_range": limit}
    theirs = originals.diffusers.UnCLIPScheduler(**settings)
    diffusion, sampling = schedulers.config(settings, role="decoder", where="here")
    diffusion = typed.build(DiffusionConfig, diffusion, where="diffusion")
    sampling = typed.build(SamplingConfig, {**sampling, "steps": str(steps)}, where="sampling")
    rng = np.random.default_rng(steps)
    channels = 6 if variance == "learned_range" else 3
    out = rng.normal(size=(SHAPE[0], channels, *SHAPE[2:])).astype(np.float32)
    x_T = rng.normal(size=SHAPE).astype(np.float32)
    path, noises = walked_there(theirs, steps, torch.from_numpy(out), torch.from_numpy(x_T))

    def denoise(x_t, t):
        return gaussian.predict(diffusion, jnp.moveaxis(jnp.asarray(out), 1, -1), x_t=x_t, t=t)

    last = jnp.moveaxis(jnp.asarray(noises), 2, -1)
    got = walks.walk(
        denoise, jnp.moveaxis(jnp.asarray(x_T), 1, -1), last, walks.chain(diffusion, sampling)
    )
    np.testing.assert_allclose(np.moveaxis(got, -1, 2), path, rtol=1e-5, atol=1e-5)


def walked_there(scheduler, steps, out, x):
    """x after every step, and the noise of all steps but the last."""
    scheduler.set_timesteps(steps)
    times, path = scheduler.timesteps.tolist(), []
    with originals.recorded_noise() as noise:
        for t, s in zip(times, [*times[1:], None], strict=True):
            x = scheduler.step(out, t, x, prev_timestep=s).prev_sample
            path.append(x.numpy())
    return np.stack(path), np.stack([n.numpy() for n in noise[SHAPE]])
