"""Tokenizers of T5 and BERT from their own files; tests/parity compares with sentencepiece."""

import struct

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.data import language_tokenizers, text

PIECES = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
PIECES += [("▁red", -1.0, 1), ("▁re", -3.0, 1), ("d", -3.0, 1), ("▁", -4.0, 1), ("s", -5.0, 1)]


def _field(number, value):
    if isinstance(value, int):
        return bytes([number << 3, value])
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    return bytes([number << 3 | 2, len(value)]) + value


def spiece(pieces):
    """A SentencePiece model: protobuf fields 1 (pieces), 2 (the trainer's, ignored)."""
    parts = [_field(1, p.encode()) + _field(2, score) + _field(3, k) for p, score, k in pieces]
    return b"".join(_field(1, part) for part in parts) + _field(2, b"\x08\x01")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "spiece.model").write_bytes(spiece(PIECES))
    return tmp_path


def test_the_likeliest_pieces_are_taken_and_the_end_is_appended(folder, tmp_path):
    tokenizer = text.load(folder)
    tokens, mask = tokenizer.encode(["red reds", "", "red red red red"], length=5)
    assert tokens.tolist() == [[3, 3, 7, 1, 0], [1, 0, 0, 0, 0], [3, 3, 3, 3, 1]]
    np.testing.assert_array_equal(mask.sum(axis=1), [4, 1, 5])
    assert tokenizer.vocab_size == len(PIECES) + 100
    tokenizer.save(tmp_path / "saved")
    again = text.load(tmp_path / "saved")
    assert again.hash == tokenizer.hash
    np.testing.assert_array_equal(again.encode(["red reds"], length=5)[0], tokens[:1])


def test_no_caption_holds_a_special_token(folder):
    tokens, mask = text.load(folder).encode(["</s> <pad> red"], length=32)
    ids = tokens[0][mask[0]].tolist()
    assert ids[-1] == 1 and not {0, 1} & set(ids[:-1])


def test_captions_are_lower_cased_where_the_model_was_trained_so(folder):
    described = language_tokenizers.lowercased(language_tokenizers.read(folder))
    upper = text.Tokenizer(described).encode(["  RED "], length=4)[0]
    np.testing.assert_array_equal(upper, text.load(folder).encode(["red"], length=4)[0])


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
        text.load(tmp_path)


def test_a_list_of_words_that_is_not_berts_is_rejected(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n[UNK]")
    with pytest.raises(UserError, match=r"vocab.txt lacks \[CLS\], \[SEP\]; expected BERT's"):
        text.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\nred\n##s\n")
    tokens, mask = text.load(tmp_path).encode(["Réds [SEP]", ""], length=8)
    assert tokens[0][mask[0]].tolist() == [1, 3, 4, 0, 0, 0, 2]  # brackets are unknown words
    assert tokens[1][mask[1]].tolist() == [1, 2]
