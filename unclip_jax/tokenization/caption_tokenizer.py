"""Encoding of captions to fixed-length token ids: CLIP's byte pairs, or a language model's own.

A tokenizer is a folder. It may hold `tokenizer.json`, or `vocab.json` with `merges.txt`, or the
file that came with CLIP, `bpe_simple_vocab_16e6.txt.gz`; for language models `spiece.model` (T5) or
`vocab.txt` (BERT). We always write `tokenizer.json`. CLIP's text is lower-cased, split as CLIP
splits it, and enclosed by a start and an end token; T5's has an end token alone.
"""

import gzip
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import models, normalizers, pre_tokenizers, trainers

from unclip_jax.core.checks import UserError, in_range
from unclip_jax.core.files import write_atomically
from unclip_jax.tokenization import language_tokenizers

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_FILES = ("bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")
CLIP_MERGES = 49152 - 256 - 2  # of the file's lines CLIP uses these many
MAX_VOCAB = 1_000_000
MIN_VOCAB = 2 * 256 + 2  # every byte, every byte that ends a word, start and end
_LETTERS = re.compile(r"[^\W\d_]+")
_LAST_BYTE = 0xE000  # private characters that no byte symbol uses
# CLIP's words: the two special tokens, English contractions, letters, single digits, the rest.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class Tokenizer:
    """Encodes captions; two tokenizers with the same `hash` encode alike."""

    def __init__(self, description: dict[str, Any], *, literal: tuple[str, ...] = ()):
        """Wraps a parsed `tokenizer.json`.

        Args:
            description: the parsed file.
            literal: further vocabulary entries that are matched as they stand in a caption, before
                any splitting (Karlo's files treat "!" so).

        Raises:
            UserError: it has no start or no end token, or lacks a `literal` entry.
        """
        description = language_tokenizers.without_specials(description, START)
        self._engine = tokenizers.Tokenizer.from_str(json.dumps(description))
        self._engine.no_padding()
        self._engine.no_truncation()
        specials = self._engine.encode("", add_special_tokens=True).ids
        if self._engine.token_to_id(START) is not None or not specials:
            specials = [self._id(START), self._id(END)]
        self.start, self.end = specials[0] if len(specials) > 1 else None, specials[-1]
        ids = [self._id(token) for token in literal]
        special = [tokenizers.AddedToken(t, normalized=False, special=True) for t in literal]
        self._engine.add_special_tokens(special)
        self._json = _with_literal(description, dict(zip(literal, ids, strict=True)))

    def __reduce__(self):
        return _rebuild, (self._json,)

    @property
    def vocab_size(self) -> int:
        """Number of rows an embedding table needs."""
        return self._engine.get_vocab_size(with_added_tokens=True)

    @property
    def description(self) -> dict[str, Any]:
        """The parsed `tokenizer.json`."""
        return self._json

    @property
    def hash(self) -> str:
        """Sha256 of the description, independent of the file's spacing and key order."""
        text = json.dumps(self._json, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(
        self, captions: Sequence[str], *, length: int
    ) -> tuple[Int32[np.ndarray, " b l"], Bool[np.ndarray, " b l"]]:
        """Returns token ids and their mask (True up to the end token).

        An over-long caption loses its tail, never its end token. An empty one is the special
        tokens alone: start and end of CLIP and BERT, the end of T5.
        Positions after the end have id 0 and mask False, as in CLIP.

        Raises:
            UserError: `length` has no room for start and end.
        """
        in_range("token length", length, 2, 1_000_000)
        tokens = np.zeros((len(captions), length), np.int32)
        mask = np.zeros((len(captions), length), bool)
        first = [] if self.start is None else [self.start]
        for row, encoding in enumerate(
            self._engine.encode_batch(list(captions), add_special_tokens=False)
        ):
            ids = [*first, *encoding.ids[: length - len(first) - 1], self.end]
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return tokens, mask

    def unfamiliar(self, text: str) -> tuple[str, ...]:
        """Returns the words that the tokenizer spells in pieces of two letters or fewer on average.

        A tokenizer trained on a few captions has an entry for each of their words; others fall
        apart, and no model that reads its ids has learned them.
        """
        engine = self._engine
        normal = engine.normalizer.normalize_str(text) if engine.normalizer else text
        words = dict.fromkeys(word for word in _LETTERS.findall(normal) if len(word) > 1)
        pieces = engine.encode_batch(list(words), add_special_tokens=False)
        return tuple(
            word
            for word, encoding in zip(words, pieces, strict=True)
            if len(encoding.ids) > 1 and len(word) <= 2 * len(encoding.ids)
        )

    def _id(self, token: str) -> int:
        number = self._engine.token_to_id(token)
        if number is None:
            raise UserError(
                f"the tokenizer has no token {token!r}; a CLIP tokenizer is needed, such as the "
                "folder `tokenizer` of a prepared data set."
            )
        return number

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes `tokenizer.json` into `directory` atomically."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self._json, ensure_ascii=False)
        write_atomically(directory / "tokenizer.json", content)


def load(
    directory: str | pathlib.Path, *, literal: tuple[str, ...] = (), lower: bool = False
) -> Tokenizer:
    """Loads the tokenizer in `directory`; see the module docstring for what it may hold.

    Args:
        directory: the folder.
        literal: as for `Tokenizer`.
        lower: True lower-cases and strips captions first.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    directory = pathlib.Path(directory)
    try:
        description = _read(directory)
        if description is not None:
            description = language_tokenizers.lowercased(description) if lower else description
            return Tokenizer(description, literal=literal)
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exception on a bad file
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(
            f"the tokenizer in {directory} cannot be read: {reason}; copy it again."
        ) from error
    raise UserError(
        f"no tokenizer in {directory}; it should hold tokenizer.json, vocab.json and merges.txt, "
        f"{CLIP_FILES[0]}, spiece.model or vocab.txt. The folder `tokenizer` of a prepared data "
        "set is one."
    )


def declared_padding(directory: str | pathlib.Path) -> tuple[str, ...]:
    """Reads the padding tokens beside start and end from a tokenizer's settings, for `literal`.

    Karlo's files name "!", which makes transformers match it before any splitting; prompts were
    read so when those weights were used.

    Raises:
        UserError: settings that are not JSON.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = pathlib.Path(directory) / name
        if not path.is_file():
            continue
        try:
            pad = json.loads(path.read_text("utf-8")).get("pad_token")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({error}); copy it again.") from None
        pad = pad.get("content") if isinstance(pad, dict) else pad
        if isinstance(pad, str) and pad not in (START, END):
            return (pad,)
    return ()


def train(captions: Iterable[str], *, vocab_size: int, min_frequency: int = 2) -> Tokenizer:
    """Learns the merges of a byte-pair encoding from captions.

    Args:
        captions: the text; read once.
        vocab_size: most entries, start and end included; few captions fill fewer.
        min_frequency: pairs seen less often are not merged.

    Raises:
        UserError: `vocab_size` cannot hold every byte.
    """
    in_range("vocab_size", vocab_size, MIN_VOCAB, MAX_VOCAB)
    symbols = _byte_symbols()
    # The library's own word-end suffix makes its results differ from run to run: it numbers the
    # suffixed symbols in the order of a randomly seeded table. So a word's last byte is shown to it
    # as another single character, and renamed afterwards.
    last = {symbol: chr(_LAST_BYTE + i) for i, symbol in enumerate(symbols)}
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=min_frequency,
        initial_alphabet=[*symbols, *last.values()],
        show_progress=False,
    )
    engine.train_from_iterator(_marked_words(captions, last), trainer)
    suffixed = str.maketrans({mark: symbol + "</w>" for symbol, mark in last.items()})
    pairs = json.loads(engine.to_str())["model"]["merges"]
    merges = [(a.translate(suffixed), b.translate(suffixed)) for a, b in pairs]
    return Tokenizer(json.loads(_assemble(merges).to_str()))


