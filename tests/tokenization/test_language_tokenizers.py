"""Tokenizers of T5 and BERT from their own files; tests/parity compares with sentencepiece."""

import json
import struct

import numpy as np
import pytest
import tokenizers

from unclip_jax.core.checks import UserError
from unclip_jax.tokenization import caption_tokenizer, language_tokenizers

PIECES = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
PIECES += [("▁red", -1.0, 1), ("▁re", -3.0, 1), ("d", -3.0, 1), ("▁", -4.0, 1), ("s", -5.0, 1)]


def _field(number, value):
    if isinstance(value, int):
        return bytes([number << 3, value])
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(number):
    low, high = number % 128, number // 128
    return bytes([low | 128]) + _varint(high) if high else bytes([low])


def spiece(pieces):
    """A SentencePiece model: protobuf fields 1 (pieces), 2 (the trainer's, ignored)."""
    parts = [_field(1, p.encode()) + _field(2, score) + _field(3, k) for p, score, k in pieces]
    return b"".join(_field(1, part) for part in parts) + _field(2, b"\x08\x01")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "spiece.model").write_bytes(spiece(PIECES))
    return tmp_path


def test_the_likeliest_pieces_are_taken_and_the_end_is_appended(folder, tmp_path):
    tokenizer = caption_tokenizer.load(folder)
    tokens, mask = tokenizer.encode(["red reds", "", "red red red red"], length=5)
    assert tokens.tolist() == [[3, 3, 7, 1, 0], [1, 0, 0, 0, 0], [3, 3, 3, 3, 1]]
    np.testing.assert_array_equal(mask.sum(axis=1), [4, 1, 5])
    assert tokenizer.vocab_size == len(PIECES) + 100
    tokenizer.save(tmp_path / "saved")
    again = caption_tokenizer.load(tmp_path / "saved")
    assert again.hash == tokenizer.hash
    np.testing.assert_array_equal(again.encode(["red reds"], length=5)[0], tokens[:1])


def test_no_caption_holds_a_special_token(folder):
    tokens, mask = caption_tokenizer.load(folder).encode(["</s> <pad> red"], length=32)
    ids = tokens[0][mask[0]].tolist()
    assert ids[-1] == 1 and not {0, 1} & set(ids[:-1])


@pytest.mark.parametrize(
    ("included", "settings", "appended"),
    [
        (100, {}, 0),  # mT5
        (100, {"extra_ids": 0}, 0),  # as its folder states
        (100, {"extra_ids": 100}, 0),
        (0, {"extra_ids": 0}, 0),
        (0, {"extra_ids": 384}, 384),  # umT5
        (2, {"extra_ids": 5}, 3),
    ],
)
def test_spare_pieces_that_the_model_lacks_are_appended(tmp_path, included, settings, appended):
    names = [(f"▁<extra_id_{i}>", 0.0, 4) for i in reversed(range(included))]
    (tmp_path / "spiece.model").write_bytes(spiece(PIECES + names))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = caption_tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == len(PIECES) + included + appended
    tokens, mask = tokenizer.encode(["red <extra_id_0>"], length=32)
    assert tokens[0][mask[0]].tolist()[0] == 3 and tokens.max() < len(PIECES)


def test_a_number_of_spare_pieces_is_a_number(folder):
    (folder / "tokenizer_config.json").write_text('{"extra_ids": "100"}')
    with pytest.raises(UserError, match="has extra_ids '100'; expected a number of pieces"):
        caption_tokenizer.load(folder)


def test_unknown_characters_become_bytes_where_the_model_has_them(tmp_path):
    """Else all of them are one unknown piece. A snowman is E2 98 83 in UTF-8."""
    every = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    first = len(PIECES)
    for pieces, expected in (
        (PIECES, [3, 6, 2, 1]),
        (PIECES + every, [3, 6, first + 0xE2, first + 0x98, first + 0x83, 1]),
    ):
        (tmp_path / "spiece.model").write_bytes(spiece(pieces))
        tokens, mask = caption_tokenizer.load(tmp_path).encode(["red ☃"], length=16)
        assert tokens[0][mask[0]].tolist() == expected


