"""Decodes principal components of CLIP's image embeddings, to show what they encode.

An embedding is rebuilt from its first components only and decoded with fixed noise: the first ones
encode coarse semantics, such as the types of objects, later ones their shapes and exact form
(unCLIP, section 4, figure 7).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from unclip_jax.core.checks import UserError, in_range

FIGURE_7 = (20, 30, 40, 80, 120, 160, 200, 320)


class Pca(NamedTuple):
    """Principal components, by decreasing variance.

    Attributes:
        mean: mean of the embeddings.
        components: orthonormal rows.
        variance: variance along each component.
    """

    mean: Float[np.ndarray, " z"]
    components: Float[np.ndarray, " k z"]
    variance: Float[np.ndarray, " k"]


def fit(z_img: Float[np.ndarray, " n z"]) -> Pca:
    """Computes all components of a set of embeddings, in float64 from their covariance.

    Raises:
        UserError: fewer than two embeddings.
    """
    if len(z_img) < 2:
        raise UserError(
            f"principal components need at least 2 embeddings, not {len(z_img)}; give more."
        )
    z_img = np.asarray(z_img, np.float64)
    mean = z_img.mean(0)
    variance, columns = np.linalg.eigh(np.cov(z_img, rowvar=False))
    order = np.argsort(variance)[::-1]
    return Pca(mean, columns[:, order].T, np.maximum(variance[order], 0.0))


def keep_first(
    pca: Pca, z_img: Float[np.ndarray, " z"], *, counts: tuple[int, ...]
) -> Float32[np.ndarray, " n z"]:
    """Returns embeddings rebuilt from their first `counts` components, at unit norm.

    Raises:
        UserError: a count outside [0, z].
    """
    for count in counts:
        in_range("number of components", count, 0, len(pca.components))
    share = pca.components @ (np.asarray(z_img, np.float64) - pca.mean)
    rebuilt = np.stack([pca.mean + share[:n] @ pca.components[:n] for n in counts])
    rebuilt /= np.maximum(np.linalg.norm(rebuilt, axis=1, keepdims=True), 1e-12)
    return rebuilt.astype(np.float32)


def default_counts(dim: int) -> tuple[int, ...]:
    """Returns the counts of figure 7, or powers of two for embeddings that are shorter."""
    if dim >= FIGURE_7[-1]:
        return FIGURE_7
    doubling = [2**i for i in range(1, 20) if 2**i < dim]
    return (*doubling[-7:], dim)
