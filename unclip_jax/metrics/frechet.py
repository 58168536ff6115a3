"""Fréchet distance between the Gaussians with the moments of two sets of vectors.

    d^2 = |m_1 - m_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

Dowson and Landau (1982), J. Multivariate Anal. 12, 450; for image features it is FID (Heusel et al.
2017, arXiv 1706.08500, eq. 6). Its estimate decreases with the number of vectors, so values are
comparable only for equal numbers.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from unclip_jax.core.checks import UserError

Vectors = Float[np.ndarray, "n d"]


class Moments(NamedTuple):
    """Mean and sample covariance (divided by n - 1) of a set of vectors, in double precision."""

    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]


def moments(vectors: Vectors) -> Moments:
    """Computes mean and covariance.

    Raises:
        UserError: there are fewer than two vectors, or some are not finite.
    """
    if len(vectors) < 2:
        raise UserError(f"{len(vectors)} vectors have no covariance; give at least 2.")
    vectors = np.asarray(vectors, np.float64)
    if not np.isfinite(vectors).all():
        raise UserError(
            "some vectors are not finite; check the images and the model that computed them."
        )
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    return Moments(mean, centred.T @ centred / (len(vectors) - 1))


def squared_distance(one: Moments, other: Moments) -> float:
    """Computes d^2 of two Gaussians; singular covariances are allowed.

    Tr (S_1 S_2)^(1/2) is computed as the sum of the singular values of S_1^(1/2) S_2^(1/2), which
    needs no square root of a non-symmetric matrix and remains accurate if S is singular.

    Raises:
        UserError: the Gaussians have different dimensions.
    """
    if one.mean.shape != other.mean.shape:
        raise UserError(
            f"vectors have {len(one.mean)} and {len(other.mean)} dimensions; compare features of "
            "one kind."
        )
    shift = one.mean - other.mean
    overlap = np.linalg.svd(root(one.covariance) @ root(other.covariance), compute_uv=False).sum()
    traces = np.trace(one.covariance) + np.trace(other.covariance)
    return float(max(shift @ shift + traces - 2.0 * overlap, 0.0))


def root(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d d"]:
    """Computes the symmetric square root of a positive semi-definite matrix.

    Eigenvalues within rounding error are set to 0, because their roots would exceed that error by
    far.
    """
    values, vectors = np.linalg.eigh(covariance)
    noise = values.max() * len(values) * np.finfo(np.float64).eps
    return (vectors * np.sqrt(np.where(values > noise, values, 0.0))[None]) @ vectors.T
