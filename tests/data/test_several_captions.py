"""Of several captions of an image training takes another one in every epoch."""

import collections

import numpy as np
import pytest

from tests.data.conftest import Samples
from unclip_jax.data import loader, sources
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.data.examples import ExampleConfig
from unclip_jax.data.loader import LoaderConfig
from unclip_jax.tokenization import caption_tokenizer

CAPTIONS = (["a fox"], ["a wolf", "two wolves", "many wolves"], ["a bear", "a brown bear"])
TOKENIZER = caption_tokenizer.train(
    [one for several in CAPTIONS for one in several] * 3, vocab_size=540
)


def record(number: int) -> dict:
    captions = CAPTIONS[number]
    plain = {**Samples.record(number), "caption": captions[0]}
    return {**plain, "captions": captions} if len(captions) > 1 else plain


RECORDS = [record(number) for number in range(len(CAPTIONS))]


def batches(source, count: int, fields: tuple[str, ...], *, captions: str = "any", **config):
    example = ExampleConfig(fields=("key", "caption", *fields), captions=captions, length=12)
    config = LoaderConfig(**{"batch_size": 3, "workers": 0, "seed": 4, **config})
    iterator = loader.make_loader(source, example=example, config=config, tokenizer=TOKENIZER)
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("fields", [("tokens", "token_mask"), ("image", "tokens", "token_mask")])
def test_every_caption_is_seen_and_its_tokens_with_it(fields):
    counts = collections.Counter()
    for batch in batches(RECORDS, 60, fields):
        counts.update(batch["caption"].tolist())
        tokens, mask = TOKENIZER.encode(batch["caption"].tolist(), length=12)
        np.testing.assert_array_equal(batch["tokens"], tokens)
        np.testing.assert_array_equal(batch["token_mask"], mask)
    assert counts["a fox"] == 60
    for several in CAPTIONS[1:]:  # three standard deviations of a binomial
        share = 60 / len(several)
        assert all(abs(counts[one] - share) < 3 * np.sqrt(share) for one in several)


def test_the_choice_continues_where_it_stopped():
    straight = [
        batch["caption"].tolist() for batch in batches(RECORDS, 8, ("tokens", "token_mask"))
    ]
    example = ExampleConfig(
        fields=("key", "caption", "tokens", "token_mask"), captions="any", length=12
    )
    config = LoaderConfig(batch_size=3, workers=0, seed=4)
    later = loader.make_loader(RECORDS, example=example, config=config, tokenizer=TOKENIZER)
    later.set_state({**later.get_state(), "batches": 5})
    assert [next(later)["caption"].tolist() for _ in range(3)] == straight[5:]
    assert len({tuple(sorted(each)) for each in straight}) > 1


def test_the_first_is_taken_where_nothing_is_random():
    for batch in batches(RECORDS, 5, ("tokens", "token_mask"), captions="first"):
        assert sorted(batch["caption"]) == sorted(several[0] for several in CAPTIONS)


def embed(folder, *, every: bool):
    """Embeddings whose z_txt shows the caption: one row per caption, or per image."""
    writer = EmbeddingWriter(folder, info={"captions": "all"} if every else {})
    for each in RECORDS:
        captions = each.get("captions", [each["caption"]]) if every else [each["caption"]]
        z_txt = np.array([[len(one), sum(map(ord, one))] for one in captions], np.float32)
        z_img = np.ones((len(captions), 2), np.float32) * int(each["key"][1:])
        writer.add([each["key"]] * len(captions), captions, z_img=z_img, z_txt=z_txt)
    return sources.JoinedSource(RECORDS, writer.finish())


@pytest.mark.parametrize("every", [False, True])
def test_text_embeddings_belong_to_the_caption(tmp_path, every: bool):
    joined_source = embed(tmp_path, every=every)
    assert len(joined_source) == 3
    embedded_captions = set()
    for batch in batches(joined_source, 40, ("z_img", "z_txt", "tokens", "token_mask")):
        captions = batch["caption"].tolist()
        embedded_captions.update(captions)
        expected = np.array([[len(one), sum(map(ord, one))] for one in captions], np.float32)
        np.testing.assert_array_equal(batch["z_txt"], expected)
        np.testing.assert_array_equal(batch["tokens"], TOKENIZER.encode(captions, length=12)[0])
        assert batch["z_img"][:, 0].tolist() == [int(key[1:]) for key in batch["key"]]
    everything = {one for several in CAPTIONS for one in several}
    assert embedded_captions == (everything if every else {several[0] for several in CAPTIONS})


def test_the_first_row_is_taken_where_nothing_is_random(tmp_path):
    joined_source = embed(tmp_path, every=True)
    for batch in batches(joined_source, 3, ("z_txt",), captions="first"):
        assert sorted(batch["caption"]) == sorted(several[0] for several in CAPTIONS)
        assert batch["z_txt"].shape == (3, 2)


def test_embeddings_of_all_captions_of_other_records_are_rejected(tmp_path):
    embed(tmp_path, every=True)
    with pytest.raises(sources.UserError, match="holds 3 embeddings for 2 records"):
        sources.JoinedSource(RECORDS[:2], sources.EmbeddingSource(tmp_path))
