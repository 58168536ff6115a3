"""Attention against brute force in float64, and which implementation is used where."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.backbones import attention


def draw(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def softmax_attention(q, k, v, visible):
    """Loops over batch, heads and queries; `visible` [b n l m]."""
    out = np.zeros(q.shape, np.float64)
    for b, i, n in np.ndindex(*q.shape[:3]):
        scores = k[b, :, n].astype(np.float64) @ q[b, i, n].astype(np.float64)
        scores = np.where(visible[b, n, i], scores / math.sqrt(q.shape[-1]), -np.inf)
        weights = np.exp(scores - scores.max())
        out[b, i, n] = (weights / weights.sum()) @ v[b, :, n].astype(np.float64)
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_a_softmax_over_what_is_visible(causal, masked):
    q, k, v = (draw(2, 5, 3, 4, seed=s, scale=2.0) for s in range(3))
    visible = np.ones((2, 3, 5, 5), bool)
    mask = None
    if masked:
        keys = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], bool)
        visible &= keys[:, None, None, :]
        mask = jnp.asarray(keys)[:, None, None, :]
    if causal:
        visible &= np.tril(np.ones((5, 5), bool))
    got = attention.attention(*map(jnp.asarray, (q, k, v)), mask=mask, causal=causal)
    np.testing.assert_allclose(got, softmax_attention(q, k, v, visible), atol=2e-6)


def test_attention_between_unequal_lengths():
    q, k, v = draw(1, 2, 2, 4), draw(1, 7, 2, 4, seed=1), draw(1, 7, 2, 4, seed=2)
    want = softmax_attention(q, k, v, np.ones((1, 2, 2, 7), bool))
    got = attention.attention(*map(jnp.asarray, (q, k, v)))
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_the_softmax_of_half_precision_is_taken_in_float32():
    """Scores 64 and 64.25 over sqrt(8): bfloat16 near 22.6 has steps of 0.125."""
    q = jnp.ones((1, 1, 1, 8), jnp.bfloat16)
    k = jnp.zeros((1, 2, 1, 8), jnp.bfloat16).at[..., 0].set(64.0).at[0, 1, 0, 1].set(0.25)
    v = jnp.stack([jnp.full((1, 1, 8), sign, jnp.bfloat16) for sign in (-1, 1)], axis=1)
    got = attention.attention(q, k, v)
    assert got.dtype == jnp.bfloat16
    want = math.tanh(0.25 / math.sqrt(8) / 2)  # the difference of the two weights
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=2**-8)


@pytest.mark.parametrize(
    ("dtype", "head", "length", "masked", "want"),
    [
        ("bfloat16", 8, 6, True, "cudnn"),
        ("bfloat16", 8, 5, False, "cudnn"),
        ("bfloat16", 8, 5, True, "xla"),  # odd lengths with a mask have no backward pass
        ("bfloat16", 12, 6, False, "xla"),
        ("bfloat16", 136, 6, False, "xla"),
        ("float32", 8, 6, False, "xla"),
    ],
)
def test_on_a_gpu_attention_is_cudnn_where_it_applies(
    monkeypatch, dtype, head, length, masked, want
):
    """CuDNN wants masks whose last two sides are the lengths, which key masks are not."""
    arguments = {}

    def record(q, k, v, **kwargs):
        arguments.update(kwargs)
        return q

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    q = jnp.zeros((2, length, 3, head), dtype)
    keys = jnp.arange(length)[None, None, None, :] < jnp.array([2, 4])[:, None, None, None]
    attention.attention(q, q, q, mask=keys if masked else None)
    assert arguments["implementation"] == want
    if masked and want == "cudnn":
        assert arguments["mask"].shape == (2, 1, length, length)
        np.testing.assert_array_equal(
            arguments["mask"], np.broadcast_to(keys, arguments["mask"].shape)
        )


def test_plain_attention_is_that_of_xla(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jnp.zeros((1, 4, 2, 8), jnp.bfloat16)
    assert attention._implementation(x, x, None) == "cudnn"
    with attention.plain():
        assert attention._implementation(x, x, None) == "xla"
    assert attention._implementation(x, x, None) == "cudnn"
