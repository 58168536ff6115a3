"""Calibration of samples: Gaussians of which everything is known."""

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.metrics import calibration

RNG = np.random.default_rng(0)
N, M, Z = 400, 19, 6
MEANS = RNG.normal(size=(N, Z))
TRUE = MEANS + RNG.normal(size=(N, Z))


def samples(spread=1.0, shift=0.0):
    return MEANS[:, None] + shift + spread * RNG.normal(size=(N, M, Z))


def test_samples_of_the_true_distribution_cover_as_expected():
    rank = calibration.ranks(samples(), TRUE)
    result = calibration.coverage(rank, num=M)
    assert result.expected == pytest.approx(18 / 20)  # one of 20 ranks is cut at each end
    assert result.measured.low <= result.expected <= result.measured.high
    counts = np.bincount(rank.reshape(-1), minlength=M + 1) / rank.size
    np.testing.assert_allclose(counts, 1 / (M + 1), atol=0.015)


@pytest.mark.parametrize(("spread", "less"), [(0.5, True), (2.0, False)])
def test_a_wrong_spread_is_seen(spread, less):
    result = calibration.coverage(calibration.ranks(samples(spread), TRUE), num=M)
    ends = result.measured
    assert ends.high < result.expected if less else ends.low > result.expected


def test_a_point_estimate_covers_nothing():
    same = np.repeat(MEANS[:, None], M, axis=1)
    assert calibration.coverage(calibration.ranks(same, TRUE), num=M).measured.value == 0.0


def test_equal_samples_that_are_true_have_any_rank():
    rank = calibration.ranks(np.repeat(TRUE[:, None], M, axis=1), TRUE)
    assert set(np.unique(rank)) == set(range(M + 1))


def test_the_energy_distance_is_that_of_brute_force():
    one, other = RNG.normal(size=(7, 3)), RNG.normal(size=(5, 3)) + 1.0

    def mean(a, b):
        return np.mean([np.linalg.norm(x - y) for x in a for y in b])

    def within(a):
        return mean(a, a) * len(a) / (len(a) - 1)

    expected = 2 * mean(one, other) - within(one) - within(other)
    assert calibration.energy_test(one, other).distance == pytest.approx(expected)


def test_the_energy_test_tells_distributions_apart():
    alike = calibration.energy_test(TRUE, samples()[:, 0])
    narrow = calibration.energy_test(TRUE, MEANS)
    assert alike.p_value > 0.05 and narrow.p_value < 0.01
    assert alike.distance < narrow.distance


def test_too_little_is_rejected():
    with pytest.raises(UserError, match="1 samples per example have no central interval"):
        calibration.coverage(np.zeros((3, 2), int), num=1)
    with pytest.raises(UserError, match="at least 2 rows in each set"):
        calibration.energy_test(TRUE[:1], TRUE)
