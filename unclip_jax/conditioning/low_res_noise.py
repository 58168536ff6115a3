"""Noise on the low-res image of an upsampler, whose level the network sees.

Conditioning augmentation of cascaded diffusion (Ho et al. 2021, arXiv 2106.15282, section 4.2) and
Imagen (arXiv 2205.11487, section 2.4).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.core.types import Key, Keys, LowRes, Steps
from unclip_jax.diffusion import process
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.objectives.gaussian import DiffusionConfig


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Noise on the low-res image, whose level the network sees; not part of unCLIP.

    Conditioning augmentation of cascaded diffusion (Ho et al. 2021, arXiv 2106.15282, section 4.2)
    and Imagen (arXiv 2205.11487, section 2.4): in training the low-res image is noised to a random
    timestep of a chain, in sampling to a chosen one.

    Attributes:
        most: the latest timestep in training, as a share of the chain; 0 = off.
        level: the timestep in sampling, likewise; at most `most`; 0 = no noise at all.
        at: "low_res" noises the low-res image, "enlarged" the enlarged one (DeepFloyd IF); Imagen's
            paper does not say which.
        schedule: of this noise, "cosine" or "linear"; None = that of the stage's chain.
    """

    most: float = 0.0
    level: float = 0.0
    at: str = "low_res"
    schedule: str | None = None

    def __post_init__(self):
        one_of("config.model.augment.at", self.at, ("low_res", "enlarged"))
        in_range("config.model.augment.most", self.most, 0.0, 1.0)
        if not 0 <= self.level <= self.most:
            raise UserError(
                f"config.model.augment.level is {self.level}; the network learns levels from 0 to "
                f"config.model.augment.most = {self.most}, so choose one of these."
            )


class NoisedLowRes(NamedTuple):
    """The low-res image as the network sees it, and the timestep of its noise (None = no noise)."""

    image: LowRes
    t: Steps | None


def noise_for_training(
    cfg: AugmentConfig, diffusion: DiffusionConfig, low_res: LowRes, *, key: Key
) -> NoisedLowRes:
    """Noises images to random timesteps, one per example, if augmentation is on.

    Args:
        cfg: range and schedule of the noise.
        diffusion: of the stage.
        low_res: images, or enlarged ones.
        key: of the timesteps and the noise.
    """
    if not cfg.most:
        return NoisedLowRes(low_res, None)
    chain = _chain(cfg, diffusion)
    bound = _timestep(cfg.most, chain) + 1
    t = jax.random.randint(rng.fold(key, "t"), low_res.shape[:1], 0, bound)
    eps = jax.random.normal(rng.fold(key, "noise"), low_res.shape)
    return _noised(chain, low_res, t=t, eps=eps)


def noise_for_sampling(
    cfg: AugmentConfig, diffusion: DiffusionConfig, low_res: LowRes, *, keys: Keys
) -> NoisedLowRes:
    """Noises images to the timestep of sampling, each with its own key.

    The noise is drawn once, before the first step. At level 0 the network sees timestep 0 and the
    image itself: aug_level 0 of Imagen is the clean end of its continuous chain, while timestep 0
    of a chain of T steps has some noise.
    """
    if not cfg.most:
        return NoisedLowRes(low_res, None)
    chain = _chain(cfg, diffusion)
    t = jnp.full(low_res.shape[:1], _timestep(cfg.level, chain), jnp.int32)
    if not cfg.level:
        return NoisedLowRes(low_res, t)
    eps = rng.normal_each(rng.fold_each(keys, "low_res"), low_res.shape[1:])
    return _noised(chain, low_res, t=t, eps=eps)


def _chain(cfg: AugmentConfig, diffusion: DiffusionConfig) -> Schedule:
    schedule = cfg.schedule or diffusion.schedule
    return dataclasses.replace(diffusion, schedule=schedule).chain()


def _noised(chain: Schedule, low_res: LowRes, *, t: Steps, eps: LowRes) -> NoisedLowRes:
    alpha_bar = chain.level(t, ndim=low_res.ndim)
    return NoisedLowRes(process.q_sample(low_res, eps, alpha_bar=alpha_bar), t)


def _timestep(share: float, chain: Schedule) -> int:
    return round(share * (chain.num_timesteps - 1))
