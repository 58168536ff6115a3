"""Moments of parts of rows add up to those of all."""

import json

import numpy as np
import pytest

from unclip_jax.data.embedding_stats import PartialMoments, total

ROWS = (np.random.default_rng(0).normal(size=(11, 3)) * [1, 5, 0.1] + [0, 100, -3]).astype(
    np.float32
)


def assert_equal(one: PartialMoments, other: PartialMoments) -> None:
    assert one.count == other.count
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12)
    np.testing.assert_allclose(one.squares, other.squares, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_moments_are_of_every_dimension_and_of_the_length(dtype):
    rows = ROWS.astype(dtype)
    result, exact = PartialMoments.of(rows), rows.astype(np.float64)
    values = np.column_stack([exact, np.linalg.norm(exact, axis=1)])
    assert result.count == 11 and result.mean.dtype == result.squares.dtype == np.float64
    np.testing.assert_allclose(result.mean, values.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(result.squares, 11 * values.var(axis=0), rtol=1e-10)


@pytest.mark.parametrize("split", range(12))
def test_two_parts_are_the_whole_of_any_size(split: int):
    """Also where one of them has no rows."""
    parts = PartialMoments.of(ROWS[:split]), PartialMoments.of(ROWS[split:])
    assert_equal(parts[0] + parts[1], PartialMoments.of(ROWS))
    assert_equal(parts[1] + parts[0], PartialMoments.of(ROWS))


def test_no_rows_have_no_moments():
    none = PartialMoments.of(ROWS[:0])
    both = none + none
    for each in (none, both):
        assert each.count == 0 and not each.mean.any() and not each.squares.any()
        assert each.stats().count == 0 and not each.stats().std.any()


def test_parts_are_added_in_any_number():
    assert_equal(
        total(PartialMoments.of(ROWS[i : i + 1]) for i in range(11)), PartialMoments.of(ROWS)
    )
    assert_equal(total([PartialMoments.of(ROWS)]), PartialMoments.of(ROWS))
    with pytest.raises(ValueError, match="no moments to add"):
        total([])


def test_statistics_are_of_the_population():
    stats = PartialMoments.of(ROWS).stats()
    exact = ROWS.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    np.testing.assert_allclose(stats.mean, exact.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(stats.std, exact.std(axis=0), rtol=1e-10)
    np.testing.assert_allclose([stats.norm_mean, stats.norm_std], [norms.mean(), norms.std()])
    one = PartialMoments.of(ROWS[:1]).stats()
    assert not one.std.any() and one.norm_std == 0
    record = json.loads(json.dumps(stats.to_json()))
    assert record == {
        "count": 11,
        "mean": stats.mean.tolist(),
        "std": stats.std.tolist(),
        "norm_mean": stats.norm_mean,
        "norm_std": stats.norm_std,
    }


def test_moments_come_back_from_json_bit_for_bit():
    moments = PartialMoments.of(ROWS)
    again = PartialMoments.from_json(json.loads(json.dumps(moments.to_json())))
    assert again.count == 11
    np.testing.assert_array_equal(again.mean, moments.mean)
    np.testing.assert_array_equal(again.squares, moments.squares)
    with pytest.raises(LookupError):
        PartialMoments.from_json({"count": 1, "mean": [0.0]})
