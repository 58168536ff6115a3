"""The prior between two embedding spaces: fits, latents, drops, ragged sequences, sampling."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.core.batch import Field
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict, build
from unclip_jax.fitting import linear_fit
from unclip_jax.models.condition_encoder import EncoderConfig
from unclip_jax.models.condition_tokens import ConditionConfig
from unclip_jax.models.embedding_prior import EmbeddingPriorConfig
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig
from unclip_jax.stages import embedding_prior, pair_inputs
from unclip_jax.stages.embedding_prior_config import EmbeddingPriorStageConfig, resolve_fields

N = 64
RNG = np.random.default_rng(0)
BRAIN = ConditionConfig("brain", (6,))
TEXT = ConditionConfig("text", (3, 4), ragged=True)
IDS = ConditionConfig("ids", (3,), vocab_size=5)


def config(*conditions, target=(5,), ragged=False, ridge=True, **options):
    net = EmbeddingPriorConfig(
        conditions=conditions or (BRAIN,),
        target=target,
        ragged=ragged,
        ridge=ridge,
        width=16,
        depth=1,
        heads=2,
        num_timesteps=10,
        causal=options.pop("causal", True),
        queries=options.pop("queries", True),
    )
    diffusion = DiffusionConfig(target="x_0", num_timesteps=10)
    sampling = SamplingConfig(steps="4", sampler="ddim")
    return EmbeddingPriorStageConfig(net, diffusion, sampling, **options)


def pairs(cfg, size=N, seed=0):
    rng = np.random.default_rng(seed)
    stage = embedding_prior.make(cfg)
    batch = tiny.random_batch(stage, size, seed)
    for name, field in stage.batch_spec.items():
        if field.dtype == "float32":
            batch[name] = rng.normal(1.0, 2.0, (size, *field.shape)).astype(np.float32)
    return batch


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


def rows_of(batch, size=20):
    def rows(most):
        count = min(most, len(batch["y"]))
        for i in range(0, count, size):
            yield {name: x[i : min(i + size, count)] for name, x in batch.items()}

    return rows


def params_of(cfg, batch):
    params = tiny.random_params(embedding_prior.make(cfg))
    fitted_params = pair_inputs.fit(cfg, rows_of(batch)).params
    assert jax.tree.structure(fitted_params["fitted"]) == jax.tree.structure(params["fitted"])
    return {**params, **jax.tree.map(jnp.asarray, fitted_params)}


def ridge_by_hand(x, y, strength):
    """The regression of centred rows, by the normal equations."""
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    weights = np.linalg.solve(a.T @ a + strength * np.eye(a.shape[1]), a.T @ b)
    return weights, y.mean(axis=0) - x.mean(axis=0) @ weights


@pytest.fixture(scope="module")
def linear():
    x = RNG.normal(size=(40, 7)) * np.linspace(0.1, 2.0, 7)
    y = x @ RNG.normal(size=(7, 3)) + RNG.normal(size=(40, 3)) + 5.0
    rows = rows_of({"x": x, "y": y}, size=11)
    return x, y, linear_fit.ridge(rows, lambda block: (block["x"], block["y"]))


def test_the_ridge_solves_the_normal_equations(linear):
    x, y, fit = linear
    unit = np.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0))).mean()
    weights, bias = ridge_by_hand(x, y, fit.strength * unit)
    np.testing.assert_allclose(fit.weights, weights, atol=1e-10)
    np.testing.assert_allclose(fit.bias, bias, atol=1e-10)


def test_its_strength_minimises_generalised_cross_validation(linear):
    x, y, fit = linear
    a, unit = x - x.mean(0), np.trace((x - x.mean(0)).T @ (x - x.mean(0))) / 7

    def gcv(ratio):
        weights, bias = ridge_by_hand(x, y, ratio * unit)
        hat = a @ np.linalg.solve(a.T @ a + ratio * unit * np.eye(7), a.T)
        return ((y - x @ weights - bias) ** 2).sum() / (40 - 1 - np.trace(hat)) ** 2

    assert fit.strength == min(linear_fit.GRID, key=gcv)


@pytest.mark.parametrize("scaling", ["unit", "standardised", "raw"])
def test_latents_are_as_scaled_and_come_back(scaling):
    cfg = config(scaling=scaling, method="ridge")
    batch = pairs(cfg)
    params = params_of(cfg, batch)
    latent = np.asarray(pair_inputs.to_latent(cfg, params, jnp.asarray(batch["y"])))
    y = batch["y"]
    if scaling == "unit":
        y = y / np.linalg.norm(y, axis=1, keepdims=True)
        np.testing.assert_allclose((latent**2).mean(), 1.0, rtol=1e-5)
    if scaling == "standardised":
        np.testing.assert_allclose(latent.std(axis=0), 1.0, rtol=1e-5)
    if scaling == "raw":
        np.testing.assert_array_equal(latent, y)
    else:
        np.testing.assert_allclose(latent.mean(axis=0), 0.0, atol=1e-5)
    back = pair_inputs.from_latent(cfg, params, jnp.asarray(latent))
    np.testing.assert_allclose(back, y, rtol=1e-5, atol=1e-5)


def test_in_training_the_linear_prediction_is_that_of_the_other_pairs():
    cfg = config(scaling="raw", method="ridge")
    batch = pairs(cfg)
    params = params_of(cfg, batch)
    inputs = pair_inputs.read(cfg, params, batch, size=N, leave_out=jnp.asarray(batch["y"]))
    x = np.asarray(inputs.conditions["brain"], np.float64)
    root = np.asarray(params["fitted"]["ridge"]["root"], np.float64)
    strength = np.linalg.inv(root.T @ root) - (x - x.mean(0)).T @ (x - x.mean(0))
    np.testing.assert_allclose(strength, strength[0, 0] * np.eye(6), atol=1e-2)
    for i in (0, 17):
        # the mean is that of all pairs, which the fitted statistics are; only the weights are
        # those of the other pairs
        others = np.arange(N) != i
        a, b = x[others], batch["y"][others] - batch["y"].mean(axis=0)
        gram = a.T @ a + strength[0, 0] * np.eye(6)
        expected = x[i] @ np.linalg.solve(gram, a.T @ b) + batch["y"].mean(axis=0)
        np.testing.assert_allclose(inputs.ridge[i], expected, rtol=2e-3, atol=2e-3)
    plain = pair_inputs.read(cfg, params, batch, size=N)
    assert np.abs(plain.ridge - inputs.ridge).max() > 1e-3


@pytest.fixture(scope="module")
def three():
    """A prior with three conditions, its parameters, and eight pairs."""
    cfg = config(BRAIN, TEXT, IDS, drop_each=0.1)
    return cfg, params_of(cfg, pairs(cfg)), on_device(pairs(cfg, 8))


@functools.partial(jax.jit, static_argnums=(0, 3))
def output(cfg, params, inputs, scale=1.0):
    x_t = jnp.ones((len(inputs.keep), *cfg.model.target))
    t = jnp.full(len(x_t), 3)
    return embedding_prior.denoiser(cfg, params, inputs, scale=scale)(x_t, t).x_0


def test_conditions_are_dropped_one_by_one(three):
    cfg, params, batch = three
    names = ("brain", "text", "ids")
    full = output(cfg, params, pair_inputs.read(cfg, params, batch, size=8))
    for condition in names:
        others = {name: x for name, x in batch.items() if name != condition}
        without = output(cfg, params, pair_inputs.read(cfg, params, others, size=8))
        assert np.abs(without - full).max() > 1e-3
        other = {**batch, condition: batch[condition] * 0}
        inputs = pair_inputs.read(cfg, params, other, size=8)
        keep = jnp.array([[name != condition for name in names]] * 8)
        same = output(cfg, params, inputs._replace(keep=keep))
        np.testing.assert_allclose(same, without, rtol=1e-5, atol=1e-6)


def test_guidance_leads_away_from_no_condition(three):
    cfg, params, batch = three
    inputs = pair_inputs.read(cfg, params, batch, size=8)
    without = output(cfg, params, inputs._replace(keep=jnp.zeros((8, 3), bool)))
    expected = without + 3.0 * (output(cfg, params, inputs) - without)
    guided = output(cfg, params, inputs, 3.0)
    np.testing.assert_allclose(guided, expected, rtol=1e-4, atol=1e-5)


def test_a_sample_depends_on_its_own_row_and_key(three):
    cfg, params, batch = three
    keys = jax.random.split(jax.random.key(1), 8)
    conditions = {name: x for name, x in batch.items() if name != "y"}
    run = jax.jit(lambda rows, keys: embedding_prior.sample(cfg, params, rows, keys=keys))
    one = run(conditions, keys)
    other = run({name: x[::-1] for name, x in conditions.items()}, keys[::-1])
    np.testing.assert_allclose(one, other[::-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1.0, rtol=1e-5)
    assert np.abs(one - run(conditions, keys[::-1])).max() > 1e-2


def test_drops_have_their_shares():
    cfg = config(BRAIN, TEXT, drop_all=0.2, drop_each=0.5)
    keep = embedding_prior.keep_masks(cfg, jax.random.key(0), 4000)
    assert jnp.mean(~jnp.any(keep, axis=1)) == pytest.approx(0.2 + 0.8 * 0.25, abs=0.03)
    assert jnp.mean(keep[:, 0]) == pytest.approx(0.8 * 0.5, abs=0.03)


def test_without_masks_all_tokens_are_real_and_those_of_a_missing_condition_are_not():
    cfg = config(BRAIN, TEXT, target=(4, 5), ragged=True, scaling="standardised")
    length, batch = TEXT.shape[0], pairs(cfg, 3)
    with_masks = pair_inputs.masks(cfg, batch, size=3)
    assert with_masks.keys() == {"text", "y"}
    np.testing.assert_array_equal(with_masks["y"], batch["y_mask"])
    whole = pair_inputs.masks(cfg, {"text": batch["text"]}, size=3)
    np.testing.assert_array_equal(whole["y"], np.ones((3, 4), bool))
    np.testing.assert_array_equal(whole["text"], np.ones((3, length), bool))
    np.testing.assert_array_equal(
        pair_inputs.masks(cfg, {}, size=3)["text"], np.zeros((3, length), bool)
    )


@pytest.mark.parametrize("queries", [True, False])
def test_padding_is_no_part_of_the_loss(queries):
    cfg = config(
        BRAIN,
        TEXT,
        target=(4, 5),
        ragged=True,
        scaling="standardised",
        causal=queries,
        queries=queries,
    )
    batch = pairs(cfg, 8)
    params = params_of(cfg, pairs(cfg))
    noise = {
        "y": np.where(batch["y_mask"][..., None], batch["y"], 7.0).astype(np.float32),
        "text": np.where(batch["text_mask"][..., None], batch["text"], -3.0).astype(np.float32),
    }
    key = jax.random.key(0)
    run = jax.jit(lambda b: embedding_prior.losses(cfg, params, b, key=key, training=True))
    one, other = (run(on_device(b)) for b in (batch, {**batch, **noise}))
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_an_encoder_adds_tokens_by_subject_and_a_contrastive_loss():
    encoder = EncoderConfig(width=8, depth=1, tokens=2, subjects=2, contrastive=0.5, mixup=0.3)
    cfg = config(BRAIN, TEXT, encoder=encoder)
    batch = on_device(pairs(cfg, 8))
    params = params_of(cfg, pairs(cfg))
    stage = embedding_prior.make(cfg)
    assert not stage.splittable and stage.batch_spec["subject"].high == 1
    assert EncoderConfig().subjects == 1
    other_batch = {**batch, "subject": 1 - batch["subject"]}
    one, other = (pair_inputs.read(cfg, params, b, size=8) for b in (batch, other_batch))
    assert one.conditions["encoded"].shape == (8, 2, 8)
    assert np.abs(one.conditions["encoded"] - other.conditions["encoded"]).max() > 1e-3
    assert one.keep.shape == (8, 3)
    without = pair_inputs.read(cfg, params, {"text": batch["text"]}, size=8)
    np.testing.assert_array_equal(without.keep[0], [False, True, False])  # brain, text, encoded
    loss = jax.jit(jax.value_and_grad(lambda p: stage.loss(p, batch, jax.random.key(0))[0]))
    value, grads = loss(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["encoder"]))
    off = dataclasses.replace(cfg, encoder=dataclasses.replace(encoder, contrastive=0.0))
    plain = embedding_prior.make(off).loss(params, batch, jax.random.key(0))[0]
    targets = np.log(8) / 2  # half of the loss of a guess among eight
    assert 0.05 < float(value - plain) < 20 * targets


def test_examples_are_mixed_in_training_alone():
    """Without mixing the contrastive part draws nothing, so it is the same under every key."""
    encoder = EncoderConfig(width=8, depth=1, tokens=2, subjects=2, contrastive=0.5, mixup=0.3)
    with_it = config(BRAIN, TEXT, encoder=encoder)
    without = dataclasses.replace(with_it, encoder=dataclasses.replace(encoder, contrastive=0.0))
    params, batch = params_of(with_it, pairs(with_it)), on_device(pairs(with_it, 8))

    @functools.partial(jax.jit, static_argnames="training")
    def part(key, training):
        both = (
            embedding_prior.losses(cfg, params, batch, key=key, training=training)
            for cfg in (with_it, without)
        )
        return jnp.mean(next(both) - next(both))

    for training in (True, False):
        one, other = (float(part(jax.random.key(seed), training)) for seed in (0, 1))
        assert (abs(one - other) > 1e-3) == training


@pytest.mark.parametrize("method", ["mlp", "ridge"])
def test_the_loss_of_a_regression_is_its_mean_squared_error(method):
    cfg = config(method=method, scaling="standardised")
    batch = pairs(cfg)
    params = params_of(cfg, batch)
    x = {"brain": jnp.asarray(batch["brain"])}
    guess = embedding_prior.sample(cfg, params, x, keys=jax.random.split(jax.random.key(0), N))
    error = (np.asarray(guess) - batch["y"]) / batch["y"].std(axis=0)
    stage = embedding_prior.make(cfg)
    result = stage.evaluate(params, on_device(batch), jax.random.key(0))["loss"]
    assert float(result) == pytest.approx(np.mean(error**2), rel=1e-4)


@pytest.mark.parametrize("method", ["mlp", "ridge"])
def test_regressions_predict_the_same_for_every_key(method):
    cfg = config(method=method, scaling="standardised")
    batch = pairs(cfg)
    params = params_of(cfg, batch)
    few = {"brain": jnp.asarray(batch["brain"][:3])}
    run = jax.jit(lambda keys: embedding_prior.sample(cfg, params, few, keys=keys))
    one, other = (run(jax.random.split(jax.random.key(s), 3)) for s in (0, 1))
    np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match=f"method '{method}' needs all conditions: brain"):
        embedding_prior.sample(cfg, params, {}, keys=jax.random.split(jax.random.key(0), 3))


def test_the_ridge_is_the_best_linear_prediction_of_new_pairs():
    cfg = config(method="ridge", scaling="raw")
    weights = RNG.normal(size=(6, 5))
    x = RNG.normal(size=(600, 6)).astype(np.float32)
    y = (x @ weights + 0.1 * RNG.normal(size=(600, 5))).astype(np.float32)
    params = params_of(cfg, {"brain": x[:500], "y": y[:500]})
    keys = jax.random.split(jax.random.key(0), 100)
    guess = embedding_prior.sample(cfg, params, {"brain": x[500:]}, keys=keys)
    assert np.mean((guess - y[500:]) ** 2) == pytest.approx(0.01, rel=0.2)


def test_the_model_takes_the_shapes_of_the_data():
    fields = {
        "brain": Field((6,), "float32"),
        "text": Field((3, 4), "float32"),
        "text_mask": Field((3,), "bool"),
        "ids": Field((3,), "int32", -1, 4),
        "y": Field((2, 5), "float32"),
    }
    cfg = resolve_fields(config(scaling="raw"), fields)
    assert cfg.model.conditions == (BRAIN, TEXT, IDS)
    assert cfg.model.target == (2, 5) and not cfg.model.ragged
    spec = embedding_prior.make(cfg).batch_spec
    assert {name: (f.shape, f.dtype) for name, f in spec.items()} == {
        name: (f.shape, f.dtype) for name, f in fields.items()
    }


def test_the_layers_of_an_encoder_have_the_labels_of_the_data():
    labels = ("s1", "s10", "s2")
    fields = {"brain": Field((6,), "float32"), "y": Field((5,), "float32")}
    fields["subject"] = Field((), "int32", 0, 2, labels)
    cfg = resolve_fields(config(encoder=EncoderConfig(width=8)), fields)
    assert (cfg.encoder.subjects, cfg.encoder.labels) == (3, labels)
    assert embedding_prior.make(cfg).batch_spec["subject"].labels == labels
    stored = json.loads(json.dumps(as_dict(cfg)))
    assert build(EmbeddingPriorStageConfig, stored, where="config") == cfg


def test_a_constant_dimension_cannot_be_standardised():
    cfg = config(scaling="standardised")
    batch = pairs(cfg)
    batch["y"][:, 2] = 1.0
    with pytest.raises(UserError, match="dimension 2 of y is the same in all training pairs"):
        pair_inputs.fit(cfg, rows_of(batch))
    batch = pairs(cfg)
    batch["brain"][:, 4] = 0.5
    note = pair_inputs.fit(cfg, rows_of(batch)).note
    assert "1 of 6 dimensions of brain are constant, first 4" in note


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: config(method="mlp", encoder=EncoderConfig(8)),
            "encoder is for methods 'diffusion' and 'auto",
        ),
        (
            lambda: config(TEXT, encoder=EncoderConfig(8)),
            "encoder encodes vectors, and no condition is a vector",
        ),
        (lambda: config(method="forest"), "unknown config.model.method 'forest'"),
        (lambda: config(scaling="log"), "unknown config.model.scaling 'log'"),
        (lambda: config(method="ridge", ridge=False), "'ridge', but config.model.model.ridge is F"),
        (lambda: config(target=(4, 5)), "scaling is 'unit', which is for vectors"),
        (lambda: config(IDS), "so there is no ridge regression; set config.model.model.ridge"),
        (lambda: config(queries=False), "queries is False, .* set causal to False"),
        (lambda: config(ConditionConfig("x", (5000,))), "5,000 features and 5 outputs; .* at most"),
        (lambda: ConditionConfig("x", (2, 3, 4)), r"condition 'x' has shape \[2, 3, 4\]; give \[z"),
        (lambda: config(target=(1, 2, 3), scaling="raw"), r"target is \[1, 2, 3\]; give \[z\]"),
        (
            lambda: config(method="mlp", drop_all=0.1).check_guidance(
                SamplingConfig(guidance_scale=2.0)
            ),
            "guidance_scale is for priors, not for method 'mlp'",
        ),
        (
            lambda: config(drop_all=0.0).check_guidance(SamplingConfig(guidance_scale=2.0)),
            "guidance_scale is 2.0, but config.model.drop_all is 0",
        ),
    ],
)
def test_settings_that_do_not_fit_are_rejected(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_without_skips_and_ridge_it_is_a_plain_transformer():
    cfg = config(ridge=False)
    cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, skips=False))
    shapes = nn.meta.unbox(jax.eval_shape(embedding_prior.make(cfg).init, jax.random.key(0)))
    assert {*shapes["network"]} == {
        *("brain_in", "null_brain", "x_t_in", "time", "queries", "positions"),
        *("transformer", "final_norm", "out"),
    }
