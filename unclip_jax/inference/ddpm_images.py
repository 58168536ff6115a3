"""Pictures held by the noise of every step (DDPM inversion): encoded, drawn again, enlarged."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from unclip_jax.core.picture import to_uint8
from unclip_jax.diffusion.ddpm_inversion import NoiseMaps
from unclip_jax.inference import text_to_image
from unclip_jax.inference.ddpm_latents import MapOptions
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.image_files import InputImage
from unclip_jax.inference.requests import Conditioning
from unclip_jax.inference.upsampler_latents import UpsamplerLatents


class InvertedImages(NamedTuple):
    """Pictures as their noise.

    Attributes:
        maps: of the decoder, step by step.
        details: x_T of the upsamplers; () = they draw their own.
    """

    maps: NoiseMaps
    details: UpsamplerLatents = ()


def encode(
    studio: InferenceEngine,
    given: Sequence[InputImage],
    told: Conditioning,
    *,
    options: MapOptions,
    details: bool,
    upsampler_steps: str | None = None,
    refinements: int = 0,
) -> InvertedImages:
    """Find the noise of pictures.

    Args:
        studio: the models.
        given: the pictures.
        told: their own z_img and captions.
        options: see there; the same for `draw`.
        details: whether upsamplers are inverted too.
        upsampler_steps: grid of that.
        refinements: of that, `diffusion.ddim_inversion.invert`.
    """
    maps = studio.encode_maps(given, told, options=options)
    if not details:
        return InvertedImages(maps)
    base = studio.decode_maps(maps, told, of=range(len(given)), options=options)
    how = {"steps": upsampler_steps, "refinements": refinements}
    return InvertedImages(maps, studio.encode_details(base, given, **how))


def draw(
    studio: InferenceEngine,
    held: InvertedImages,
    told: Conditioning,
    *,
    of: Sequence[int],
    options: MapOptions,
    upsampler_steps: str | None = None,
    upsample: bool = True,
) -> UInt8[np.ndarray, " b h w 3"]:
    """Draw from the noise of pictures of[0], of[1], ... what the decoder is told of each."""
    images = studio.decode_maps(held.maps, told, of=of, options=options)
    if upsample:
        keys = text_to_image.keys_for(told.seed, jnp.asarray(told.indices))
        details = jax.tree.map(lambda x: x[jnp.asarray(of)], held.details)
        images = studio.enlarge(images, keys, held=details, steps=upsampler_steps)
    return to_uint8(np.asarray(images))
