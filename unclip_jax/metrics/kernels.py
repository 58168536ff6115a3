"""Kernel distances between two sets of features: KID and CMMD.

Unlike the Fréchet distance they assume no Gaussian, and KID is unbiased, so small sets can be
compared. All computations are in float64, in blocks of rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.metrics.score_options import KID_SIZE, KID_SUBSETS

Features = Float[np.ndarray, "n d"]
Others = Float[np.ndarray, "m d"]
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]

SIGMA = 10.0  # arXiv 2401.09603, section 4
CMMD_SCALE = 1000.0  # arXiv 2401.09603, section 4
BLOCK = 1024  # rows per block


class Kid(NamedTuple):
    """A kernel inception distance and its protocol.

    Attributes:
        value: mean over subsets.
        std: standard deviation over subsets.
        subsets: number of subsets.
        size: vectors per set in a subset.
        seed: seed of the choice of subsets.
    """

    value: float
    std: float
    subsets: int
    size: int
    seed: int


def kid(
    real: Features,
    fake: Others,
    *,
    subsets: int = KID_SUBSETS,
    size: int = KID_SIZE,
    seed: int = 0,
) -> Kid:
    """Computes the unbiased squared MMD, kernel (x . y / d + 1)^3 (arXiv 1801.01401, section 4).

    The result is the mean over random subsets of `size` vectors per set, or of all if fewer.

    Raises:
        UserError: a set has fewer than two vectors, or `subsets` is 0.
    """
    in_range("subsets", subsets, 1, 100_000)
    size = min(size, len(real), len(fake))
    if size < 2:
        raise UserError(
            f"KID of {len(real)} and {len(fake)} images is undefined; give at least 2 of each."
        )
    rng = np.random.default_rng(seed)
    values = [
        unbiased(
            real[rng.choice(len(real), size, replace=False)],
            fake[rng.choice(len(fake), size, replace=False)],
            kernel=cubic,
        )
        for _ in range(subsets)
    ]
    return Kid(float(np.mean(values)), float(np.std(values)), subsets, size, seed)


def cmmd(real: Features, fake: Others, *, sigma: float = SIGMA) -> float:
    """Computes 1000 x squared MMD of unit CLIP embeddings, Gaussian kernel (arXiv 2401.09603).

    The estimate is the biased one, as in the paper: pairs of a vector with itself count.
    """
    kernel = gaussian(sigma)
    real, fake = (unit(z.astype(np.float64)) for z in (real, fake))
    within = mean(real, real, kernel=kernel) + mean(fake, fake, kernel=kernel)
    return CMMD_SCALE * (within - 2 * mean(real, fake, kernel=kernel))


def unbiased(real: Features, fake: Others, *, kernel: Kernel) -> float:
    """Computes the unbiased squared MMD (Gretton et al. 2012, JMLR 13, eq. 3), maybe negative."""
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    within = 0.0
    for one in (real, fake):
        gram = kernel(one, one)
        within += (gram.sum() - np.trace(gram)) / (len(one) * (len(one) - 1))
    return float(within - 2 * kernel(real, fake).mean())


def mean(one: Features, other: Others, *, kernel: Kernel) -> float:
    """Computes the mean of the kernel over all pairs."""
    starts = range(0, len(one), BLOCK)
    total = sum(float(kernel(one[i : i + BLOCK], other).sum()) for i in starts)
    return total / (len(one) * len(other))


def cubic(one: Features, other: Others) -> Float[np.ndarray, "n m"]:
    """Evaluates (x . y / d + 1)^3."""
    return (one @ other.T / one.shape[1] + 1.0) ** 3


def gaussian(sigma: float) -> Kernel:
    """Returns the kernel exp(-|x - y|^2 / (2 sigma^2))."""

    def kernel(one: Features, other: Others) -> Float[np.ndarray, "n m"]:
        lengths = np.sum(one**2, axis=1)[:, None] + np.sum(other**2, axis=1)[None]
        return np.exp(-np.maximum(lengths - 2 * one @ other.T, 0.0) / (2 * sigma**2))

    return kernel
