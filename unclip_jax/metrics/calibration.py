"""Calibration of samples from a conditional distribution, one set per held-out example.

Samples are calibrated if the true value is statistically indistinguishable from them: its rank
among them is then uniform, and central intervals of the samples cover it at their nominal rate
(Gneiting, Balabdaoui and Raftery 2007, JRSS B 69, 243).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from unclip_jax.core.checks import UserError, in_range
from unclip_jax.metrics.intervals import Mean, bootstrap
from unclip_jax.metrics.neighbours import blocks

DIRECTIONS = 32
LEVEL = 0.9
PERMUTATIONS = 200
MOST = 1000  # rows per set in an energy test

Rows = Float[np.ndarray, "n z"]
Others = Float[np.ndarray, "m z"]
Samples = Float[np.ndarray, "n m z"]


class Coverage(NamedTuple):
    """Share of true values inside central intervals of the samples.

    Attributes:
        expected: share for a calibrated distribution; as near to `LEVEL` as the number of samples
            allows.
        measured: mean over examples and directions, with an interval over examples.
    """

    expected: float
    measured: Mean


class EnergyTest(NamedTuple):
    """Energy distance of two sets, and the share of random splits with a larger distance."""

    distance: float
    p_value: float


def ranks(
    samples: Samples, true: Rows, *, directions: int = DIRECTIONS, seed: int = 0
) -> Int[np.ndarray, "n k"]:
    """Computes the rank of the true value among its samples, 0 to m, along random directions.

    Ties are broken at random, so samples that all equal the true value are calibrated.

    Args:
        samples: m samples per example.
        true: one true value per example.
        directions: number k of directions, uniform on the sphere.
        seed: seed of directions and ties.
    """
    generator = np.random.default_rng(seed)
    axes = generator.normal(size=(true.shape[1], directions))
    axes /= np.linalg.norm(axes, axis=0)
    along, at = samples @ axes, (true @ axes)[:, None]
    below, equal = (along < at).sum(axis=1), (along == at).sum(axis=1)
    return below + generator.integers(0, equal + 1)


def coverage(rank: Int[np.ndarray, "n k"], *, num: int, level: float = LEVEL) -> Coverage:
    """Computes the coverage of central intervals from `ranks` among `num` samples.

    The interval extends from the a-th smallest sample to the a-th largest and therefore contains
    `num` + 1 - 2 a of the `num` + 1 equally likely ranks.

    Raises:
        UserError: there are too few samples for an interval of this level.
    """
    in_range("level", level, 0.0, 1.0)
    cut = max(round((1.0 - level) / 2 * (num + 1)), 1)
    if 2 * cut >= num + 1:
        raise UserError(f"{num} samples per example have no central interval; take at least 2.")
    inside = (rank >= cut) & (rank <= num - cut)
    return Coverage((num + 1 - 2 * cut) / (num + 1), bootstrap(inside.mean(axis=1)))


def energy_test(one: Rows, other: Others, *, seed: int = 0) -> EnergyTest:
    """Computes the energy distance 2 E|X-Y| - E|X-X'| - E|Y-Y'| and a permutation test.

    Szekely and Rizzo (2013), J. Stat. Plan. Inference 143, 1249. The estimate is unbiased and may
    therefore be negative. Of larger sets, `MOST` random rows are used.

    Args:
        one: a set of rows.
        other: another set of rows.
        seed: seed of the choice of rows and of the permutations.

    Raises:
        UserError: a set has fewer than two rows.
    """
    if min(len(one), len(other)) < 2:
        raise UserError(
            f"an energy distance needs at least 2 rows in each set, but they have {len(one)} and "
            f"{len(other)}; give more."
        )
    generator = np.random.default_rng(seed)
    parts = [generator.permutation(rows)[:MOST] for rows in (one, other)]
    pool = np.concatenate(parts)
    distances = np.zeros((len(pool), len(pool)))
    for rows, columns, square in blocks(pool, pool):
        distances[rows, columns] = np.sqrt(square)
    np.fill_diagonal(distances, 0.0)
    side = np.zeros(len(pool))
    side[: len(parts[0])] = 1.0
    value = _energy(distances, side)
    others = [_energy(distances, generator.permutation(side)) for _ in range(PERMUTATIONS)]
    larger = sum(other >= value for other in others)
    return EnergyTest(value, float(larger + 1) / (PERMUTATIONS + 1))


def _energy(distances: np.ndarray, side: np.ndarray) -> float:
    """Computes the energy distance between the rows with side 1 and the others."""
    n, m = side.sum(), (1 - side).sum()
    rows = distances @ side
    within, between = float(side @ rows), float((1 - side) @ rows)
    opposite = float(distances.sum()) - within - 2 * between
    return float(2 * between / (n * m) - within / (n * (n - 1)) - opposite / (m * (m - 1)))
