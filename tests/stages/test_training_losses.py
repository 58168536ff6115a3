"""The loss of every diffusion stage by hand, and what its network sees in training and elsewhere.

The network is replaced by one that answers at once, so that a loss is a closed form of what it
answers. That networks honour what they are passed is shown in tests/models.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import random_keys
from tests.stages import stubs, tiny
from unclip_jax.conditioning.low_res_noise import AugmentConfig
from unclip_jax.core import rng
from unclip_jax.diffusion import objectives
from unclip_jax.diffusion.objectives import Weighting
from unclip_jax.diffusion.process import Target
from unclip_jax.models.clip import ClipOutput
from unclip_jax.models.prior_ar import PriorAr
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import DiffusionConfig
from unclip_jax.stages import clip, decoder, prior, prior_ar, upsampler

MODULES = {"prior": prior, "decoder": decoder, "upsampler_256": upsampler}
SHORT = 10  # timesteps of a chain, so short that every one is sampled
KEY = jax.random.key(0)


class Case(NamedTuple):
    """A stage with its config and a batch of random examples."""

    cfg: Any
    module: Any
    batch: dict[str, jax.Array]

    def x_0(self):
        """Returns the clean input of the chain in float64."""
        if self.module is not prior:
            return np.float64(self.batch["image"])
        z = np.float64(self.batch["z_img"])
        return self.cfg.scale * z / np.linalg.norm(z, axis=1, keepdims=True)


def case(name: str, *, target="eps", timesteps=1000, learned_variance=False, size=64) -> Case:
    cfg, module = tiny.experiment(name).model, MODULES[name]
    diffusion = DiffusionConfig(
        target=target, num_timesteps=timesteps, learned_variance=learned_variance
    )
    if name == "upsampler_256":
        cfg = dataclasses.replace(cfg, residual=False)
    model = cfg.model
    if learned_variance:
        model = dataclasses.replace(model, unet=dataclasses.replace(model.unet, out_channels=6))
    cfg = dataclasses.replace(cfg, diffusion=diffusion, model=model)
    stage = module.make(cfg)
    return Case(cfg, module, jax.tree.map(jnp.asarray, tiny.random_batch(stage, size)))


def answer(shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.key(9), shape)


def levels(cfg: Any, t: jax.Array, ndim: int) -> np.ndarray:
    """alpha_bar of the cosine schedule from its definition (Nichol & Dhariwal 2021, eq. 17)."""
    count = cfg.diffusion.num_timesteps
    steps = np.arange(count + 1)
    f = np.cos((steps / count + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    return np.cumprod(1 - betas)[np.asarray(t)].reshape(-1, *[1] * (ndim - 1))


@pytest.mark.parametrize("target", ["x_0", "eps", "v"])
@pytest.mark.parametrize("name", MODULES)
def test_the_loss_is_the_squared_error_of_the_target_at_what_the_network_saw(
    name, target, monkeypatch
):
    cfg, module, batch = whole = case(name, target=target)
    stub = stubs.replace(monkeypatch, module, lambda x_t, t: answer(x_t.shape))
    value, metrics = module.make(cfg).loss({}, batch, KEY)
    x_0, x_t = whole.x_0(), np.float64(stub.x_t)
    alpha_bar = levels(cfg, stub.t, x_t.ndim)
    eps = (x_t - np.sqrt(alpha_bar) * x_0) / np.sqrt(1 - alpha_bar)
    velocity = np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x_0
    target_value = {"x_0": x_0, "eps": eps, "v": velocity}[target]
    expected = np.mean((np.float64(answer(x_t.shape)) - target_value) ** 2)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert metrics["loss"] == value


@pytest.mark.parametrize("learned_variance", [False, True])
def test_the_weighting_of_the_config_is_that_of_the_loss(learned_variance, monkeypatch):
    """Errors of x_0 by their signal-to-noise ratio, clipped."""
    losses = []
    for weighting in (Weighting(), Weighting("snr_clip", snr_min=0.5, snr_max=2.0)):
        cfg, module, batch = case("decoder", learned_variance=learned_variance, size=8)
        diffusion = dataclasses.replace(cfg.diffusion, weighting=weighting)
        cfg = dataclasses.replace(cfg, diffusion=diffusion)
        out = answer((8, 16, 16, 6 if learned_variance else 3))
        stub = stubs.replace(monkeypatch, module, lambda x_t, t, out=out: out)
        losses.append(float(module.make(cfg).loss({}, batch, KEY)[0]))
    alpha_bar = levels(cfg, stub.t, 4)
    snr = alpha_bar / (1 - alpha_bar)
    eps = (np.float64(stub.x_t) - np.sqrt(alpha_bar) * batch["image"]) / np.sqrt(1 - alpha_bar)
    squared = (np.float64(out[..., :3]) - eps) ** 2
    difference = np.mean(
        squared * (np.clip(snr, 0.5, 2.0) / snr - 1)
    )  # the error of x_0 is eps's / SNR
    np.testing.assert_allclose(losses[1] - losses[0], difference, rtol=1e-3)


def test_a_learned_variance_adds_its_share_of_the_variational_bound(monkeypatch):
    """Half the channels are the mean, the others the variance (iDDPM, eq. 16)."""
    cfg, module, batch = case("decoder", learned_variance=True, size=8)
    out = answer((8, 16, 16, 6))
    stub = stubs.replace(monkeypatch, module, lambda x_t, t: out)
    value = module.make(cfg).loss({}, batch, KEY)[0]
    x_0, t = batch["image"], stub.t
    alpha_bar = levels(cfg, t, 4)
    eps = jnp.asarray((np.float64(stub.x_t) - np.sqrt(alpha_bar) * x_0) / np.sqrt(1 - alpha_bar))
    squared = np.mean((np.float64(out[..., :3]) - eps) ** 2)
    parts = objectives.hybrid_loss(
        out[..., :3], out[..., 3:], target=Target.EPS, x_0=x_0,
        eps=eps.astype(jnp.float32), t=t, schedule=cfg.diffusion.chain(),
    )  # fmt: skip
    bound = float(jnp.mean(parts.variational))
    np.testing.assert_allclose(value, squared + bound, rtol=1e-4)  # a thousandth of 1,000 terms
    assert bound > 50 * 1e-4 * squared, "the case must tell the two apart"


@pytest.mark.parametrize("name", MODULES)
def test_timesteps_are_uniform_and_noise_is_normal_whatever_the_timestep(name, monkeypatch):
    cfg, module, batch = whole = case(name, timesteps=SHORT, size=4000 if name == "prior" else 256)
    stub = stubs.replace(monkeypatch, module, lambda x_t, t: jnp.zeros_like(x_t))
    loss = module.make(cfg).loss
    t, eps = [], []
    for seed in range(1 if name == "prior" else 8):
        loss({}, batch, jax.random.key(seed))
        alpha_bar = levels(cfg, stub.t, stub.x_t.ndim)
        noise = (stub.x_t - np.sqrt(alpha_bar) * whole.x_0()) / np.sqrt(1 - alpha_bar)
        t.append(np.asarray(stub.t))
        eps.append(noise.reshape(len(noise), -1)[:, :32])
    t, eps = np.concatenate(t), np.concatenate(eps)
    share, count = 1 / SHORT, len(t)
    counts = np.bincount(t, minlength=SHORT)
    assert len(counts) == SHORT  # from the least noise to the most
    assert np.abs(counts - count * share).max() < 4.5 * np.sqrt(count * share * (1 - share))
    for step in range(SHORT):
        own = eps[t == step].ravel()
        assert abs(own.mean()) < 4.5 / np.sqrt(own.size)
        assert abs(own.var() - 1) < 4.5 * np.sqrt(2 / own.size)
    assert abs(np.mean(eps**4) - 3) < 0.15  # and not another distribution of variance 1
    assert np.abs(np.corrcoef(eps[:, :8].T) - np.eye(8)).max() < 5 / np.sqrt(count)


def test_conditions_are_dropped_in_training_as_often_as_the_config_says(monkeypatch):
    """Counted from what the networks see: 10 % of z_img and 50 % of captions, independently."""
    cfg, _, batch = case("decoder", size=4000)
    stub = stubs.replace(monkeypatch, decoder, lambda x_t, t: jnp.zeros_like(x_t))
    decoder.make(cfg).loss({}, batch, KEY)
    keep_z, keep_text = (np.asarray(stub[name]) for name in ("keep_z", "keep_text"))
    shares = {0.45: keep_z & keep_text, 0.05: ~keep_z & keep_text}
    for share, examples in shares.items():
        assert abs(examples.mean() - share) < 4.5 * np.sqrt(share * (1 - share) / 4000)
    assert abs(keep_z.mean() - 0.9) < 4.5 * np.sqrt(0.09 / 4000)
    cfg, _, batch = case("prior", size=4000)
    stub = stubs.replace(monkeypatch, prior, lambda x_t, t: jnp.zeros_like(x_t))
    prior.make(cfg).loss({}, batch, KEY)
    assert abs(np.mean(stub["keep_text"]) - 0.9) < 4.5 * np.sqrt(0.09 / 4000)


def test_the_autoregressive_prior_drops_its_caption_as_often(monkeypatch):
    cfg = tiny.experiment("prior_ar").model
    stage = prior_ar.make(cfg)
    abstract = jax.eval_shape(lambda key: nn.meta.unbox(stage.init(key)), KEY)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)
    batch = jax.tree.map(jnp.asarray, tiny.random_batch(stage, 4000))
    calls = []

    def network(module, params, *inputs, **options):
        if not isinstance(module, PriorAr):
            return apply(module, params, *inputs, **options)
        calls.append(options)
        return jnp.zeros((*inputs[0].shape, cfg.model.codec.buckets))

    apply = prior_ar.apply
    monkeypatch.setattr(prior_ar, "apply", network)
    value = stage.loss(params, batch, KEY)[0]
    np.testing.assert_allclose(value, np.log(cfg.model.codec.buckets), rtol=1e-5)
    keep_rate = np.mean(calls[-1]["keep_text"])
    assert abs(keep_rate - 0.9) < 4.5 * np.sqrt(0.09 / 4000)
    z_txt = np.float64(calls[-1]["z_txt"])
    np.testing.assert_allclose(np.linalg.norm(z_txt, axis=1), np.sqrt(32), rtol=1e-4)


@pytest.mark.parametrize("name", MODULES)
def test_dropout_is_on_in_training_and_nothing_is_dropped_elsewhere(name, monkeypatch):
    cfg, module, batch = case(name, target="x_0", size=4)
    stage = module.make(cfg)
    stub = stubs.replace(monkeypatch, module, lambda x_t, t: jnp.zeros_like(x_t))
    stage.loss({}, batch, KEY)
    if name != "prior":  # Table 3: without dropout
        assert stub["deterministic"] is False and "dropout" in stub["rngs"]
    stub.calls.clear()
    stage.evaluate({}, batch, KEY)
    if stage.preview is not None:
        stage.preview({}, batch, KEY)
    assert len(stub.calls) >= 2
    for _, options in stub.calls:
        assert options.get("deterministic", True) is True
        assert not options.get("rngs")
    assert stub.calls[0][1].get("keep_z") is None and stub.calls[0][1].get("keep_text") is None


def test_embeddings_reach_the_networks_with_unit_variance_of_a_dimension(monkeypatch):
    cfg, _, batch = case("prior", size=4)
    stub = stubs.replace(monkeypatch, prior, lambda x_t, t: jnp.zeros_like(x_t))
    prior.make(cfg).loss({}, batch, KEY)
    z = np.float64(batch["z_txt"])
    scaled = cfg.scale * z / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(stub["z_txt"], scaled, rtol=1e-5)
    cfg, _, batch = case("decoder", target="x_0", size=4)
    stub = stubs.replace(monkeypatch, decoder, lambda x_t, t: jnp.zeros_like(x_t))
    z = np.float64(batch["z_img"])
    scaled = np.sqrt(cfg.model.z_dim) * z / np.linalg.norm(z, axis=1, keepdims=True)
    decoder.make(cfg).loss({}, batch, KEY)
    np.testing.assert_allclose(stub["z_img"], scaled, rtol=1e-5)
    losses = decoder.make(cfg).evaluate({}, batch, KEY)
    np.testing.assert_allclose(stub["z_img"], np.roll(scaled, 1, axis=0), rtol=1e-5)
    assert losses["loss"] == losses["loss_wrong_z"]  # of a network that sees neither


def test_evaluation_is_the_loss_of_the_same_draws_without_drops(monkeypatch):
    for name, module in MODULES.items():
        cfg, _, batch = case(name, size=4)
        stubs.replace(monkeypatch, module, lambda x_t, t: 0.5 * x_t)
        stage = module.make(cfg)
        np.testing.assert_allclose(
            stage.evaluate({}, batch, KEY)["loss"], stage.loss({}, batch, KEY)[0], rtol=1e-6
        )


def test_clip_s_loss_is_that_of_its_embeddings_and_temperature(monkeypatch):
    draws = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    z_img, z_txt = draws / np.linalg.norm(draws, axis=-1, keepdims=True)
    out = ClipOutput(jnp.asarray(z_img), jnp.asarray(z_txt), jnp.float32(3.0))
    monkeypatch.setattr(clip, "apply", lambda *_: out)
    stage = clip.make(tiny.experiment("clip").model)
    batch = {name: jnp.zeros(4) for name in ("image", "tokens", "token_mask")}
    value, metrics = stage.loss({}, batch, KEY)
    shares = np.exp(3.0 * np.float64(z_img) @ z_txt.T)
    nats = -np.log(np.diag(shares) / shares.sum(0)) - np.log(np.diag(shares) / shares.sum(1))
    np.testing.assert_allclose(value, np.mean(nats) / 2, rtol=1e-5)
    assert metrics["logit_scale"] == 3.0
    np.testing.assert_allclose(
        metrics["cosine_pairs"], np.mean(np.sum(z_img * z_txt, 1)), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "what"),
    [
        *itertools.product(MODULES, ["loss", "evaluate"]),
        *((name, "preview") for name in MODULES if name in ("decoder", "upsampler_256")),
    ],
)
def test_no_two_draws_share_a_key(name, what, monkeypatch):
    """Two draws from one key are the same numbers, which no statistic of either shows."""
    cfg, module, batch = case(name, target="x_0", size=2)
    if name == "upsampler_256" and what == "loss":
        cfg = dataclasses.replace(cfg, augment=AugmentConfig(0.5, 0.2), last_step=True)
    function = getattr(module.make(cfg), what)
    stub = stubs.replace(monkeypatch, module, lambda x_t, t: 0.5 * x_t)
    params = {"first": {}, "last": {}}

    def draws(key):
        value = function(params, batch, key)
        dropout = [options["rngs"]["dropout"] for _, options in stub.calls if options.get("rngs")]
        return value, [jax.random.normal(key) for key in dropout[:1]]

    keys = random_keys.uses(draws, KEY)
    assert keys
    assert not random_keys.duplicates(keys)


def test_the_autoregressive_prior_draws_every_code_with_a_key_of_its_own():
    cfg = tiny.experiment("prior_ar").model
    stage = prior_ar.make(cfg)
    params = jax.eval_shape(lambda key: nn.meta.unbox(stage.init(key)), KEY)
    batch = jax.tree.map(jnp.asarray, tiny.random_batch(stage, 2))
    keys = random_keys.uses(lambda p, key: stage.evaluate(p, batch, key), params, KEY)
    assert not random_keys.duplicates(keys)
    assert [random_keys.depends_on_a_loop(key) for key in keys].count(True) == 1


def test_a_draw_for_every_example_has_the_example_s_key():
    """`x_T` and the noise of augmentation are functions of keys[i] alone, and differ."""
    keys = rng.per_example(KEY, jnp.arange(4))
    x_T = gaussian.x_T(keys, (8,))
    np.testing.assert_array_equal(gaussian.x_T(keys[2:3], (8,))[0], x_T[2])
    assert len(np.unique(x_T)) == 32
