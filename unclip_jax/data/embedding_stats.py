"""Statistics of embeddings in one pass: moments of parts of the rows, which add up exactly enough.

Means and sums of squared deviations are combined by the formula of Chan, Golub and LeVeque (1983,
"Algorithms for computing the sample variance", equations 2.1), which keeps its digits where the
mean is large beside the deviations.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

Vectors = Float[np.ndarray, " b z"]


@dataclasses.dataclass(frozen=True)
class Stats:
    """Statistics of one kind of embedding, over all rows as stored, in float64.

    Attributes:
        count: number of rows.
        mean: per dimension.
        std: per dimension (population).
        norm_mean: mean Euclidean length.
        norm_std: its standard deviation.
    """

    count: int
    mean: np.ndarray
    std: np.ndarray
    norm_mean: float
    norm_std: float

    def to_json(self) -> dict[str, Any]:
        """Returns the attributes as JSON-ready values."""
        return {**dataclasses.asdict(self), "mean": self.mean.tolist(), "std": self.std.tolist()}


@dataclasses.dataclass(frozen=True)
class PartialMoments:
    """Moments of some rows in float64; the last entry of each array is that of their length.

    Attributes:
        count: number of rows.
        mean: of every dimension and of the length.
        squares: sums of squared deviations from the mean.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, rows: Vectors) -> "PartialMoments":
        """Computes the moments of rows of any precision."""
        exact = rows.astype(np.float64)
        values = np.concatenate([exact, np.sqrt((exact**2).sum(axis=1))[:, None]], axis=1)
        mean = values.mean(axis=0) if len(rows) else np.zeros(values.shape[1])
        return cls(len(rows), mean, ((values - mean) ** 2).sum(axis=0))

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "PartialMoments":
        """Reads what `to_json` returned.

        Raises:
            LookupError, TypeError, ValueError: it is something else.
        """
        mean, squares = (np.array(stored[name], np.float64) for name in ("mean", "squares"))
        return cls(int(stored["count"]), mean, squares)

    def to_json(self) -> dict[str, Any]:
        """Returns the moments as JSON-ready values, without loss."""
        return {
            "count": self.count,
            "mean": self.mean.tolist(),
            "squares": self.squares.tolist(),
        }

    def __add__(self, other: "PartialMoments") -> "PartialMoments":
        """Returns the moments of the rows of both."""
        count = self.count + other.count
        share = other.count / count if count else 0.0
        step = other.mean - self.mean
        squares = self.squares + other.squares + step**2 * (self.count * share)
        return PartialMoments(count, self.mean + step * share, squares)

    def stats(self) -> Stats:
        """Returns the statistics of the rows."""
        std = np.sqrt(self.squares / max(self.count, 1))
        return Stats(self.count, self.mean[:-1], std[:-1], float(self.mean[-1]), float(std[-1]))


def total(parts: Iterable[PartialMoments]) -> PartialMoments:
    """Adds moments in order.

    Raises:
        ValueError: there are none.
    """
    whole: PartialMoments | None = None
    for part in parts:
        whole = part if whole is None else whole + part
    if whole is None:
        raise ValueError("no moments to add")
    return whole
