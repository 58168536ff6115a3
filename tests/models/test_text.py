"""Learned padding, hidden padding, and the size of the caption transformer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.core.checks import UserError
from unclip_jax.models.text import CaptionEmbedding, TextEncoder, TextEncoderConfig

TINY = TextEncoderConfig(width=8, depth=2, heads=2, context=5, vocab_size=11)
TOKENS = jnp.array([[9, 3, 10, 0, 0], [9, 1, 2, 4, 10]])
MASK = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
OTHER = jnp.where(MASK, TOKENS, 7)  # other ids where there is no token


@pytest.fixture(scope="module")
def variables():
    return probes.random_variables(TextEncoder(TINY), TOKENS, MASK)


def encode(variables, tokens=TOKENS, mask=MASK, **changes):
    return TextEncoder(dataclasses.replace(TINY, **changes)).apply(variables, tokens, mask)


def captions_slopes(variables, padding):
    """Gradients of the first slot of the first caption with respect to the embeddings."""

    def first(variables):
        # the sum over a normalised axis is constant without the gains
        return encode(variables, padding=padding)[0, 0].sum()

    return jax.tree.map(np.asarray, jax.grad(first)(variables)["params"]["captions"])


@pytest.mark.parametrize("positions", [True, False])
def test_a_slot_holds_its_token_or_its_own_padding(positions):
    module = CaptionEmbedding(11, 5, 8, positions)
    variables = probes.random_variables(module, TOKENS, MASK)
    p = variables["params"]
    want = np.zeros((2, 5, 8), np.float32)
    for row, slot in np.ndindex(2, 5):
        if not MASK[row, slot]:
            want[row, slot] = p["padding"][slot]
        else:
            want[row, slot] = p["tokens"][TOKENS[row, slot]]
            want[row, slot] += p["positions"][slot] if positions else 0
    assert ("positions" in p) == positions
    np.testing.assert_allclose(module.apply(variables, TOKENS, MASK), want, rtol=1e-6)


@pytest.mark.parametrize("padding", ["learned", "mask"])
def test_ids_at_padding_change_nothing(variables, padding):
    got = encode(variables, OTHER, padding=padding)
    np.testing.assert_array_equal(got, encode(variables, padding=padding))


def test_learned_padding_is_seen_by_every_slot(variables):
    slopes = captions_slopes(variables, "learned")["padding"]
    np.testing.assert_array_equal(np.abs(slopes).sum(-1) > 0, ~np.asarray(MASK[0]))


def test_masked_padding_affects_no_token(variables):
    np.testing.assert_array_equal(captions_slopes(variables, "mask")["padding"], 0.0)
    # and a hidden caption is as good as a short one
    full = encode(variables, padding="mask")[0, :3]
    visible = jnp.array([[1, 1, 1, 0, 0]], bool)
    np.testing.assert_allclose(
        encode(variables, OTHER[:1], visible, padding="mask")[0, :3], full, rtol=1e-6
    )


def test_text_encoder_is_bidirectional(variables):
    """Not causal: the first slot depends on the last token."""
    table = captions_slopes(variables, "learned")["tokens"]
    assert set(np.flatnonzero(np.abs(table).sum(-1))) == {3, 9, 10}


def test_fully_masked_captions_are_equal_whatever_their_ids(variables):
    nothing = jnp.zeros_like(MASK)
    one, two = encode(variables, TOKENS, nothing)
    np.testing.assert_array_equal(one, two)
    slopes = jax.grad(lambda v: encode(v, TOKENS, nothing).sum())(variables)["params"]["captions"]
    np.testing.assert_array_equal(slopes["tokens"], 0.0)
    np.testing.assert_array_equal(slopes["positions"], 0.0)


def test_the_output_is_normalised_last(variables):
    p = jax.tree.map(np.asarray, variables["params"]["final_norm"])
    normed = (np.asarray(encode(variables)) - p["bias"]) / p["scale"]
    np.testing.assert_allclose(normed.mean(-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(normed.std(-1), 1.0, atol=1e-3)


def test_half_precision_keeps_float32_parameters(variables):
    module = TextEncoder(dataclasses.replace(TINY, dtype="bfloat16"))
    case = probes.shapes(module, TOKENS, MASK)
    assert {leaf.dtype for leaf in jax.tree.leaves(case)} == {jnp.dtype("float32")}
    half = np.asarray(encode(variables, dtype="bfloat16"), np.float32)
    assert np.abs(half - np.asarray(encode(variables))).max() < 0.1


def test_the_text_transformer_of_the_paper_has_1_21_billion_parameters():
    """GLIDE (arXiv 2112.10741, section 4) says about 1.2 billion; the token table is not in it."""
    cfg = probes.paper("decoder").text
    assert (cfg.width, cfg.depth, cfg.context) == (2048, 24, 256)
    slots = jnp.zeros((1, 256), jnp.int32)
    case = probes.shapes(TextEncoder(cfg), slots, slots.astype(bool))
    table = case["captions"].pop("tokens")
    assert table.shape == (cfg.vocab_size, 2048)
    assert probes.count(case) == pytest.approx(1.21e9, rel=0.01)


def test_unknown_padding_is_rejected():
    with pytest.raises(UserError, match="unknown padding 'learnt'. Did you mean 'learned'"):
        dataclasses.replace(TINY, padding="learnt")


def test_captions_of_another_length_are_rejected():
    with pytest.raises(UserError, match="captions have 4 tokens; this model takes 5"):
        probes.shapes(TextEncoder(TINY), TOKENS[:, :4], MASK[:, :4])
