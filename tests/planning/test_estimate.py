"""The roofline by hand, and what follows from it."""

import dataclasses

import pytest

from unclip_jax.planning import chips
from unclip_jax.planning.chips import CHIPS
from unclip_jax.planning.estimate import DAY, Times, estimate, highest, times
from unclip_jax.planning.work import Work

CHIP = dataclasses.replace(
    CHIPS["v5e"], flops=100.0, hbm_bandwidth=10.0, link=1.0, axes=2, clock=50.0
)
WORK = Work(flops=300.0, bytes=20.0, cycles=500.0, hidden=())


def test_every_resource_has_its_time_and_the_longest_binds():
    result = times(WORK, traced_flops=250.0, collective_bytes=8.0, chip=CHIP)
    assert result == Times(compute=3.0, memory=2.0, interconnect=2.0)
    assert (result.binds, result.lowest) == ("compute", 3.0)
    hidden = times(WORK, traced_flops=900.0, collective_bytes=8.0, chip=CHIP)
    assert hidden.compute == 9.0  # products inside calls of the compiler's own


def test_nothing_overlaps_in_the_pessimist_s_step():
    assert highest(WORK, collective_bytes=8.0, chip=CHIP) == 500 / 50 + 8 / 2
    assert highest(WORK._replace(cycles=None), collective_bytes=8.0, chip=CHIP) is None


def test_what_follows_from_an_interval():
    roofline = Times(compute=3.0, memory=2.0, interconnect=2.0)
    result = estimate(
        roofline, 6.0, model_flops=1600.0, examples=60, calls=1000, chips=8, chip=CHIP
    )
    assert result.step == (3.0, 6.0)
    assert result.mfu == pytest.approx((2 / 6, 2 / 3))  # 200 FLOPs per chip take 2 s at the peak
    assert result.rate == (10.0, 20.0)
    assert result.days == (3000 / DAY, 6000 / DAY)
    assert result.chip_hours == pytest.approx((8 * 3000 / 3600, 8 * 6000 / 3600))


def test_without_an_upper_bound_there_is_none():
    result = estimate(
        Times(1.0, 1.0, 1.0), None, model_flops=8.0, examples=1, calls=None, chips=8, chip=CHIP
    )
    assert (result.step, result.mfu[0], result.days) == ((1.0, None), None, None)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("cpu", None),
    ],
)
def test_devices_are_recognised_by_the_longest_name(kind: str, name: str | None):
    result = chips.of_kind(kind)
    assert (result.name if result else None) == name


def test_links_along_one_dimension_and_all_of_them():
    assert (CHIPS["v5p"].one_axis, CHIPS["v5p"].all_axes) == (200e9, 600e9)
