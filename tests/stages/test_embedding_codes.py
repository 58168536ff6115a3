"""The autoregressive prior between embedding spaces: codes, drops, the cache, distributions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from tests.stages.test_embedding_prior import BRAIN, IDS, TEXT, config, on_device, pairs, rows_of
from unclip_jax.core.checks import UserError
from unclip_jax.fitting import quantizer_fit
from unclip_jax.models.application import apply
from unclip_jax.models.embedding_codes import EmbeddingCodes
from unclip_jax.models.pca_quantizer import PcaQuantizerConfig
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.stages import embedding_codes, embedding_prior, pair_inputs

CODEC = PcaQuantizerConfig(components=4, buckets=6)
SIZE = 8


def with_codes(*conditions, codec=CODEC, **options):
    method = {"method": "autoregressive", "scaling": "standardised", **options}
    model = method.pop("model", {})
    cfg = config(*conditions, **{**method, "method": "mlp"})
    model_cfg = dataclasses.replace(cfg.model, codec=codec, **model)
    return dataclasses.replace(cfg, model=model_cfg, method=method["method"])


def params_of(cfg, batch):
    """Parameters away from zero, with the fit to `batch`."""
    stage = embedding_prior.make(cfg)
    params = tiny.random_params(stage)
    fitted_params = stage.fit(rows_of(batch)).params
    for name, group in fitted_params.items():
        assert jax.tree.structure(group) == jax.tree.structure(params[name])
    return {**params, **jax.tree.map(jnp.asarray, fitted_params)}


@pytest.fixture(scope="module")
def three():
    """A prior with three conditions, its parameters, and eight pairs."""
    cfg = with_codes(BRAIN, TEXT, IDS, drop_each=0.1)
    data = pairs(cfg, 64)
    data["y"] = data["brain"][:, :5] + 0.3 * data["y"]  # so that the ridge predicts something
    return cfg, params_of(cfg, data), on_device(pairs(cfg, SIZE))


@pytest.fixture(scope="module")
def network(three):
    """The parameters of a fresh network."""
    return tiny.init(embedding_prior.make(three[0]))["network"]


@functools.partial(jax.jit, static_argnums=0)
def losses_of(cfg, params, batch):
    return embedding_prior.losses(cfg, params, batch, key=jax.random.key(0), training=False)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(cfg, params, inputs, codes):
    options = embedding_codes._inputs(cfg, params, inputs)
    return apply(EmbeddingCodes(cfg.network), params["network"], codes, **options)


def test_a_fresh_prior_is_uniform_over_the_buckets(three, network):
    cfg, params, batch = three
    loss = losses_of(cfg, {**params, "network": network}, batch)
    np.testing.assert_allclose(loss, np.log(6), rtol=1e-6)


def test_the_loss_is_the_mean_cross_entropy_of_the_codes(three):
    cfg, params, batch = three
    inputs = pair_inputs.read(cfg, params, batch, size=SIZE)
    codec = {name: np.asarray(x, np.float64) for name, x in params["codec"].items()}
    y = np.asarray(batch["y"], np.float64)
    y = (y - np.asarray(params["fitted"]["y"]["mean"])) / np.asarray(params["fitted"]["y"]["std"])
    x = (y - codec["mean"]) @ codec["basis"].T
    codes = np.array([[np.sum(x[b, i] >= codec["edges"][i]) for i in range(4)] for b in range(8)])
    logits = np.asarray(logits_of(cfg, params, inputs, jnp.asarray(codes)), np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = -np.log(np.take_along_axis(shares, codes[..., None], axis=2))[..., 0].mean(axis=1)
    loss = losses_of(cfg, params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_a_code_depends_on_earlier_codes_and_conditions_alone(three):
    cfg, params, batch = three
    inputs = pair_inputs.read(cfg, params, batch, size=SIZE)
    codes = jnp.asarray(np.random.default_rng(0).integers(0, 6, (SIZE, 4)))
    one = logits_of(cfg, params, inputs, codes)
    other = logits_of(cfg, params, inputs, codes.at[:, 1].add(1) % 6)
    np.testing.assert_allclose(one[:, :2], other[:, :2], atol=1e-6)
    assert np.abs(one[:, 2:] - other[:, 2:]).max() > 1e-3
    for name in ("brain", "text", "ids"):
        others = {k: x for k, x in batch.items() if k != name}
        without = pair_inputs.read(cfg, params, others, size=SIZE)
        assert np.abs(logits_of(cfg, params, without, codes) - one).max() > 1e-3
        keep = inputs.keep.at[:, ("brain", "text", "ids").index(name)].set(False)
        logits = logits_of(cfg, params, inputs._replace(keep=keep), codes)
        np.testing.assert_allclose(
            logits, logits_of(cfg, params, without, codes), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_greedy_codes_are_the_choice_of_the_network_without_cache(three, scale):
    cfg, params, batch = three
    cfg = dataclasses.replace(cfg, temperature=0.0)
    inputs = pair_inputs.read(cfg, params, batch, size=SIZE)
    sampling = SamplingConfig(guidance_scale=scale)
    run = jax.jit(  # arrays are arguments, as in use
        lambda params, inputs, keys: embedding_codes.sample(
            cfg, params, inputs, keys=keys, sampling=cfg.code_sampling(sampling)
        )
    )
    samples = run(params, inputs, jax.random.split(jax.random.key(0), SIZE))
    codes = embedding_codes.encode(cfg, params, samples)
    nothing = inputs._replace(keep=jnp.zeros_like(inputs.keep))
    with_all = logits_of(cfg, params, inputs, codes)
    without = logits_of(cfg, params, nothing, codes)
    guided = without + scale * (with_all - without)
    np.testing.assert_array_equal(codes, jnp.argmax(guided, axis=-1))


@functools.partial(jax.jit, static_argnums=0)
def sample(cfg, params, conditions, keys):
    return embedding_prior.sample(cfg, params, conditions, keys=keys)


def test_a_uniform_prior_samples_the_marginals_of_the_components(three, network):
    cfg, params, batch = three
    fresh = {**params, "network": network}
    conditions = {name: x for name, x in batch.items() if name != "y"}
    keys = jax.random.split(jax.random.key(0), (150, SIZE))
    samples = np.concatenate([sample(cfg, fresh, conditions, row) for row in keys])
    codec = {name: np.asarray(x, np.float64) for name, x in params["codec"].items()}
    std = np.asarray(params["fitted"]["y"]["std"], np.float64)
    mean = codec["centroids"].mean(axis=1) @ codec["basis"] + codec["mean"]
    mean = mean * std + np.asarray(params["fitted"]["y"]["mean"])
    spread = codec["basis"].T @ np.diag(codec["centroids"].var(axis=1)) @ codec["basis"]
    error = std / np.sqrt(len(samples))
    np.testing.assert_array_less(np.abs(samples.mean(axis=0) - mean), 4 * error)
    scaled = np.cov((samples / std).T)
    np.testing.assert_allclose(scaled, spread, atol=4 * np.sqrt(2 / len(samples)))


def test_a_sample_depends_on_its_own_row_and_key(three):
    cfg, params, batch = three
    keys = jax.random.split(jax.random.key(1), SIZE)
    conditions = {name: x for name, x in batch.items() if name != "y"}
    one = sample(cfg, params, conditions, keys)
    other = sample(cfg, params, {name: x[::-1] for name, x in conditions.items()}, keys[::-1])
    np.testing.assert_allclose(one, other[::-1], rtol=1e-4, atol=1e-5)
    assert np.abs(one - sample(cfg, params, conditions, keys[::-1])).max() > 1e-2


def test_sequences_are_quantised_as_one_vector():
    cfg = with_codes(target=(3, 2), model={"ridge": False})
    data = pairs(cfg, 64)
    params = jax.tree.map(jnp.asarray, embedding_codes.fit(cfg, rows_of(data)).params)
    latents = pair_inputs.to_latent(cfg, params, jnp.asarray(data["y"]))
    codes = embedding_codes.encode(cfg, params, latents)
    back = embedding_codes.decode(cfg, params, codes)
    assert codes.shape == (64, 4) and back.shape == (64, 3, 2)
    error = float(jnp.mean((back - latents) ** 2))
    assert error < 0.5  # of 1, with 4 of 6 components and 6 buckets


def test_components_are_counted_on_the_latents():
    share = PcaQuantizerConfig(components=0, explained_variance=0.7, buckets=6)
    cfg = with_codes(codec=share)
    data = pairs(cfg, 64)
    data["y"][:, 3] = data["y"][:, 2] + 1e-3 * data["y"][:, 3]
    resolved = embedding_codes.resolve_from_data(cfg, rows_of(data))
    y = (data["y"] - data["y"].mean(axis=0)) / data["y"].std(axis=0)
    values = np.linalg.eigvalsh(np.cov(y.T, bias=True))[::-1]
    shares = np.cumsum(values) / values.sum()
    count = resolved.model.codec.components
    assert shares[count - 2] < 0.7 <= shares[count - 1]
    same = dataclasses.replace(cfg, method="diffusion")
    assert embedding_codes.resolve_from_data(same, rows_of(data)) is same
    note = embedding_codes.fit(resolved, rows_of(data)).note
    assert "ridge explains" in note and f"{count} of 5 principal components" in note
    mean = quantizer_fit.fit(resolved.model.codec, rows_of(data), components=count, read=_centre)
    assert "components" in mean.note


def _centre(block):
    return block["y"].astype(np.float64), None


def test_held_out_metrics_are_those_of_samples(three):
    cfg, params, batch = three
    evaluate = embedding_prior.make(cfg).evaluate
    metrics = jax.jit(evaluate)(params, batch, jax.random.key(0))
    assert {*metrics} == {"loss", "cosine", "cosine_ridge", "sample_cosine", "rank"}
    assert 1 <= float(metrics["rank"]) <= SIZE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_codes(target=(3, 2), ragged=True), r"of one length .* ragged \[3, 2\]"),
        (lambda: with_codes(target=(100, 50), model={"ridge": False}), "at most 4,096 numbers"),
        (lambda: with_codes(target=(3,)), "components is 4, but targets have 3 dimensions; keep"),
        (lambda: with_codes(temperature=-1.0), "temperature is -1.0"),
        (lambda: with_codes(top_p=0.0), "top_p is 0, which leaves no code"),
    ],
)
def test_settings_that_do_not_fit_are_rejected(make, message):
    with pytest.raises(UserError, match=message):
        make()
