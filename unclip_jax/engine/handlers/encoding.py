"""Encodes images to latents for editing; latents that were encoded earlier are checked."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from unclip_jax.core.checks import UserError
from unclip_jax.editing import latents, upsampler_latents
from unclip_jax.editing.latents import Latent, LatentOrigin, UpsamplerLatentOrigin
from unclip_jax.engine import image_inputs
from unclip_jax.engine.decode_batch import DecodeBatch
from unclip_jax.engine.image_inputs import EncodedImage, InputImage
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.request_base import REFINE, STEPS, DecodingRequest, EncodingRequest
from unclip_jax.inference.decoding import DecodeOptions, faithful


def encode_for(
    engine: InferenceEngine, images: Sequence[Any], request: EncodingRequest
) -> list[EncodedImage]:
    """Encodes the images of a request with its settings; see `encode`."""
    return encode(
        engine,
        images,
        caption=request.caption,
        steps=request.steps,
        refine=request.refine,
        details=request.inverts_details,
        upsampler_steps=request.upsampler_steps,
    )


def encode(
    engine: InferenceEngine,
    images: Sequence[Any],
    *,
    caption: str | None = None,
    steps: str = STEPS,
    refine: int = REFINE,
    details: bool = True,
    upsampler_steps: str | None = None,
) -> list[EncodedImage]:
    """Encodes images to bipartite latents by DDIM inversion.

    Args:
        engine: the models.
        images: anything that `image_inputs.read` reads; latents are checked and passed through.
        caption: caption of the images, for the decoder.
        steps: grid of the chain; decode on the same one.
        refine: fixed-point iterations per step.
        details: True if the upsamplers are to be inverted too, where they can be.
        upsampler_steps: grid of their inversion; None = as exported.

    Raises:
        UserError: an image cannot be used, or a latent has other models or another chain.
    """
    details = details and bool(upsampler_latents.leading(engine.cascade))
    inputs = [image_inputs.read(image, latent=True) for image in images]
    new = {image.sha256: image for image in inputs if isinstance(image, InputImage)}
    inverted = {}
    if new:
        pending = list(new.values())
        how = {"steps": steps, "refinements": refine}
        captions = [caption or None] * len(pending)
        latent = engine.invert(pending, captions=captions, **how)
        origins = [_origin(engine, image, **how, caption=caption) for image in pending]
        if details:
            base = engine.decode_base(latent, captions=captions, steps=steps)
            noise = engine.invert_upsamplers(
                base, pending, steps=upsampler_steps, refinements=refine
            )
            latent = latent._replace(details=noise)
            of_details = detail_origins(engine, upsampler_steps)
            origins = [dataclasses.replace(origin, details=of_details) for origin in origins]
        for index, (image, origin) in enumerate(zip(pending, origins, strict=True)):
            one = latents.take(latent, [index])
            inverted[image.sha256] = EncodedImage(one, origin, image.path)
    encoded = [
        inverted[image.sha256]
        if isinstance(image, InputImage)
        else _checked(engine, image, steps=steps, details=details, upsampler_steps=upsampler_steps)
        for image in inputs
    ]
    bare = [image for image in encoded if not image.latent.details]
    if 0 < len(bare) < len(encoded):
        raise UserError(
            f"{bare[0].path} has no details for the upsamplers, but other inputs have; encode its "
            "image again, or give details=fresh."
        )
    return encoded


def _origin(
    engine: InferenceEngine,
    image: InputImage,
    *,
    caption: str | None,
    steps: str,
    refinements: int,
) -> LatentOrigin:
    """Returns the origin of the latent of an image, without details."""
    return LatentOrigin(
        clip_id=engine.clip_id,
        decoder_id=engine.decoder_id,
        image_size=engine.base_size,
        steps=steps,
        refinements=refinements,
        caption=caption or "",
        source=image.sha256,
        name=image.name,
    )


def detail_origins(engine: InferenceEngine, steps: str | None) -> tuple[UpsamplerLatentOrigin, ...]:
    """Returns the origins of details: one per upsampler that has them."""
    leading = upsampler_latents.leading(engine.cascade)
    return tuple(
        UpsamplerLatentOrigin(
            upsampler_id=name,
            image_size=cfg.model.unet.image_size,
            steps=upsampler_latents.grid(cfg, steps),
        )
        for name, cfg in zip(engine.upsampler_ids, leading, strict=False)
    )


def joined(encoded: Sequence[EncodedImage]) -> Latent:
    """Returns the latents of all images as one batch."""
    return latents.join([image.latent for image in encoded])


def caption_of(encoded: Sequence[EncodedImage]) -> str | None:
    """Returns the caption with which all images were inverted; decoding must use it too.

    Raises:
        UserError: the captions differ.
    """
    captions = {image.origin.caption for image in encoded}
    if len(captions) > 1:
        raise UserError(
            f"the latents were inverted with different captions ({sorted(captions)}); encode the "
            "images again with one caption or without."
        )
    return captions.pop() or None


def decode_batch(
    request: DecodingRequest, latent: Latent, *, caption: str | None, **changes: Any
) -> DecodeBatch:
    """Returns the batch for a path; all frames have the same key, unless `changes` sets others."""
    count = latent.z_img.shape[0]
    values: dict[str, Any] = {
        "latent": latent,
        "captions": [caption] * count,
        "indices": [0] * count,
        "seed": request.seed,
        "options": DecodeOptions(faithful(request.steps), request.schedule),
        "negative": negatives(request, count),
        "upsample": request.upsample,
        "upsampler_steps": getattr(request, "upsampler_steps", None),
    }
    return DecodeBatch(**{**values, **changes})


def negatives(request: DecodingRequest, count: int) -> list[str] | None:
    """Returns the negative caption of every image, or None."""
    return None if request.negative is None else [request.negative] * count


def _checked(
    engine: InferenceEngine,
    encoded: EncodedImage,
    *,
    steps: str,
    details: bool,
    upsampler_steps: str | None,
) -> EncodedImage:
    """Returns a latent that was encoded earlier, with its details only if `details`.

    Raises:
        UserError: it has other models or another chain.
    """
    latent, origin, path = encoded
    latents.check_fits(origin, clip_id=engine.clip_id, decoder_id=engine.decoder_id, where=path)
    if origin.steps != steps:
        raise UserError(
            f"{path} was inverted with steps {origin.steps}, not {steps}; give the same, or the "
            "image itself."
        )
    if not details:
        origin = dataclasses.replace(origin, details=())
        return EncodedImage(latent._replace(details=()), origin, path)
    if origin.details:
        expected = detail_origins(engine, upsampler_steps)
        latents.check_details_fit(origin, expected=expected, where=path)
    return encoded
