import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unclip_jax.training.state import averaged, create, warmed_decay


@pytest.mark.parametrize(
    ("step", "decay", "expected"),
    [(0, 0.999, 1 / 10), (9, 0.999, 10 / 19), (8990, 0.999, 8991 / 9000), (8991, 0.999, 0.999)],
)
def test_decay_is_warmed_up(step: int, decay: float, expected: float):
    np.testing.assert_allclose(warmed_decay(jnp.int32(step), decay), expected, rtol=1e-6)


def test_average_by_hand():
    got = averaged(
        {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 2.0])}, decay=jnp.array(0.75)
    )
    np.testing.assert_allclose(got["w"], [1.5, 2.0])


def test_a_fresh_state_averages_its_own_parameters():
    state = create({"w": jnp.arange(3.0)}, optax.sgd(1.0))
    np.testing.assert_array_equal(state.ema_params["w"], state.params["w"])
    assert state.step == 0 and state.bad_steps == 0 and state.step.dtype == jnp.int32
