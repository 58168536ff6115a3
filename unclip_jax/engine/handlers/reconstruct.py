"""Runs `ReconstructRequest`: encodes images to bipartite latents and decodes them again."""

import numpy as np

from unclip_jax.engine import image_inputs
from unclip_jax.engine.handlers import encoding, results
from unclip_jax.engine.image_inputs import InputImage
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import ReconstructRequest
from unclip_jax.engine.result import Result
from unclip_jax.metrics.psnr import psnr


def run(engine: InferenceEngine, request: ReconstructRequest) -> Result:
    """Shows each image beside its reconstruction; the result contains its latent."""
    encoded = encoding.encode_for(engine, request.images, request)
    latent, caption = encoding.joined(encoded), encoding.caption_of(encoded)
    decoded = engine.decode(encoding.decode_batch(request, latent, caption=caption)).images
    labels, panels, errors = [], [], []
    for image, latent_of, reconstruction in zip(request.images, encoded, decoded, strict=True):
        error = ""
        if isinstance(image, InputImage):
            original = image_inputs.square(image, decoded.shape[1])
            errors.append(float(psnr(original[None], reconstruction[None])[0]))
            panels.append(original)
            labels.append(latent_of.origin.name)
            error = f": {errors[-1]:.1f} dB"
        panels.append(reconstruction)
        labels.append(f"reconstruction of {latent_of.origin.name}{error}")
    return results.build(
        engine,
        request,
        decoded,
        labels=labels,
        inputs=encoded,
        facts={"psnr_db": errors},
        panels=np.stack(panels),
        columns=2 if errors else None,
        z_img=np.asarray(latent.z_img),
        latents=tuple(encoded),
    )
