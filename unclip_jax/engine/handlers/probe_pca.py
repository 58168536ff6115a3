"""Runs `PcaProbeRequest`: images from the first components (unCLIP, section 4, figure 7)."""

import pathlib

import jax.numpy as jnp
import numpy as np

from unclip_jax.core.checks import UserError, in_range
from unclip_jax.data.embeddings import EmbeddingSource
from unclip_jax.editing import pca_probe
from unclip_jax.editing.latents import Latent
from unclip_jax.engine import image_inputs
from unclip_jax.engine.handlers import encoding, results
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import PcaProbeRequest
from unclip_jax.engine.result import Result

MAX_EMBEDDINGS = 200_000  # more embeddings take longer and do not change the components


def run(engine: InferenceEngine, request: PcaProbeRequest) -> Result:
    """Decodes a row per image, from few components to all, with the same noise."""
    source = EmbeddingSource(pathlib.Path(request.embeddings))
    dim = source.dim("z_img")
    clip_id = source.info().get("clip_id", engine.clip_id)
    if clip_id != engine.clip_id or dim != engine.cascade.decoder.model.z_dim:
        raise UserError(
            f"the embeddings in {request.embeddings} ({dim} dimensions) are of CLIP "
            f"{clip_id[:12]!r}, these models use {engine.clip_id[:12]!r}; embed the data again."
        )
    counts = request.components or pca_probe.default_counts(dim)
    for count in counts:
        in_range("components", count, 0, dim)
    pca = pca_probe.fit(source.vectors("z_img", 0, min(len(source), MAX_EMBEDDINGS)))
    inputs = image_inputs.decoded(request.images)
    z_img = np.asarray(engine.image_embeddings(inputs))
    rows = np.concatenate([pca_probe.keep_first(pca, z, counts=counts) for z in z_img])
    noise = engine.initial_noise(seed=request.seed, indices=[0])
    latent = Latent(jnp.asarray(rows), jnp.repeat(noise, len(rows), axis=0))
    share = np.cumsum(pca.variance) / pca.variance.sum()
    return results.build(
        engine,
        request,
        engine.decode(encoding.decode_batch(request, latent, caption=None)).images,
        labels=[f"{image.name}: {count}" for image in inputs for count in counts],
        inputs=inputs,
        columns=len(counts),
        facts={"variance_kept": {str(n): float(share[n - 1]) if n else 0.0 for n in counts}},
        z_img=rows,
    )
