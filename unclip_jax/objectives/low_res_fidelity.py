"""Fidelity of upsampled images to their low-res images.

Downsampled, a sample should equal its low-res image, and its mean colours should not have shifted;
diffusion upsamplers are prone to both errors. Distances are in 8-bit levels, 0 is perfect.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core.types import Image, LowRes, Scalar

LEVELS = 127.5  # 8-bit levels per unit of [-1, 1]


def block_means(images: Image, *, factor: int) -> Float[Array, " b h_low w_low c"]:
    """Returns the mean of every `factor` x `factor` block, as low-res images are made."""
    b, h, w, c = images.shape
    blocks = images.reshape(b, h // factor, factor, w // factor, factor, c)
    return jnp.mean(blocks, axis=(2, 4))


def low_res_error(images: Image, low_res: LowRes) -> Scalar:
    """Returns the RMS of the downsampled images minus the low-res ones, in 8-bit levels."""
    factor = images.shape[1] // low_res.shape[1]
    return LEVELS * jnp.sqrt(jnp.mean((block_means(images, factor=factor) - low_res) ** 2))


def colour_shift(images: Image, low_res: LowRes) -> Scalar:
    """Returns the RMS over images and channels of the change of the mean, in 8-bit levels."""
    change = jnp.mean(images, axis=(1, 2)) - jnp.mean(low_res, axis=(1, 2))
    return LEVELS * jnp.sqrt(jnp.mean(change**2))
