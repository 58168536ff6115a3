"""Readers of the tokenizers of T5 (SentencePiece's unigrams), BERT (WordPiece) and minDALL-E.

They return descriptions for the `tokenizers` library; neither sentencepiece nor protobuf is needed.
"""

import json
import pathlib
import re
import struct
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.implementations.char_level_bpe import CharBPETokenizer

from unclip_jax.core.checks import UserError
from unclip_jax.core.json_text import parse_object

UNIGRAM, WORDPIECE = "spiece.model", "vocab.txt"
CHARACTER_PAIRS = ("bpe-16k-vocab.json", "bpe-16k-merges.txt")  # of minDALL-E
PAD = "[PAD]"
SETTINGS = "tokenizer_config.json"
# Fields of sentencepiece's ModelProto, and of its pieces.
PIECES, NORMALISER = 1, 3
TEXT, SCORE, KIND = 1, 2, 3
CHARACTER_MAP = 2
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
SPARE = 100  # <extra_id_0> to <extra_id_99>, which T5 appends to the pieces, and mT5's include
_SPARE_PIECE = re.compile(r"▁?<extra_id_\d+>")
_PRIVATE = 0xF0000
PADDING, END, UNKNOWN_PIECE = "<pad>", "</s>", "<unk>"
T5_SETTINGS = {
    "tokenizer_class": "T5Tokenizer",
    "model_max_length": 512,
    "extra_ids": SPARE,
    "pad_token": PADDING,
    "eos_token": END,
    "unk_token": UNKNOWN_PIECE,
}


def read(directory: pathlib.Path) -> dict[str, Any] | None:
    """Returns the description of the tokenizer of a language model in a folder; None without one.

    Raises:
        UserError: it cannot be read.
    """
    if (directory / UNIGRAM).is_file():
        return _unigram(directory / UNIGRAM)
    if (directory / WORDPIECE).is_file():
        return _wordpiece(directory)
    if all((directory / name).is_file() for name in CHARACTER_PAIRS):
        return _character_pairs(directory)
    return None


def without_specials(description: dict[str, Any], clip_start: str) -> dict[str, Any]:
    """Returns a description in which no caption can contain a special token.

    The special tokens of language models remain in the template that encloses a caption, by their
    ids; in the vocabulary they get names that no text has. CLIP's description is left as it is.

    Args:
        description: a parsed tokenizer.json.
        clip_start: CLIP's start token, by which its tokenizers are recognised.
    """
    added = {token["content"] for token in description.get("added_tokens") or []}
    if clip_start in added or not added or not description.get("post_processor"):
        return description
    model = description["model"]
    if model.get("type") == "Unigram":
        vocab = [
            [chr(_PRIVATE + i) if piece in added else piece, score]
            for i, (piece, score) in enumerate(model["vocab"])
        ]
        model = {**model, "vocab": vocab}
    return {**description, "model": model, "added_tokens": []}


def published(description: dict[str, Any], *, where: str) -> dict[str, Any]:
    """Returns the tokenizer.json of a T5 with the names of its special tokens.

    Inverts `without_specials` and `lowercased`, since transformers looks for special tokens by name
    and pipelines lower-case captions themselves.

    Raises:
        UserError: the tokenizer is no T5's.
    """
    model = description["model"]
    vocab = [list(piece) for piece in model.get("vocab", [])] if isinstance(model, dict) else []
    hidden = [i for i, (piece, _) in enumerate(vocab) if piece == chr(_PRIVATE + i)]
    spare = [i for i in hidden if i >= len(vocab) - SPARE]
    names = {0: PADDING, 1: END, model.get("unk_id"): UNKNOWN_PIECE}
    names |= {i: f"<extra_id_{len(vocab) - 1 - i}>" for i in spare}
    ends = (description.get("post_processor") or {}).get("special_tokens") or {}
    fits = ends.get(END, {}).get("ids") == [1] and {*hidden} <= names.keys()
    if model.get("type") != "Unigram" or len(spare) != SPARE or not fits:
        raise UserError(
            f"the tokenizer in {where} is not T5's, so it cannot be written as one; give T5's."
        )
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": names[i], **plain, "special": True} for i in hidden]
    for i in hidden:
        vocab[i][0] = names[i]
    normaliser = description.get("normalizer") or {}
    steps = normaliser.get("normalizers") or []
    if [step["type"] for step in steps[:2]] == ["Lowercase", "Strip"]:
        normaliser = steps[2] if len(steps) > 2 else None
    return {
        **description,
        "normalizer": normaliser or None,
        "added_tokens": added,
        "model": {**model, "vocab": vocab},
    }


