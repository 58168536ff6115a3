"""Edits of the bipartite latent: paths and neighbourhoods of (z_img, x_T).

Every function is pure and cheap: it maps latents to the latents to decode. All edits are decoded by
the same compiled program (`decoding.decode`). Source: unCLIP (arXiv 2204.06125), section 3.

The paper does not mention upsamplers here. Their noise (`Latent.details`) is treated like x_T:
slerped where x_T is slerped, kept where it is kept, left out where x_T is sampled anew. So an edit
that reconstructs an image at the decoder's size also does so at full size.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.core.types import Embedding, Image, PerExample
from unclip_jax.diffusion import spherical
from unclip_jax.editing.latents import Latent, take
from unclip_jax.editing.upsampler_latents import UpsamplerLatents

THETA_MAX = 0.5  # usual end of a text diff: 0.25 to 0.50 (section 3.3)


class VariedLatents(NamedTuple):
    """Latents to decode with DDIM, and the eta of each."""

    latent: Latent
    eta: PerExample


class Path(NamedTuple):
    """Latents to decode in order.

    Attributes:
        latent: one per frame.
        theta: position of each frame, [f]: 0..n - 1 along n images, or a fraction of the angle.
    """

    latent: Latent
    theta: Float[np.ndarray, " f"]


def variations(latent: Latent, *, etas: list[float], copies: int) -> VariedLatents:
    """Repeats an image `copies` times per eta; eta 0 reconstructs, 1 keeps only z_img (3.1).

    The same eta applies to the details, which eta = 1 replaces too.

    Raises:
        UserError: an eta outside [0, 1], no copies, or several images.
    """
    _one(latent, "variations")
    in_range("copies", copies, 1, 4096)
    for eta in etas:
        in_range("eta", eta, 0.0, 1.0)
    spread = np.repeat(np.asarray(etas, np.float32), copies)
    return VariedLatents(take(latent, [0] * len(spread)), jnp.asarray(spread))


def interpolate(latent: Latent, *, frames: int, x_T: Image | None = None) -> Path:
    """Follows the arcs from image to image, in all parts of the latent (section 3.2).

    Args:
        latent: two images or more, in order.
        frames: per pair, both ends counted; n images give (n - 1) (frames - 1) + 1.
        x_T: noise [1 h w c] of all frames, the paper's other choice, which gives any number of
            paths; their ends do not reconstruct the images, and they have no details. None =
            slerp the x_T of the images.

    Raises:
        UserError: fewer than two images or frames.
    """
    count = latent.z_img.shape[0]
    if count < 2:
        raise UserError(f"interpolation needs at least two images, not {count}; give more.")
    in_range("frames", frames, 2, 1000)
    theta = np.arange((count - 1) * (frames - 1) + 1, dtype=np.float32) / np.float32(frames - 1)
    first = np.minimum(theta.astype(np.int32), count - 2)
    a, b, share = take(latent, first), take(latent, first + 1), jnp.asarray(theta - first)
    z_img = spherical.slerp(a.z_img, b.z_img, share)
    if x_T is not None:
        return Path(Latent(z_img, jnp.repeat(x_T, len(theta), axis=0)), theta)
    noises = zip((a.x_T, *a.details), (b.x_T, *b.details), strict=True)
    noise, *details = (spherical.slerp(one, other, share) for one, other in noises)
    return Path(Latent(z_img, noise, tuple(details)), theta)


def text_diff(
    latent: Latent,
    *,
    z_target: Float[Array, " 1 z"],
    z_source: Float[Array, " 1 z"] | None,
    thetas: Float[np.ndarray, " f"],
) -> Path:
    """Moves one image towards the difference of two captions, with its noise unchanged (3.3).

        z_d = normalise(z_target - z_source),   z_theta = slerp(z_img, z_d, theta)

    Raw embeddings keep their norm: z_d is scaled to that of z_img.

    Args:
        latent: one image; theta = 0 reconstructs it.
        z_target: embedding of the target caption.
        z_source: embedding of the caption of the image, or of a dummy; None = zero.
        thetas: fractions of the arc, usually 0 up to 0.25 or 0.5.

    Raises:
        UserError: several images, a theta outside [0, 1], or captions that do not differ.
    """
    _one(latent, "a text diff")
    for theta in thetas:
        in_range("theta", float(theta), 0.0, 1.0)
    towards = unit(z_target)
    if z_source is not None:
        difference = towards - unit(z_source)
        if float(jnp.linalg.norm(difference)) < 1e-4:
            raise UserError(
                "the target caption and the source caption mean the same to CLIP; give captions "
                "that differ, or leave the source out."
            )
        towards = unit(difference)
    towards = towards * jnp.linalg.norm(latent.z_img, axis=1, keepdims=True)
    count = len(thetas)
    start = take(latent, [0] * count)
    z_img = spherical.slerp(start.z_img, jnp.repeat(towards, count, axis=0), jnp.asarray(thetas))
    return Path(start._replace(z_img=z_img), np.asarray(thetas, np.float32))


def blend(z: Embedding, *, weights: list[float]) -> Float[Array, " 1 z"]:
    """Returns the weighted mean of embeddings on the sphere; the mean of two is their slerp.

    Its norm is the weighted mean of theirs.

    Raises:
        UserError: weights that are negative, all zero or too few, or vectors that cancel out.
    """
    if len(weights) != z.shape[0] or min(weights) < 0 or max(weights) == 0:
        raise UserError(
            f"weights are {weights} for {z.shape[0]} embeddings to blend; give one each, none "
            "negative and at least one positive."
        )
    share = jnp.asarray(weights, jnp.float32)
    if float(jnp.linalg.norm(share @ unit(z))) < 1e-4 * float(share.sum()):
        raise UserError("the embeddings to blend cancel out; change the weights.")
    return spherical.mean(z, weights=share)[None]


def blend_noise(x_T: Image, *, weights: list[float]) -> Float[Array, " 1 h w c"]:
    """Returns the `blend` of noises, each taken as one vector; [1 h w c]."""
    return spherical.mean(x_T, weights=jnp.asarray(weights, jnp.float32))[None]


def blend_details(
    details: UpsamplerLatents, *, weights: list[float]
) -> tuple[Float[Array, " 1 _ _ c"], ...]:
    """Returns `blend_noise` for every upsampler."""
    return tuple(blend_noise(x_T, weights=weights) for x_T in details)


def composite(
    images: UInt8[np.ndarray, " b h w c"],
    original: UInt8[np.ndarray, " h w c"],
    *,
    mask: Float[np.ndarray, " h w"],
) -> UInt8[np.ndarray, " b h w c"]:
    """Returns `images` where `mask` is 0 and `original`, bit for bit, where it is 1 (8-bit)."""
    return np.where(mask[None, :, :, None] > 0.5, original[None], images)


def _one(latent: Latent, what: str) -> None:
    if latent.z_img.shape[0] != 1:
        raise UserError(f"{what} takes one image, not {latent.z_img.shape[0]}; give one at a time.")
