"""The autoregressive prior's sequence: who sees whom, what is dropped, cached as uncached."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.backbones.causal_transformer import CausalTransformer
from unclip_jax.core.checks import UserError
from unclip_jax.models.pca_quantizer import DotQuantizerConfig
from unclip_jax.models.prior_ar import PriorAr, PriorArConfig

TINY = PriorArConfig(
    embed_dim=6,
    codec=DotQuantizerConfig(components=5, buckets=7, dot_buckets=4),
    width=8,
    depth=2,
    heads=2,
    latent_context=8,
    text_width=12,
    text_depth=1,
    text_heads=2,
    context=4,
    vocab_size=11,
)
RNG = np.random.default_rng(0)
CODES = jnp.array([[1, 6, 0, 3, 2], [5, 5, 4, 0, 1]])
INPUTS = {
    "dot": jnp.array([3, 1]),
    "tokens": jnp.array([[9, 3, 10, 0], [9, 1, 2, 10]]),
    "token_mask": jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool),
    "z_txt": jnp.asarray(RNG.normal(size=(2, 6)), jnp.float32),
}
PADDING = pytest.mark.parametrize("padding", ["learned", "mask"])


def build(**changes):
    return PriorAr(dataclasses.replace(TINY, **changes))


@functools.cache
def jit_apply(padding):
    module = build(padding=padding)
    return jax.jit(lambda variables, codes, inputs: module.apply(variables, codes, **inputs))


def run(variables, codes=CODES, padding="learned", **inputs):
    return jit_apply(padding)(variables, codes, {**INPUTS, "keep_text": None, **inputs})


@pytest.fixture(scope="module")
def plain():
    return probes.random_variables(build(), CODES, **INPUTS)


def test_the_sequence_is_z_txt_dot_codes_beside_the_caption(plain, monkeypatch):
    """The latent decoder's input is checked slot by slot, less the learned positions."""
    calls = []
    call = CausalTransformer.__call__

    def record(self, x, text, **options):
        calls.append((np.asarray(x, np.float64), text.shape, np.asarray(options["text_mask"])))
        return call(self, x, text, **options)

    monkeypatch.setattr(CausalTransformer, "__call__", record)
    build(padding="mask").apply(plain, CODES, **INPUTS)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), plain["params"])
    x, shape, visible = calls[0]
    x = x - p["positions"][:6]
    assert x.shape == (2, 2 + 4, 8) and shape == (2, 4, 12)
    text = np.asarray(INPUTS["z_txt"]) @ p["z_txt_in"]["kernel"] + p["z_txt_in"]["bias"]
    np.testing.assert_allclose(x[:, 0], text, atol=1e-5)
    np.testing.assert_allclose(x[:, 1], p["dots"][[3, 1]], atol=1e-5)
    np.testing.assert_allclose(x[:, 2:], p["codes"][np.asarray(CODES)[:, :-1]], atol=1e-5)
    np.testing.assert_array_equal(visible, INPUTS["token_mask"])


def test_causality_by_gradients(plain):
    """Logits of code j depend on z_txt, the dot token and codes 0..j-1, on all of them, alone."""

    def logits(positions):
        out = build().apply(
            {"params": {**plain["params"], "positions": positions}}, CODES, **INPUTS
        )
        return (out[0] * jnp.arange(1.0, 8)[None]).sum(-1)

    slopes = np.asarray(jax.jit(jax.jacobian(logits))(plain["params"]["positions"]))
    depends = np.abs(slopes).sum(-1) > 0
    np.testing.assert_array_equal(depends, np.tril(np.ones((5, 8), bool), 1))


def test_every_code_depends_on_the_whole_caption(plain):
    def logits(table):
        params = {**plain["params"]}
        params["text_encoder"] = {
            **params["text_encoder"],
            "captions": {**params["text_encoder"]["captions"], "positions": table},
        }
        out = build().apply({"params": params}, CODES, **INPUTS)
        return (out[1] * jnp.arange(1.0, 8)[None]).sum(-1)

    table = plain["params"]["text_encoder"]["captions"]["positions"]
    slopes = np.asarray(jax.jit(jax.jacobian(logits))(table))
    assert (np.abs(slopes).sum(-1) > 0).all()


@PADDING
@pytest.mark.parametrize("keep", [None, [True, False]])
def test_cached_logits_are_the_uncached_ones(plain, padding, keep):
    keep = None if keep is None else jnp.array(keep)
    module = build(padding=padding)
    want = run(plain, padding=padding, keep_text=keep)

    @jax.jit
    def decode_with_cache(variables):
        options = {"token_mask": INPUTS["token_mask"], "keep_text": keep}

        def step(cache, index):
            code, more = CODES[:, index], {"index": index, **options}
            logits, cache = module.apply(variables, code, cache, **more, method=PriorAr.step)
            return cache, logits

        first, cache = module.apply(variables, **INPUTS, keep_text=keep, method=PriorAr.start)
        _, rest = jax.lax.scan(step, cache, jnp.arange(4))
        return jnp.concatenate([first[None], rest]).swapaxes(0, 1)

    np.testing.assert_allclose(decode_with_cache(plain), want, rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(want)).max() > 0.1