def lowercased(description: dict[str, Any]) -> dict[str, Any]:
    """Returns the description of a tokenizer that lower-cases captions and strips them first."""
    steps: list[dict[str, Any]] = [
        {"type": "Lowercase"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]
    if own := description.get("normalizer"):
        steps.append(own)
    return {**description, "normalizer": {"type": "Sequence", "normalizers": steps}}


def _unigram(path: pathlib.Path) -> dict[str, Any]:
    """Reads a SentencePiece unigram model, with T5's end token and spare pieces.

    Of the latter, `extra_ids` in the folder's settings, those that the model lacks are appended.
    Characters without a piece become bytes where the model has pieces for them (mT5).
    """
    pieces, kinds, character_map = [], [], b""
    for number, value in _fields(path.read_bytes(), path):
        if number == PIECES:
            piece = dict(_fields(value, path))
            kinds.append(piece.get(KIND, NORMAL))
            text, score = piece[TEXT].decode("utf-8"), struct.unpack("<f", piece[SCORE])[0]
            pieces.append((text, score))
        elif number == NORMALISER:
            character_map = dict(_fields(value, path)).get(CHARACTER_MAP, b"")
    if UNKNOWN not in kinds or ("</s>", CONTROL) not in zip(
        (text for text, _ in pieces), kinds, strict=True
    ):
        raise UserError(f"{path} has no unknown or no end piece; expected T5's spiece.model.")
    end = [text for text, _ in pieces].index("</s>")
    included = [bool(_SPARE_PIECE.fullmatch(text)) for text, _ in pieces]
    hidden = [
        (chr(_PRIVATE + i) if kinds[i] == CONTROL or included[i] else text, score)
        for i, (text, score) in enumerate(pieces)
    ]
    missing = max(0, _spare_pieces(path.parent) - sum(included))
    spare = [(chr(_PRIVATE + len(hidden) + i), 0.0) for i in range(missing)]
    engine = tokenizers.Tokenizer(
        models.Unigram(hidden + spare, unk_id=kinds.index(UNKNOWN), byte_fallback=BYTE in kinds)
    )
    if character_map:
        engine.normalizer = normalizers.Precompiled(character_map)
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    engine.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    engine.decoder = decoders.Metaspace(prepend_scheme="always")
    engine.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", end)]
    )
    return json.loads(engine.to_str())


def _spare_pieces(directory: pathlib.Path) -> int:
    """Returns the number of spare pieces that the settings of a T5's tokenizer state, or T5's."""
    count = _settings(directory).get("extra_ids", SPARE)
    if type(count) is not int or count < 0:
        raise UserError(
            f"{directory / SETTINGS} has extra_ids {count!r}; expected a number of pieces, such as "
            f"{SPARE}. Copy it again."
        )
    return count


def _settings(directory: pathlib.Path) -> dict[str, Any]:
    """Returns the settings beside the files of a tokenizer; {} without any."""
    path = directory / SETTINGS
    if not path.is_file():
        return {}
    return parse_object(path.read_bytes(), where=str(path), advice="copy it again.")


def _wordpiece(directory: pathlib.Path) -> dict[str, Any]:
    """Reads BERT's list of word pieces."""
    lines = (directory / WORDPIECE).read_text("utf-8").splitlines()
    vocab = {piece: i for i, piece in enumerate(lines)}
    absent = [piece for piece in ("[UNK]", "[CLS]", "[SEP]") if piece not in vocab]
    if absent:
        raise UserError(f"{directory / WORDPIECE} lacks {', '.join(absent)}; expected BERT's list.")
    own = _settings(directory)
    engine = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(
        lowercase=bool(own.get("do_lower_case", True)),
        strip_accents=own.get("strip_accents"),
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(piece, vocab[piece]) for piece in ("[CLS]", "[SEP]")],
    )
    return json.loads(engine.to_str())


def _character_pairs(directory: pathlib.Path) -> dict[str, Any]:
    """Reads minDALL-E's byte pairs of characters; a caption ends in its padding token."""
    vocab, merges = (str(directory / name) for name in CHARACTER_PAIRS)
    engine = CharBPETokenizer.from_file(vocab, merges, unk_token="[UNK]", lowercase=True)
    engine.add_special_tokens([PAD])
    engine.post_processor = processors.TemplateProcessing(
        single=f"$A {PAD}", special_tokens=[(PAD, engine.token_to_id(PAD))]
    )
    return json.loads(engine.to_str())


def _fields(data: bytes, path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    """Yields number and value of the fields of a protobuf message, unparsed.

    Raises:
        UserError: the bytes are no such message.
    """
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    try:
        while position < len(data):
            key = varint()
            sizes = {1: 8, 5: 4}
            if key & 7 == 0:
                yield key >> 3, varint()
                continue
            size = varint() if key & 7 == 2 else sizes[key & 7]
            value = data[position : position + size]
            if len(value) < size:
                raise IndexError
            position += size
            yield key >> 3, value
    except LookupError:
        raise UserError(f"{path} is damaged or no SentencePiece model; copy it again.") from None
