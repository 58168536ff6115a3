"""Statistics of embeddings in one pass over the rows, from the moments of their parts.

Means and sums of squared deviations are combined by the formula of Chan, Golub and LeVeque (1983,
"Algorithms for computing the sample variance", equations 2.1), which is accurate even where the
mean is large compared with the deviations.
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
        mean: mean of every dimension.
        std: population standard deviation of every dimension.
        norm_mean: mean Euclidean norm.
        norm_std: standard deviation of the norm.
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
    """Moments of some rows in float64; the last entry of each array is that of the norm.

    Attributes:
        count: number of rows.
        mean: means of all dimensions and of the norm.
        squares: sums of squared deviations from these means.
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
        """Restores moments from `to_json`.

        Raises:
            LookupError, TypeError, ValueError: `stored` has another form.
        """
        mean, squares = (np.array(stored[name], np.float64) for name in ("mean", "squares"))
        return cls(int(stored["count"]), mean, squares)

    def to_json(self) -> dict[str, Any]:
        """Returns the moments as JSON-ready values, without loss of precision."""
        return {
            "count": self.count,
            "mean": self.mean.tolist(),
            "squares": self.squares.tolist(),
        }

    def __add__(self, other: "PartialMoments") -> "PartialMoments":
        """Returns the moments of the rows of both operands."""
        count = self.count + other.count
        share = other.count / count if count else 0.0
        step = other.mean - self.mean
        squares = self.squares + other.squares + step**2 * (self.count * share)
        return PartialMoments(count, self.mean + step * share, squares)

    def stats(self) -> Stats:
        """Returns mean and standard deviation of dimensions and norm."""
        std = np.sqrt(self.squares / max(self.count, 1))
        return Stats(self.count, self.mean[:-1], std[:-1], float(self.mean[-1]), float(std[-1]))


def total(parts: Iterable[PartialMoments]) -> PartialMoments:
    """Adds moments in order.

    Raises:
        ValueError: `parts` is empty.
    """
    whole: PartialMoments | None = None
    for part in parts:
        whole = part if whole is None else whole + part
    if whole is None:
        raise ValueError("no moments to add")
    return whole
