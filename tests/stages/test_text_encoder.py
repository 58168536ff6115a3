"""The text encoder that is trained here, and its place in a chain."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.stages import text_encoder

ENCODER = tiny.experiment("text_encoder")
TOKENS = jnp.asarray([[5, 6, 7, 1], [8, 1, 0, 0]]).astype(jnp.int32)
MASK = jnp.asarray([[True] * 4, [True, True, False, False]])


def test_chosen_tokens_are_masked_replaced_or_kept_in_berts_shares():
    cfg = ENCODER.model
    tokens = jnp.full((400, 100), 3, jnp.int32)
    selection = jnp.arange(100)[None] < jnp.full((400, 1), 50)
    out = text_encoder.corrupt(cfg, tokens, chosen=selection, key=jax.random.key(0))
    np.testing.assert_array_equal(out[:, 50:], 3)
    masked = jnp.mean(out[:, :50] == cfg.model.vocab_size - 1)
    np.testing.assert_allclose([masked, jnp.mean(out[:, :50] == 3)], [0.8, 0.1], atol=0.01)


def test_only_chosen_tokens_count():
    """With the loss at chance, it is the logarithm of the vocabulary; without choices it is 0."""
    cfg, stage = ENCODER.model, ENCODER.build_stage()
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tiny.abstract(stage))
    batch = jax.tree.map(jnp.asarray, tiny.random_batch(stage, 4))
    chance = float(jnp.log(cfg.model.vocab_size))
    assert float(stage.loss(params, batch, jax.random.key(0))[0]) == pytest.approx(chance)
    never = text_encoder.make(dataclasses.replace(cfg, mask_share=0.0))
    assert float(never.loss(params, batch, jax.random.key(0))[0]) == 0.0


def test_accuracy_is_the_share_of_chosen_tokens_that_are_guessed():
    """Of equal logits the first token is the guess."""
    every = dataclasses.replace(ENCODER.model, mask_share=1.0)
    stage = text_encoder.make(every)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tiny.abstract(stage))
    batch = jax.tree.map(np.array, tiny.random_batch(stage, 4))
    batch["token_mask"] = np.arange(batch["tokens"].shape[1])[None] < np.array([[8], [4], [8], [4]])
    batch["tokens"] = np.where(np.arange(batch["tokens"].shape[1]) % 4 == 0, 0, 5).astype(np.int32)
    batch["tokens"] = np.broadcast_to(batch["tokens"], batch["token_mask"].shape)
    metrics = stage.loss(params, jax.tree.map(jnp.asarray, batch), jax.random.key(0))[1]
    assert float(metrics["accuracy"]) == pytest.approx(1 / 4)


@pytest.mark.parametrize(("family", "scale"), [("t5", 0.25), ("bert", 1.0)])
def test_logits_are_products_with_the_table_of_tokens(family, scale):
    """T5's rows have deviation 1, so that products are divided by the root of the width, 16."""
    model = dataclasses.replace(ENCODER.model.model, family=family, width=16)
    x, table = np.random.default_rng(0).normal(size=(2, 6, 16)).astype(np.float32)
    cfg = dataclasses.replace(ENCODER.model, model=model)
    result = text_encoder._logits(cfg, {"tokens": jnp.asarray(table)}, jnp.asarray(x)[None])
    np.testing.assert_allclose(result[0], scale * x @ table.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "start", "ids"),
    [
        ("t5", {}, [1, 0, 0, 0]),
        ("bert", {}, [5, 1, 0, 0]),
        ("clip", {}, [5, 1, 0, 0]),
        ("t5", {"start_token": True}, [5, 1, 0, 0]),  # the stand-in's tokenizer
        ("bert", {"start_token": False}, [1, 0, 0, 0]),
    ],
)
def test_the_empty_caption_holds_the_special_tokens_alone(family, start, ids):
    model = dataclasses.replace(ENCODER.model.model, family=family, context=4)
    cfg = dataclasses.replace(ENCODER.model, model=model)
    params = tiny.random_params(text_encoder.make(cfg))
    conditions = {"caption": TokenIds(TOKENS, MASK), **start}
    out = text_encoder.sample_in_chain(
        cfg, params, conditions, keys=jax.random.split(jax.random.key(0))
    )
    empty = TokenIds(
        jnp.asarray([ids], jnp.int32),
        jnp.arange(4)[None] < jnp.full((1, 1), sum(x > 0 for x in ids)),
    )
    expected = text_encoder.encode(cfg, params, empty)
    encoded = out["text_features"]
    np.testing.assert_array_equal(encoded.empty.mask, expected.mask)
    np.testing.assert_allclose(encoded.empty.sequence, expected.sequence, atol=1e-6)
    alone = text_encoder.encode(cfg, params, TokenIds(TOKENS[:1], MASK[:1])).sequence
    np.testing.assert_allclose(encoded.text.sequence[:1], alone, atol=1e-5)


def test_a_clip_beside_it_may_read_other_tokens():
    """For reranking: only stages that read CLIP's features must have CLIP's tokenizer."""
    own = text_encoder.ENTRY.shared_fields(ENCODER.model)
    assert "text_encoder_id" in own and "tokenizer_hash" not in own
    clip = tiny.experiment("clip")
    assert "tokenizer_hash" in clip.entry.shared_fields(clip.model)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("clip", {"tokenizer_hash", "embed_dim"}),
        ("prior", {"clip_id", "tokenizer_hash", "embed_dim"}),
        ("decoder", {"clip_id", "embed_dim", "tokenizer_hash", "image_size"}),
        ("imagen_base", {"text_encoder_id", "text_width", "image_size"}),
        ("dalle", {"tokenizer_hash", "grid", "code_count", "dvae_id"}),
    ],
)
def test_a_manifest_identifies_what_the_stage_reads(name, fields):
    experiment = tiny.experiment(name)
    assert fields <= set(experiment.entry.required_fields(experiment.model))
