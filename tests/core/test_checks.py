import pytest

from unclip_jax.core import checks
from unclip_jax.core.checks import UserError


def test_a_near_miss_is_suggested():
    with pytest.raises(UserError, match="unknown schedule 'cosin'. Did you mean 'cosine'"):
        checks.one_of("schedule", "cosin", ["cosine", "linear"])


def test_without_a_near_miss_all_choices_are_listed():
    with pytest.raises(UserError, match="Known: cosine, linear"):
        checks.one_of("schedule", "zzz", ["linear", "cosine"])


def test_bounds_are_inclusive():
    assert checks.in_range("eta", 0.0, 0.0, 1.0) == 0.0
    assert checks.in_range("eta", 1.0, 0.0, 1.0) == 1.0
    with pytest.raises(UserError, match=r"eta is 1.5; it must lie in \[0.0, 1.0\]"):
        checks.in_range("eta", 1.5, 0.0, 1.0)


def test_nan_is_never_in_range_or_positive():
    with pytest.raises(UserError):
        checks.in_range("eta", float("nan"), 0.0, 1.0)
    with pytest.raises(UserError):
        checks.positive("rate", float("nan"))


def test_divisible_ends_with_its_advice():
    with pytest.raises(UserError, match="batch is 10, which 4 does not divide; give 8 or 12"):
        checks.divisible("batch", 10, 4, "give 8 or 12")
    assert checks.divisible("batch", 12, 4, "") == 12
