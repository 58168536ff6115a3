"""Frozen text features as a U-Net reads them: the null, padding, pooling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.core.checks import UserError
from unclip_jax.models.text_condition import (
    AttentionPooling,
    TextCondition,
    TextConditionConfig,
    null,
)

CFG = TextConditionConfig(width=6, context=5, project=4, pool_heads=2)
RNG = np.random.default_rng(0)
FEATURES = jnp.asarray(RNG.normal(size=(3, 5, 6)), jnp.float32)
MASK = jnp.arange(5)[None] < jnp.array([[5], [2], [1]])


def module(**changes):
    return TextCondition(dataclasses.replace(CFG, **changes), 8, jnp.dtype("float32"))


def run(variables, features=FEATURES, mask=MASK, keep=None, **changes):
    return module(**changes).apply(variables, features, mask, keep)


@pytest.fixture(scope="module")
def variables():
    return probes.random_variables(module(), FEATURES, MASK)


def test_the_null_is_one_whatever_the_caption(variables):
    out = run(variables, keep=jnp.array([False, False, True]))
    for row in jax.tree.leaves(out):
        np.testing.assert_array_equal(row[0], row[1])
    conditional = run(variables)
    np.testing.assert_array_equal(out.last[2], conditional.last[2])
    assert np.abs(out.last[0] - conditional.last[0]).max() > 1e-2
    features, mask = null(FEATURES, MASK, keep=jnp.zeros(3, bool))
    assert not features.any()
    np.testing.assert_array_equal(mask, np.arange(5)[None].repeat(3, 0) < 1)  # one slot stays


def test_empty_slots_matter_only_where_they_are_seen(variables):
    other = jnp.where(MASK[..., None], FEATURES, 7.0)
    for changes, matters in (
        ({}, False),
        ({"pooling": "mean"}, False),
        ({"padding": "seen"}, True),
    ):
        pooled = [run(variables, x, **changes).last for x in (FEATURES, other)]
        assert (np.abs(pooled[0] - pooled[1]).max() > 1e-3) == matters, changes
    assert run(variables, padding="seen").mask.all()
    long = jnp.pad(FEATURES, ((0, 0), (0, 3), (0, 0)), constant_values=9.0)
    more = jnp.pad(MASK, ((0, 0), (0, 3)))
    np.testing.assert_allclose(
        run(variables, long, more, context=8).last, run(variables).last, atol=1e-6
    )


def test_mean_pooling_by_hand(variables):
    p = jax.tree.map(np.asarray, variables["params"])
    x = np.asarray(FEATURES[1, :2])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = (x * p["pool_norm"]["scale"] + p["pool_norm"]["bias"]).mean(0)
    x = x @ p["pooled"]["kernel"] + p["pooled"]["bias"]
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    x = x * p["pooled_norm"]["scale"] + p["pooled_norm"]["bias"]
    np.testing.assert_allclose(run(variables, pooling="mean").last[1], x, atol=1e-4)


@pytest.mark.parametrize("query", ["learned", "mean"])
def test_attention_pooling_by_hand(query):
    """One query beside the tokens, to which it attends as well as to them."""
    module = AttentionPooling(2, jnp.dtype("float32"))
    queries = jnp.zeros((3, 6)) if query == "learned" else FEATURES.mean(1)
    variables = probes.random_variables(module, FEATURES, queries, MASK)
    p = jax.tree.map(np.asarray, variables["params"])
    result = module.apply(variables, FEATURES, queries, MASK)
    for row, real in enumerate((5, 2, 1)):
        token = np.asarray(queries[row])[None] + p["position"]
        tokens = np.concatenate([token, FEATURES[row, :real]])
        q, k, v = (tokens @ p[name]["kernel"] + p[name]["bias"] for name in "qkv")
        for head in (slice(0, 3), slice(3, 6)):
            scores = k[:, head] @ q[0, head] / np.sqrt(3)
            weights = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(result[row, head], weights @ v[:, head], atol=1e-5)


def test_without_pooling_nothing_joins_the_timestep_embedding(variables):
    out = run(variables, pooling="none")
    assert not out.last.any() and out.sequence.shape == (3, 5, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool_heads": 4}, "text.width is 6"),
        ({"pooling": "max"}, "unknown text.pooling 'max'"),
        ({"attend": False, "pooling": "none"}, "no text would be read"),
    ],
)
def test_other_settings_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CFG, **changes)


def test_features_of_another_encoder_and_drops_without_a_null_are_rejected(variables):
    with pytest.raises(UserError, match="5 tokens of width 6; this model reads 5 of width 8"):
        run(variables, width=8)
    with pytest.raises(UserError, match="has no null caption of its own"):
        run(variables, keep=jnp.ones(3, bool), null="empty")
