"""Pictures held by the noise of every step (DDPM inversion): encoded, drawn again, enlarged."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from unclip_jax.commands.order import Told
from unclip_jax.commands.pictures import Picture
from unclip_jax.commands.studio import Studio
from unclip_jax.data import image as codec
from unclip_jax.diffusion.noise_maps import NoiseMaps
from unclip_jax.pipeline import text_to_image
from unclip_jax.pipeline.details import Details
from unclip_jax.pipeline.noise_maps import MapOptions


class Held(NamedTuple):
    """Pictures as their noise.

    Attributes:
        maps: of the decoder, step by step.
        details: x_T of the upsamplers; () = they draw their own.
    """

    maps: NoiseMaps
    details: Details = ()


def encode(
    studio: Studio,
    given: Sequence[Picture],
    told: Told,
    *,
    options: MapOptions,
    details: bool,
    upsampler_steps: str | None = None,
    refinements: int = 0,
) -> Held:
    """Find the noise of pictures.

    Args:
        studio: the models.
        given: the pictures.
        told: their own z_img and captions.
        options: see there; the same for `draw`.
        details: whether upsamplers are inverted too.
        upsampler_steps: grid of that.
        refinements: of that, `diffusion.inversion.invert`.
    """
    maps = studio.encode_maps(given, told, options=options)
    if not details:
        return Held(maps)
    base = studio.decode_maps(maps, told, of=range(len(given)), options=options)
    how = {"steps": upsampler_steps, "refinements": refinements}
    return Held(maps, studio.encode_details(base, given, **how))


def draw(
    studio: Studio,
    held: Held,
    told: Told,
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
    return codec.to_uint8(np.asarray(images))
