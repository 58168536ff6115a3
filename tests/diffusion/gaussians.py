"""Data whose best denoiser is known in closed form, for tests of samplers, guidance, inversion."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import brentq
from scipy.stats import norm

from unclip_jax.core.types import Steps
from unclip_jax.diffusion import process
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.schedule import Schedule, make_schedule

# a mixture whose best denoiser is far from affine: weights, means, standard deviations
WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-0.8, 0.5]), np.array([0.1, 0.2])
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


def mixture_denoiser(*, schedule: Schedule = FULL) -> Denoiser:
    """E[x_0 | x_t] of one-dimensional data from the mixture above, for every element of x."""

    def denoise(x_t: Float[Array, " b *s"], t: Steps) -> process.Prediction:
        level = schedule.level(t, ndim=x_t.ndim)
        parts = []
        for weight, mean, std in zip(WEIGHTS, MEANS, STDS, strict=True):
            variance = std**2 * level.signal**2 + level.noise**2
            gap = x_t - level.signal * mean
            score = jnp.log(weight / jnp.sqrt(variance)) - gap**2 / (2 * variance)
            x_0 = mean + std**2 * level.signal / variance * gap
            parts.append((score, x_0, level.noise / variance * gap))
        score, x_0, eps = (jnp.stack(values) for values in zip(*parts, strict=True))
        share = jax.nn.softmax(score, axis=0)
        return process.Prediction(jnp.sum(share * x_0, axis=0), jnp.sum(share * eps, axis=0))

    return denoise


def mixture_flow(
    x_T: Float[np.ndarray, " n"], *, schedule: Schedule = FULL
) -> Float[np.ndarray, " n"]:
    """Carries x_T along the exact probability flow to the first level, then to the mean of x_0.

    In one dimension the flow keeps order and carries each marginal into the next, so it keeps
    quantiles: x_s = F_s^-1(F_t(x_t)). No equation has to be solved step by step.
    """

    def marginal(x: float, k: int) -> float:
        signal, noise = schedule.signal[k], schedule.noise[k]
        spread = np.sqrt(STDS**2 * signal**2 + noise**2)
        return float(WEIGHTS @ norm.cdf((x - signal * MEANS) / spread))

    def transport(x: float) -> float:
        share = marginal(x, -1)
        return brentq(lambda x: marginal(x, 0) - share, -8, 8, xtol=1e-14)

    x_1 = jnp.array([[transport(x)] for x in x_T])
    first = jnp.full(len(x_T), schedule.timesteps[0])
    return np.float64(mixture_denoiser(schedule=schedule)(x_1, first).x_0[:, 0])
