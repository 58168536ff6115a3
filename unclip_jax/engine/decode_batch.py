"""Inputs of the decoder for any number of images, as `InferenceEngine` takes them."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, UInt8

from unclip_jax.core.types import Embedding
from unclip_jax.editing.latents import Latent
from unclip_jax.engine.image_inputs import InputImage
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.inference.text_to_image import EXPORTED, SampleOptions


class Conditioning(NamedTuple):
    """Conditions of the decoder, one entry per image.

    Attributes:
        z_img: image embeddings.
        captions: None = no captions, which differs from "".
        indices: number of the key of each image.
        seed: image i depends on (seed, index i) alone.
        negative: captions that guidance leads away from; None = the null condition.
    """

    z_img: Embedding
    captions: Sequence[str | None]
    indices: Sequence[int]
    seed: int = 0
    negative: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class DecodeBatch:
    """Latents to decode, one entry per image in every field but `options`.

    Attributes:
        latent: z_img, x_T and, where the upsamplers are to start from them, details.
        captions: for the decoder; None = no captions, which differs from "".
        indices: number of the key of each image; frames of a path share one.
        seed: image i depends on (seed, index i) alone.
        options: sampling, guidance and previews.
        eta: DDIM's eta, one per image, if it varies.
        negative: captions that guidance leads away from; None = the null condition.
        inpaint: an image, and the mask of the part that is kept.
        upsample: True runs the upsamplers.
        upsampler_steps: grid of the upsamplers that have details, as in their inversion; None =
            as exported.
        upsampling: settings of the upsamplers that have no details; other settings are ignored.
        candidate: number of the candidate, where one of several is chosen.
    """

    latent: Latent
    captions: Sequence[str | None]
    indices: Sequence[int]
    seed: int
    options: DecodeOptions
    eta: Float[Array, " b"] | None = None
    negative: Sequence[str] | None = None
    inpaint: tuple[InputImage, InputImage] | None = None
    upsample: bool = True
    upsampler_steps: str | None = None
    upsampling: SampleOptions = EXPORTED
    candidate: int = 0

    @property
    def conditioning(self) -> Conditioning:
        """The conditions of the decoder."""
        return Conditioning(
            self.latent.z_img, self.captions, self.indices, self.seed, self.negative
        )


class DecodedImages(NamedTuple):
    """Finished images.

    Attributes:
        images: uint8, at the last upsampler's size or the decoder's.
        previews: uint8 at the decoder's size; None if not requested.
    """

    images: UInt8[np.ndarray, " b h w 3"]
    previews: UInt8[np.ndarray, " b p h2 w2 3"] | None
