"""Runs `VariationsRequest`: variations of an image (unCLIP, section 3.1)."""

import numpy as np

from unclip_jax.editing import edits
from unclip_jax.engine.handlers import encoding, results
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import VariationsRequest
from unclip_jax.engine.result import Result


def run(engine: InferenceEngine, request: VariationsRequest) -> Result:
    """Decodes a row per eta; the images of a column have the same noise."""
    encoded = encoding.encode_for(engine, [request.image], request)
    latent, eta = edits.variations(
        encoding.joined(encoded), etas=list(request.etas), copies=request.num
    )
    batch = encoding.decode_batch(
        request,
        latent,
        caption=encoding.caption_of(encoded),
        eta=eta,
        indices=list(range(request.num)) * len(request.etas),
    )
    return results.build(
        engine,
        request,
        engine.decode(batch).images,
        labels=[f"eta {eta:g}" for eta in request.etas for _ in range(request.num)],
        inputs=encoded,
        columns=request.num,
        z_img=np.asarray(latent.z_img),
    )
