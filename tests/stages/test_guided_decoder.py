"""A noise-aware CLIP, and a decoder guided by its gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.core.checks import UserError
from unclip_jax.models.clip import Clip
from unclip_jax.stages import clip, decoder, guided_decoder
from unclip_jax.stages.clip import ClipStageConfig
from unclip_jax.stages.decoder import Condition
from unclip_jax.stages.guided_decoder import Guide, class_gradient, clip_gradient

DECODER = tiny.experiment("decoder").model
CLEAN = dataclasses.replace(
    tiny.experiment("clip").model.model, image_size=16, image_depth=1, text_depth=1
)
NOISED = ClipStageConfig(dataclasses.replace(CLEAN, reads_time=True), DECODER.diffusion)
KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.fixture(scope="module")
def noised():
    stage = clip.make(NOISED)
    batch = jax.tree.map(jnp.asarray, tiny.random_batch(stage, 4))
    return stage, tiny.init(stage), batch


def test_a_fresh_noise_aware_clip_sees_images_as_a_clean_one_at_every_step(noised):
    _, params, batch = noised
    plain = {**params, "image": {k: v for k, v in params["image"].items() if k != "time"}}
    encode = lambda cfg, p, *t: Clip(cfg).apply(  # noqa: E731
        {"params": p}, batch["image"], *t, method=Clip.encode_image
    )
    expected = jax.jit(functools.partial(encode, CLEAN))(plain)
    for t in (0, 999):
        steps = jnp.full(4, t)
        np.testing.assert_allclose(
            jax.jit(functools.partial(encode, NOISED.model))(params, steps), expected, atol=1e-6
        )


def test_training_sees_noised_images_and_evaluation_fixed_levels(noised):
    stage, _, batch = noised
    params = tiny.random_params(stage)
    loss = jax.jit(lambda key: stage.loss(params, batch, key)[0])
    assert float(loss(jax.random.key(0))) != float(loss(jax.random.key(1)))
    grads = jax.jit(jax.grad(lambda p: stage.loss(p, batch, jax.random.key(0))[0]))(params)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(grads["image"]["time"]))
    metrics = jax.jit(stage.evaluate)(params, batch, jax.random.key(0))
    assert {"image_to_text@1_t250", "image_to_text@1_t500", "image_to_text@1_t750"} <= set(metrics)


@pytest.fixture(scope="module")
def guided(noised):
    """A function from a guide's scale and form, and the sampler, to images."""
    params = tiny.random_params(noised[0])
    model = decoder.make(DECODER)
    weights = tiny.random_params(model)
    inputs = jax.tree.map(jnp.asarray, tiny.random_batch(model, 2))
    condition = Condition(inputs["z_img"], TokenIds(inputs["tokens"], inputs["token_mask"]))
    plain = dataclasses.replace(DECODER.sampling, steps="2", guidance_scale=1.0)
    z_txt = jax.random.normal(jax.random.key(5), (2, NOISED.model.embed_dim))
    options = {"diffusion": DECODER.diffusion, "image_size": 16}
    gradient = clip_gradient(NOISED, params, z_txt, **options)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def run(scale, form, sampler="ancestral"):
        sampling = dataclasses.replace(plain, sampler=sampler)
        if form is None:
            return decoder.sample(DECODER, weights, condition, keys=KEYS, sampling=sampling)
        guide = Guide(gradient, scale, form)
        return guided_decoder.sample(
            DECODER, weights, condition, keys=KEYS, guide=guide, sampling=sampling
        )

    return run


@pytest.mark.parametrize("form", ["mean", "score"])
def test_scale_0_is_the_decoder_and_other_scales_are_not(guided, form):
    plain = guided(jnp.zeros(2), None)
    np.testing.assert_allclose(guided(jnp.zeros(2), form), plain, atol=1e-5)
    one = guided(jnp.array([0.0, 500.0]), form)
    np.testing.assert_allclose(one[0], plain[0], atol=1e-5)  # rows have their own scale
    assert float(jnp.abs(one[1] - plain[1]).max()) > 1e-3


def test_the_gradient_shifts_the_mean_of_ancestral_steps_or_the_score_of_any(guided):
    """Dhariwal and Nichol, algorithms 1 and 2."""
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    assert jax.eval_shape(lambda s: guided(s, "score", "ddim"), shape).shape == (2, 16, 16, 3)
    with pytest.raises(UserError, match="ancestral"):
        jax.eval_shape(lambda s: guided(s, "mean", "ddim"), shape)


@pytest.mark.parametrize(
    ("cfg", "changes", "message"),
    [
        (ClipStageConfig(CLEAN), {}, "this CLIP was trained on clean images"),
        (NOISED, {"schedule": "linear"}, "with diffusion.schedule cosine, the decoder with linear"),
        (NOISED, {"image_size": 32}, "reads images of 16 pixels, the decoder generates 32"),
    ],
)
def test_a_clip_that_does_not_fit_is_rejected(noised, cfg, changes, message):
    image_size = changes.pop("image_size", 16)
    diffusion = dataclasses.replace(DECODER.diffusion, **changes)
    with pytest.raises(UserError, match=message):
        clip_gradient(cfg, noised[1], jnp.ones((1, 32)), diffusion=diffusion, image_size=image_size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "the classifier was trained with diffusion.schedule cosine, the"),
        ({"num_timesteps": 10}, "with diffusion.num_timesteps 1000, the decoder with 10"),
        ({"image_size": 32}, "the classifier reads images of 16 pixels, the decoder generates 32"),
    ],
)
def test_a_classifier_that_does_not_fit_is_rejected(changes, message):
    image_size = changes.pop("image_size", 16)
    diffusion = dataclasses.replace(DECODER.diffusion, **changes)
    cfg = tiny.experiment("classifier").model
    options = {"diffusion": diffusion, "image_size": image_size}
    with pytest.raises(UserError, match=message):
        class_gradient(cfg, {}, jnp.zeros(1, int), **options)


def test_mistaken_settings_are_rejected():
    with pytest.raises(UserError, match="unknown form of gradient guidance 'means'. Did you mean"):
        Guide(lambda x, t: x, 1.0, "means")
    with pytest.raises(UserError, match="reads_time is False, but config.model.diffusion is set"):
        ClipStageConfig(CLEAN, DECODER.diffusion)
