"""The noise of the upsamplers: what a larger picture holds beyond the decoder's.

(z_img, x_T) give an image back at the decoder's size. What upsamplers add to it depends on noise of
their own, which inverting them finds, as inverting the decoder finds x_T: the x_T from which each
upsampler draws the picture, given the low-res image that decoding will hand it. The paper inverts
its decoder only (unCLIP, arXiv 2204.06125, section 3); this is ours, by the same DDIM inversion.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core import rng
from unclip_jax.core.types import Image, Keys, LowRes, Params, PerExample
from unclip_jax.diffusion import ddim_inversion, respace, samplers
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.inference import text_to_image
from unclip_jax.inference.cascade import Cascade
from unclip_jax.stages import upsampler
from unclip_jax.stages.upsampler import UpsamplerStageConfig, quantise

UpsamplerLatents = tuple[
    Float[Array, " b _ _ c"], ...
]  # one x_T per upsampler, in order; sizes differ


def obstacle(cfg: UpsamplerStageConfig) -> str:
    """Why an upsampler cannot be inverted; "" if it can."""
    if cfg.augment.most:
        return "sees its low-res picture through random noise (config.model.augment)"
    if cfg.last_step:
        return "takes its last step with another network (config.model.last_step)"
    return ""


def leading(cascade: Cascade) -> tuple[UpsamplerStageConfig, ...]:
    """The upsamplers that hold details: all before the first that cannot be inverted."""
    obstacles = [bool(obstacle(cfg)) for cfg in cascade.upsamplers]
    return cascade.upsamplers[: (*obstacles, True).index(True)]


def left_out(cascade: Cascade) -> str:
    """Which upsamplers draw fresh details however a picture was encoded, and why; "" if none."""
    first = len(leading(cascade))
    if first == len(cascade.upsamplers):
        return ""
    cfg = cascade.upsamplers[first]
    size = cfg.model.unet.image_size
    return f"the upsampler to {size} px {obstacle(cfg)}, so details from {size} px on are fresh"


def grid(cfg: UpsamplerStageConfig, steps: str | None) -> str:
    """The grid asked for; None = the one that the upsampler was exported with."""
    return steps or cfg.sampling.steps


def encode(
    cascade: Cascade,
    params: dict[str, Any],
    base: LowRes,
    *,
    targets: UpsamplerLatents,
    steps: str | None = None,
    refinements: int = 0,
) -> UpsamplerLatents:
    """The x_T under which upsamplers turn `base` into `targets`.

    Every upsampler is inverted for what the one before makes of its own x_T, not for a perfect
    low-res picture, so that errors do not add up on the way.

    Args:
        cascade: configs of the stages.
        params: parameter trees as `text_to_image.sample` takes them.
        base: images in [-1, 1] as the decoder gives them back.
        targets: the same images at the size of each of the leading upsamplers.
        steps: grid of their chains; decode on the same one.
        refinements: `ddim_inversion.invert`.
    """
    low, found = base, []
    for index, (cfg, target) in enumerate(zip(leading(cascade), targets, strict=True)):
        walk = _Walk(cfg, cascade.upsampler_params(params)[index], low, steps)
        chain = {"schedule": walk.chain, "refinements": refinements}
        x_T = ddim_inversion.invert(walk.denoise, target, **chain)
        found.append(x_T)
        low = walk.back(x_T)
    return tuple(found)


def decode(
    cascade: Cascade,
    params: dict[str, Any],
    base: LowRes,
    *,
    details: UpsamplerLatents,
    keys: Keys,
    steps: str | None = None,
    eta: PerExample | None = None,
) -> Image:
    """Enlarge `base` with given noise, then by the upsamplers without any as ever.

    Args:
        cascade: configs of the stages.
        params: their parameters.
        base: images in [-1, 1] at the decoder's size.
        details: of `encode`, or between such; may be fewer than there are upsamplers.
        keys: one per image; used where a step is stochastic and by upsamplers without details.
        steps: grid of the chains, the one of `encode`.
        eta: DDIM's noise share, one per image; None = 0.
    """
    low = base
    for index, x_T in enumerate(details):
        walk = _Walk(cascade.upsamplers[index], cascade.upsampler_params(params)[index], low, steps)
        low = walk.back(x_T, keys=rng.fold_each(keys, "upsampler", index), eta=eta)
    return text_to_image.upsample(cascade, params, low, keys, start=len(details))


class _Walk:
    """One upsampler's chain for given low-res images, walked either way.

    As for the decoder nothing is clipped at the steps, or the way there would not be the way back.
    """

    def __init__(self, cfg: UpsamplerStageConfig, params: Params, low: LowRes, steps: str | None):
        low = quantise(low) if cfg.quantise else low
        self._unused = text_to_image.keys_for(0, jnp.arange(low.shape[0]))
        self.denoise = upsampler.denoiser(cfg, params, low_res=low, keys=self._unused)
        self.chain: Schedule = respace.strided(cfg.diffusion.chain(), steps=grid(cfg, steps))

    def back(self, x_T: Image, *, keys: Keys | None = None, eta: PerExample | None = None) -> Image:
        """From noise to images in [-1, 1]."""
        images = samplers.sample(
            self.denoise,
            x_T,
            schedule=self.chain,
            solver=samplers.Ddim(0.0 if eta is None else eta),
            keys=self._unused if keys is None else keys,
        )
        return jnp.clip(images, -1.0, 1.0)
