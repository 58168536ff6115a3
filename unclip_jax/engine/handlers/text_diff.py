"""Runs `TextDiffRequest`: edits an image by the difference of two captions (section 3.3)."""

from typing import Any

import numpy as np

from unclip_jax.editing import edits
from unclip_jax.editing.ddpm_latents import MapOptions
from unclip_jax.editing.latents import Latent
from unclip_jax.engine import inverted_images
from unclip_jax.engine.decode_batch import Conditioning
from unclip_jax.engine.handlers import encoding, results
from unclip_jax.engine.image_inputs import EncodedImage, InputImage
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import TextDiffRequest
from unclip_jax.engine.result import Result


def run(engine: InferenceEngine, request: TextDiffRequest) -> Result:
    """Decodes the path in one row; its first image is the reconstruction, or the original."""
    captions = [request.target] if request.source is None else [request.target, request.source]
    z_txt = engine.text_embeddings(captions)
    direction = {
        "z_target": z_txt[:1],
        "z_source": None if request.source is None else z_txt[1:],
        "thetas": np.linspace(0.0, request.theta, request.frames, dtype=np.float32),
    }
    edit = _keep_noise_maps if request.keeps_noise_maps else _keep_x_T
    path, images, used = edit(engine, request, direction)
    return results.build(
        engine,
        request,
        images,
        labels=[f"theta {theta:.2f}" for theta in path.theta],
        inputs=[used],
        columns=request.frames,
        z_img=np.asarray(path.latent.z_img),
    )


def _keep_x_T(
    engine: InferenceEngine, request: TextDiffRequest, direction: dict[str, Any]
) -> tuple[edits.Path, np.ndarray, EncodedImage]:
    """Runs the edit of the paper, which keeps x_T."""
    encoded = encoding.encode_for(engine, [request.image], request)
    path = edits.text_diff(encoding.joined(encoded), **direction)
    batch = encoding.decode_batch(request, path.latent, caption=encoding.caption_of(encoded))
    return path, engine.decode(batch).images, encoded[0]


def _keep_noise_maps(
    engine: InferenceEngine, request: TextDiffRequest, direction: dict[str, Any]
) -> tuple[edits.Path, np.ndarray, InputImage]:
    """Runs the edit by DDPM inversion, which keeps the noise of every step."""
    image, count = request.image, request.frames
    assert isinstance(image, InputImage)
    defaults = MapOptions()
    options = MapOptions(
        request.steps,
        defaults.eta if request.eta is None else request.eta,
        defaults.strength if request.strength is None else request.strength,
        request.schedule,
    )
    own = Conditioning(
        engine.image_embeddings([image]),
        [request.caption or None],
        [0],
        request.seed,
        encoding.negatives(request, 1),
    )
    inverted = inverted_images.invert(
        engine,
        [image],
        own,
        options=options,
        details=request.inverts_details,
        upsampler_steps=request.upsampler_steps,
        refinements=request.refine,
    )
    path = edits.text_diff(Latent(own.z_img, inverted.maps.x_t), **direction)
    images = inverted_images.decode(
        engine,
        inverted,
        own._replace(
            z_img=path.latent.z_img,
            captions=[*own.captions] * count,
            indices=[0] * count,
            negative=encoding.negatives(request, count),
        ),
        of=[0] * count,
        options=options,
        upsampler_steps=request.upsampler_steps,
        upsample=request.upsample,
    )
    return path, images, image
