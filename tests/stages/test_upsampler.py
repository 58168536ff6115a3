import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.stages import upsampler


@pytest.fixture(scope="module")
def made():
    cfg = tiny.experiment("upsampler_256").model
    return cfg, tiny.init(upsampler.make(cfg))


def test_a_fresh_residual_upsampler_is_bilinear_enlargement(made):
    cfg, params = made
    low_res = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-0.9, maxval=0.9)
    keys = rng.per_example(jax.random.key(1), jnp.arange(2))
    drawn = upsampler.sample(cfg, params, low_res=low_res, keys=keys)
    expected = jax.image.resize(low_res, (2, 16, 16, 3), "bilinear")
    np.testing.assert_allclose(drawn, expected, atol=1e-5)


def test_parameters_trained_on_crops_run_at_any_size(made):
    cfg, params = made
    for side in (8, 16, 24):
        low_res = jnp.zeros((1, side, side, 3))
        keys = rng.per_example(jax.random.key(0), jnp.arange(1))
        assert upsampler.sample(cfg, params, low_res=low_res, keys=keys).shape[1] == 2 * side


def test_what_cannot_be_trained_is_refused(made):
    cfg, _ = made
    with pytest.raises(UserError, match="crop is 64, larger than the image .32."):
        dataclasses.replace(cfg, crop=64)
    with pytest.raises(UserError, match="crop is 15, which 2 does not divide"):
        dataclasses.replace(cfg, crop=15)
    eps = dataclasses.replace(cfg.diffusion, target="eps")
    with pytest.raises(UserError, match="residual needs diffusion.target 'x_0', not 'eps'"):
        dataclasses.replace(cfg, diffusion=eps)
