"""Imagen's stages: nulls, thresholds, and the noise level that conditions an upsampler."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.conditioning import low_res_noise, text_features
from unclip_jax.conditioning.captions import EncodedCaptions, TokenFeatures
from unclip_jax.conditioning.low_res_noise import AugmentConfig
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import guidance, process, samplers, schedule
from unclip_jax.models.text_base import TextBase
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig
from unclip_jax.stages import text_base

CFG = tiny.experiment("imagen_base").model
SR = tiny.experiment("imagen_sr256").model


@pytest.fixture(scope="module")
def params():
    return tiny.random_params(text_base.make(CFG))


@pytest.fixture(scope="module")
def batch():
    return jax.tree.map(jnp.asarray, tiny.random_batch(text_base.make(CFG), 2))


def test_a_dropped_caption_is_what_guidance_leads_away_from(params, batch):
    """Training's null and sampling's are bitwise the same."""
    module, keep = TextBase(CFG.model), jnp.arange(4) < 2
    inputs = (batch["text_features"], batch["text_mask"])
    twice = [jnp.concatenate([x, x]) for x in inputs]  # another number of rows may round otherwise
    expected = module.apply({"params": params}, *twice, keep, method=TextBase.encode_text)
    captions = TokenFeatures(*inputs)
    options = {"method": TextBase.encode_text, "guided": True}
    encoded = EncodedCaptions(captions, captions)
    both = text_features.encode(module, CFG.model.text, params, encoded, **options)
    for ours, theirs in zip(jax.tree.leaves(both), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_another_caption_makes_another_loss(params, batch):
    metrics = jax.jit(text_base.make(CFG).evaluate)(params, batch, jax.random.key(0))
    assert set(metrics) == {"loss", "loss_wrong_text", "loss_no_text"}
    assert len({float(x) for x in metrics.values()}) == 3


def test_the_threshold_acts_on_the_guided_image():
    """Both branches lie in [-1, 1] and the guided image does not: thresholds come after guidance.

    A port of Imagen thresholds the branches, which changes nothing here, and its images saturate.
    """
    diffusion, scale = DiffusionConfig(), 5.0
    chain, t = diffusion.chain(), jnp.full(2, 500)
    x_t = jnp.zeros((2, 4, 4, 1))
    conditional, unconditional = jnp.linspace(0.0, 0.9, 16), jnp.linspace(0.0, 0.3, 16)

    def both(x, t):
        x_0 = jnp.concatenate([jnp.tile(y, (2, 1)) for y in (conditional, unconditional)])
        alpha_bar = chain.level(t, ndim=4)
        return process.from_x_0(x_0.reshape(4, 4, 4, 1), x, alpha_bar=alpha_bar)

    sampling = SamplingConfig(threshold="dynamic", percentile=100.0)
    denoise = gaussian.thresholded(guidance.guided(both, scale=scale), diffusion, sampling)
    guided = unconditional + scale * (conditional - unconditional)
    expected = guided / guided.max()
    np.testing.assert_allclose(denoise(x_t, t).x_0[0].reshape(-1), expected, atol=1e-5)


def test_the_threshold_of_an_image_is_its_own():
    """A port of Imagen takes the largest of the batch."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    beside = x.at[1].multiply(100.0)
    one, other = (process.dynamic_threshold(y)[0] for y in (x, beside))
    np.testing.assert_array_equal(one, other)
    assert np.abs(one).max() <= 1.0 and np.abs(one - np.clip(x[0], -1, 1)).max() > 0.1


def test_a_cap_of_1_is_static_clipping_and_none_is_the_papers():
    x = 3.0 * jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    static = process.static_threshold(x)
    np.testing.assert_array_equal(process.dynamic_threshold(x, cap=1.0), static)
    free = process.dynamic_threshold(x)
    np.testing.assert_array_equal(process.dynamic_threshold(x, cap=100.0), free)
    capped = process.dynamic_threshold(x, cap=1.5)
    np.testing.assert_allclose(capped, jnp.clip(x, -1.5, 1.5) / 1.5, rtol=1e-6)
    inside = jnp.clip(x, -1.0, 1.0)
    np.testing.assert_array_equal(process.dynamic_threshold(inside), inside)
    with pytest.raises(UserError, match="sampling.cap is 0.5; expected 1 or more"):
        SamplingConfig(cap=0.5)


def test_gamma_leads_from_the_small_to_the_large_variance():
    """Imagen, equation 6: the geometric mean in between."""
    chain = schedule.make_schedule("cosine", num_timesteps=20)
    low = {
        gamma: samplers.Ancestral("mix", gamma=gamma).columns(chain).low
        for gamma in (0.0, 0.5, 1.0)
    }
    small, large = (samplers.Ancestral(name).columns(chain).low for name in ("small", "large"))
    np.testing.assert_array_equal(low[0.0], small)
    np.testing.assert_array_equal(low[1.0], large)
    np.testing.assert_allclose(np.exp(low[0.5]) ** 2, np.exp(small) * np.exp(large), rtol=1e-9)
    with pytest.raises(UserError, match="gamma is 1.5"):
        SamplingConfig(variance="mix", gamma=1.5)


