"""Confidence intervals for proportions and means."""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from unclip_jax.core.checks import UserError, in_range

Statistic = Callable[[np.ndarray], float]  # indices of units, with repetition -> a number


class Rate(NamedTuple):
    """A proportion with its interval.

    Attributes:
        hits: number of successes.
        total: number of trials; 0 = the rate is undefined.
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
            return "not applicable"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] of {self.total}"


class IntervalEstimate(NamedTuple):
    """A number and its interval; all nan if the number is undefined."""

    value: float
    low: float
    high: float


class Mean(NamedTuple):
    """A mean of `total` values with its interval."""

    total: int
    value: float
    low: float
    high: float


def wilson(hits: int, total: int, *, confidence: float = 0.95) -> Rate:
    """Computes Wilson's score interval for `hits` successes in `total` independent trials.

    Wilson (1927), J. Am. Stat. Assoc. 22, 209. Unlike the normal interval it stays inside [0, 1]
    and keeps its coverage near 0 and 1. Without trials it is [0, 1].

    Raises:
        UserError: `hits` is outside 0..total, or `confidence` outside [0, 1).
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
    low = middle - half if hits else 0.0  # exact at the ends
    high = middle + half if hits < total else 1.0
    return Rate(hits, total, share, low, high)


def bootstrap(
    values: Float[np.ndarray, " n"], *, confidence: float = 0.95, resamples: int = 2000
) -> Mean:
    """Computes the bootstrap interval of the mean of independent values.

    Efron (1979), Ann. Stat. 7, 1.

    Raises:
        UserError: there are no values, or `confidence` is outside [0, 1).
    """
    total = len(values)
    if not total:
        raise UserError("a mean of no values has no interval; give at least one.")
    options = {"confidence": confidence, "resamples": resamples}
    return Mean(total, *bootstrap_statistic(lambda rows: values[rows].mean(), total, **options))


def bootstrap_ratio(
    parts: Float[np.ndarray, " n"],
    wholes: Float[np.ndarray, " n"],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> IntervalEstimate:
    """Computes the bootstrap interval of sum(parts) / sum(wholes) over independent units.

    With the number of answers about a unit as `wholes`, it is the interval of a share of answers
    that depend on each other within a unit (Davison and Hinkley 1997, section 3.8). The resamples
    are deterministic.

    Args:
        parts: numerator of every unit.
        wholes: denominator of every unit, greater than 0.
        confidence: confidence level of the interval.
        resamples: number of resamples.

    Raises:
        UserError: there are no units, or `confidence` is outside [0, 1).
    """
    in_range("confidence", confidence, 0.0, 1.0 - 1e-12)
    count = len(parts)
    if not count:
        raise UserError("a ratio over no units has no interval; give at least one.")
    rows = np.random.default_rng(0).integers(count, size=(resamples, count))
    ratios = parts[rows].sum(axis=1) / wholes[rows].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return IntervalEstimate(float(parts.sum() / wholes.sum()), float(low), float(high))


def bootstrap_statistic(
    statistic: Statistic,
    count: int,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    basic: bool = False,
) -> IntervalEstimate:
    """Computes a bootstrap interval over `count` independent units, with deterministic resamples.

    Resamples for which the statistic is not finite are left out.

    Args:
        statistic: function of the indices of units, with repetition.
        count: number of units.
        confidence: confidence level of the interval.
        resamples: number of resamples.
        basic: True reflects the quantiles about the value (Davison and Hinkley 1997, section 2.4),
            which corrects the bias of a resampled Fréchet distance; False uses the quantiles.

    Raises:
        UserError: `confidence` is outside [0, 1).
    """
    in_range("confidence", confidence, 0.0, 1.0 - 1e-12)
    value = float(statistic(np.arange(count)))
    generator = np.random.default_rng(0)
    samples = (statistic(generator.integers(count, size=count)) for _ in range(resamples))
    finite = [sample for sample in samples if math.isfinite(sample)]
    if not math.isfinite(value) or not finite:
        return IntervalEstimate(math.nan, math.nan, math.nan)
    ends = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = (float(end) for end in ends)
    if basic:
        low, high = 2 * value - high, 2 * value - low
    return IntervalEstimate(value, low, high)
