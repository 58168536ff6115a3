"""Latents of the upsamplers: the detail of an image beyond the decoder's size.

(z_img, x_T) reconstruct an image at the decoder's size. The detail that upsamplers add depends on
noise of their own. DDIM inversion of each upsampler, conditioned on the low-res image that
decoding will produce, finds the x_T from which it reconstructs the image. The paper inverts its
decoder only (unCLIP, arXiv 2204.06125, section 3); the extension to upsamplers is ours.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core import rng
from unclip_jax.core.types import Image, Keys, LowRes, Params, PerExample
from unclip_jax.diffusion import ddim_inversion, respace, samplers
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.inference import text_to_image
from unclip_jax.inference.cascade import Captions, Cascade
from unclip_jax.stages import upsampler
from unclip_jax.stages.upsampler import UpsamplerStageConfig, quantise

# one x_T per upsampler, in order; sizes differ
UpsamplerLatents = tuple[Float[Array, " b _ _ c"], ...]


def obstacle(cfg: UpsamplerStageConfig) -> str:
    """Returns the reason why an upsampler cannot be inverted; "" if it can."""
    if cfg.augment.most:
        return "reads its low-res image through random noise (config.model.augment)"
    if cfg.model.text is not None:
        return "reads captions (config.model.model.text)"
    if cfg.last_step:
        return "takes its last step with another network (config.model.last_step)"
    if cfg.diffusion.distillation is not None:
        return "was distilled to a few steps, which cannot be inverted"
    return ""


def leading(cascade: Cascade) -> tuple[UpsamplerStageConfig, ...]:
    """Returns the upsamplers with latents: those before the first that cannot be inverted."""
    obstacles = [bool(obstacle(cfg)) for cfg in cascade.upsamplers]
    return cascade.upsamplers[: (*obstacles, True).index(True)]


def left_out(cascade: Cascade) -> str:
    """Returns a remark on the first upsampler whose details are always fresh; "" if none."""
    first = len(leading(cascade))
    if first == len(cascade.upsamplers):
        return ""
    cfg = cascade.upsamplers[first]
    size = cfg.model.unet.image_size
    return f"the upsampler to {size} px {obstacle(cfg)}, so details from {size} px on are fresh"


def grid(cfg: UpsamplerStageConfig, steps: str | None) -> str:
    """Returns the grid of a chain; None = the one that the upsampler was exported with."""
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
    """Finds the x_T from which upsamplers turn `base` into `targets`.

    Every upsampler is inverted given the output of the one before, not a perfect low-res image, so
    that errors do not accumulate.

    Args:
        cascade: configs of the stages.
        params: parameter trees as `text_to_image.sample` takes them.
        base: images in [-1, 1] as the decoder reconstructs them.
        targets: the same images at the size of each of the leading upsamplers.
        steps: grid of their chains; decode on the same one.
        refinements: see `ddim_inversion.invert`.
    """
    low, noises = base, []
    for index, (cfg, target) in enumerate(zip(leading(cascade), targets, strict=True)):
        chain = _Chain(cfg, cascade.upsampler_params(params)[index], low, steps)
        x_T = ddim_inversion.invert(
            chain.denoise, target, schedule=chain.schedule, refinements=refinements
        )
        noises.append(x_T)
        low = chain.sample(x_T)
    return tuple(noises)


def decode(
    cascade: Cascade,
    params: dict[str, Any],
    images: LowRes,
    *,
    details: UpsamplerLatents,
    keys: Keys,
    steps: str | None = None,
    eta: PerExample | None = None,
    captions: Captions | None = None,
) -> Image:
    """Enlarges images from the noise in `details`, then by further upsamplers from fresh noise.

    Args:
        cascade: configs of the stages.
        params: their parameters.
        images: in [-1, 1] at the decoder's size.
        details: x_T from `encode`, or interpolated; may be fewer than the upsamplers.
        keys: one per image; used where a step is stochastic and by upsamplers without details.
        steps: grid of the chains, the one of `encode`.
        eta: DDIM's eta, one per image; None = 0.
        captions: of the images, for further upsamplers that read captions.
    """
    low = images
    for index, x_T in enumerate(details):
        chain = _Chain(
            cascade.upsamplers[index], cascade.upsampler_params(params)[index], low, steps
        )
        low = chain.sample(x_T, keys=rng.fold_each(keys, "upsampler", index), eta=eta)
    return text_to_image.upsample(cascade, params, low, keys, start=len(details), captions=captions)


class _Chain:
    """The chain of an upsampler for fixed low-res images, for inversion and for sampling.

    x_0 is not clipped at the steps, or sampling would not undo inversion.
    """

    def __init__(self, cfg: UpsamplerStageConfig, params: Params, low: LowRes, steps: str | None):
        low = quantise(low) if cfg.quantise else low
        self._unused = text_to_image.keys_for(0, jnp.arange(low.shape[0]))
        self.denoise = upsampler.denoiser(cfg, params, low_res=low, keys=self._unused)
        self.schedule: Schedule = respace.strided(cfg.diffusion.chain(), steps=grid(cfg, steps))

    def sample(
        self, x_T: Image, *, keys: Keys | None = None, eta: PerExample | None = None
    ) -> Image:
        """Returns images in [-1, 1]."""
        images = samplers.sample(
            self.denoise,
            x_T,
            schedule=self.schedule,
            solver=samplers.Ddim(0.0 if eta is None else eta),
            keys=self._unused if keys is None else keys,
        )
        return jnp.clip(images, -1.0, 1.0)
