"""Edits that hold a picture's form: z_img with the noise of every step in the place of x_T.

`diffusion.noise_maps` has the mathematics. The unedited frame is the picture itself, with any
guidance and caption, since the same are used both ways.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core import rng
from unclip_jax.core.types import Image, Keys, Params
from unclip_jax.diffusion import noise_maps
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.diffusion.noise_maps import NoiseMaps
from unclip_jax.diffusion.samplers import StepInputs
from unclip_jax.inference import decoding
from unclip_jax.inference.decoding import Condition
from unclip_jax.stages.decoder import DecoderStageConfig


@dataclasses.dataclass(frozen=True)
class MapOptions:
    """How to encode and decode.

    Attributes:
        steps: grid of the decoder.
        eta: DDIM's noise share.
        strength: share of the chain that is walked; what earlier steps settle cannot change.
        guidance: scale along the chain.
    """

    steps: str = "ddim250"
    eta: float = 0.5
    strength: float = 0.7
    guidance: GuidanceSchedule = GuidanceSchedule()

    def arguments(self) -> dict[str, Any]:
        """What `encode` and `decode_part` are both given, eta as data."""
        return {"eta": jnp.float32(self.eta), "guidance": self.guidance}


def steps_of(cfg: DecoderStageConfig, options: MapOptions) -> StepInputs:
    """The steps that are walked, most noise first.

    Raises:
        UserError: a strength outside [0, 1].
    """
    return noise_maps.steps(decoding.chain_of(cfg, options.steps), strength=options.strength)


def encode(
    cfg: DecoderStageConfig,
    params: Params,
    images: Image,
    *,
    walk: StepInputs,
    eta: float | Float[Array, ""],
    condition: Condition,
    keys: Keys,
    guidance: GuidanceSchedule,
    negative: Condition | None = None,
) -> NoiseMaps:
    """The noise of every step of images under their own z_img.

    Args:
        cfg: the trained decoder.
        params: its (EMA) parameters.
        images: in [-1, 1] at the decoder's size.
        walk: the steps, of `steps_of`.
        eta: DDIM's noise share.
        condition: z_img of the images, and what the decoder is told beside it.
        keys: one per image.
        guidance: scale along the chain; the same for `decode_part`, as eta is.
        negative: what guidance leads away from.
    """
    told = {"condition": condition, "negative": negative, "schedule": guidance}
    denoise = decoding.denoiser(cfg, params, **told)
    keys = rng.fold_each(keys, "decoder")
    return noise_maps.encode(denoise, images, walk=walk, eta=eta, keys=keys)


def decode_part(
    cfg: DecoderStageConfig,
    params: Params,
    given: NoiseMaps,
    *,
    walk: StepInputs,
    eta: float | Float[Array, ""],
    condition: Condition,
    guidance: GuidanceSchedule,
    negative: Condition | None = None,
) -> tuple[Image, Image]:
    """Some steps, or all: x_t after them, and the clean image predicted at the last.

    Args:
        cfg: the trained decoder.
        params: its parameters.
        given: x_t, and the maps of these steps.
        walk: these steps, a part of `steps_of`.
        eta: that of `encode`.
        condition: what to draw.
        guidance: that of `encode`.
        negative: that of `encode`.
    """
    told = {"condition": condition, "negative": negative, "schedule": guidance}
    denoise = decoding.denoiser(cfg, params, **told)
    return noise_maps.decode(denoise, given, walk=walk, eta=eta)
