"""Edits that hold a picture's form: the decoder's DDPM inversion in the place of (z_img, x_T).

`diffusion.noise_maps` has the mathematics. Without guidance or a caption the unedited frame is the
picture itself; with them too, since the same are used both ways.
"""

import dataclasses

from unclip_jax.core import rng
from unclip_jax.core.types import Image, Keys, Params
from unclip_jax.diffusion import noise_maps
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.diffusion.noise_maps import NoiseMaps
from unclip_jax.diffusion.samplers import StepInputs
from unclip_jax.pipeline import decoding
from unclip_jax.pipeline.decoding import Condition
from unclip_jax.stages.decoder import DecoderStageConfig


@dataclasses.dataclass(frozen=True)
class MapOptions:
    """How to encode and decode; hashable, so that one value is one compiled program.

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
    condition: Condition,
    keys: Keys,
    options: MapOptions,
    negative: Condition | None = None,
) -> NoiseMaps:
    """The noise of every step of images under their own z_img.

    Args:
        cfg: the trained decoder.
        params: its (EMA) parameters.
        images: in [-1, 1] at the decoder's size.
        condition: z_img of the images, and what the decoder is told beside it.
        keys: one per image.
        options: see there; the same for `decode`.
        negative: what guidance leads away from.
    """
    return noise_maps.encode(
        decoding.denoiser(
            cfg, params, condition=condition, negative=negative, schedule=options.guidance
        ),
        images,
        walk=steps_of(cfg, options),
        eta=options.eta,
        keys=rng.fold_each(keys, "decoder"),
    )


def decode_part(
    cfg: DecoderStageConfig,
    params: Params,
    given: NoiseMaps,
    *,
    walk: StepInputs,
    condition: Condition,
    options: MapOptions,
    negative: Condition | None = None,
) -> tuple[Image, Image]:
    """Some steps, or all: x_t after them, and the clean image predicted at the last.

    Args:
        cfg: the trained decoder.
        params: its parameters.
        given: x_t, and the maps of these steps.
        walk: these steps, a part of `steps_of`.
        condition: what to draw.
        options: those of `encode`.
        negative: those of `encode`.
    """
    denoise = decoding.denoiser(
        cfg, params, condition=condition, negative=negative, schedule=options.guidance
    )
    return noise_maps.decode(denoise, given, walk=walk, eta=options.eta)
