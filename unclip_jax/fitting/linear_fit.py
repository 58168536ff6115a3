"""Statistics of pairs and the ridge regression between them, fitted in float64 on the host.

    mean and deviation of every condition and of the target, then
    W = (X' X + lambda I)^-1 X' Y  on standardised conditions and latents

lambda minimises generalised cross-validation (Golub, Heath and Wahba 1979, Technometrics 21, 215)
on the spectrum of X' X. R with R' R = (X' X + lambda I)^-1 is kept for leave-one-out predictions:
the residual of an example without it is its residual divided by 1 - |R x|^2.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from unclip_jax.core.checks import UserError
from unclip_jax.core.stage import FittedParams, Rows
from unclip_jax.core.types import HostBatch

FIT_ROWS = 1 << 20  # training pairs that are read at most
MOST_FEATURES = 4096
MOST_WEIGHTS = 1 << 26
GRID = np.logspace(-6, 2, 33)  # lambda over the mean eigenvalue of X' X

Matrix = Float[np.ndarray, "n m"]


class FieldMoments(NamedTuple):
    """Mean and deviation of the rows of one field."""

    mean: np.ndarray
    std: np.ndarray


@dataclasses.dataclass(frozen=True)
class Ridge:
    """A fitted ridge regression.

    Attributes:
        weights: [features outputs].
        bias: of the outputs.
        root: R [features features].
        strength: lambda over the mean eigenvalue.
        explained: share of the variance of the outputs that cross-validation leaves explained.
    """

    weights: Matrix
    bias: Float[np.ndarray, " m"]
    root: Float[np.ndarray, "n n"]
    strength: float
    explained: float


def check_size(features: int, outputs: int) -> None:
    """Rejects a regression that is too large to fit on a host.

    Raises:
        UserError: no features, or more features or weights than `MOST_FEATURES` and `MOST_WEIGHTS`.
    """
    if not features:
        raise UserError(
            "no condition is a vector or a sequence of vectors, so there is no ridge regression; "
            "set config.model.model.ridge to False."
        )
    if features > MOST_FEATURES or features * outputs > MOST_WEIGHTS:
        raise UserError(
            f"the ridge regression has {features:,} features and {outputs:,} outputs; it takes at "
            f"most {MOST_FEATURES:,} and {MOST_WEIGHTS:,} weights. Set config.model.model.ridge to "
            "False."
        )


def moments(rows: Rows, names: Mapping[str, str | None]) -> dict[str, FieldMoments]:
    """Computes mean and deviation per dimension of fields, over rows and tokens, in one pass.

    Args:
        rows: opens a pass over the training pairs.
        names: field -> the field with the mask of its real tokens, or None.
    """
    totals: dict[str, list[Any]] = {}
    for block in rows(FIT_ROWS):
        for name, mask in names.items():
            x = block[name].astype(np.float64)
            x = x.reshape(-1, x.shape[-1]) if mask is None else x[block[mask]]
            if not len(x):
                continue
            part = [len(x), x.mean(axis=0), ((x - x.mean(axis=0)) ** 2).sum(axis=0)]
            totals[name] = _merged(totals[name], part) if name in totals else part
    return {name: FieldMoments(mean, np.sqrt(m2 / n)) for name, (n, mean, m2) in totals.items()}


def _merged(a: list[Any], b: list[Any]) -> list[Any]:
    """Merges counts, means and squared deviations (Chan et al. 1979)."""
    n, gap = a[0] + b[0], b[1] - a[1]
    return [n, a[1] + gap * (b[0] / n), a[2] + b[2] + gap**2 * (a[0] * b[0] / n)]


def ridge(rows: Rows, pair: Callable[[HostBatch], tuple[np.ndarray, np.ndarray]]) -> Ridge:
    """Fits the regression in one pass.

    Args:
        rows: opens a pass over the training pairs.
        pair: block -> features and outputs, one row each per example.
    """
    count, xx, xy, yy = 0, 0.0, 0.0, 0.0
    sum_x, sum_y = 0.0, 0.0
    for block in rows(FIT_ROWS):
        x, y = (array.astype(np.float64) for array in pair(block))
        count += len(x)
        xx, xy, yy = xx + x.T @ x, xy + x.T @ y, yy + float((y * y).sum())
        sum_x, sum_y = sum_x + x.sum(axis=0), sum_y + y.sum(axis=0)
    mean_x, mean_y = np.asarray(sum_x / count), np.asarray(sum_y / count)
    xx = np.asarray(xx - count * np.outer(mean_x, mean_x))
    xy = np.asarray(xy - count * np.outer(mean_x, mean_y))
    variance = max(yy - count * float(mean_y @ mean_y), 1e-300)
    values, basis = np.linalg.eigh(xx)
    values = np.maximum(values, 0.0)
    projected = basis.T @ xy
    power = (projected**2).sum(axis=1)
    unit = max(values.mean(), 1e-300)
    scores = [_gcv(values, power, lam * unit, variance=variance, count=count) for lam in GRID]
    best = int(np.argmin(scores))
    shrunk = values + GRID[best] * unit
    weights = basis @ (projected / shrunk[:, None])
    root = (basis / np.sqrt(shrunk)).T
    explained = float(1.0 - scores[best] * count / variance)
    return Ridge(weights, mean_y - mean_x @ weights, root, float(GRID[best]), explained)


def _gcv(
    values: np.ndarray, power: np.ndarray, strength: float, *, variance: float, count: int
) -> float:
    """Computes the score of generalised cross-validation per row: RSS n / (n - freedom)^2.

    The mean counts as one degree of freedom.
    """
    shrunk = values + strength
    residual = variance - 2 * (power / shrunk).sum() + (values * power / shrunk**2).sum()
    freedom = 1.0 + (values / shrunk).sum()
    if count <= freedom + 1e-9:
        return math.inf
    return max(residual, 0.0) * count / (count - freedom) ** 2


def note(fitted: Ridge | None, moments_of: Mapping[str, FieldMoments]) -> str:
    """Returns a line about a fit for a person."""
    parts = []
    for name, (_, std) in moments_of.items():
        constant = np.flatnonzero(std == 0)
        if len(constant):
            parts.append(
                f"{len(constant)} of {len(std)} dimensions of {name} are constant, first "
                f"{constant[0]}"
            )
    if fitted is not None:
        parts.append(
            f"ridge explains {fitted.explained:.1%} of the target's variance (cross-validated, "
            f"lambda {fitted.strength:.1e} of the mean eigenvalue)"
        )
    return "; ".join(parts) or "statistics measured"


def as_params(
    moments_of: Mapping[str, FieldMoments], fitted: Ridge | None, message: str
) -> FittedParams:
    """Returns the fit as the parameter group "fitted", float32."""
    groups: dict[str, Any] = {
        name: {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}
        for name, (mean, std) in moments_of.items()
    }
    if fitted is not None:
        names = ("weights", "bias", "root")
        groups["ridge"] = {name: getattr(fitted, name).astype(np.float32) for name in names}
    return FittedParams({"fitted": groups}, message)
