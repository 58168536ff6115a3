import math

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.metrics.intervals import bootstrap, bootstrap_ratio, bootstrap_statistic, wilson


@pytest.mark.parametrize(("hits", "total"), [(1, 2), (90, 100), (3, 7), (500, 501)])
@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.959963985), (0.6826894921, 1.0)])
def test_ends_solve_the_score_equation(hits, total, confidence, z):
    rate = wilson(hits, total, confidence=confidence)
    share = hits / total
    assert rate.low < share < rate.high and rate.value == share
    for end in (rate.low, rate.high):
        assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / total), rel=1e-6)


def test_extremes_in_closed_form():
    z2 = 1.959963985**2
    none, all_ = wilson(0, 20), wilson(20, 20)
    assert none.low == 0 and none.high == pytest.approx(z2 / (20 + z2))
    assert all_.high == 1 and all_.low == pytest.approx(20 / (20 + z2))


def test_no_trials_give_the_whole_interval():
    rate = wilson(0, 0)
    assert math.isnan(rate.value) and (rate.low, rate.high) == (0, 1)
    assert str(rate) == "not applicable"
    assert str(wilson(90, 100)) == "0.900 [0.826, 0.945] of 100"


def test_bad_counts():
    with pytest.raises(UserError, match="hits is 3"):
        wilson(3, 2)
    with pytest.raises(UserError, match="confidence is 1.0"):
        wilson(1, 2, confidence=1.0)


def test_bootstrap_of_many_values_is_the_normal_interval():
    values = np.random.default_rng(0).normal(loc=2.0, scale=3.0, size=2000)
    result = bootstrap(values)
    half = 1.959963985 * values.std() / math.sqrt(2000)
    assert result.value == values.mean() and result.total == 2000
    assert result.low == pytest.approx(result.value - half, abs=0.1 * half)
    assert result.high == pytest.approx(result.value + half, abs=0.1 * half)
    assert bootstrap(values) == result


def test_bootstrap_of_equal_values_is_a_point_and_of_none_an_error():
    result = bootstrap(np.full(5, 0.25))
    assert (result.value, result.low, result.high) == (0.25, 0.25, 0.25)
    with pytest.raises(UserError, match="a mean of no values"):
        bootstrap(np.zeros(0))


def test_bootstrap_of_a_statistic_covers_its_value():
    """A 90 % interval of a median covers the median of the population in about 90 % of samples."""
    hits = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(size=60)
        interval = bootstrap_statistic(
            lambda rows, v=values: float(np.median(v[rows])), 60, confidence=0.9, resamples=200
        )
        hits += interval.low <= 0.0 <= interval.high
    assert 0.83 < hits / 200 < 0.97


def test_an_interval_is_of_two_thousand_resamples_of_all_units():
    resamples = []

    def mean(rows):
        resamples.append(rows)
        return float(values[rows].mean())

    values = np.random.default_rng(0).exponential(size=40)
    interval = bootstrap_statistic(mean, 40)
    assert len(resamples) == 1 + 2000 and {len(rows) for rows in resamples} == {40}
    assert resamples[0].tolist() == list(range(40))
    counts = np.bincount(np.concatenate(resamples[1:]), minlength=40)
    assert len(counts) == 40 and np.abs(counts / 2000 - 1).max() < 5 / math.sqrt(2000)
    assert bootstrap(values)[1:] == interval
    means = [values[rows].mean() for rows in resamples[1:]]
    assert interval[1:] == tuple(np.quantile(means, [0.025, 0.975]))
    quarter = bootstrap_statistic(mean, 40, confidence=0.5)
    assert quarter[1:] == tuple(np.quantile(means, [0.25, 0.75]))


def test_resamples_without_a_finite_value_are_left_out():
    def skewed(rows):  # not defined where the first unit is missing
        return float(np.sum(rows == 0)) if 0 in rows else math.nan

    interval = bootstrap_statistic(skewed, 10, confidence=0.99)
    assert interval.value == 1 and interval.low == 1 and 3 < interval.high < 7
    everything = bootstrap_statistic(lambda rows: math.inf if len(set(rows)) < 10 else 1.0, 10)
    assert all(math.isnan(x) for x in everything)


def test_basic_interval_reflects_the_quantiles_about_the_value():
    values = np.random.default_rng(0).exponential(size=40)

    def mean(rows):
        return float(values[rows].mean())

    plain, basic = (bootstrap_statistic(mean, 40, basic=basic) for basic in (False, True))
    assert basic.low == pytest.approx(2 * plain.value - plain.high)
    assert basic.high == pytest.approx(2 * plain.value - plain.low)


def test_statistic_without_a_finite_value_has_no_interval():
    assert all(math.isnan(x) for x in bootstrap_statistic(lambda rows: math.nan, 10))


def test_interval_of_a_ratio_resamples_units_with_their_wholes():
    """Against resampling one by one, with random numbers of its own."""
    generator = np.random.default_rng(1)
    wholes = generator.integers(1, 9, size=30).astype(float)
    parts = generator.binomial(wholes.astype(int), 0.3).astype(float)
    interval = bootstrap_ratio(parts, wholes)
    assert interval.value == parts.sum() / wholes.sum() != (parts / wholes).mean()
    ratios = []
    for _ in range(4000):
        rows = generator.integers(30, size=30)
        ratios.append(sum(parts[i] for i in rows) / sum(wholes[i] for i in rows))
    assert interval.low == pytest.approx(np.quantile(ratios, 0.025), abs=0.01)
    assert interval.high == pytest.approx(np.quantile(ratios, 0.975), abs=0.01)
    quarter = bootstrap_ratio(parts, wholes, confidence=0.5)
    assert quarter.low == pytest.approx(np.quantile(ratios, 0.25), abs=0.01)
    assert quarter == bootstrap_ratio(parts, wholes, confidence=0.5)


def test_interval_of_a_ratio_over_no_units_or_of_no_confidence_is_rejected():
    with pytest.raises(UserError, match="a ratio over no units has no interval; give at least"):
        bootstrap_ratio(np.zeros(0), np.zeros(0))
    with pytest.raises(UserError, match="confidence is 1.0"):
        bootstrap_ratio(np.ones(2), np.ones(2), confidence=1.0)
