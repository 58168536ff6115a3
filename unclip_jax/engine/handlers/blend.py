"""Runs `BlendRequest`: images from a weighted mean of images and captions."""

import jax.numpy as jnp
import numpy as np

from unclip_jax.editing import edits
from unclip_jax.editing.latents import Latent
from unclip_jax.engine.handlers import encoding, results
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import BlendRequest
from unclip_jax.engine.result import Result


def run(engine: InferenceEngine, request: BlendRequest) -> Result:
    """Decodes the mean embedding, from blended noise or from fresh noise."""
    image_weights, text_weights = request.weights
    weights, indices = image_weights + text_weights, list(range(request.num))
    encoded = encoding.encode_for(engine, request.images, request) if request.images else []
    parts = [encoding.joined(encoded).z_img] if encoded else []
    if request.texts:
        numbers = range(len(request.texts))
        parts.append(engine.sample_prior(request.texts, seed=request.seed, indices=numbers))
    z_img = edits.blend(jnp.concatenate(parts), weights=weights)
    if request.fresh:
        x_T = engine.initial_noise(seed=request.seed, indices=indices)
        latent = Latent(jnp.repeat(z_img, request.num, axis=0), x_T)
    else:
        source = encoding.joined(encoded)
        latent = Latent(
            z_img,
            edits.blend_noise(source.x_T, weights=image_weights),
            edits.blend_details(source.details, weights=image_weights),
        )
    caption = encoding.caption_of(encoded) if encoded else None
    batch = encoding.decode_batch(request, latent, caption=caption, indices=indices)
    names = [*(image.name for image in encoded), *request.texts]
    label = " + ".join(
        f"{weight / sum(weights):.2f} {name}" for weight, name in zip(weights, names, strict=True)
    )
    return results.build(
        engine,
        request,
        engine.decode(batch).images,
        labels=[label] * request.num,
        inputs=encoded,
        z_img=np.asarray(latent.z_img),
    )