@PADDING
def test_ids_at_padding_change_nothing(plain, padding):
    other = jnp.where(INPUTS["token_mask"], INPUTS["tokens"], 7)
    np.testing.assert_array_equal(
        run(plain, padding=padding, tokens=other), run(plain, padding=padding)
    )


@PADDING
def test_dropped_text_is_gone_and_its_null_learns_but_the_dot_token_stays(plain, padding):
    nobody = jnp.zeros(2, bool)

    def loss(variables, z_txt):
        out = run(variables, padding=padding, z_txt=z_txt, keep_text=nobody)
        return (out**2).sum()

    slopes, text = jax.jit(jax.grad(loss, (0, 1)))(plain, INPUTS["z_txt"])
    np.testing.assert_array_equal(text, 0.0)
    null_text = run(plain, padding=padding, keep_text=nobody)
    other = {"tokens": jnp.flip(INPUTS["tokens"], 1), "token_mask": ~INPUTS["token_mask"]}
    np.testing.assert_array_equal(run(plain, padding=padding, keep_text=nobody, **other), null_text)
    assert np.abs(slopes["params"]["null_z_txt"]).max() > 0
    other_dot = run(plain, padding=padding, keep_text=nobody, dot=jnp.array([0, 0]))
    assert np.abs(np.asarray(other_dot - null_text)).max() > 1e-3


def test_each_row_drops_for_itself(plain):
    got = run(plain, keep_text=jnp.array([True, False]))
    conditional, unconditional = run(plain), run(plain, keep_text=jnp.array([False, False]))
    np.testing.assert_allclose(
        got, jnp.stack([conditional[0], unconditional[1]]), rtol=1e-5, atol=1e-5
    )
    assert np.abs(np.asarray(conditional - unconditional)).max((-2, -1)).min() > 1e-3


def test_half_precision_keeps_float32_parameters_and_logits(plain):
    case = probes.shapes(build(dtype="bfloat16"), CODES, **INPUTS)
    assert {leaf.dtype for leaf in jax.tree.leaves(case)} == {jnp.dtype("float32")}
    half = build(dtype="bfloat16")
    got = jax.jit(lambda variables: half.apply(variables, CODES, **INPUTS))(plain)
    want = run(plain)
    assert got.dtype == jnp.float32
    assert 0 < np.abs(np.asarray(got - want)).max() < 0.05 * np.abs(np.asarray(want)).max()


def test_the_parts_of_the_paper_have_1_21_and_0_80_billion_parameters():
    """Table 3's two stacks; it says 1B, which fits either but not their sum."""
    cfg = probes.paper("prior_ar")
    assert (cfg.width, cfg.depth, cfg.heads, cfg.latent_context) == (1664, 24, 26, 384)
    assert (cfg.text_width, cfg.text_depth, cfg.text_heads, cfg.context) == (2048, 24, 32, 256)
    assert (cfg.components, cfg.codec.buckets) == (319, 1024)
    slots = jnp.zeros((1, 256), jnp.int32)
    codes, one = jnp.zeros((1, 319), jnp.int32), jnp.zeros(1, jnp.int32)
    inputs = {"tokens": slots, "token_mask": slots.astype(bool), "z_txt": jnp.zeros((1, 1024))}
    case = probes.shapes(PriorAr(cfg), codes, dot=one, **inputs)
    d, e = 1664, 2048
    assert probes.count(case["text_encoder"]["transformer"]) == pytest.approx(1.21e9, rel=0.01)
    attention = case["latents"]["blocks"]["attention"]
    caption = sum(probes.count(attention.pop(f"text_{name}")) for name in "kv")
    assert caption == 24 * 2 * (e * d + d)
    assert probes.count(case["latents"]) == pytest.approx(0.80e9, rel=0.01)
    assert case["text_encoder"]["captions"].pop("tokens").shape == (49408, e)
    stack = {width: 24 * (12 * width**2 + 13 * width) for width in (d, e)}
    tables = (1024 + 1024 + 384) * d + 2 * 256 * e  # codes, dots, positions; caption slots
    maps = (1024 * d + d) + (d * 1024 + 1024) + 1024  # z_txt in, logits out, null z_txt
    assert probes.count(case) == stack[d] + stack[e] + tables + maps + 2 * d + 2 * e


def test_mistaken_configs_are_rejected():
    with pytest.raises(UserError, match=r"unknown prior_ar.padding 'masked'. Did you mean 'mask'"):
        build(padding="masked")
    many = dataclasses.replace(TINY.codec, components=7)
    with pytest.raises(UserError, match=r"components is 7, but CLIP embeddings have 6 dim"):
        build(codec=many)
    with pytest.raises(UserError, match=r"latent_context is 5, which holds 4 codes .*set it to 6"):
        build(latent_context=5)
    short = {**INPUTS, **{name: INPUTS[name][:, :3] for name in ("tokens", "token_mask")}}
    with pytest.raises(UserError, match="captions have 3 tokens; this model takes 4"):
        probes.shapes(build(), CODES, **short)


def test_an_open_number_of_components_is_the_most_that_fits():
    codec = dataclasses.replace(TINY.codec, components=0, explained_variance=0.9)
    assert build(codec=codec).cfg.components == 6
    assert build(codec=codec, latent_context=4).cfg.components == 3
