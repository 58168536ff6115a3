"""Losses of the discrete VAE by their formulas, hard codes in use, schedules of the relaxation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.stages import tiny
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.core.config import build as build_config
from unclip_jax.discrete import pixels
from unclip_jax.models.dvae import Dvae, DvaeConfig
from unclip_jax.stages import dvae, registry
from unclip_jax.stages.dvae import DvaeStageConfig, GumbelConfig

SMALL = {"image_size": 8, "hidden": 8, "groups": 2, "blocks": 1, "decoder_in": 4}
KINDS = {
    "gumbel": DvaeConfig(**SMALL, code_count=6),
    "vq": DvaeConfig(**SMALL, quantizer="vq", code_count=6, code_dim=3),
    "fsq": DvaeConfig(**SMALL, quantizer="fsq", code_count=12, levels=(4, 3)),
}
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)), jnp.float32)
BATCH = {"image": IMAGES}
KEY = jax.random.key(0)


def build(kind, **changes):
    cfg = DvaeStageConfig(KINDS[kind], **changes)
    stage = dvae.make(cfg)
    return cfg, stage, tiny.random_params(stage)


@pytest.mark.parametrize("kind", KINDS)
def test_images_become_codes_and_codes_images(kind):
    cfg, stage, params = build(kind)
    field = registry.stage_entry("dvae").sample_spec(cfg)["codes"]
    assert (field.shape, field.low, field.high) == ((16,), 0, cfg.model.code_count - 1)
    codes = jax.jit(lambda p: dvae.encode(cfg, p, IMAGES))(params)
    assert codes.shape == (3, 4, 4) and codes.min() >= 0 and codes.max() < cfg.model.code_count
    images = jax.jit(lambda p, c: dvae.decode(cfg, p, c))(params, codes)
    assert images.shape == IMAGES.shape and float(jnp.abs(images).max()) <= 1
    preview = jax.jit(stage.preview)(params, BATCH, KEY)
    np.testing.assert_allclose(preview[:, :, 8:], images, atol=1e-6)  # the same hard codes
    chain = registry.stage_entry("dvae").sample
    again = chain(cfg, params, {"codes": codes.reshape(3, 16)}, keys=jax.random.split(KEY, 3))[
        "image"
    ]
    np.testing.assert_allclose(again, images, atol=1e-6)
    metrics = jax.jit(stage.evaluate)(params, BATCH, KEY)
    error = np.mean((np.asarray(images - IMAGES) / 2) ** 2, axis=(1, 2, 3))
    assert float(metrics["psnr"]) == pytest.approx(np.mean(-10 * np.log10(error)), abs=1e-3)
    counts = np.bincount(np.asarray(codes).ravel(), minlength=cfg.model.code_count)
    assert float(metrics["usage"]) == pytest.approx(np.mean(counts > 0))
    assert float(metrics["perplexity"]) == pytest.approx(np.exp(stats.entropy(counts)), rel=1e-5)


def test_the_gumbel_loss_is_the_bound_per_subpixel():
    cfg, stage, params = build("gumbel")
    weights = jnp.array([0.0, 3.0, 50.0])
    batch = {**BATCH, "kl_weight": weights, "temperature": jnp.full(3, 0.7)}
    loss, metrics = jax.jit(stage.loss)(params, batch, KEY)
    module = Dvae(cfg.model)
    apply = lambda x, m: module.apply({"params": params}, x, method=m)  # noqa: E731
    logits = apply(pixels.to_open(IMAGES), Dvae.encode)
    noise = jax.random.gumbel(rng.fold(KEY, "gumbel"), logits.shape)
    maps = apply(jax.nn.softmax((logits + noise) / 0.7), Dvae.decode)
    mean, log_scale = np.split(np.asarray(maps, np.float64), 2, axis=-1)
    x = np.asarray(pixels.to_open(IMAGES), np.float64)
    y = np.log(x / (1 - x))
    nats = -stats.laplace.logpdf(y, mean, np.exp(np.maximum(log_scale, -5))) + np.log(x * (1 - x))
    q = np.asarray(jax.nn.softmax(logits), np.float64)
    kl = (np.log(6) - stats.entropy(q, axis=-1)).sum((1, 2))
    expected = np.mean((nats.sum((1, 2, 3)) + np.asarray(weights) * kl) / (8 * 8 * 3))
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["kl"]) == pytest.approx(kl.mean() / 16, rel=1e-4)


def test_evaluation_uses_hard_codes_and_measures_the_gap():
    _, stage, params = build("gumbel", gumbel=GumbelConfig(temperature=0.5))
    relaxed = jax.jit(stage.loss)(params, BATCH, KEY)[0]
    metrics = jax.jit(stage.evaluate)(params, BATCH, KEY)
    assert float(metrics["relax_gap"]) == pytest.approx(float(relaxed - metrics["loss"]), abs=1e-5)
    assert float(metrics["relax_gap"]) != 0


def test_a_bound_on_the_scale_bounds_the_reward_of_certainty():
    _, stage, params = build("fsq")
    params["decoder"]["conv_out"]["bias"] = jnp.array([0.0, 0, 0, -20, -20, -20])
    params["decoder"]["conv_out"]["kernel"] *= 0
    grey = {"image": jnp.zeros_like(IMAGES)}  # logit 0, predicted exactly
    loss, _ = jax.jit(stage.loss)(params, grey, KEY)
    assert float(loss) == pytest.approx(-5 + np.log(2 * 0.25), abs=1e-4)


@pytest.mark.parametrize(("name", "power"), [("l2", 2), ("l1", 1)])
def test_other_errors_are_means_over_subpixels(name, power):
    model = dataclasses.replace(KINDS["fsq"], out_channels=3)
    cfg = DvaeStageConfig(model, reconstruction=name)
    stage = dvae.make(cfg)
    params = tiny.random_params(stage)
    params["decoder"]["conv_out"]["kernel"] *= 0
    params["decoder"]["conv_out"]["bias"] = jnp.full(3, 0.25)
    _, metrics = jax.jit(stage.loss)(params, BATCH, KEY)
    expected = np.mean(np.abs(0.25 - np.asarray(IMAGES)) ** power)
    assert float(metrics[name]) == pytest.approx(expected, rel=1e-5)


def test_the_schedules_at_their_ends_and_middles():
    gumbel = GumbelConfig(kl_weight=6.6, kl_steps=100, temperature_steps=1000)
    expected = {0: (1.0, 0.0), 50: (None, 3.3), 100: (None, 6.6), 500: (0.53125, 6.6)}
    expected |= {1000: (0.0625, 6.6), 5000: (0.0625, 6.6)}
    for step, (temperature, weight) in expected.items():
        values = gumbel.at(step)
        if temperature is not None:
            assert float(values["temperature"]) == pytest.approx(temperature)
        assert float(values["kl_weight"]) == pytest.approx(weight, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gumbel": {"temperature": 0.0}}, "gumbel.temperature is 0.0; it must be greater than 0"),
        ({"gumbel": {"temperature": 2.0}}, "temperature is 2.0, above temperature_start = 1.0"),
        ({"gumbel": {"kl_weight": -1.0}}, "gumbel.kl_weight is -1.0; it must lie in"),
        ({"reconstruction": "l3"}, "unknown config.model.reconstruction 'l3'"),
        ({"reconstruction": "l2"}, "reconstruction 'l2' needs 3 maps, but .*out_channels is 6"),
    ],
)
def test_mistaken_configs_are_rejected(changes, message):
    config = {"model": as_dict(KINDS["gumbel"]), **changes}
    with pytest.raises(UserError, match=message):
        build_config(DvaeStageConfig, config, where="config.model")
