"""Distillation of every stage that diffuses: its loss, its config, and how it may be sampled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from tests.stages import tiny
from unclip_jax.conditioning import captions
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.experiment import files
from unclip_jax.experiment.config import from_config
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.stages import decoder, distillation, registry
from unclip_jax.stages.decoder import Condition
from unclip_jax.stages.distillation import DistillConfig

FOLDERS = [name for name, entry in registry.run_folders().items() if entry.denoiser]
ENTRY = registry.folder_entry("decoder")
ONE = DistillConfig(steps=4, substeps=1, guidance_scale=1.0)


def case(folder, distill=ONE, **changes):
    """A student, parameters of a teacher, and a batch."""
    entry = registry.folder_entry(folder)
    model = cascades.small(tiny.experiment(folder).model)
    stage = distillation.make(entry, dataclasses.replace(model, **changes), distill)
    batch = jax.tree.map(jnp.asarray, tiny.random_batch(stage, 4))
    return stage, tiny.random_params(entry.make(model)), batch


def unthresholded(folder):
    sampling = tiny.experiment(folder).model.sampling
    return {"sampling": dataclasses.replace(sampling, threshold="none")}


def shift_params(params, by):
    """Parameters of a student that has been trained, but for those that are fitted."""
    names = [name for name in params if name != "fitted"]
    return {**params, **{n: jax.tree.map(lambda x: x * (1 + by), params[n]) for n in names}}


def test_the_stages_that_diffuse_are_distilled():
    assert {registry.folder_entry(name).name for name in FOLDERS} == {
        *("prior", "embedding_prior", "decoder", "text_base", "upsampler")
    }


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f != "upsampler_1024"])
def test_a_teacher_is_its_own_student_of_as_many_steps(folder):
    """With one substep and no guidance the target is the teacher's own x_0."""
    stage, params, batch = case(folder, **unthresholded(folder))
    run = jax.jit(stage.loss)
    same, other = (
        run(student, batch, jax.random.key(0), params)[0]
        for student in (params, shift_params(params, 0.1))
    )
    assert same < 1e-6 * other


@pytest.mark.parametrize("folder", ["prior", "embedding_prior"])
def test_the_teacher_gets_no_gradient(folder):
    stage, params, batch = case(folder)

    def loss(student, teacher):
        return stage.loss(student, batch, jax.random.key(0), teacher)[0]

    run = jax.jit(jax.grad(loss, argnums=(0, 1)))
    to_student, to_teacher = run(shift_params(params, 0.1), params)
    assert not any(np.any(x) for x in jax.tree.leaves(to_teacher))
    assert any(np.any(x) for x in jax.tree.leaves(to_student))


def decoder_case(**settings):
    return case("decoder", DistillConfig(**{"steps": 4, "substeps": 1, **settings}))


def test_guidance_of_the_teacher_is_learned():
    losses = []
    for scale in (1.0, 3.0):
        stage, params, batch = decoder_case(guidance_scale=scale)
        losses.append(jax.jit(stage.loss)(params, batch, jax.random.key(0), params)[0])
    assert losses[1] > 100 * losses[0] + 1e-4


GUIDED = ("prior", "decoder", "imagen_base", "embedding_prior")  # with drops, so with a null


@pytest.mark.parametrize("folder", GUIDED)
def test_guidance_reaches_the_denoiser_of_every_stage(folder):
    _, params, batch = case(folder)
    entry = registry.folder_entry(folder)
    cfg = cascades.small(tiny.experiment(folder).model)
    keys, conditions = jax.random.split(jax.random.key(0), 4), captions.conditions(batch)
    x = jax.random.normal(jax.random.key(1), entry.latent(cfg, params, batch).shape)
    t = jnp.array([900, 600, 300, 10])

    def predict(scale):
        return entry.denoiser(cfg, params, conditions, keys=keys, scale=scale)(x, t).x_0

    none, once, twice = (jax.jit(predict)(scale) for scale in (1.0, 2.0, 3.0))
    change = np.abs(once - none).max()
    assert change > 1e-4  # x_0 is linear in the scale
    np.testing.assert_allclose(twice - once, once - none, atol=0.02 * change)


def test_the_schedule_of_guidance_of_a_student_is_rejected():
    cfg = student(DECODER, guidance_scale=1.5)
    condition = Condition(jnp.ones((1, cfg.model.z_dim)), None)
    with pytest.raises(UserError, match=r"guidance_scale is 2, but .* with guidance 1.5"):
        decoder.denoiser(cfg, {}, condition, schedule=GuidanceSchedule(2.0))


