import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.conditioning.low_res_noise import AugmentConfig
from unclip_jax.core import rng, trees
from unclip_jax.core.checks import UserError
from unclip_jax.stages import upsampler


@pytest.fixture(scope="module")
def case():
    cfg = tiny.experiment("upsampler_256").model
    return cfg, tiny.init(upsampler.make(cfg))


def test_a_fresh_residual_upsampler_is_bilinear_enlargement(case):
    cfg, params = case
    low_res = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-0.9, maxval=0.9)
    keys = rng.per_example(jax.random.key(1), jnp.arange(2))
    images = upsampler.sample(cfg, params, low_res=low_res, keys=keys)
    expected = jax.image.resize(low_res, (2, 16, 16, 3), "bilinear")
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_parameters_trained_on_crops_run_at_any_size(case):
    cfg, params = case
    for side in (8, 16, 24):
        low_res = jnp.zeros((1, side, side, 3))
        keys = rng.per_example(jax.random.key(0), jnp.arange(1))
        assert upsampler.sample(cfg, params, low_res=low_res, keys=keys).shape[1] == 2 * side


def test_what_cannot_be_trained_is_rejected(case):
    cfg, _ = case
    with pytest.raises(UserError, match="crop is 64, larger than the image .32."):
        dataclasses.replace(cfg, crop=64)
    with pytest.raises(UserError, match="crop is 15, which 2 does not divide"):
        dataclasses.replace(cfg, crop=15)
    unet = dataclasses.replace(cfg.model.unet, multiples=(1, 2, 2, 2))
    deep = dataclasses.replace(cfg.model, unet=unet)
    with pytest.raises(UserError, match="crop is 12, which 8 does not divide; .* drop a level"):
        dataclasses.replace(cfg, model=deep, crop=12)
    unet = dataclasses.replace(unet, image_size=36)
    deep = dataclasses.replace(cfg.model, unet=unet)
    with pytest.raises(UserError, match="image_size is 36, which 8 does not divide"):
        dataclasses.replace(cfg, model=deep, crop=16)
    eps = dataclasses.replace(cfg.diffusion, target="eps")
    with pytest.raises(
        UserError, match="residual needs config.model.diffusion.target 'x_0', not 'eps'"
    ):
        dataclasses.replace(cfg, diffusion=eps)


def test_guidance_of_what_was_trained_without_drops_is_rejected(case):
    cfg, params = case
    guided = dataclasses.replace(cfg.sampling, guidance_scale=2.0)
    message = "guidance_scale is 2.0, but upsamplers see no caption and are trained without drops"
    with pytest.raises(UserError, match=message):
        dataclasses.replace(cfg, sampling=guided)
    keys = rng.per_example(jax.random.key(0), jnp.arange(1))
    with pytest.raises(UserError, match=message):
        upsampler.sample(cfg, params, low_res=jnp.zeros((1, 8, 8, 3)), keys=keys, sampling=guided)


def test_sampling_shows_the_network_the_low_res_image_as_it_is_given(case, monkeypatch):
    """No corruption at inference: blur and BSR belong to the training data, noise to `augment`."""
    calls = stub(monkeypatch)
    low_res = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1.0)
    cfg = dataclasses.replace(case[0], sampling=dataclasses.replace(case[0].sampling, steps="3"))
    with jax.disable_jit():
        keys = rng.per_example(jax.random.key(1), jnp.arange(2))
        upsampler.sample(cfg, {}, low_res=low_res, keys=keys)
    assert len(calls) == 3  # steps
    for each in calls:
        np.testing.assert_array_equal(each["low_res"], low_res)
        assert each["low_res_t"] is None


def stub(monkeypatch):
    """Replaces the network by one that repeats its low-res image; returns its inputs by call."""
    calls = []

    def network(module, params, x_t, t, *, low_res, low_res_t, **options):
        calls.append({"low_res": low_res, "low_res_t": low_res_t})
        return jnp.repeat(jnp.repeat(low_res, 2, axis=1), 2, axis=2)

    monkeypatch.setattr(upsampler, "apply", network)
    return calls


def test_evaluation_measures_the_consistency_of_samples(case, monkeypatch):
    two = dataclasses.replace(case[0].sampling, steps="2")
    cfg = dataclasses.replace(case[0], sampling=two, residual=False)
    stub(monkeypatch)
    low = jnp.asarray(np.random.default_rng(0).uniform(-0.8, 0.8, (12, 8, 8, 3)), jnp.float32)
    batch = {"image": jnp.zeros((12, 16, 16, 3)), "low_res": low}
    evaluate = upsampler.make(cfg).evaluate
    perfect = evaluate({}, batch, jax.random.key(0))
    assert perfect["low_res_error"] < 1e-3 and perfect["colour_shift"] < 1e-3
    sample = upsampler.sample
    tinted = lambda *args, **kwargs: sample(*args, **kwargs) + 5 / 127.5  # noqa: E731
    monkeypatch.setattr(upsampler, "sample", tinted)
    result = evaluate({}, batch, jax.random.key(0))
    np.testing.assert_allclose(result["low_res_error"], 5.0, rtol=1e-4)
    np.testing.assert_allclose(result["colour_shift"], 5.0, rtol=1e-4)
    assert result["loss"] == perfect["loss"]


@pytest.fixture
def augmented(case):
    augment = AugmentConfig(most=0.8, level=0.3)
    two = dataclasses.replace(case[0].sampling, steps="2")
    return dataclasses.replace(case[0], augment=augment, sampling=two, residual=False)


