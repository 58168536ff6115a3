"""Runs `InpaintRequest`: fills a part of an image, and keeps the rest bit for bit (RePaint)."""

import jax.numpy as jnp
import numpy as np

from unclip_jax.editing import edits
from unclip_jax.editing.latents import Latent
from unclip_jax.engine import image_inputs
from unclip_jax.engine.handlers import encoding, results
from unclip_jax.engine.image_inputs import InputImage
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import InpaintRequest
from unclip_jax.engine.result import Result
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.objectives.gaussian import SamplingConfig


def run(engine: InferenceEngine, request: InpaintRequest) -> Result:
    """Fills the masked part; all other pixels are the original's, also after upsampling."""
    image, mask, indices = request.image, request.mask, list(range(request.num))
    assert isinstance(image, InputImage) and isinstance(mask, InputImage)
    if request.caption:
        captions = [request.caption] * request.num
        z_img = engine.sample_prior(captions, seed=request.seed, indices=indices)
    else:
        z_img = jnp.repeat(engine.image_embeddings([image]), request.num, axis=0)
    sampling = SamplingConfig(  # RePaint's chain is stochastic, with x_0 clipped to its range
        steps=request.steps, sampler="ddim", eta=request.eta, threshold="static"
    )
    batch = encoding.decode_batch(
        request,
        Latent(z_img, engine.initial_noise(seed=request.seed, indices=indices)),
        caption=request.caption or None,
        indices=indices,
        inpaint=(image, mask),
        options=DecodeOptions(
            sampling, request.schedule, repeats=request.repeats, jump=request.jump
        ),
    )
    images = engine.decode(batch).images
    size = images.shape[1]
    filled = edits.composite(
        images, image_inputs.square(image, size), mask=image_inputs.mask_square(mask, size)
    )
    return results.build(
        engine,
        request,
        filled,
        labels=[request.caption or f"{image.name}, filled"] * request.num,
        inputs=[image, mask],
        z_img=np.asarray(z_img),
    )