@pytest.mark.parametrize("name", [None, "linear"])
def test_noise_on_the_low_res_image_has_the_variance_of_its_level(name):
    diffusion, level = DiffusionConfig(), 0.3
    cfg = AugmentConfig(most=1.0, level=level, schedule=name)
    low = 0.5 * jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    noised = low_res_noise.noise_for_sampling(cfg, diffusion, low, keys=keys)
    chain = schedule.make_schedule(name or "cosine", num_timesteps=1000)
    t = round(level * 999)
    np.testing.assert_array_equal(noised.t, t)
    alpha_bar = chain.alpha_bar[t]
    expected = alpha_bar * float(jnp.var(low)) + 1 - alpha_bar
    np.testing.assert_allclose(jnp.var(noised.image), expected, rtol=0.03)
    other = low_res_noise.noise_for_sampling(cfg, diffusion, low, keys=keys[::-1])
    assert np.abs(other.image - noised.image).max() > 0.1
    training = low_res_noise.noise_for_training(cfg, diffusion, low, key=jax.random.key(1))
    assert len({int(t) for t in training.t}) > 1  # one level per example, not per batch
    none = dataclasses.replace(cfg, level=0.0)
    clean = low_res_noise.noise_for_sampling(none, diffusion, low, keys=keys)
    np.testing.assert_array_equal(clean.image, low)
    np.testing.assert_array_equal(clean.t, 0)


def test_the_upsampler_sees_the_noise_and_its_level():
    """A port of Imagen stores the noised image under a name that its network does not read."""
    from unclip_jax.stages import upsampler

    cfg = dataclasses.replace(SR, augment=AugmentConfig(most=1.0, level=0.5))
    params = tiny.random_params(upsampler.make(cfg))
    rows = jax.tree.map(jnp.asarray, tiny.random_batch(upsampler.make(cfg), 2))
    text = EncodedCaptions(*2 * (TokenFeatures(rows["text_features"], rows["text_mask"]),))
    x_t, t = rows["image"], jnp.full(2, 400)

    @functools.partial(jax.jit, static_argnums=0)
    def predict_x_0(cfg, params, keys):
        options = {"low_res": rows["low_res"], "keys": keys, "text": text}
        return upsampler.denoiser(cfg, params, **options)(x_t, t).x_0

    def predict(cfg, seed):
        return np.asarray(predict_x_0(cfg, params, jax.random.split(jax.random.key(seed), 2)))

    prediction = predict(cfg, 0)
    change = np.abs(prediction - predict(cfg, 1)).max()
    clean = dataclasses.replace(cfg, augment=AugmentConfig(most=1.0, level=0.0))
    assert change > 1e-3
    np.testing.assert_array_equal(predict(clean, 0), predict(clean, 1))  # no noise at all
    whole = dataclasses.replace(cfg, augment=AugmentConfig(most=1.0, level=0.5, at="enlarged"))
    assert np.abs(predict(whole, 0) - predict(whole, 1)).max() > 1e-3
    from unclip_jax.models.upsampler import Upsampler

    network = Upsampler(cfg.model)
    inputs = {"low_res": rows["low_res"], **text_features.inputs(rows)}
    levels = jnp.array([[0, 0], [700, 700]])
    outputs = jax.jit(
        lambda p: [network.apply({"params": p}, x_t, t, low_res_t=at, **inputs) for at in levels]
    )(params)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop_text": 0.0}, "guidance_scale is 2.0, but config.model.drop_text is 0"),
        ({"crop": 16}, "crop is 16 of 32, but unet.attention 'joint' sees the whole image"),
    ],
)
def test_upsamplers_of_captions_are_trained_for_what_they_do(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SR, **changes)


@pytest.mark.parametrize("cfg", [CFG, SR], ids=["base", "upsampler"])
def test_guidance_away_from_the_empty_caption_needs_empty_captions(cfg):
    text = dataclasses.replace(cfg.model.text, null="empty")
    model = dataclasses.replace(cfg.model, text=text)
    guided = dataclasses.replace(cfg.sampling, guidance_scale=2.0)
    own = dataclasses.replace(cfg, model=model, drop_text=0.0, sampling=guided)  # converted
    dataclasses.replace(own, empty_captions=0.1)
    with pytest.raises(UserError, match="guidance_scale is 2.0, but config.data.empty_captions is"):
        dataclasses.replace(own, empty_captions=0.0)
    plain = dataclasses.replace(cfg.sampling, guidance_scale=1.0)
    trained = dataclasses.replace(own, sampling=plain, empty_captions=0.0)
    with pytest.raises(UserError, match="guidance_scale is 2.0, but config.data.empty_captions is"):
        trained.check_guidance(guided)


def test_text_needs_attention_and_drops_need_text():
    unet = dataclasses.replace(CFG.model.unet, attention_at=())
    with pytest.raises(UserError, match="text.attend is on, but unet.attention_at is empty"):
        dataclasses.replace(CFG, model=dataclasses.replace(CFG.model, unet=unet))
    unet = dataclasses.replace(CFG.model.unet, context_norm="group")
    with pytest.raises(UserError, match="context_norm is 'group', .* set context_norm to 'layer'"):
        dataclasses.replace(CFG, model=dataclasses.replace(CFG.model, unet=unet))
    grouped = dataclasses.replace(SR.model.unet, context_norm="group")
    with pytest.raises(UserError, match="context_norm is 'group', .* set context_norm to 'layer'"):
        dataclasses.replace(SR, model=dataclasses.replace(SR.model, unet=grouped))
    with pytest.raises(UserError, match="guidance_scale is 2.0, but config.model.drop_text is 0"):
        dataclasses.replace(CFG, drop_text=0.0)
    empty = dataclasses.replace(CFG.model.text, null="empty")
    with pytest.raises(UserError, match="text.null is 'empty'.* Set it to 0"):
        dataclasses.replace(CFG, model=dataclasses.replace(CFG.model, text=empty))
    plain = tiny.experiment("upsampler_256").model
    with pytest.raises(UserError, match="drop_text is 0.1, but this upsampler reads no captions"):
        dataclasses.replace(plain, drop_text=0.1)
