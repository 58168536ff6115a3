"""Precision, recall, density and coverage: fidelity and diversity from nearest neighbours.

Distances are computed in blocks, so memory grows with the number of vectors, not with its square.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from unclip_jax.core.checks import UserError
from unclip_jax.metrics.score_options import K_DENSITY, K_PRECISION

Features = Float[np.ndarray, "n d"]
Others = Float[np.ndarray, "m d"]
Radii = Float64[np.ndarray, " n"]

BLOCK = 2048  # vectors per block of either set


class Overlap(NamedTuple):
    """The mutual coverage of two sets of features.

    Attributes:
        precision: share of fake vectors inside a ball around a real one (arXiv 1904.06991, eq. 3).
        recall: share of real vectors inside a ball around a fake one.
        density: mean number of real balls around a fake vector, divided by k (arXiv 2002.09797,
            eq. 4); it can exceed 1.
        coverage: share of real vectors whose ball contains a fake one (eq. 5).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def overlap(
    real: Features, fake: Others, *, k: int = K_PRECISION, k_density: int = K_DENSITY
) -> Overlap:
    """Computes all four scores, with balls that reach to the k-th neighbour in their own set.

    Balls are closed for precision and recall and open for density and coverage, as in the papers;
    all four scores of identical sets are then 1.

    Raises:
        UserError: there are too few vectors for `k` neighbours.
    """
    for name, features in (("real", real), ("fake", fake)):
        _check_count(features, max(k, k_density), name=name)
    real_radii, fake_radii = radii(real, k=k), radii(fake, k=k)
    dense_radii = radii(real, k=k_density)
    precise = np.zeros(len(fake), bool)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    inside = 0
    for rows, columns, distance in blocks(real, fake):
        precise[columns] |= (distance <= real_radii[rows, None]).any(axis=0)
        recalled[rows] |= (distance <= fake_radii[None, columns]).any(axis=1)
        within = distance < dense_radii[rows, None]
        inside += int(within.sum())
        covered[rows] |= within.any(axis=1)
    density = inside / (k_density * len(fake))
    return Overlap(float(precise.mean()), float(recalled.mean()), density, float(covered.mean()))


def radii(features: Features, *, k: int) -> Radii:
    """Computes the squared distance of every vector to its k-th nearest neighbour in the set.

    Raises:
        UserError: there are fewer than k other vectors.
    """
    _check_count(features, k, name="one")
    nearest = np.full((len(features), k + 1), np.inf)  # the vector itself is at distance 0
    for rows, _, distance in blocks(features, features):
        joined = np.concatenate([nearest[rows], distance], axis=1)
        nearest[rows] = np.partition(joined, k, axis=1)[:, : k + 1]
    return nearest.max(axis=1)


def blocks(one: Features, other: Others) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yields squared distances in blocks: (rows, columns, [rows columns] float64)."""
    for i in range(0, len(one), BLOCK):
        rows = slice(i, min(i + BLOCK, len(one)))
        left = one[rows].astype(np.float64)
        for j in range(0, len(other), BLOCK):
            columns = slice(j, min(j + BLOCK, len(other)))
            yield rows, columns, _squared(left, other[columns].astype(np.float64))


def _squared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    lengths = np.sum(one**2, axis=1)[:, None] + np.sum(other**2, axis=1)[None]
    return np.maximum(lengths - 2 * one @ other.T, 0.0)


def _check_count(features: np.ndarray, k: int, *, name: str) -> None:
    if len(features) <= k:
        raise UserError(
            f"the {name} set has {len(features)} images; {k} neighbours need at least {k + 1}: "
            "give more."
        )
