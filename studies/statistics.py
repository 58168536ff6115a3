"""Verdicts on claims from confidence intervals.

A claim consists of inequalities, each about a number with a 95 % interval: "at least minus its
margin". The bootstrap resamples captions, and the compared systems sample the same captions.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from unclip_jax.metrics.intervals import IntervalEstimate, Statistic, bootstrap_statistic

AGREE, NOT, UNDECIDED = "agree", "not", "undecided"
FEWEST = 30  # captions; with fewer the bootstrap's intervals are too narrow to decide anything
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Inequality:
    """One inequality of a claim: `value` > -`margin`.

    Attributes:
        name: name of the number on the page; a difference is "left - right".
        value: the number.
        low: lower end of its interval.
        high: upper end of its interval.
        captions: number of independent units.
        margin: distance below zero that still agrees; 0 for "better", more for "as good".
    """

    name: str
    value: float
    low: float
    high: float
    captions: int
    margin: float = 0.0

    @property
    def verdict(self) -> str:
        """`AGREE` if the whole interval is above -margin, `NOT` if the whole interval is below."""
        if self.captions < FEWEST or not math.isfinite(self.value):
            return UNDECIDED
        if self.low > -self.margin:
            return AGREE
        return NOT if self.high < -self.margin else UNDECIDED


def conjunction(tests: Sequence[Inequality]) -> str:
    """Returns the verdict on a claim of several parts (intersection-union test).

    The claim is false if one part is, and true if all are. With parts at 95 % the whole has 95 %:
    Berger (1982), Technometrics 24, 295.
    """
    verdicts = [test.verdict for test in tests]
    if NOT in verdicts:
        return NOT
    return AGREE if verdicts and all(entry == AGREE for entry in verdicts) else UNDECIDED


def interval(
    statistic: Statistic, count: int, *, resamples: int | None = None, basic: bool = False
) -> IntervalEstimate:
    """Computes a bootstrap interval over `count` captions; see `intervals.bootstrap_statistic`.

    `resamples` is the number of resamples; None = `RESAMPLES`.
    """
    resamples = resamples or RESAMPLES
    return bootstrap_statistic(statistic, count, resamples=resamples, basic=basic)


def nan_mean(values: np.ndarray) -> float:
    """Computes the mean of the values that are not nan; nan if there are none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if len(numbers) else float("nan")


def inequality(
    name: str, estimate: IntervalEstimate, *, captions: int, margin: float = 0.0
) -> dict[str, Any]:
    """Returns an `Inequality` as a dictionary."""
    return dataclasses.asdict(Inequality(name, *estimate, captions=captions, margin=margin))


def verdict_of(finding: dict[str, Any]) -> str:
    """Returns the verdict on a finding from its `tests`, as measured or as read from JSON."""
    return conjunction([Inequality(**_with_nan(test)) for test in finding["tests"]])


def as_json(tree: Any) -> Any:
    """Returns a tree in which null replaces numbers that are not finite."""
    if isinstance(tree, dict):
        return {name: as_json(entry) for name, entry in tree.items()}
    if isinstance(tree, list | tuple):
        return [as_json(entry) for entry in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree


def _with_nan(test: dict[str, Any]) -> dict[str, Any]:
    """Inverts `as_json` for one inequality."""
    return {name: math.nan if value is None else value for name, value in test.items()}
