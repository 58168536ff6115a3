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
        table = guidance_schedule.parse(kind, scale=3.0).table(101)
        np.testing.assert_allclose(table[[0, 50, 100]], expected)


@pytest.mark.parametrize("kind", guidance_schedule.KINDS)
def test_scale_one_is_no_guidance_whatever_the_kind(kind):
    schedule = GuidanceSchedule(1.0, kind, 0.2, 0.8)
    assert schedule.off
    np.testing.assert_array_equal(schedule.table(1000), 1.0)
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


@pytest.mark.parametrize("kind", ["constant", "rising", "falling"])
def test_scale_at_timesteps_is_that_of_the_table_and_between_two_of_them_linear(kind):
    schedule = GuidanceSchedule(3.0, kind)
    t, table = jnp.array([0, 100, 999]), schedule.table(1000)
    scale = jnp.broadcast_to(jnp.asarray(guidance.scale_at(schedule, t, num_timesteps=1000)), (3,))
    np.testing.assert_allclose(scale, table[t], rtol=1e-6)
    halfway = guidance.scale_at(schedule, jnp.array([100.5]), num_timesteps=1000)
    np.testing.assert_allclose(halfway, (table[100] + table[101]) / 2, rtol=1e-6)
