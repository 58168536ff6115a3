"""The cached, scanned stack against an unrolled one in float64; caption as a prefix of keys."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.backbones.test_transformer import linear, norm
from tests.models import probes
from unclip_jax.backbones import layers
from unclip_jax.backbones.causal_transformer import CausalTransformer
from unclip_jax.backbones.transformer import TransformerConfig
from unclip_jax.core.checks import UserError

TINY = TransformerConfig(width=8, depth=3, heads=2, causal=True)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 5, 8)), jnp.float32)
TEXT = jnp.asarray(RNG.normal(size=(2, 3, 6)), jnp.float32)
TEXT_MASK = jnp.array([[1, 1, 0], [0, 0, 0]], bool)


@pytest.fixture(scope="module")
def variables():
    return probes.random_variables(CausalTransformer(TINY), X, TEXT, text_mask=TEXT_MASK)


def forward_by_hand(params):
    """Layer after layer, head after head, query after query, with what each may see, in float64."""
    stacked = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"]["blocks"])
    x, text, mask = np.float64(X), np.float64(TEXT), np.asarray(TEXT_MASK)
    for layer in range(TINY.depth):
        p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked)
        y, a = norm(x, p["norm_1"]), p["attention"]
        q = linear(y, a["q"]).reshape(2, 5, 2, 4)
        own = [linear(y, a[n]).reshape(2, 5, 2, 4) for n in "kv"]
        caption = [linear(text, a[f"text_{n}"]).reshape(2, 3, 2, 4) for n in "kv"]
        out = np.zeros((2, 5, 2, 4))
        for b, i, head in np.ndindex(2, 5, 2):
            keys, values = (
                np.concatenate([c[b, mask[b], head], o[b, : i + 1, head]])
                for c, o in zip(caption, own, strict=True)
            )
            scores = keys @ q[b, i, head] / math.sqrt(4)
            weights = np.exp(scores - scores.max())
            out[b, i, head] = weights / weights.sum() @ values
        x = x + linear(out.reshape(2, 5, 8), a["out"])
        y = linear(norm(x, p["norm_2"]), p["mlp"]["fc_1"])
        y = y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2
        x = x + linear(y, p["mlp"]["fc_2"])
    return x


@pytest.fixture(params=[0, 8], ids=["scanned", "unrolled"])
def stack(request, monkeypatch):
    """Both forms of the stack."""
    monkeypatch.setattr(layers, "UNROLLED", request.param)


@pytest.mark.usefixtures("stack")
def test_full_pass_equals_the_unrolled_stack(variables):
    run = jax.jit(
        lambda variables: CausalTransformer(TINY).apply(variables, X, TEXT, text_mask=TEXT_MASK)
    )
    got, cache = run(variables)
    np.testing.assert_allclose(got, forward_by_hand(variables), atol=1e-5, rtol=1e-5)
    assert cache is None


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("first", [1, 3])
def test_cached_decoding_equals_the_full_pass(variables, first):
    module = CausalTransformer(TINY)

    @jax.jit
    def decode_with_cache(variables):
        def step(cache, position):
            x = jax.lax.dynamic_slice_in_dim(X, position, 1, axis=1)
            more = {"position": position, "text_mask": TEXT_MASK, "method": CausalTransformer.step}
            x, cache = module.apply(variables, x, cache, **more)
            return cache, x[:, 0]

        x, cache = module.apply(variables, X[:, :first], TEXT, text_mask=TEXT_MASK, keep=5)
        cache, rest = jax.lax.scan(step, cache, jnp.arange(first, 5))
        return jnp.concatenate([x, rest.swapaxes(0, 1)], axis=1), cache

    got, cache = decode_with_cache(variables)
    np.testing.assert_allclose(got, forward_by_hand(variables), atol=1e-5, rtol=1e-5)
    assert cache.k.shape == cache.v.shape == (3, 2, 3 + 5, 2, 4)


@pytest.mark.parametrize("remat", ["block", "dots"])
def test_remat_changes_no_gradient(variables, remat):
    def loss(variables, policy):
        module = CausalTransformer(dataclasses.replace(TINY, remat=policy))
        return (module.apply(variables, X, TEXT, text_mask=TEXT_MASK)[0] ** 2).sum()

    slopes = jax.jit(jax.grad(loss), static_argnums=1)
    want, got = (slopes(variables, policy) for policy in ("none", remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


def test_heads_that_do_not_divide_the_width_are_rejected():
    module = CausalTransformer(dataclasses.replace(TINY, heads=3))
    with pytest.raises(UserError, match="causal transformer width is 8, which 3 does not divide"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), X, TEXT, text_mask=TEXT_MASK))
