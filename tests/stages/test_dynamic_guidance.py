"""Every stage that can be guided samples with a scale that is data of the compiled program."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from tests.stages import tiny
from unclip_jax.core import dynamic_fields
from unclip_jax.core.checks import UserError
from unclip_jax.planning import sampling
from unclip_jax.stages import registry

CASES = {
    **dict.fromkeys(registry.run_folders(), ()),
    "glide": (),
    "imagen_sr256": (),
}
# Stages without a scale, or whose tiny size is trained without drops.
NEVER = {"clip", "dvae", "text_encoder", "classifier", "upsampler_256", "upsampler_1024"}


def guided_config(name):
    """The tiny config of an experiment with guidance, or None."""
    config = tiny.experiment(name).model
    own = getattr(config, "sampling", None)
    if not hasattr(own, "guidance_scale"):
        return None
    try:
        return dataclasses.replace(config, sampling=dataclasses.replace(own, guidance_scale=3.0))
    except UserError:  # no drops
        return None


@pytest.mark.parametrize("name", CASES)
def test_a_stage_is_sampled_with_a_scale_that_is_not_known_when_it_is_traced(name):
    config = guided_config(name)
    assert (config is None) == (name in NEVER), name
    if config is None:
        return
    stage = tiny.experiment(name).stage
    params = tiny.abstract(tiny.experiment(name).build_stage())
    static, numbers = dynamic_fields.split(config)
    assert 3.0 in numbers
    _, shapes = sampling.function(stage, config, batch_size=2)

    def run(numbers, params, inputs):
        full_config = dynamic_fields.join(static, numbers)
        return sampling.function(stage, full_config, batch_size=2)[0](params, inputs)

    traced = jax.eval_shape(run, tuple(jnp.asarray(n) for n in numbers), params, shapes)
    constant = jax.eval_shape(sampling.function(stage, config, batch_size=2)[0], params, shapes)
    assert traced.shape == constant.shape
