"""Runs `InterpolateRequest`: a path of two or more images (unCLIP, section 3.2)."""

import numpy as np

from unclip_jax.editing import edits
from unclip_jax.engine.handlers import encoding, results
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import InterpolateRequest
from unclip_jax.engine.result import Result


def run(engine: InferenceEngine, request: InterpolateRequest) -> Result:
    """Decodes the path, with a row per pair of images."""
    encoded = encoding.encode_for(engine, request.images, request)
    shared = request.noise == "shared"
    noise = engine.initial_noise(seed=request.seed, indices=[0]) if shared else None
    path = edits.interpolate(encoding.joined(encoded), frames=request.frames, x_T=noise)
    batch = encoding.decode_batch(request, path.latent, caption=encoding.caption_of(encoded))
    return results.build(
        engine,
        request,
        engine.decode(batch).images,
        labels=[f"{theta:.2f}" for theta in path.theta],
        inputs=encoded,
        columns=request.frames if len(request.images) == 2 else request.frames - 1,
        z_img=np.asarray(path.latent.z_img),
    )
