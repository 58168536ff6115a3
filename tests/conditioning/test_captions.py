"""Captions in batches and in chains, and the empty caption."""

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.conditioning import captions
from unclip_jax.tokenization import caption_tokenizer


def test_the_empty_caption_is_what_the_tokenizer_makes_of_nothing():
    tokenizer = caption_tokenizer.train(["a red circle"], vocab_size=600)
    ids, mask = tokenizer.encode(["a red circle", "red"], length=9)
    got = captions.empty_caption(jnp.asarray(ids), jnp.asarray(mask))
    expected = tokenizer.encode([""], length=9)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_fields_of_a_batch_become_conditions_and_the_first_row_is_the_empty_caption():
    rng = np.random.default_rng(0)
    fields = {
        "z_img": rng.normal(size=(3, 4)).astype(np.float32),
        "z_txt": rng.normal(size=(3, 4)).astype(np.float32),
        "tokens": np.arange(18, dtype=np.int32).reshape(3, 6),
        "token_mask": np.arange(6)[None] < np.array([[2], [4], [6]]),
        "text_seq": rng.normal(size=(3, 6, 5)).astype(np.float32),
        "text_features": rng.normal(size=(3, 2, 7)).astype(np.float32),
        "text_mask": np.array([[True, False], [True, True], [True, False]]),
    }
    packed = captions.conditions(jax.tree.map(jnp.asarray, fields))
    assert packed.keys() == {"z_img", "z_txt", "caption", "clip_text", "text_features"}
    for name in ("z_img", "z_txt"):
        np.testing.assert_array_equal(packed[name], fields[name])
    expected = {
        "caption": (packed["caption"], ("tokens", "token_mask"), slice(None)),
        "clip_text": (packed["clip_text"].text, ("z_txt", "text_seq", "token_mask"), slice(None)),
        "its null": (packed["clip_text"].empty, ("z_txt", "text_seq", "token_mask"), slice(1)),
        "text": (packed["text_features"].text, ("text_features", "text_mask"), slice(None)),
        "no text": (packed["text_features"].empty, ("text_features", "text_mask"), slice(1)),
    }
    for name, (record, names, rows) in expected.items():
        leaves = jax.tree.leaves(record)
        for leaf, field in zip(leaves, names, strict=True):
            np.testing.assert_array_equal(leaf, fields[field][rows], err_msg=f"{name}: {field}")