def test_captions_are_lower_cased_where_the_model_was_trained_so(folder):
    description = language_tokenizers.lowercased(language_tokenizers.read(folder))
    upper = caption_tokenizer.Tokenizer(description).encode(["  RED "], length=4)[0]
    np.testing.assert_array_equal(
        upper, caption_tokenizer.load(folder).encode(["red"], length=4)[0]
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (spiece(PIECES)[:-1], "is damaged or no SentencePiece model"),
        (b"\x0b", "is damaged or no SentencePiece model"),
        (spiece(PIECES[:1]), "no unknown or no end piece; expected T5's spiece.model"),
    ],
)
def test_other_files_are_rejected(tmp_path, data, message):
    (tmp_path / "spiece.model").write_bytes(data)
    with pytest.raises(UserError, match=message):
        caption_tokenizer.load(tmp_path)


def test_a_list_of_words_that_is_not_berts_is_rejected(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n[UNK]")
    with pytest.raises(UserError, match=r"vocab.txt lacks \[CLS\], \[SEP\]; expected BERT's"):
        caption_tokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\nred\n##s\n")
    tokens, mask = caption_tokenizer.load(tmp_path).encode(["Réds [SEP]", ""], length=8)
    assert tokens[0][mask[0]].tolist() == [1, 3, 4, 0, 0, 0, 2]  # brackets are unknown words
    assert tokens[1][mask[1]].tolist() == [1, 2]


def _character_map(source: str, target: str) -> bytes:
    """SentencePiece's map of one character: a double-array trie, then the texts that it names.

    A unit of the trie has a label in its low byte, bit 8 where a text ends, and from bit 10 on the
    offset that is added to its index by exclusive or; the unit there holds the place of the text.
    """
    units = np.zeros(512, "<u4")
    units[ord(source)] = ord(source) | 1 << 8 | 256 << 10
    units[ord(source) ^ 256] = 0
    return struct.pack("<I", units.nbytes) + units.tobytes() + target.encode() + b"\0"


@pytest.mark.parametrize("mapped", [False, True])
def test_characters_are_mapped_as_the_model_says(tmp_path, mapped):
    other = _field(1, b"nmt_nfkc")  # the name of the rules, ignored
    rules = _field(3, other + _field(2, _character_map("R", "r"))) if mapped else _field(3, other)
    (tmp_path / "spiece.model").write_bytes(spiece(PIECES) + rules)
    tokens, mask = caption_tokenizer.load(tmp_path).encode(["Red", "red"], length=5)
    assert tokens[1][mask[1]].tolist() == [3, 1]
    assert tokens[0][mask[0]].tolist() == ([3, 1] if mapped else [6, 2, 5, 1])


def test_a_saved_tokenizer_of_t5_gives_no_caption_a_special_token(tmp_path):
    """As transformers saves it: with its special tokens among the added ones."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁red", -1.0), ("<x>", -1.0)]
    engine = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    engine.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    engine.add_special_tokens(["<pad>", "</s>"])
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = caption_tokenizer.load(tmp_path)
    tokens, mask = tokenizer.encode(["red", "red</s>", "red<pad> </s>", "<x>"], length=24)
    ids = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
    assert ids[0] == [3, 1]
    for row in ids[1:]:
        assert row[-1] == 1 and not {0, 1} & set(row[:-1])
    assert 4 in ids[3]  # not a special token, whatever it looks like
    vocab = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert [score for _, score in tokenizer.description["model"]["vocab"]] == [s for _, s in vocab]


def test_captions_of_min_dalle_end_in_padding(tmp_path):
    symbols = ["[PAD]", "[UNK]", "a", "c", "t</w>", "a</w>", "at</w>", "cat</w>"]
    vocab = {symbol: number for number, symbol in enumerate(symbols)}
    vocab_file, merges_file = language_tokenizers.CHARACTER_PAIRS
    (tmp_path / vocab_file).write_text(json.dumps(vocab))
    assert language_tokenizers.read(tmp_path) is None  # both files are needed
    (tmp_path / merges_file).write_text("#version: 0.2\na t</w>\nc at</w>\n")
    tokens, mask = caption_tokenizer.load(tmp_path).encode(
        ["A Cat", "", "at x", "cat cat cat cat"], length=4
    )
    rows = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
    assert rows == [[5, 7, 0], [0], [6, 1, 0], [7, 7, 7, 0]]


@pytest.mark.parametrize(
    ("settings", "lowercase"), [(None, True), ({}, True), ({"do_lower_case": False}, False)]
)
def test_words_of_bert_are_lower_cased_unless_its_settings_say_otherwise(
    tmp_path, settings, lowercase
):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\n")
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokens, _ = caption_tokenizer.load(tmp_path).encode(["Red red"], length=4)
    assert tokens[0].tolist() == [2, 4 if lowercase else 1, 4, 3]
