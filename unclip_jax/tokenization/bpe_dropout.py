"""BPE dropout: another segmentation of a caption each time it is read (arXiv 1910.13267).

While a word's symbols are merged, each merge that is possible is skipped with some probability, so
that a model sees rarer pieces of words. DALL-E trains with 10 % (arXiv 2102.12092, section B.2).
The library's own dropout takes no seed; here the segmentation follows from a generator.
"""

import itertools
import json
from collections.abc import Sequence

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32

from unclip_jax.core.checks import UserError
from unclip_jax.tokenization.caption_tokenizer import Tokenizer


class BpeDropout:
    """The merges of a tokenizer, applied with gaps."""

    def __init__(self, tokenizer: Tokenizer, *, rate: float):
        """Reads the merges.

        Args:
            tokenizer: a byte-pair encoding.
            rate: probability with which a merge is skipped; 0 gives the tokenizer's own ids.

        Raises:
            UserError: it is no byte-pair encoding.
        """
        description = tokenizer.description
        model = description["model"]
        if model.get("type") != "BPE":
            raise UserError(
                f"the tokenizer is {model.get('type')}, not a byte-pair encoding, so no merges can "
                "be dropped; set config.data.bpe_dropout to 0."
            )
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(pairs)}
        self._vocab, self._suffix = model["vocab"], model.get("end_of_word_suffix") or ""
        self._tokenizer, self._rate = tokenizer, rate
        self._engine = tokenizers.Tokenizer.from_str(json.dumps(description))

    def encode(
        self, caption: str, *, length: int, generator: np.random.Generator
    ) -> tuple[Int32[np.ndarray, " l"], Bool[np.ndarray, " l"]]:
        """Returns token ids and their mask, as `Tokenizer.encode` does for one caption."""
        engine, first = self._engine, self._tokenizer.start
        text = engine.normalizer.normalize_str(caption) if engine.normalizer else caption
        ids = [] if first is None else [first]
        for word, _ in engine.pre_tokenizer.pre_tokenize_str(text):
            symbols = [*word[:-1], word[-1] + self._suffix]
            ids += [self._vocab[symbol] for symbol in self._merged(symbols, generator)]
        ids = [*ids[: length - 1], self._tokenizer.end]
        tokens, mask = np.zeros(length, np.int32), np.arange(length) < len(ids)
        tokens[: len(ids)] = ids
        return tokens, mask

    def _merged(self, symbols: Sequence[str], generator: np.random.Generator) -> list[str]:
        """Merges the best-ranked pair that is not skipped, until none is left."""
        symbols = list(symbols)
        while len(symbols) > 1:
            ranks = [self._ranks.get(pair, -1) for pair in itertools.pairwise(symbols)]
            skipped = generator.random(len(ranks)) < self._rate
            possible = [(rank, i) for i, rank in enumerate(ranks) if rank >= 0 and not skipped[i]]
            if not possible:
                break
            _, i = min(possible)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        return symbols
