"""Captions of which the models cannot make much get a remark, and others none."""

import pytest

from unclip_jax.engine import caption_notes
from unclip_jax.engine.requests import BlendRequest, TextRequest
from unclip_jax.portraits import grammar
from unclip_jax.tokenization import caption_tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    words = caption_tokenizer.train([" ".join(grammar.vocabulary())] * 2, vocab_size=1024)
    return {"clip": words, "decoder": words}


def notes(tokenizers, *captions, **fields):
    return caption_notes.notes(TextRequest(captions=captions, **fields), tokenizers)


def test_words_of_the_world_are_familiar(tokenizers):
    assert (
        notes(tokenizers, "a person with no hair, winking, in a Blue hoodie!", "curly hair") == []
    )


def test_unfamiliar_words_are_listed_once_in_order(tokenizers):
    (note,) = notes(tokenizers, "a zebra with a dog", "a Zebra in a teapot", "a smiling astronaut")
    assert note.startswith("'zebra', 'dog', 'teapot', 'astronaut': words that are probably in no")
    (note,) = notes(tokenizers, "a person", negative="a zebra, 42 %")
    assert note.startswith("'zebra': a word that is probably in no caption")


def test_a_word_that_one_stage_knows_is_familiar(tokenizers):
    other = caption_tokenizer.train(["a zebra"] * 2, vocab_size=600)
    assert notes({**tokenizers, "prior": other}, "a zebra") == []


def test_captions_beyond_the_context_of_a_stage_are_cut_with_a_remark(tokenizers):
    long = "a person with curly hair"
    count = int(tokenizers["clip"].encode([long], length=99)[1].sum())
    request = TextRequest(captions=("a person", long))
    for room, expected in ((count, 0), (count - 1, 1)):
        remarks = caption_notes.notes(request, tokenizers, contexts={"clip": room, "prior": None})
        assert len(remarks) == expected
    assert remarks[0].startswith(f"{long!r} is longer than the {count - 1} tokens that the clip")


def test_empty_captions_are_remarked_on(tokenizers):
    for captions in (("",), ("a person", "  ")):
        assert notes(tokenizers, *captions) == [
            "a caption is empty, so its images may show anything"
        ]
    blend = BlendRequest(texts=("a person", "a zebra"), noise="fresh")
    assert len(caption_notes.notes(blend, tokenizers)) == 1
