import dataclasses

import flax.linen as nn
import jax
import pytest

from tests.stages.test_captions import KARLO_DECODER, KARLO_PRIOR
from unclip_jax.core.checks import UserError
from unclip_jax.experiment import loading
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.planning import program, sampling
from unclip_jax.stages.decoder import DecoderStageConfig
from unclip_jax.stages.distillation import DistillConfig
from unclip_jax.stages.prior import PriorStageConfig
from unclip_jax.stages.registry import stage_entry


@pytest.mark.parametrize("condition", ["z_img", "z_txt"])
def test_a_decoder_samples_from_the_embedding_that_it_reads(condition):
    override = f"--config.model.condition={condition}"
    config = loading.read("experiments/decoder.py:tiny", overrides=[override]).model
    _, inputs = sampling.function("decoder", config, batch_size=2)
    assert inputs.keys() == {"tokens", "token_mask", condition, "keys"}
    assert inputs[condition].shape == (2, config.model.z_dim)


def output_shape(stage, config):
    """Returns the output shape of the sampling function of a plan, from shapes alone."""
    boxed = jax.eval_shape(stage_entry(stage).make(config).init, jax.random.key(0))
    params = nn.meta.unbox(boxed)
    draw, inputs = sampling.function(stage, config, batch_size=2)
    return jax.eval_shape(draw, params, inputs).shape


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(
    ("stage", "config", "shape"),
    [
        ("prior", PriorStageConfig(KARLO_PRIOR, drop_text=0.0), (2, 4)),
        ("decoder", DecoderStageConfig(KARLO_DECODER, drop_text=0.0), (2, 8, 8, 3)),
    ],
)
def test_stages_that_read_clip_s_features_are_given_them(stage, config, shape, scale):
    few = dataclasses.replace(config.sampling, guidance_scale=scale, steps="2")
    assert output_shape(stage, dataclasses.replace(config, sampling=few)) == shape


def test_a_prior_whose_variance_table_is_measured_later_can_be_planned_for():
    overrides = ["--config.model.sampling.variance=table"]
    config = loading.read("experiments/prior.py:tiny", overrides=overrides).model
    assert output_shape("prior", config) == (2, config.model.embed_dim)


def test_a_stage_that_generates_nothing_is_rejected():
    with pytest.raises(UserError, match="stage 'clip' generates nothing; use one of prior, "):
        sampling.function("clip", None, batch_size=2)


def test_a_student_is_planned_in_its_own_steps_without_guidance():
    """The teacher evaluates its network in 25 steps and twice per step, the student in 4."""
    override = "--config.model.sampling.guidance_scale=2"
    teacher = loading.read("experiments/decoder.py:tiny", overrides=[override])
    steps = dataclasses.replace(teacher.model.sampling, steps="25")
    model = dataclasses.replace(teacher.model, sampling=steps)
    teacher = dataclasses.replace(teacher, model=model)
    student = dataclasses.replace(teacher, distill=DistillConfig(steps=4), init_from="teacher")
    mesh = make_mesh(MeshConfig(), devices=jax.local_devices()[:1])
    before, after = (
        program.sample(each, mesh=mesh, batch_size=1).model_flops for each in (teacher, student)
    )
    assert 9 < before / after <= 12.5  # the caption is encoded once by both
