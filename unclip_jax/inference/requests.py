"""What a studio is asked for and what it hands out."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, UInt8

from unclip_jax.core.types import Embedding
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.inference.image_files import InputImage
from unclip_jax.inference.latents import Latent


class Conditioning(NamedTuple):
    """What the decoder is told of every image, apart from noise.

    Attributes:
        z_img: unit-norm embeddings.
        captions: None = no caption at all, which "" is not.
        indices: which key of the seed an image uses.
        seed: image i depends on (seed, index i) alone.
        negative: captions that guidance leads away from; None = from nothing.
    """

    z_img: Embedding
    captions: Sequence[str | None]
    indices: Sequence[int]
    seed: int = 0
    negative: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class DecodeRequest:
    """What to decode; every field but `options` has one entry per image.

    Attributes:
        latent: z_img, x_T and, where the upsamplers are to draw just these, details.
        captions: for the decoder; None = no caption at all, which "" is not.
        indices: which key of the seed an image uses; frames of a path share one.
        seed: image i depends on (seed, index i) alone.
        options: how to decode.
        eta: DDIM's noise share, if it varies.
        negative: captions that guidance leads away from; None = from nothing.
        hole: a picture, and the mask of what is kept of it.
        upsample: whether the upsamplers follow.
        upsampler_steps: grid of the upsamplers that have details, the one of their inversion; None
            = as exported.
    """

    latent: Latent
    captions: Sequence[str | None]
    indices: Sequence[int]
    seed: int
    options: DecodeOptions
    eta: Float[Array, " b"] | None = None
    negative: Sequence[str] | None = None
    hole: tuple[InputImage, InputImage] | None = None
    upsample: bool = True
    upsampler_steps: str | None = None

    @property
    def told(self) -> Conditioning:
        """What the decoder is told."""
        return Conditioning(
            self.latent.z_img, self.captions, self.indices, self.seed, self.negative
        )


class DecodeResult(NamedTuple):
    """Finished pictures.

    Attributes:
        images: uint8, at the last upsampler's size or the decoder's.
        previews: uint8 at the decoder's size, [b p h w 3]; None when not asked for.
    """

    images: UInt8[np.ndarray, " b h w 3"]
    previews: UInt8[np.ndarray, " b p h w 3"] | None
