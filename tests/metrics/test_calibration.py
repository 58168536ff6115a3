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


def test_directions_are_uniform_on_the_sphere():
    """Half of them lean to either side of any plane through the origin; by 32 at a time."""
    true = np.concatenate([np.eye(Z), RNG.normal(size=(20, Z))])
    origin = np.zeros((len(true), 1, Z))
    assert calibration.ranks(origin, true).shape == (len(true), 32)
    rank = calibration.ranks(origin, true, directions=4000)  # 1 where the true value is ahead
    np.testing.assert_allclose(rank.mean(axis=1), 0.5, atol=4 * 0.5 / np.sqrt(4000))
    # two of the axes are orthogonal, so their sides are independent
    both = rank[0] == rank[1]
    assert abs(both.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)
    assert not np.array_equal(rank, calibration.ranks(origin, true, directions=4000, seed=1))


def test_ranks_count_the_samples_behind_the_true_value():
    """Along one dimension, where a direction is a sign."""
    values = np.array([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 0.0, 9.0]])[..., None]
    rank = calibration.ranks(values, np.array([[3.0], [-1.0]]), directions=64)
    assert set(rank[0].tolist()) == {2}
    assert set(rank[1].tolist()) == {0, 4}
    ties = calibration.ranks(values, np.array([[4.0], [0.0]]), directions=400)
    assert set(ties[0].tolist()) == {1, 2, 3}  # 2 before it and 1 behind, or the reverse
    assert set(ties[1].tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("num", "level", "tail"),
    [
        (19, 0.9, 1),
        (39, 0.9, 2),
        (99, 0.5, 25),
        (2, 0.9, 1),
        (9, 0.6, 2),
        (25, 0.9, 1),
        (4, 0.5, 1),
        (9, 0.5, 2),
    ],
)
def test_an_interval_leaves_out_equally_many_ranks_at_each_end(num, level, tail):
    rank = np.arange(num + 1)[:, None]
    result = calibration.coverage(rank, num=num, level=level)
    assert result.expected == pytest.approx((num + 1 - 2 * tail) / (num + 1))
    assert result.measured.value == pytest.approx(result.expected)  # of every rank once
    assert result.measured.total == num + 1
    for edge, inside in ((tail - 1, 0), (tail, 1), (num - tail, 1), (num - tail + 1, 0)):
        at = calibration.coverage(np.full((3, 2), edge), num=num, level=level)
        assert at.measured.value == inside


def test_the_level_is_nine_tenths_unless_given():
    rank = np.arange(40)[:, None]
    assert calibration.coverage(rank, num=39) == calibration.coverage(rank, num=39, level=0.9)
    assert calibration.coverage(rank, num=39).expected == pytest.approx(0.9)


def test_a_p_value_counts_200_divisions_and_the_given_one():
    apart = calibration.energy_test(RNG.normal(size=(8, 2)), RNG.normal(size=(8, 2)) + 9)
    assert apart.p_value == 1 / 201
    one = RNG.normal(size=(6, 2))
    alike = calibration.energy_test(one, one[::-1])  # no division is nearer
    assert alike.p_value == pytest.approx(1.0, abs=0.02)
    equal = calibration.energy_test(np.zeros((4, 2)), np.zeros((4, 2)))
    assert equal == (0.0, 1.0)  # all are as far


def test_results_repeat_and_depend_on_the_seed_which_is_0():
    one, other = RNG.normal(size=(30, 2)), RNG.normal(size=(30, 2))
    actual = [calibration.energy_test(one, other, seed=seed).p_value for seed in (0, 0, 1)]
    assert actual[0] == actual[1] != actual[2]
    assert calibration.energy_test(one, other).p_value == actual[0]
    origin = np.zeros((30, 1, 2))
    ranks = [calibration.ranks(origin, one, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(ranks[0], ranks[1]) and not np.array_equal(ranks[0], ranks[2])
    np.testing.assert_array_equal(calibration.ranks(origin, one), ranks[0])


def test_of_larger_sets_a_thousand_random_rows_are_taken(monkeypatch):
    pools, blocks = [], calibration.blocks
    record = lambda a, b: (pools.append(a), blocks(a, b))[1]  # noqa: E731
    monkeypatch.setattr(calibration, "blocks", record)
    monkeypatch.setattr(calibration, "PERMUTATIONS", 1)
    one, other = np.arange(1200.0)[:, None], -np.arange(1.0, 1001.0)[:, None]
    for seed in (0, 0, 1):
        calibration.energy_test(one, other, seed=seed)
    assert [len(pool) for pool in pools] == [2000] * 3
    first, again, different = (np.sort(pool[:1000, 0]) for pool in pools)
    assert len(set(first)) == 1000 and set(first) <= set(one[:, 0])
    assert set(pools[0][1000:, 0]) == set(other[:, 0])
    np.testing.assert_array_equal(first, again)
    assert 100 < len(set(first) - set(np.arange(1000.0))) < 200 and set(first) != set(different)


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
    with pytest.raises(UserError, match="5 samples per example have no central interval"):
        calibration.coverage(np.zeros((3, 2), int), num=5, level=0.0)  # 3 at each end
    assert calibration.coverage(np.full((3, 2), 2), num=4, level=0.0).expected == 1 / 5
    assert calibration.energy_test(TRUE[:2], TRUE[2:4]).p_value > 0
    with pytest.raises(UserError, match="at least 2 rows in each set"):
        calibration.energy_test(TRUE[:1], TRUE)