def test_guidance_that_is_part_of_the_teacher_is_not_applied_again():
    """A teacher that was distilled to these steps is its own student in the next round."""
    model = cascades.small(DECODER)
    model = dataclasses.replace(
        model, sampling=dataclasses.replace(model.sampling, threshold="none", guidance_scale=3.0)
    )
    first = student(model, steps=4)
    stage, entry = distillation.make(ENTRY, first, DistillConfig(substeps=1)), ENTRY
    params, batch = tiny.random_params(entry.make(model)), tiny.random_batch(stage, 4)
    run = jax.jit(stage.loss)
    same, other = (
        run(each, batch, jax.random.key(0), params)[0]
        for each in (params, shift_params(params, 0.1))
    )
    assert same < 1e-6 * other


def test_the_teacher_is_thresholded_as_when_it_samples():
    stage, params, batch = case("decoder")  # whose x_0 are clipped at 1
    free, *_ = case("decoder", **unthresholded("decoder"))
    clipped, plain = (
        jax.jit(each.loss)(params, batch, jax.random.key(0), params)[0] for each in (stage, free)
    )
    assert clipped > 1e3 * plain


@pytest.mark.parametrize("method", ["progressive", "consistency"])
def test_conditions_reach_the_student_and_the_teacher(method):
    stage, params, batch = decoder_case(method=method, guidance_scale=1.0)
    run = jax.jit(stage.loss)
    losses = {
        float(run(shift_params(params, 0.1), {**batch, **change}, jax.random.key(0), params)[0])
        for change in ({}, {"z_img": batch["z_img"][::-1]}, {"tokens": batch["tokens"][::-1]})
    }
    assert len(losses) == 3


def test_an_evaluation_compares_samples_of_the_same_noise():
    stage, params, batch = case("prior", DistillConfig(steps=2, substeps=2, guidance_scale=1.0))
    run = jax.jit(stage.evaluate)
    same = run(params, batch, jax.random.key(0), params)
    np.testing.assert_allclose(same["sample_error"], same["plain_error"], rtol=1e-4)
    other = run(shift_params(params, 0.3), batch, jax.random.key(0), params)
    assert other["plain_error"] == same["plain_error"] > 0
    assert abs(other["sample_error"] / same["sample_error"] - 1) > 0.05


def student(teacher, **settings):
    return distillation.student_config(teacher, DistillConfig(**settings))


DECODER = tiny.experiment("decoder").model
EPS = dataclasses.replace(DECODER, diffusion=dataclasses.replace(DECODER.diffusion, target="eps"))


def test_a_student_samples_in_its_steps_without_guidance_of_its_own():
    guided = dataclasses.replace(
        DECODER, sampling=dataclasses.replace(DECODER.sampling, guidance_scale=2.5)
    )
    cfg = student(guided, steps=8)
    assert cfg.diffusion.distillation == gaussian.Distillation("progressive", 8, 2.5)
    assert (cfg.sampling.steps, cfg.sampling.sampler) == ("trailing8", "ddim")
    assert (cfg.sampling.guidance_scale, cfg.sampling.eta) == (1.0, 0.0)
    assert cfg.sampling.threshold == DECODER.sampling.threshold
    cfg = student(guided, steps=32, method="consistency", guidance_scale=1.5)
    assert cfg.diffusion.distillation == gaussian.Distillation("consistency", 32, 1.5)
    assert (cfg.sampling.steps, cfg.sampling.sampler) == ("trailing4", "consistency")


@pytest.mark.parametrize(
    ("teacher", "setting", "target"),
    [(DECODER, "", DECODER.diffusion.target), (EPS, "", "v"), (EPS, "eps", "eps")],
)
def test_a_student_does_not_predict_eps_unless_asked(teacher, setting, target):
    assert student(teacher, target=setting).diffusion.target == target


def test_rounds_follow_each_other_and_keep_the_first_guidance():
    first = student(DECODER, steps=16, substeps=2, guidance_scale=3.0)
    second = student(first, steps=8, substeps=2)
    assert second.diffusion.distillation == gaussian.Distillation("progressive", 8, 3.0)
    with pytest.raises(UserError, match="distilled to 16 steps.*steps is 4 and .*substeps 2"):
        student(first, steps=4, substeps=2)
    with pytest.raises(UserError, match=r"guidance_scale is 2, but .* guidance 3 as part"):
        student(first, steps=8, substeps=2, guidance_scale=2.0)
    with pytest.raises(UserError, match="the teacher is a consistency model"):
        student(student(DECODER, method="consistency", steps=8), steps=4, substeps=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_scale": 2.0}, "guidance_scale is 2, but .* with guidance 1.5 .*; use 1.0"),
        ({"steps": "25"}, "sampling.steps is '25', but .* to 4 steps; use 'trailing4'"),
        ({"sampler": "ancestral"}, "sampler is 'ancestral', but .* for 'ddim'; use that"),
        ({"eta": 0.5}, "sampling.eta is not 0, but this model was distilled for steps without"),
    ],
)
def test_a_student_is_sampled_in_its_own_way_alone(change, message):
    cfg = student(DECODER, steps=4, guidance_scale=1.5)
    with pytest.raises(UserError, match=message):
        dataclasses.replace(cfg, sampling=dataclasses.replace(cfg.sampling, **change))