def test_only_augmentation_needs_a_second_time_embedding(case, augmented):
    paths = [
        trees.flatten_paths(jax.eval_shape(upsampler.make(cfg).init, jax.random.key(0))).keys()
        for cfg in (case[0], augmented)
    ]
    assert paths[0] < paths[1]
    assert {path.split("/")[0] for path in paths[1] - paths[0]} == {"low_res_time"}


def test_augmentation_noises_to_every_level_and_tells_it(augmented, monkeypatch):
    """Of a constant image, mean and deviation at timestep t are those of the forward process."""
    calls = stub(monkeypatch)
    batch = {"image": jnp.zeros((64, 16, 16, 3)), "low_res": jnp.full((64, 8, 8, 3), 0.6)}
    upsampler.make(augmented).loss({}, batch, jax.random.key(0))
    t, low = np.asarray(calls[0]["low_res_t"]), np.asarray(calls[0]["low_res"], np.float64)
    assert t.min() < 80 and 720 < t.max() <= 799
    alpha_bar = augmented.diffusion.chain().alpha_bar[t][:, None, None, None]
    z = (low - 0.6 * np.sqrt(alpha_bar)) / np.sqrt(1 - alpha_bar)
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    np.testing.assert_allclose(z.std(axis=(1, 2, 3)), 1, atol=4.5 / np.sqrt(2 * 192))
    upsampler.make(augmented).loss({}, batch, jax.random.key(0))
    np.testing.assert_array_equal(calls[0]["low_res"], calls[1]["low_res"])  # a resumed run's too
    little = dataclasses.replace(augmented, augment=AugmentConfig(most=2 / 999, level=0.0))
    upsampler.make(little).loss({}, batch, jax.random.key(0))
    assert set(np.asarray(calls[2]["low_res_t"]).tolist()) == {0, 1, 2}  # the last one too


def test_without_augmentation_the_network_sees_the_low_res_image_itself(case, monkeypatch):
    calls = stub(monkeypatch)
    batch = {"image": jnp.zeros((4, 16, 16, 3)), "low_res": jnp.full((4, 8, 8, 3), 0.6)}
    upsampler.make(case[0]).loss({}, batch, jax.random.key(0))
    np.testing.assert_array_equal(calls[0]["low_res"], batch["low_res"])
    assert calls[0]["low_res_t"] is None


def test_the_level_of_sampling_is_fixed_and_its_noise_belongs_to_the_image(augmented, monkeypatch):
    calls = stub(monkeypatch)
    low_res = jnp.full((3, 8, 8, 3), 0.5)
    keys = rng.per_example(jax.random.key(1), jnp.arange(3))
    with jax.disable_jit():
        for batch_keys in (keys, keys[1:]):
            upsampler.sample(augmented, {}, low_res=low_res[: len(batch_keys)], keys=batch_keys)
    whole, part = calls[0], calls[-1]
    assert np.unique(whole["low_res_t"]).tolist() == [300]  # 0.3 of 0..999
    np.testing.assert_array_equal(whole["low_res"][1:], part["low_res"])
    assert len(np.unique(whole["low_res"])) > 500  # another noise for every image and pixel
    np.testing.assert_array_equal(calls[0]["low_res"], calls[1]["low_res"])  # one for all steps


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"most": 1.5}, "config.model.augment.most is 1.5; it must lie in"),
        ({"most": 0.2, "level": 0.5}, "augment.level is 0.5; the network learns levels from 0 to"),
        ({"level": 0.1}, "augment.level is 0.1; .*augment.most = 0.0"),
    ],
)
def test_levels_that_are_never_learnt_are_rejected(changes, match):
    with pytest.raises(UserError, match=match):
        AugmentConfig(**changes)


def test_a_network_of_the_last_step_learns_from_every_example(case):
    """Of 8 timesteps sampled from 1,000 hardly one would reach it."""
    cfg = dataclasses.replace(case[0], last_step=True)
    stage = upsampler.make(cfg)
    params = tiny.random_params(stage)
    side = cfg.crop
    batch = {
        "image": jax.random.uniform(jax.random.key(0), (8, side, side, 3), minval=-1.0),
        "low_res": jnp.zeros((8, side // 2, side // 2, 3)),
    }
    grads = jax.jit(jax.grad(lambda p, b, k: stage.loss(p, b, k)[0]))
    whole = jax.device_get(grads(params, batch, jax.random.key(1)))
    for example in range(8):
        dimmed = {**batch, "image": batch["image"].at[example].multiply(0.5)}
        other = jax.device_get(grads(params, dimmed, jax.random.key(1)))
        for name in ("first", "last"):
            pairs = zip(*(jax.tree.leaves(each[name]) for each in (whole, other)), strict=True)
            assert any(np.any(a != b) for a, b in pairs), (name, example)


@pytest.mark.parametrize("quantise", [True, False])
def test_in_a_chain_low_res_images_have_8_bits_if_the_stage_says_so(case, quantise, monkeypatch):
    """GLIDE's released sampler rounds; Karlo's does not."""
    inputs = {}

    def sample(cfg, params, *, low_res, keys, **options):
        inputs["low_res"] = np.float64(low_res)
        return low_res

    monkeypatch.setattr(upsampler, "sample", sample)
    cfg = dataclasses.replace(case[0], quantise=quantise)
    low_res = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    keys = rng.per_example(jax.random.key(0), jnp.arange(2))
    upsampler.sample_in_chain(cfg, {}, {"low_res": jnp.asarray(low_res)}, keys=keys)
    levels = np.rint((low_res.astype(np.float64) + 1) * 127.5) / 127.5 - 1
    np.testing.assert_allclose(inputs["low_res"], levels if quantise else low_res, atol=1e-6)
