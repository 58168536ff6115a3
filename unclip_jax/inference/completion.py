"""Completes images with DALL-E: samples the codes of a rectangle at the lower right corner.

Codes are sampled in raster order. Outside the rectangle each is replaced by the image's own before
the next is sampled, so every new code depends on all codes before it (DALL-E, section 3.3).
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool

from unclip_jax.core import rng
from unclip_jax.core.types import Image, Keys, LowRes, Params
from unclip_jax.discrete.categorical import CodeSamplingConfig, FixedCodes
from unclip_jax.inference import text_to_image
from unclip_jax.inference.cascade import Captions, Cascade
from unclip_jax.stages import dalle, dvae


def complete(
    cascade: Cascade,
    params: Mapping[str, Params],
    captions: Captions,
    keys: Keys,
    *,
    images: LowRes,
    keep: Bool[Array, " b g g"],
    sampling: CodeSamplingConfig | None = None,
    paste: bool = False,
) -> Image:
    """Samples the codes that are not kept, then decodes and enlarges the images.

    Args:
        cascade: DALL-E's chain.
        params: parameters by name of the stage.
        captions: token ids by name of the stage that reads them.
        keys: one per image.
        images: in [-1, 1], at the size of the discrete VAE.
        keep: True at codes that stay.
        sampling: overrides the exported settings.
        paste: True puts the pixels of the images over the codes that stay, which otherwise are
            shown as the discrete VAE decodes them.
    """
    prior, decoder = cascade.stage("dalle"), cascade.stage("dvae")
    codes = dvae.encode(decoder.config, params[decoder.name], images)
    text = captions[prior.name]
    codes = dalle.sample(
        prior.config,
        params[prior.name],
        tokens=text.tokens,
        token_mask=text.mask,
        keys=rng.fold_each(keys, "prior"),
        sampling=sampling,
        fixed=FixedCodes(codes.reshape(len(codes), -1), keep.reshape(len(codes), -1)),
    )
    base = dvae.decode(decoder.config, params[decoder.name], codes.reshape(keep.shape))
    if paste:
        side = images.shape[1] // keep.shape[1]
        pixels = jnp.repeat(jnp.repeat(keep, side, axis=1), side, axis=2)
        base = jnp.where(pixels[..., None], images, base)
    return text_to_image.upsample(cascade, params, base, keys, captions=captions)
