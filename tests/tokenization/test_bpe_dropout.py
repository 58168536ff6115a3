"""Segmentation with skipped merges: the tokenizer's own at 0, bytes at 1, seeded between."""

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.data.examples import ExampleConfig, FixedExamples, RandomPart
from unclip_jax.tokenization import caption_tokenizer
from unclip_jax.tokenization.bpe_dropout import BpeDropout

CAPTIONS = ["a red circle above a blue square", "Three  pink rings, it's 12!", "", "é 漢字"]
TOKENIZER = caption_tokenizer.train([CAPTIONS[0], CAPTIONS[1]] * 3, vocab_size=600)


def ids(rate, caption, seed=0, length=40):
    generator = np.random.default_rng(seed)
    tokens, mask = BpeDropout(TOKENIZER, rate=rate).encode(
        caption, length=length, generator=generator
    )
    return tokens[mask].tolist()


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("length", [40, 5])
def test_without_skipped_merges_it_is_the_tokenizer(caption, length):
    tokens, mask = TOKENIZER.encode([caption], length=length)
    generator = np.random.default_rng(0)
    mine = BpeDropout(TOKENIZER, rate=0.0).encode(caption, length=length, generator=generator)
    np.testing.assert_array_equal(mine[0], tokens[0])
    np.testing.assert_array_equal(mine[1], mask[0])


def test_with_all_merges_skipped_words_are_bytes():
    entries = {number: entry for entry, number in TOKENIZER.description["model"]["vocab"].items()}
    pieces = [entries[number] for number in ids(1.0, "red rings")[1:-1]]
    assert pieces == ["r", "e", "d</w>", "r", "i", "n", "g", "s</w>"]


def test_segmentations_follow_the_generator_and_spell_the_same_text():
    entries = {number: entry for entry, number in TOKENIZER.description["model"]["vocab"].items()}
    segmentations = set()
    for seed in range(20):
        numbers = ids(0.3, CAPTIONS[0], seed)
        assert numbers == ids(0.3, CAPTIONS[0], seed)
        text = "".join(entries[number] for number in numbers[1:-1])
        assert text.replace("</w>", " ").strip() == CAPTIONS[0]
        segmentations.add(tuple(numbers))
    assert len(segmentations) > 5 and all(
        len(each) >= len(ids(0.0, CAPTIONS[0])) for each in segmentations
    )


class Captions:
    """A source of one caption."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"key": "0", "caption": CAPTIONS[0], "scene": ""}


def test_examples_are_segmented_each_time_they_are_read():
    fields = ("tokens", "token_mask")
    config = ExampleConfig(fields=fields, length=40, bpe_dropout=0.3)
    fixed = FixedExamples(Captions(), config=config, tokenizer=TOKENIZER)[0]
    part = RandomPart(config, BpeDropout(TOKENIZER, rate=0.3))
    case = [part(fixed, np.random.default_rng(seed)) for seed in (0, 1, 0)]
    expected = [ids(0.3, CAPTIONS[0], seed) for seed in (0, 1, 0)]
    assert [x["tokens"][x["token_mask"]].tolist() for x in case] == expected
    assert config.random and expected[0] != expected[1]


def test_other_tokenizers_have_no_merges():
    class Words(caption_tokenizer.Tokenizer):
        def __init__(self):
            self._json = {"model": {"type": "WordPiece"}}

    with pytest.raises(UserError, match="the tokenizer is WordPiece, not a byte-pair encoding"):
        BpeDropout(Words(), rate=0.1)
