"""The objective that diffusion stages share: thresholds that leave a prediction consistent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.solvers import SOLVERS
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion.process import Prediction, q_sample
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig

CFG = DiffusionConfig()
X_T = jax.random.normal(jax.random.key(0), (3, 4, 4, 3))
T = jnp.array([10, 500, 990])


def wild(x_t, t):
    """x_0 far outside [-1, 1] in the first and second image, inside in the third."""
    level = CFG.chain().level(t, ndim=4)
    x_0 = x_t * jnp.array([5.0, 2.0, 0.1])[:, None, None, None]
    return Prediction(x_0, (x_t - level.signal * x_0) / level.noise, jnp.full_like(x_t, 0.25))


@pytest.mark.parametrize("threshold", ["static", "dynamic"])
def test_a_threshold_bounds_x_0_and_keeps_x_t_and_the_variance(threshold):
    pred = gaussian.thresholded(wild, CFG, SamplingConfig(threshold=threshold))(X_T, T)
    assert np.abs(pred.x_0).max() <= 1.0
    assert np.abs(pred.x_0[:2]).max() == 1.0
    x_t = q_sample(pred.x_0, pred.eps, alpha_bar=CFG.chain().level(T, ndim=4))
    np.testing.assert_allclose(x_t, X_T, atol=1e-5)
    np.testing.assert_array_equal(pred.var_frac, 0.25)


def test_a_dynamic_threshold_scales_where_a_static_one_saturates():
    static, dynamic = (
        gaussian.thresholded(wild, CFG, SamplingConfig(threshold=name))(X_T, T).x_0
        for name in ("static", "dynamic")
    )
    saturated = [np.mean(np.abs(x_0[0]) == 1.0) for x_0 in (static, dynamic)]
    assert saturated[1] < 0.1 < saturated[0]
    np.testing.assert_array_equal(static[2], dynamic[2])  # in range: neither has anything to do


def test_no_threshold_is_the_denoiser_itself():
    assert gaussian.thresholded(wild, CFG, SamplingConfig()) is wild


@pytest.mark.parametrize("sampler", SOLVERS)
def test_every_sampler_ends_in_the_x_0_of_a_denoiser_that_knows_it(sampler):
    x_0 = jnp.tanh(X_T)

    def knows(x_t, t):
        level = CFG.chain().level(t, ndim=4)
        return Prediction(x_0, (x_t - level.signal * x_0) / level.noise)

    keys = rng.per_example(jax.random.key(1), jnp.arange(3))
    samples = gaussian.run(
        knows,
        shape=(4, 4, 3),
        keys=keys,
        diffusion=CFG,
        sampling=SamplingConfig(steps="4", sampler=sampler),
    )
    np.testing.assert_allclose(samples, x_0, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sampler": "dpmpp_2"}, "unknown sampler 'dpmpp_2'. Did you mean 'dpmpp_2m'"),
        ({"variance": "tabel"}, "unknown sampling.variance 'tabel'. Did you mean 'table'"),
        ({"threshold": "dynamc"}, "unknown sampling.threshold 'dynamc'. Did you mean 'dynamic'"),
    ],
)
def test_misspelt_settings_get_a_suggestion(setting, message):
    with pytest.raises(UserError, match=message):
        SamplingConfig(**setting)
