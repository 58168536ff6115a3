import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import guidance, guidance_schedule
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule


def test_the_ends_and_the_middle_of_every_kind():
    # index 0 has least noise: the end of sampling
    for kind, expected in {
        "constant": [3, 3, 3],
        "rising": [3, 2, 1],
        "falling": [1, 2, 3],
        "interval:0.4:0.6": [1, 3, 1],
    }.items():
        schedule = guidance_schedule.parse(kind, scale=3.0)
        scale = guidance.scale_at(schedule, jnp.array([0, 50, 100]), num_timesteps=101)
        np.testing.assert_allclose(np.broadcast_to(scale, 3), expected, rtol=1e-6)


def test_the_ends_of_the_shortest_chains():
    rising, falling = (guidance_schedule.parse(kind, scale=3.0) for kind in ("rising", "falling"))
    assert rising.share(2).tolist() == [1.0, 0.0] and falling.share(2).tolist() == [0.0, 1.0]
    assert rising.share(1).tolist() == [1.0]


@pytest.mark.parametrize("kind", guidance_schedule.KINDS)
def test_scale_one_is_no_guidance_whatever_the_kind(kind):
    schedule = GuidanceSchedule(1.0, kind, 0.2, 0.8)
    assert schedule.off
    scale = guidance.scale_at(schedule, jnp.arange(1000), num_timesteps=1000)
    np.testing.assert_array_equal(scale, 1.0)
    assert not GuidanceSchedule(1.5, kind).off


@pytest.mark.parametrize(
    ("text", "scale", "message"),
    [
        ("risng", 2.0, "unknown guidance schedule 'risng'. Did you mean 'rising'"),
        ("interval:a:b", 2.0, "guidance schedule 'interval:a:b' not understood"),
        ("interval:0.2", 2.0, "give constant, rising, falling or interval:LOW:HIGH"),
        ("rising:0.2:0.4", 2.0, "guidance schedule 'rising:0.2:0.4' not understood"),
        ("interval:0.8:0.2", 2.0, r"schedule's end is 0.2; it must lie in \[0.8, 1.0\]"),
        ("interval:-1:0.2", 2.0, r"schedule's begin is -1.0; it must lie in \[0.0, 1.0\]"),
        ("constant", -1.0, "guidance scale is -1.0"),
    ],
)
def test_mistakes_are_rejected(text, scale, message):
    with pytest.raises(UserError, match=message):
        guidance_schedule.parse(text, scale=scale)


@pytest.mark.parametrize("kind", ["rising", "falling"])
def test_the_scale_between_two_timesteps_is_linear(kind):
    schedule = GuidanceSchedule(3.0, kind)
    low, middle, high = guidance.scale_at(
        schedule, jnp.array([100.0, 100.5, 101.0]), num_timesteps=1000
    )
    assert low != high
    np.testing.assert_allclose(middle, (low + high) / 2, rtol=1e-6)
    assert guidance.scale_at(GuidanceSchedule(3.0), jnp.array([7.5]), num_timesteps=9) == 3.0


@pytest.mark.parametrize("kind", guidance_schedule.KINDS)
def test_a_scale_that_is_data_follows_the_same_schedule(kind):
    schedule, t = GuidanceSchedule(3.0, kind, 0.2, 0.8), jnp.arange(10)

    @jax.jit
    def scale_at(scale):
        traced = dataclasses.replace(schedule, scale=scale)
        assert not traced.off
        return guidance.scale_at(traced, t, num_timesteps=10)

    expected = guidance.scale_at(schedule, t, num_timesteps=10)
    np.testing.assert_allclose(scale_at(3.0), expected, rtol=1e-6)
