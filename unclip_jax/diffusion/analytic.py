"""Analytic-DPM: the best reverse variance of every step, from the mean square of a model's eps.

A step of ancestral sampling has the mean that the model predicts; the variance that fits it best is

    sigma^2 = beta_tilde + (weight of x_0 in the posterior mean)^2 C,
    C = E[Var(x_0 | x_t)] per dimension = noise^2 / signal^2 (1 - E[eps^2]),

one number per step, the same for all samples, estimated once on training data without guidance.
Source: Analytic-DPM (arXiv 2201.06503), theorem 1, with the score's norm written as that of eps;
unCLIP samples its prior so (arXiv 2204.06125, Table 3).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Key
from unclip_jax.diffusion import process
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.schedule import Schedule

X = Float[Array, " b *s"]
REMEDY = "make one for this model with `python -m unclip_jax.analytic`, or use variance 'small'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainSignature:
    """The diffusion that a variance table was measured on; every field must match at its use.

    Attributes:
        schedule: name of the trained chain's schedule.
        num_timesteps: its length.
        target: what the network predicts.
        data_variance: greatest variance per dimension that x_0 can have; it bounds C.
    """

    schedule: str
    num_timesteps: int
    target: str
    data_variance: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceTable:
    """The mean square of one model's eps at some timesteps.

    Attributes:
        origin: the model's diffusion.
        timesteps: of the trained chain, ascending.
        eps_power: mean over data and dimensions of eps^2 at each of them.
        examples: number of examples in each mean.
    """

    origin: ChainSignature
    timesteps: tuple[int, ...]
    eps_power: tuple[float, ...]
    examples: int

    def __post_init__(self) -> None:
        if len(self.timesteps) != len(self.eps_power) or not np.all(np.isfinite(self.eps_power)):
            raise UserError(
                f"the variance table has {len(self.eps_power)} values for {len(self.timesteps)} "
                f"timesteps, or one that is not finite; {REMEDY}."
            )

    def variances(self, chain: Schedule, *, origin: ChainSignature) -> Float[np.ndarray, " n"]:
        """Returns the reverse variance of every step of a strided `chain` of the model of `origin`.

        Raises:
            UserError: the table is another model's, or lacks a timestep of the chain.
        """
        self._check(chain, origin)
        by_timestep = dict(zip(self.timesteps, self.eps_power, strict=True))
        eps_power = np.array([by_timestep[int(t)] for t in chain.timesteps])
        return reverse_variance(chain, eps_power, data_variance=origin.data_variance)

    def _check(self, chain: Schedule, origin: ChainSignature) -> None:
        for field in dataclasses.fields(ChainSignature):
            ours, theirs = getattr(self.origin, field.name), getattr(origin, field.name)
            if ours != theirs:
                raise UserError(
                    f"the variance table does not fit the model: {field.name} is {ours!r} in the "
                    f"table and {theirs!r} in the model; {REMEDY}."
                )
        lacking = sorted({int(t) for t in chain.timesteps} - set(self.timesteps))
        if lacking:
            raise UserError(
                f"the variance table was made for {len(self.timesteps)} other strides: it lacks "
                f"{len(lacking)} of the {chain.num_timesteps} timesteps, the first {lacking[0]}; "
                "make it again with `python -m unclip_jax.analytic` and these --steps."
            )


def reverse_variance(
    chain: Schedule, eps_power: Float[np.ndarray, " n"], *, data_variance: float
) -> Float[np.ndarray, " n"]:
    """Returns sigma^2 per position of `chain`: beta_tilde plus a share of the data's variance.

    Args:
        chain: the strided chain.
        eps_power: E[eps^2] per dimension at each position.
        data_variance: upper bound of C; also bounds an overestimate.
    """
    ratio = (1.0 - chain.alpha_bar) / chain.alpha_bar
    uncertainty = np.clip(ratio * (1.0 - eps_power), 0.0, data_variance)
    return np.exp(chain.log_beta_tilde_clipped) + chain.posterior_x_0**2 * uncertainty


def eps_power(
    denoise: Denoiser,
    x_0: X,
    *,
    schedule: Schedule,
    timesteps: Int[np.ndarray, " n"],
    key: Key,
) -> Float[Array, " n"]:
    """Returns the mean of eps^2 over a batch and its dimensions, at each of `timesteps`.

    Args:
        denoise: conditional, without guidance.
        x_0: clean samples as the model diffuses them.
        schedule: the full chain.
        timesteps: of the full chain.
        key: of the noise; another one for every timestep.
    """

    def at(t: Int[Array, ""]) -> Float[Array, ""]:
        steps = jnp.broadcast_to(t, x_0.shape[:1])
        noise = jax.random.normal(rng.fold(key, t), x_0.shape)
        level = schedule.level(steps, ndim=x_0.ndim)
        return jnp.mean(denoise(process.q_sample(x_0, noise, alpha_bar=level), steps).eps ** 2)

    return jax.lax.map(at, jnp.asarray(timesteps, jnp.int32))
