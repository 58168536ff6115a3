"""Data whose best denoiser is known in closed form, for tests of samplers, guidance, inversion."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core.types import Steps
from unclip_jax.diffusion import process
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.schedule import Schedule, make_schedule

FULL = make_schedule("cosine", num_timesteps=1000)


def exact_denoiser(
    mean: float, std: float, *, schedule: Schedule = FULL, var_frac: float | None = None
) -> Denoiser:
    """E[x_0 | x_t] of data N(mean, std^2); `schedule` is indexed by original timesteps."""

    def denoise(x_t: Float[Array, " b *s"], t: Steps) -> process.Prediction:
        level = schedule.level(t, ndim=x_t.ndim)
        gain = std**2 * level.signal / (std**2 * level.signal**2 + level.noise**2)
        x_0 = mean + gain * (x_t - level.signal * mean)
        # (x_t - signal x_0) / noise, without the cancellation near t = 0
        gap = x_t - level.signal * mean
        eps = level.noise * gap / (std**2 * level.signal**2 + level.noise**2)
        frac = None if var_frac is None else jnp.full_like(x_t, var_frac)
        return process.Prediction(x_0, eps, frac)

    return denoise
