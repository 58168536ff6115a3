"""Noise maps of images under the decoder, whose denoiser is known in closed form here."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.samplers import Ddim, take
from unclip_jax.editing import ddpm_latents
from unclip_jax.editing.ddpm_latents import MapOptions
from unclip_jax.inference import text_to_image
from unclip_jax.stages.decoder import NULL, Condition

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.uniform(-1, 1, (2, 4, 4, 3)), jnp.float32)
KEYS = text_to_image.keys_for(0, jnp.arange(2))


@pytest.fixture(scope="module")
def cfg():
    return tiny.experiment("decoder").model


def level(condition: Condition):
    """The gray that a condition stands for: its z_img's first number; -0.5 for the null."""
    if condition.z_img is None:
        return -0.5
    return condition.z_img[:, :1, None, None]


@pytest.fixture
def plain(monkeypatch):
    """A denoiser whose clean image is gray, guided away from the negative condition."""

    def denoiser(cfg, params, condition, *, negative, schedule):
        def predict(x_t, t):
            away = level(condition) - level(negative)
            gray = params["offset"] + level(condition) + (schedule.scale - 1) * away
            x_0 = jnp.broadcast_to(gray, x_t.shape)
            signal, noise = (jnp.sqrt(a) for a in alphas(cfg, t))
            return Prediction(x_0, (x_t - signal * x_0) / noise)

        return predict

    monkeypatch.setattr(ddpm_latents.decoder, "denoiser", denoiser)


def alphas(cfg, t):
    at = cfg.diffusion.chain().level(t, ndim=4)
    return at.signal**2, at.noise**2


def condition(*levels: float) -> Condition:
    return Condition(jnp.asarray(levels, jnp.float32)[:, None] * jnp.ones((1, 8)), None)


def test_as_many_rows_are_run_as_the_manual_says(cfg):
    """250 steps with eta 0.5, of which the last 0.7 are run."""
    whole = Ddim(0.5).plan(cfg.diffusion.chain(), steps="ddim250")
    table = ddpm_latents.plan(cfg, MapOptions())
    assert len(whole.t) == 250 and len(table.t) == 175
    for ours, theirs in zip(table, take(whole, slice(75, None)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(ddpm_latents.plan(cfg, MapOptions(steps="10", strength=0.3)).t) == 3
    with pytest.raises(UserError, match="strength is 1.5"):
        ddpm_latents.plan(cfg, MapOptions(strength=1.5))


def test_encoding_and_decoding_share_eta_and_guidance():
    schedule = GuidanceSchedule(3.0)
    arguments = MapOptions(guidance=schedule).arguments()
    assert arguments == {"eta": np.float32(0.5), "guidance": schedule}
    assert arguments["eta"].dtype == jnp.float32
    assert MapOptions(eta=0.25).arguments()["eta"] == 0.25


@pytest.mark.parametrize("negative", [NULL, condition(0.1, 0.1)])
def test_the_image_comes_back_and_another_condition_moves_it(cfg, plain, negative):
    """Of a single step: by what the clean image of the model differs."""
    options = MapOptions(steps="8", strength=0.0, guidance=GuidanceSchedule(3.0))
    table = ddpm_latents.plan(cfg, options)
    first, params = condition(0.25, 0.5), {"offset": 0.125}
    shared = {**options.arguments(), "table": table, "negative": negative}
    noise = ddpm_latents.encode(cfg, params, IMAGES, condition=first, keys=KEYS, **shared)
    assert noise.maps.shape == (2, 1, 4, 4, 3)

    def displacement(**changes):
        how = {**shared, "condition": first, **changes}
        decoded = ddpm_latents.decode_part(cfg, params, noise, **how)
        assert len(decoded.previews) == 1  # the clean image predicted at the last row
        return decoded.x - IMAGES

    np.testing.assert_allclose(displacement(), 0.0, atol=1e-6)
    away = 0.1 if negative.z_img is not None else -0.5
    for changes, expected in (
        ({"condition": condition(0.5, 0.5)}, [0.75, 0.0]),
        ({"guidance": GuidanceSchedule(5.0)}, [2 * (0.25 - away), 2 * (0.5 - away)]),
        ({"negative": condition(0.0, 0.0)}, [2 * away] * 2),
    ):
        shift = jnp.asarray(expected)[:, None, None, None] * jnp.ones_like(IMAGES)
        np.testing.assert_allclose(displacement(**changes), shift, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_parts_of_the_chain_lead_back_to_the_image(cfg, plain, eta):
    options = MapOptions(steps="8", strength=0.8, eta=eta)
    table, params = ddpm_latents.plan(cfg, options), {"offset": 0.0}
    shared = {**options.arguments(), "condition": condition(0.25, 0.5)}
    noise = ddpm_latents.encode(cfg, params, IMAGES, table=table, keys=KEYS, **shared)
    rows = len(table.t)
    for part in (slice(0, rows // 2), slice(rows // 2, None)):
        decoded = ddpm_latents.decode_part(
            cfg,
            params,
            noise._replace(maps=noise.maps[:, part]),
            table=take(table, part),
            **shared,
        )
        noise = noise._replace(x_t=decoded.x)
    np.testing.assert_allclose(noise.x_t, IMAGES, atol=1e-5)


def test_the_noise_of_an_image_does_not_depend_on_the_others(cfg, plain):
    table = ddpm_latents.plan(cfg, MapOptions(steps="8"))
    shared = {**MapOptions().arguments(), "table": table, "condition": condition(0.25, 0.5)}
    noise = ddpm_latents.encode(cfg, {"offset": 0.0}, IMAGES, keys=KEYS, **shared)
    second = ddpm_latents.encode(
        cfg,
        {"offset": 0.0},
        IMAGES[1:],
        keys=KEYS[1:],
        **{**shared, "condition": condition(0.5)},
    )
    np.testing.assert_allclose(second.x_t, noise.x_t[1:], atol=1e-6)
