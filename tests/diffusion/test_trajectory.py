import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiler import THOROUGH
from tests.diffusion.gaussians import FULL, exact_denoiser
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import samplers, trajectory
from unclip_jax.diffusion.respace import respace, timesteps

KEYS = rng.per_example(jax.random.key(0), jnp.arange(3))
X_T = rng.normal_each(KEYS, (4,))
SHORT = respace(FULL, timesteps=timesteps("10", num_timesteps=1000))
DENOISE = exact_denoiser(0.3, 0.5)
RULE = samplers.ancestral("small")


def whole():
    return samplers.sample(DENOISE, X_T, schedule=SHORT, step=RULE, keys=KEYS)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_previews_change_no_sample_and_end_in_the_last_prediction(count):
    x_0, seen = trajectory.sample_with_previews(
        DENOISE, X_T, schedule=SHORT, step=RULE, keys=KEYS, count=count
    )
    np.testing.assert_allclose(x_0, whole(), atol=1e-6)
    assert seen.shape == (count, *X_T.shape)
    np.testing.assert_allclose(seen[-1], x_0, atol=1e-6)  # no noise on the last step


def test_a_preview_of_every_step_is_what_the_denoiser_said_there():
    said = []

    def denoise(x_t, t):
        pred = DENOISE(x_t, t)
        jax.debug.callback(lambda x_0: said.append(np.asarray(x_0)), pred.x_0, ordered=True)
        return pred

    def run(x_T):
        options = {"schedule": SHORT, "step": RULE, "keys": KEYS, "count": 10}
        return trajectory.sample_with_previews(denoise, x_T, **options)

    _, seen = jax.jit(run, compiler_options=THOROUGH)(X_T)
    jax.block_until_ready(seen)
    jax.effects_barrier()
    np.testing.assert_array_equal(seen, np.stack(said))


@pytest.mark.parametrize("count", [1, 4, 10])
def test_parts_walked_in_turn_are_the_whole(count):
    x_t = X_T
    cut = trajectory.parts(samplers.step_inputs(SHORT), count)
    assert [len(part.t) for part in cut] == np.bincount(
        trajectory.preview_slots(10, count)
    ).tolist()
    for part in cut:
        x_t, _ = trajectory.walk(DENOISE, x_t, inputs=part, step=RULE, keys=KEYS)
    np.testing.assert_allclose(x_t, whole(), atol=1e-6)


def test_more_previews_than_steps_are_refused():
    with pytest.raises(UserError, match=r"number of previews is 11; it must lie in \[1, 10\]"):
        trajectory.sample_with_previews(
            DENOISE, X_T, schedule=SHORT, step=RULE, keys=KEYS, count=11
        )
