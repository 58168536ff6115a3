"""Noise schedules: float64 tables on the host, cast to float32 where they are used.

Step index 0 has the least noise. Source: DDPM (arXiv 2006.11239), improved DDPM
(arXiv 2102.09672, cosine schedule), ADM (arXiv 2105.05233, appendix B).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.core import checks
from unclip_jax.core.types import Steps

Table = Float[np.ndarray, " T"]


class Level(NamedTuple):
    """The shares of signal and noise in x_t: x_t = signal x_0 + noise eps.

    The exact form of alpha_bar: near t = 0 a float32 alpha_bar is so close to 1 that
    1 - alpha_bar keeps three digits only, while `noise` here keeps them all.
    """

    signal: Float[Array, "..."]
    noise: Float[Array, "..."]


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """A chain of T noising steps.

    Attributes:
        beta: variance added by each step, float64.
        timesteps: the network's timestep at each step; `arange(T)` for a full chain,
            the original indices for a respaced one.
    """

    beta: Table
    timesteps: Int[np.ndarray, " n"]  # n = T, which __post_init__ checks in words

    def __post_init__(self) -> None:
        if self.beta.shape != self.timesteps.shape or self.beta.size == 0:
            raise checks.UserError(
                f"schedule has {self.beta.size} betas and {self.timesteps.size} timesteps; "
                "give one timestep per beta, at least one."
            )
        if not (np.all(self.beta > 0) and np.all(self.beta < 1)):
            raise checks.UserError(
                f"schedule betas lie in [{self.beta.min():g}, {self.beta.max():g}]; "
                "each must be greater than 0 and less than 1."
            )

    @property
    def num_timesteps(self) -> int:
        """T, the number of steps of this chain."""
        return len(self.beta)

    @functools.cached_property
    def alpha_bar(self) -> Table:
        """Share of the variance of x_t that is signal: the product of 1 - beta up to t."""
        return np.cumprod(1.0 - self.beta)

    @functools.cached_property
    def alpha_bar_prev(self) -> Table:
        """`alpha_bar` one step nearer to the data; 1 at index 0."""
        return np.append(1.0, self.alpha_bar[:-1])

    @functools.cached_property
    def signal(self) -> Table:
        """The square root of alpha_bar."""
        return np.sqrt(self.alpha_bar)

    @functools.cached_property
    def noise(self) -> Table:
        """The square root of 1 - alpha_bar."""
        return np.sqrt(1.0 - self.alpha_bar)

    @functools.cached_property
    def beta_tilde(self) -> Table:
        """Variance of q(x_{t-1} | x_t, x_0), ADM appendix B; 0 at index 0."""
        return self.beta * (1.0 - self.alpha_bar_prev) / (1.0 - self.alpha_bar)

    @functools.cached_property
    def log_beta(self) -> Table:
        """Log of the upper bound of the reverse variance."""
        return np.log(self.beta)

    @functools.cached_property
    def log_beta_tilde_clipped(self) -> Table:
        """Log of `beta_tilde`, with its zero at index 0 replaced by the value at index 1.

        A chain of one step has no index 1 and takes `log_beta`; it adds no noise anyway.
        """
        if self.num_timesteps == 1:
            return self.log_beta
        return np.log(np.append(self.beta_tilde[1], self.beta_tilde[1:]))

    @functools.cached_property
    def posterior_x_0(self) -> Table:
        """Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0), ADM appendix B."""
        return np.sqrt(self.alpha_bar_prev) * self.beta / (1.0 - self.alpha_bar)

    @functools.cached_property
    def posterior_x_t(self) -> Table:
        """Weight of x_t in the mean of q(x_{t-1} | x_t, x_0), ADM appendix B."""
        return np.sqrt(1.0 - self.beta) * (1.0 - self.alpha_bar_prev) / (1.0 - self.alpha_bar)

    def keep(self, positions: Int[np.ndarray, " n"]) -> "Schedule":
        """Returns the short chain through some positions, with the same alpha_bar at each."""
        alpha_bar = self.alpha_bar[positions]
        beta = 1.0 - alpha_bar / np.append(1.0, alpha_bar[:-1])
        return Schedule(beta, self.timesteps[positions])

    @functools.cached_property
    def log_sigma(self) -> Table:
        """Log of sigma = noise / signal, EDM's noise level; ascending."""
        return np.log(self.noise / self.signal)

    def level(self, t: Steps, *, ndim: int) -> Level:
        """Returns signal and noise at positions `t`, shaped to broadcast over `ndim` axes.

        At integers they are exact; fractional positions interpolate log(noise / signal) linearly,
        which `timesteps_at` inverts.
        """
        if jnp.issubdtype(t.dtype, jnp.integer):
            return Level(at(self.signal, t, ndim=ndim), at(self.noise, t, ndim=ndim))
        sigma = jnp.exp(at(self.log_sigma, t, ndim=ndim))
        signal = jax.lax.rsqrt(1.0 + sigma**2)
        return Level(signal, sigma * signal)

    def timesteps_at(self, sigma: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Returns the fractional timesteps at which noise / signal is `sigma`, within the chain."""
        return np.interp(np.log(sigma), self.log_sigma, self.timesteps)


def make_schedule(name: str, *, num_timesteps: int) -> Schedule:
    """Makes a full chain.

    Args:
        name: "cosine" (improved DDPM, betas capped at 0.999) or "linear" (DDPM's 1e-4 to 0.02 for
            1000 steps, scaled by 1000 / T so that other lengths end equally noisy).
        num_timesteps: T.

    Raises:
        UserError: the name is unknown, or T is not positive or too small for the linear betas.
    """
    checks.positive("num_timesteps", num_timesteps)
    beta = BETAS[checks.one_of("noise schedule", name, BETAS)](num_timesteps)
    return Schedule(beta, np.arange(num_timesteps, dtype=np.int32))


def at(table: Table, t: Steps, *, ndim: int) -> Float[Array, " b *ones"]:
    """Returns `table[t]` in float32, shaped [b, 1, ...] to broadcast against `ndim` axes.

    A fractional t interpolates linearly between its neighbours.
    """
    entries = jnp.asarray(table, jnp.float32)
    if jnp.issubdtype(t.dtype, jnp.integer):
        values = entries[t]
    else:
        values = jnp.interp(t, jnp.arange(len(table), dtype=jnp.float32), entries)
    return values.reshape(values.shape + (1,) * (ndim - 1))


def _linear(num_timesteps: int) -> Table:
    scale = 1000.0 / num_timesteps
    return np.linspace(1e-4 * scale, 0.02 * scale, num_timesteps, dtype=np.float64)


def _cosine(num_timesteps: int) -> Table:
    u = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    signal_share = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - signal_share[1:] / signal_share[:-1], 0.999)


BETAS = {"cosine": _cosine, "linear": _linear}
