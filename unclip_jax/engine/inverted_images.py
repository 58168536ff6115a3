"""DDPM inversion of images: encodes them as noise maps, decodes these and enlarges the result."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from unclip_jax.core.picture import to_uint8
from unclip_jax.diffusion.ddpm_inversion import NoiseMaps
from unclip_jax.editing.ddpm_latents import MapOptions
from unclip_jax.editing.upsampler_latents import UpsamplerLatents
from unclip_jax.engine.decode_batch import Conditioning
from unclip_jax.engine.image_inputs import InputImage
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.inference import text_to_image


class InvertedImages(NamedTuple):
    """Images encoded as noise.

    Attributes:
        maps: noise maps of the decoder, one per step.
        details: x_T of the upsamplers; () = they start from fresh noise.
    """

    maps: NoiseMaps
    details: UpsamplerLatents = ()


def invert(
    engine: InferenceEngine,
    images: Sequence[InputImage],
    conditioning: Conditioning,
    *,
    options: MapOptions,
    details: bool,
    upsampler_steps: str | None = None,
    refinements: int = 0,
) -> InvertedImages:
    """Computes the noise of images.

    Args:
        engine: the models.
        images: the images.
        conditioning: their own z_img and captions.
        options: steps, eta, strength and guidance; the same for `decode`.
        details: True if upsamplers are inverted too.
        upsampler_steps: grid of their inversion.
        refinements: fixed-point iterations per step of their inversion.
    """
    maps = engine.invert_ddpm(images, conditioning, options=options)
    if not details:
        return InvertedImages(maps)
    base = engine.decode_ddpm(maps, conditioning, of=range(len(images)), options=options)
    noise = engine.invert_upsamplers(base, images, steps=upsampler_steps, refinements=refinements)
    return InvertedImages(maps, noise)


def decode(
    engine: InferenceEngine,
    inverted: InvertedImages,
    conditioning: Conditioning,
    *,
    of: Sequence[int],
    options: MapOptions,
    upsampler_steps: str | None = None,
    upsample: bool = True,
) -> UInt8[np.ndarray, " b h w 3"]:
    """Decodes under new conditions from the noise of images of[0], of[1], ..."""
    images = engine.decode_ddpm(inverted.maps, conditioning, of=of, options=options)
    if upsample:
        keys = text_to_image.keys_for(conditioning.seed, jnp.asarray(conditioning.indices))
        details = jax.tree.map(lambda x: x[jnp.asarray(of)], inverted.details)
        images = engine.upsample(
            images, keys, details=details, steps=upsampler_steps, captions=conditioning.captions
        )
    return to_uint8(np.asarray(images))