def _marked_words(captions: Iterable[str], last: dict[str, str]) -> Iterator[str]:
    """Yields captions as words of byte symbols, the last symbol of each word replaced."""
    engine = _assemble([])
    for caption in captions:
        normal = engine.normalizer.normalize_str(caption)
        words = (word for word, _ in engine.pre_tokenizer.pre_tokenize_str(normal))
        yield " ".join(word[:-1] + last[word[-1]] for word in words)


def _rebuild(description: dict[str, Any]) -> Tokenizer:
    return Tokenizer(description)


def _with_literal(description: dict[str, Any], literal: dict[str, int]) -> dict[str, Any]:
    """Returns the description with further entries among its added tokens."""
    if not literal:
        return description
    added = {token["content"]: token for token in description.get("added_tokens", [])}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for token, number in literal.items():
        added.setdefault(token, {"id": number, "content": token, **plain, "special": True})
    return {**description, "added_tokens": sorted(added.values(), key=lambda token: token["id"])}


def _read(directory: pathlib.Path) -> dict[str, Any] | None:
    """Reads the description of the tokenizer in `directory`; None without one."""
    if (directory / "tokenizer.json").is_file():
        return json.loads((directory / "tokenizer.json").read_text("utf-8"))
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        vocab = json.loads((directory / "vocab.json").read_text("utf-8"))
        merges = _parse_merges((directory / "merges.txt").read_text("utf-8"))
        return json.loads(_assemble(merges, vocab).to_str())
    for name in CLIP_FILES:
        if (directory / name).is_file():
            data = (directory / name).read_bytes()
            text = (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8")
            return json.loads(_assemble(_parse_merges(text)[:CLIP_MERGES]).to_str())
    return language_tokenizers.read(directory)


def _parse_merges(text: str) -> list[tuple[str, str]]:
    """Parses lines of one merge of two symbols; the first line is a version comment."""
    lines = text.split("\n")
    pairs = [tuple(line.split()) for line in lines[1:] if line.strip()]
    return [(a, b) for a, b in pairs]


def _byte_symbols() -> list[str]:
    """Returns the printable character for every byte, in CLIP's (GPT-2's) order.

    Bytes that print as themselves in Latin-1 come first; the others are moved above 255.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(moved))]


def _assemble(
    merges: list[tuple[str, str]], vocab: dict[str, int] | None = None
) -> tokenizers.Tokenizer:
    """Builds CLIP's tokenizer over `merges`, with CLIP's numbering of ids without `vocab`."""
    if vocab is None:
        symbols = _byte_symbols()
        symbols += [s + "</w>" for s in symbols] + [a + b for a, b in merges] + [START, END]
        vocab = {symbol: i for i, symbol in enumerate(symbols)}
    engine = tokenizers.Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>"))
    engine.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    split = pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    special = [tokenizers.AddedToken(t, normalized=False, special=True) for t in (START, END)]
    engine.add_special_tokens([t for t in special if t.content in vocab])
    return engine
