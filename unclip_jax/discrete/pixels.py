"""Pixels of the discrete VAE: their range, and the logit-Laplace density (DALL-E, appendix A.3).

    f(x | mu, b) = exp(-|logit x - mu| / b) / (2 b x (1 - x))      on (0, 1)

It is the density of sigmoid(y), y Laplace with location mu and scale b, so it gives no probability
to values that pixels cannot have. Source: arXiv 2102.12092.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core.types import Image

EPSILON = 0.1  # of equation 3: pixels lie in [EPSILON, 1 - EPSILON], away from infinite logits


def to_open(images: Image) -> Image:
    """Maps images in [-1, 1] into (0, 1) as the networks read them (equation 3)."""
    return (1.0 - 2.0 * EPSILON) * (images + 1.0) / 2.0 + EPSILON


def from_open(pixels: Image) -> Image:
    """Maps pixels in (0, 1) back to images in [-1, 1]; values beyond black and white are cut."""
    return jnp.clip(2.0 * (pixels - EPSILON) / (1.0 - 2.0 * EPSILON) - 1.0, -1.0, 1.0)


def logit_laplace_nats(
    pixels: Float[Array, "*s"], mean: Float[Array, "*s"], log_scale: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """Computes -ln f of every pixel (equation 2).

    Args:
        pixels: in (0, 1), from `to_open`.
        mean: mu, in logits.
        log_scale: ln b. Where data are exactly predictable the density grows without bound as b
            falls, so callers bound it below.
    """
    jacobian = jnp.log(pixels) + jnp.log1p(-pixels)
    distance = jnp.abs(jax.scipy.special.logit(pixels) - mean)
    return distance * jnp.exp(-log_scale) + log_scale + jnp.log(2.0) + jacobian
