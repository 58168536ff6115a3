"""Upsamplers inverted: what they add to a picture comes back from noise of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.conditioning.low_res_noise import AugmentConfig
from unclip_jax.editing import upsampler_latents
from unclip_jax.inference import text_to_image
from unclip_jax.inference.cascade import Cascade
from unclip_jax.stages import upsampler

RNG = np.random.default_rng(0)
STD = 0.3  # of the pictures about their enlarged low-res image, in the linear denoiser
EPS = 1e-6


def uniform(size, count=2):
    pixels = RNG.uniform(-0.8, 0.8, (count, size, size, 3))
    return jnp.asarray(pixels, jnp.float32)


def config_of_size(cfg, size, **changes):
    """The tiny upsampler for another size."""
    unet = dataclasses.replace(cfg.model.unet, image_size=size)
    model = dataclasses.replace(cfg.model, unet=unet)
    return dataclasses.replace(cfg, model=model, crop=8, **changes)


@pytest.fixture(scope="module")
def tiny_cfg():
    return tiny.experiment("upsampler_256").model


@pytest.fixture(scope="module")
def stages(tiny_cfg):
    return {name: tiny.experiment(name).model for name in ("clip", "prior", "decoder")}


@pytest.fixture(scope="module")
def cascade(tiny_cfg, stages):
    """Two upsamplers, 8 -> 16 -> 32; the second takes low-res images as they are."""
    plain = {"residual": False}
    two = (
        config_of_size(tiny_cfg, 16, **plain),
        config_of_size(tiny_cfg, 32, quantise=False, **plain),
    )
    return Cascade.of(**stages, upsampler_256=two[0], upsampler_1024=two[1])


@pytest.fixture
def linear(monkeypatch, cascade):
    """Networks that are the exact denoiser of N(enlarged low-res image, STD^2); what they saw."""
    chain, inputs = cascade.upsamplers[0].diffusion.chain(), []

    def network(module, params, x_t, t, *, low_res, low_res_t, **options):
        jax.debug.callback(lambda low: inputs.append(np.asarray(low)), low_res)
        mean = jnp.repeat(jnp.repeat(low_res, 2, axis=1), 2, axis=2)
        level = chain.level(t, ndim=4)
        share = STD**2 * level.signal / (STD**2 * level.signal**2 + level.noise**2)
        return mean + share * (x_t - level.signal * mean)

    monkeypatch.setattr(upsampler, "apply", network)
    return inputs


PARAMS = {"upsampler_256": {}, "upsampler_1024": {}}


def round_trip(cascade, base, targets, **how):
    result = upsampler_latents.encode(cascade, PARAMS, base, targets=targets, **how)
    keys = text_to_image.keys_for(0, jnp.arange(len(base)))
    how = {"steps": how.get("steps")}
    small = Cascade(cascade.stages[:-1])
    first = upsampler_latents.decode(small, PARAMS, base, details=result[:1], keys=keys, **how)
    return (
        result,
        first,
        upsampler_latents.decode(cascade, PARAMS, base, details=result, keys=keys, **how),
    )


def test_images_come_back_through_both_upsamplers_of_a_linear_denoiser(cascade, linear):
    base, targets = uniform(8), (uniform(16), uniform(32))
    _, first, second = round_trip(cascade, base, targets, refinements=16)
    np.testing.assert_allclose(first, targets[0], atol=1e-4)
    np.testing.assert_allclose(second, targets[1], atol=1e-4)
    _, rough, _ = round_trip(cascade, base, targets)
    assert np.abs(rough - targets[0]).max() > 0.02  # eight steps of first order
    _, plain, _ = round_trip(cascade, base, targets, refinements=0)  # the paper's recipe
    np.testing.assert_array_equal(rough, plain)


def test_finer_steps_come_nearer_without_refinements(cascade, linear):
    base, targets = uniform(8), (uniform(16), uniform(32))
    errors = []
    for steps in (None, "32", "128"):
        _, _, again = round_trip(cascade, base, targets, steps=steps)
        errors.append(np.abs(again - targets[1]).max())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_each_upsampler_is_inverted_for_the_low_res_image_that_decoding_gives_it(cascade, linear):
    """Rounded to 8 bits where the config asks for it; the second reads the first's output."""
    base, targets = uniform(8), (uniform(16), uniform(32))
    _, first, _ = round_trip(cascade, base, targets)
    jax.effects_barrier()
    small = [low for low in linear if low.shape[1] == 8]
    large = [low for low in linear if low.shape[1] == 16]
    for low in small:
        np.testing.assert_allclose(low, upsampler.quantise(base), atol=EPS)
    assert np.abs(small[0] - base).max() > 1e-4
    for low in large:
        np.testing.assert_allclose(low, first, atol=1e-5)
    assert np.abs(large[0] - targets[0]).max() > 0.02  # not what it should have been


def test_upsamplers_without_details_draw_as_ever(cascade, linear):
    base, keys = uniform(8), text_to_image.keys_for(3, jnp.arange(2))
    images = upsampler_latents.decode(cascade, PARAMS, base, details=(), keys=keys)
    expected = text_to_image.upsample(cascade, PARAMS, base, keys)
    np.testing.assert_array_equal(images, expected)


def test_eta_0_changes_nothing_and_eta_1_forgets_the_details(cascade, linear):
    base, targets = uniform(8), (uniform(16), uniform(32))
    result = upsampler_latents.encode(cascade, PARAMS, base, targets=targets, refinements=16)
    batches = []
    for seed in (0, 1):
        keys = text_to_image.keys_for(seed, jnp.arange(2))
        eta = jnp.array([0.0, 1.0])
        options = {"details": result, "keys": keys, "eta": eta}
        batches.append(upsampler_latents.decode(cascade, PARAMS, base, **options))
    for images in batches:
        np.testing.assert_allclose(images[0], targets[1][0], atol=1e-4)
    apart = np.std(batches[0][1] - batches[1][1])
    assert apart == pytest.approx(np.sqrt(2) * STD, rel=0.5)  # two draws of the upsampler


def test_what_cannot_be_inverted_ends_the_details(cascade):
    first, second = cascade.upsamplers
    noisy = dataclasses.replace(second, augment=AugmentConfig(most=0.5))
    other = dataclasses.replace(first, last_step=True)
    assert (
        upsampler_latents.leading(cascade) == (first, second)
        and upsampler_latents.left_out(cascade) == ""
    )
    for upsamplers, prefix, message in (
        (
            (first, noisy),
            (first,),
            "the upsampler to 32 px reads its low-res image through random",
        ),
        ((other, second), (), "the upsampler to 16 px takes its last step with another network"),
        ((), (), ""),
    ):
        pair = dict(zip(PARAMS, (*upsamplers, None, None), strict=False))
        variant = cascade.replace(**pair)
        assert upsampler_latents.leading(variant) == prefix
        assert upsampler_latents.left_out(variant).startswith(message)
