"""Confidence intervals for proportions and means."""

import math
import statistics
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from unclip_jax.core.checks import UserError, in_range


class Rate(NamedTuple):
    """A proportion with its interval.

    Attributes:
        hits: number of successes.
        total: number of trials; 0 means that nothing was asked.
        value: hits / total, or nan.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    hits: int
    total: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """'0.930 [0.886, 0.958] of 200'."""
        if not self.total:
            return "not asked"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] of {self.total}"


class Mean(NamedTuple):
    """A mean of `total` values with its interval."""

    total: int
    value: float
    low: float
    high: float


def wilson(hits: int, total: int, *, confidence: float = 0.95) -> Rate:
    """Wilson's score interval for `hits` successes in `total` independent trials.

    Wilson (1927), J. Am. Stat. Assoc. 22, 209. Unlike the normal interval it stays inside [0, 1]
    and keeps its coverage near 0 and 1. Without trials it is [0, 1].

    Raises:
        UserError: hits outside 0..total, confidence outside [0, 1).
    """
    in_range("hits", hits, 0, total)
    in_range("confidence", confidence, 0.0, 1.0 - 1e-12)
    if total == 0:
        return Rate(0, 0, math.nan, 0.0, 1.0)
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    spread = share * (1 - share) / total + z**2 / (4 * total**2)
    half = z * math.sqrt(spread) / (1 + z**2 / total)
    low = middle - half if hits else 0.0  # exact at the ends, where rounding would show
    high = middle + half if hits < total else 1.0
    return Rate(hits, total, share, low, high)


def bootstrap(
    values: Float[np.ndarray, " n"], *, confidence: float = 0.95, resamples: int = 2000
) -> Mean:
    """Percentile bootstrap interval for the mean of independent values; the same every time.

    Efron (1979), Ann. Stat. 7, 1.

    Raises:
        UserError: no values, confidence outside [0, 1).
    """
    in_range("confidence", confidence, 0.0, 1.0 - 1e-12)
    total = len(values)
    if not total:
        raise UserError("a mean of no values has no interval; give at least one.")
    generator = np.random.default_rng(0)
    means = [values[generator.integers(total, size=total)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Mean(total, float(np.mean(values)), float(low), float(high))