def test_consistency_models_take_any_number_of_steps_and_others_no_such_sampler():
    cfg = student(DECODER, steps=32, method="consistency")
    one = dataclasses.replace(cfg.sampling, steps="trailing1")
    assert dataclasses.replace(cfg, sampling=one).sampling.steps == "trailing1"
    with pytest.raises(UserError, match="sampler is 'consistency', but this model was not"):
        gaussian.solver_and_plan(DECODER.diffusion, SamplingConfig(sampler="consistency"))


@pytest.mark.parametrize("folder", ["clip", "prior_ar", "dalle", "dvae"])
def test_stages_that_do_not_diffuse_are_rejected(folder):
    model = tiny.experiment(folder).model
    with pytest.raises(UserError, match="config.distill is set, but stage .* does not diffuse"):
        distillation.make(registry.folder_entry(folder), model, ONE)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "progresive"}, "unknown config.distill.method 'progresive'. Did you mean"),
        ({"steps": 0}, "config.distill.steps is 0"),
        ({"substeps": 0}, "config.distill.substeps is 0"),
        ({"target": "noise"}, "unknown config.distill.target 'noise'"),
    ],
)
def test_impossible_settings_are_rejected(setting, message):
    with pytest.raises(UserError, match=message):
        DistillConfig(**setting)


def test_a_second_network_for_the_last_step_is_rejected():
    model = dataclasses.replace(tiny.experiment("upsampler_256").model, last_step=True)
    stage = distillation.make(registry.folder_entry("upsampler_256"), model, ONE)
    params, batch = tiny.abstract(stage), tiny.random_batch(stage, 2)
    with pytest.raises(UserError, match=r"last_step is True.*cannot be distilled"):
        jax.eval_shape(stage.loss, params, batch, jax.random.key(0), params)


def test_embedding_priors_of_other_methods_are_rejected():
    model = dataclasses.replace(tiny.experiment("embedding_prior").model, method="autoregressive")
    with pytest.raises(UserError, match=r"method is 'autoregressive', which does not diffuse"):
        registry.folder_entry("embedding_prior").denoiser(
            model, {"fitted": {}}, {}, keys=jax.random.split(jax.random.key(0), 2), scale=1.0
        )


def test_a_teacher_is_named_in_the_experiment():
    settings = {**files.get_config("prior:tiny").to_dict(), "distill": {"steps": 2}}
    with pytest.raises(UserError, match=r"config.init_from, its teacher, is empty; give the expor"):
        from_config(settings)


def test_guidance_away_from_the_empty_caption_is_rejected():
    model, entry = cascades.karlo_kind(DECODER), registry.folder_entry("decoder")
    guided = dataclasses.replace(
        model, sampling=dataclasses.replace(model.sampling, guidance_scale=2.0)
    )
    with pytest.raises(UserError, match=r"the guidance is 2, .*config.distill.guidance_scale=1"):
        distillation.make(entry, guided, DistillConfig())
    assert distillation.make(entry, guided, ONE).teacher is not None


@pytest.mark.parametrize(("null", "rejected"), [("empty", True), ("learned", False)])
def test_a_prior_with_a_null_of_its_own_may_be_guided(null, rejected):
    """Although it reads CLIP's features of captions, as a prior without one does."""
    model = cascades.karlo_kind(tiny.experiment("prior").model)
    network = dataclasses.replace(model.model, null=null)
    sampling = dataclasses.replace(model.sampling, guidance_scale=2.0)
    guided = dataclasses.replace(
        model, model=network, sampling=sampling, drop_text=0.0 if null == "empty" else 0.1
    )
    entry = registry.folder_entry("prior")
    assert "text_seq" in entry.make(guided).batch_spec
    if rejected:
        with pytest.raises(UserError, match="the guidance is 2, away from the empty caption"):
            distillation.make(entry, guided, DistillConfig())
    else:
        assert distillation.make(entry, guided, DistillConfig()).teacher is not None
