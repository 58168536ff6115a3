"""Moments of features that are computed in batches, or in parts by several processes.

    running = RunningMoments.none(2048)
    for batch in features:
        running = running.add(batch)
    squared_distance(running.merge(others).moments(), reference)      # frechet.py

Everything is float64, because float32 sums lose digits of a 2048-dimensional covariance on which
the Fréchet distance depends.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float64

from unclip_jax.core.checks import UserError
from unclip_jax.metrics.frechet import Moments

Features = Float[np.ndarray, "n d"]


@dataclasses.dataclass(frozen=True)
class RunningMoments:
    """Count, mean and scatter of a set of vectors; those of disjoint sets can be merged.

    Attributes:
        count: number of vectors.
        mean: [d].
        scatter: [d d], sum of the outer products of deviations from the mean.
    """

    count: int
    mean: Float64[np.ndarray, " d"]
    scatter: Float64[np.ndarray, "d d"]

    @classmethod
    def none(cls, width: int) -> "RunningMoments":
        """Returns the moments of the empty set."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, features: Features) -> "RunningMoments":
        """Computes the moments of the rows of an array."""
        if not len(features):
            return cls.none(features.shape[1])
        wide = features.astype(np.float64)
        mean = wide.mean(axis=0)
        centred = wide - mean[None]
        return cls(len(wide), mean, centred.T @ centred)

    def add(self, features: Features) -> "RunningMoments":
        """Returns the moments including further rows."""
        return self.merge(RunningMoments.of(features))

    def merge(self, other: "RunningMoments") -> "RunningMoments":
        """Merges two sets (Chan, Golub, LeVeque 1983, The American Statistician 37, 242)."""
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = np.outer(step, step) * (self.count * other.count / count)
        return RunningMoments(count, mean, self.scatter + other.scatter + between)

    def moments(self) -> Moments:
        """Returns mean and unbiased sample covariance (N - 1), as FID implementations do.

        Raises:
            UserError: there are fewer than two vectors, or some are not finite.
        """
        if self.count < 2:
            raise UserError(f"{self.count} images have no covariance of features; give at least 2.")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.scatter).all()):
            raise UserError(
                "some features are not finite; check the weights of the extractor and the images."
            )
        return Moments(self.mean, self.scatter / (self.count - 1))
