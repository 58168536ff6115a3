"""Decodes embeddings that another model computed, such as a prior of `fit_prior`."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from unclip_jax.core.checks import UserError
from unclip_jax.editing.latents import Latent
from unclip_jax.engine.decode_batch import DecodeBatch
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.inference.decoding import DecodeOptions


def decode_embeddings(
    engine: InferenceEngine, z_img: Float[np.ndarray, " b z"], *, seed: int = 0
) -> UInt8[np.ndarray, " b h w 3"]:
    """Decodes embeddings without captions; image i depends on the seed and on row i alone.

    Args:
        engine: models with a decoder of z_img.
        z_img: embeddings of that decoder's CLIP, of any norm if it takes them normalised.
        seed: seed of the noise.

    Raises:
        UserError: embeddings of another dimension.
    """
    size = engine.cascade.decoder.model.z_dim
    if z_img.shape[1] != size:
        raise UserError(
            f"embeddings have {z_img.shape[1]} dimensions; this decoder takes {size}. Train the "
            "prior on embeddings of its CLIP."
        )
    indices = list(range(len(z_img)))
    z = engine.cascade.embedding(jnp.asarray(z_img, jnp.float32))
    latent = Latent(z, engine.initial_noise(seed=seed, indices=indices))
    options = DecodeOptions(engine.cascade.decoder.sampling)
    batch = DecodeBatch(latent, [None] * len(z_img), indices, seed, options)
    return engine.decode(batch).images
