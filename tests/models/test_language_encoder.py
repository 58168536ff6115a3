"""Encoders of language models; tests/parity compares them with transformers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.models import probes
from unclip_jax.core.checks import UserError
from unclip_jax.models.language_encoder import (
    FAMILIES,
    LanguageEncoder,
    LanguageEncoderBlock,
    LanguageEncoderConfig,
    relative_buckets,
)

SIZES = {"width": 16, "depth": 2, "heads": 2, "head_width": 12, "mlp": 24, "vocab_size": 30}


def test_distances_share_rows_from_the_borders_on():
    rows = relative_buckets(200)
    assert rows[100, 100] == 0 and rows[100, 99] == 1 and rows[100, 101] == 17
    behind = rows[0, 1:] - 16  # keys behind the query, by distance
    borders = [int(i) + 1 for i in np.flatnonzero(np.diff(behind, prepend=0))]
    assert borders == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    np.testing.assert_array_equal(rows[:, 0][1:], behind)


@pytest.mark.parametrize("family", FAMILIES)
def test_real_tokens_depend_neither_on_padding_nor_on_the_length(family):
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 30)
    mask = jnp.arange(9)[None] < jnp.array([[5], [3]])
    short, other = LanguageEncoderConfig(family, context=6, **SIZES), (tokens + 1 - mask) % 30
    long = LanguageEncoderConfig(family, context=9, **SIZES)
    params = probes.fresh(LanguageEncoder(long), tokens, mask)
    full = probes.apply(LanguageEncoder(long), params, tokens, mask)
    for cfg, ids in ((long, other), (short, tokens)):
        length = cfg.context
        x = probes.apply(LanguageEncoder(cfg), params, ids[:, :length], mask[:, :length])
        visible = mask[:, :length, None]
        np.testing.assert_allclose(x * visible, full[:, :length] * visible, atol=1e-6)
    if family != "clip":  # whose padding is behind the tokens that could see it
        unmasked = probes.apply(LanguageEncoder(long), params, tokens, mask | True)
        assert np.abs(full - unmasked).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_by_hand(family):
    """T5: norms before, no scale, a gate; BERT: norms behind, scaled, biases; CLIP: before."""
    cfg = LanguageEncoderConfig(family, context=4, eps=1e-6, **SIZES)
    x = np.random.default_rng(0).normal(size=(1, 4, 16))
    bias = np.random.default_rng(1).normal(size=(1, 1, 1, 4))
    module = LanguageEncoderBlock(cfg)
    inputs = (jnp.asarray(x, jnp.float32), jnp.asarray(bias, jnp.float32))
    variables = probes.random_variables(module, *inputs)
    p = jax.tree.map(np.asarray, variables["params"])

    def dense(name, x):
        return x @ p[name]["kernel"] + p[name].get("bias", 0.0)

    def norm(name, x):
        if family == "t5":  # without a mean
            return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * p[name]["scale"]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p[name]["scale"] + p[name]["bias"]

    def attention(x):
        q, k, v = (dense(name, x).reshape(1, 4, 2, 12) for name in "qkv")
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / (1 if family == "t5" else np.sqrt(12))
        weights = scipy.special.softmax(scores + bias, axis=-1)
        return dense("out", np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(1, 4, 24))

    def mlp(x):
        if family == "bert":
            up = dense("up", x)
            return dense("down", up * scipy.special.ndtr(up))
        if family == "clip":
            up = dense("up", x)
            return dense("down", up * scipy.special.expit(1.702 * up))
        gate = dense("gate", x)
        tanh = np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))
        return dense("down", 0.5 * gate * (1 + tanh) * dense("up", x))

    for name, layer in (("attention_norm", attention), ("mlp_norm", mlp)):
        x = norm(name, x + layer(x)) if family == "bert" else x + layer(norm(name, x))
    np.testing.assert_allclose(module.apply(variables, *inputs)[0], x, atol=2e-4)


def test_clip_s_tokens_see_those_before_them_alone():
    cfg = LanguageEncoderConfig("clip", context=6, **SIZES)
    tokens, mask = jnp.arange(6)[None], jnp.ones((1, 6), bool)
    params = probes.fresh(LanguageEncoder(cfg), tokens, mask)
    x = probes.apply(LanguageEncoder(cfg), params, tokens, mask)
    y = probes.apply(LanguageEncoder(cfg), params, tokens.at[0, 3].set(20), mask)
    np.testing.assert_array_equal(x[:, :3], y[:, :3])
    assert np.abs(x - y)[0, 3:].max(axis=-1).min() > 1e-3


def test_a_context_longer_than_in_training_is_rejected():
    with pytest.raises(UserError, match="context is 600, but this bert was trained on 512 tokens"):
        LanguageEncoderConfig("bert", context=600, **SIZES)
