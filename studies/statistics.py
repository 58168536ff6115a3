"""Whether a claim holds, decided by intervals.

A claim is one or more inequalities, each about one number with a 95 % interval: "at least minus its
margin". The unit that is resampled is the caption; what is compared was drawn for the same ones.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from unclip_jax.metrics.intervals import IntervalEstimate, Statistic, bootstrap_statistic

AGREE, NOT, UNDECIDED = "agree", "not", "undecided"
FEWEST = 30  # captions; with fewer the bootstrap's intervals are too narrow to decide anything
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Inequality:
    """One inequality of a claim: `value` > -`margin`.

    Attributes:
        name: what the number is, as the page shows it; a difference is "left - right".
        value: what was measured.
        low: lower end of its interval.
        high: upper end.
        captions: number of independent units behind it.
        margin: how far below zero still agrees; 0 for "better", more for "as good".
    """

    name: str
    value: float
    low: float
    high: float
    captions: int
    margin: float = 0.0

    @property
    def verdict(self) -> str:
        """Agree where the whole interval lies above -margin, not where all of it lies below."""
        if self.captions < FEWEST or not math.isfinite(self.value):
            return UNDECIDED
        if self.low > -self.margin:
            return AGREE
        return NOT if self.high < -self.margin else UNDECIDED


def together(tests: Sequence[Inequality]) -> str:
    """A claim of several parts: false if one part is, true if all are (intersection-union test).

    At 95 % each part keeps the whole at 95 %: Berger (1982), Technometrics 24, 295.
    """
    found = [test.verdict for test in tests]
    if NOT in found:
        return NOT
    return AGREE if found and all(each == AGREE for each in found) else UNDECIDED


def interval(
    statistic: Statistic, count: int, *, resamples: int | None = None, basic: bool = False
) -> IntervalEstimate:
    """Bootstrap interval over `count` captions; the same every time.

    Args:
        statistic: of rows of captions, with repetition.
        count: number of captions.
        resamples: how often; None = `RESAMPLES`.
        basic: reflect the quantiles about the value (Davison and Hinkley 1997, section 2.4), which
            takes off the bias that a resampled Fréchet distance has; else the quantiles themselves.
    """
    resamples = resamples or RESAMPLES
    return bootstrap_statistic(statistic, count, resamples=resamples, basic=basic)


def inequality(
    name: str, found: IntervalEstimate, *, captions: int, margin: float = 0.0
) -> dict[str, Any]:
    """An inequality, JSON-ready."""
    return dataclasses.asdict(Inequality(name, *found, captions=captions, margin=margin))


def read(finding: dict[str, Any]) -> str:
    """The verdict of a finding as it was measured."""
    return together([Inequality(**_numbers(each)) for each in finding["tests"]])


def _numbers(each: dict[str, Any]) -> dict[str, Any]:
    """JSON has no nan; it is null there."""
    return {name: math.nan if value is None else value for name, value in each.items()}


def plain(tree: Any) -> Any:
    """JSON-ready: what is not a number is null."""
    if isinstance(tree, dict):
        return {name: plain(each) for name, each in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(each) for each in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree
