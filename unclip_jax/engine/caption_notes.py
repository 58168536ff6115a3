"""Remarks on captions that the models handle poorly."""

from collections.abc import Iterable, Mapping

from unclip_jax.core.checks import listed, short
from unclip_jax.engine import request_fields
from unclip_jax.engine.request_base import Request
from unclip_jax.tokenization.caption_tokenizer import Tokenizer

# Fields whose texts are captions; an empty one of CAPTIONS is worth a remark.
CAPTIONS = ("captions", "texts")
LONGEST = 4096  # tokens that are counted
FIELDS = (*CAPTIONS, "caption", "target", "source", "negative")


def notes(
    request: Request,
    tokenizers: Mapping[str, Tokenizer],
    *,
    contexts: Mapping[str, int | None] | None = None,
) -> list[str]:
    """Returns remarks on empty captions, long captions and unfamiliar words of a request.

    A word is unfamiliar if the tokenizer of every stage spells it letter by letter.

    Args:
        request: a request with captions among its fields.
        tokenizers: by name of the stage.
        contexts: tokens that each stage reads, by its name; None = unknown.
    """
    values = request_fields.plain(request)
    lists = {name: _texts(values.get(name)) for name in FIELDS}
    remarks = []
    if any(not text.strip() for name in CAPTIONS for text in lists[name]):
        remarks.append("a caption is empty, so its images may show anything")
    for name, context in (contexts or {}).items():
        long = [text for texts in lists.values() for text in texts if name in tokenizers]
        long = [text for text in long if context and _length(tokenizers[name], text) > context]
        if long:
            remarks.append(
                f"{short(long[0])} is longer than the {context} tokens that the {name} reads; "
                "its end is left out"
            )
    words = _unfamiliar([text for texts in lists.values() for text in texts], tokenizers)
    if words:
        many = "words that are" if len(words) > 1 else "a word that is"
        remarks.append(
            f"{listed([repr(word) for word in words], most=5, separator=', ')}: {many} probably "
            "in no caption that the models were trained on"
        )
    return remarks


def _length(tokenizer: Tokenizer, text: str) -> int:
    """Returns the number of tokens of a caption, start and end included."""
    return int(tokenizer.encode([text], length=LONGEST)[1].sum())


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _unfamiliar(texts: Iterable[str], tokenizers: Mapping[str, Tokenizer]) -> list[str]:
    """Returns the words that no tokenizer has, in order, each once."""
    engines = list({tokenizer.hash: tokenizer for tokenizer in tokenizers.values()}.values())
    words: dict[str, None] = {}
    for text in texts:
        of_each = [engine.unfamiliar(text) for engine in engines]
        words |= {word: None for word in (of_each or [()])[0] if all(word in w for w in of_each)}
    return list(words)
