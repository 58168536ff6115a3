"""Captions, what is true of them, and the numbers of arms that were drawn for them.

Every interval resamples captions; pictures of one caption stay together.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from studies import statistics
from unclip_jax.metrics import frechet, scores
from unclip_jax.metrics.intervals import IntervalEstimate
from unclip_jax.metrics.shapes_checker import ATTRIBUTES, CRITERIA, Verdict

FRECHET_RESAMPLES = 300

Distance = Callable[[np.ndarray], float]  # of an arm's embeddings


@dataclasses.dataclass(frozen=True)
class Judged:
    """Pictures of one arm, judged one by one.

    Attributes:
        z: [pictures z] their CLIP embeddings.
        right: attribute -> [pictures] 1, 0, or nan where it was not asked.
    """

    z: np.ndarray
    right: dict[str, np.ndarray]

    @classmethod
    def of(cls, z: np.ndarray, found: list[Verdict]) -> "Judged":
        """From what the checker found."""
        right = {n: np.array([_number(getattr(v, n)) for v in found]) for n in ATTRIBUTES}
        return cls(z, right)

    @property
    def followed(self) -> np.ndarray:
        """[pictures] share of what was asked that the picture holds."""
        return np.nanmean(np.stack([self.right[name] for name in CRITERIA]), axis=0)


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is known of the captions that are drawn, and how arms are measured over them.

    Attributes:
        captions: one per picture, equal ones in a row.
        scenes: what the picture of each caption really holds, as JSON.
        z_img: [pictures z] of the true pictures.
        z_txt: [pictures z] of the captions.
        images: pictures per caption.
        reference: moments of the embeddings of training pictures.
    """

    captions: tuple[str, ...]
    scenes: tuple[str, ...]
    z_img: np.ndarray
    z_txt: np.ndarray
    images: int
    reference: frechet.Moments

    @property
    def count(self) -> int:
        """Number of captions."""
        return len(self.captions) // self.images

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """Rows of the pictures of the chosen captions."""
        return (chosen[:, None] * self.images + np.arange(self.images)[None]).ravel()

    def mean(self, values: np.ndarray) -> IntervalEstimate:
        """Mean of one value per picture; nan is left out."""
        return statistics.interval(lambda chosen: mean(values[self.rows(chosen)]), self.count)

    def difference(self, one: np.ndarray, other: np.ndarray) -> IntervalEstimate:
        """Difference of the means of two arms, caption by caption."""

        def statistic(chosen: np.ndarray) -> float:
            rows = self.rows(chosen)
            return mean(one[rows]) - mean(other[rows])

        return statistics.interval(statistic, self.count)

    def distance(self, z: np.ndarray) -> float:
        """Fréchet distance of embeddings to those of training pictures."""
        return frechet.squared_distance(frechet.moments(z), self.reference)

    def distances(self, statistic: Callable[[Distance], float]) -> IntervalEstimate:
        """Interval of what `statistic` makes of the distances of arms.

        It is given a function from an arm's embeddings to the distance of the resampled ones.
        """
        return statistics.interval(
            lambda chosen: statistic(lambda z: self.distance(z[self.rows(chosen)])),
            self.count,
            resamples=FRECHET_RESAMPLES,
            basic=True,
        )

    def diversity(self, z: np.ndarray) -> np.ndarray:
        """[captions] 1 - cosine between pictures of one caption (unCLIP's section 5.2)."""
        groups = z.reshape(self.count, self.images, -1)
        return np.array([scores.diversity(group, [0] * self.images).value for group in groups])

    def row(self, found: Judged) -> dict[str, Any]:
        """The columns that every table of drawn pictures has; JSON-ready but for nan.

        A Fréchet distance has no interval: that of so few pictures is mostly due to their number,
        which differences between arms are not (`distances`).
        """
        shown = {"followed": found.followed}
        shown |= {name: found.right[name] for name in (*CRITERIA, "joint")}
        cells = {name: self.mean(v) for name, v in shown.items() if not np.isnan(v).all()}
        if self.images > 1:
            spread = self.diversity(found.z)
            cells["diversity"] = statistics.interval(lambda rows: mean(spread[rows]), self.count)
        row: dict[str, Any] = {name: cell._asdict() for name, cell in cells.items()}
        return {**row, "frechet": self.distance(found.z)}


def mean(values: np.ndarray) -> float:
    """Mean of what is not nan; nan where nothing is left."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Row by row, of vectors of norm 1."""
    return np.sum(one.astype(np.float64) * other, axis=1)


def _number(value: bool | None) -> float:
    return float("nan") if value is None else float(value)
