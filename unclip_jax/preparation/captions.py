"""Captions of raw examples: text, JSON with one or several captions, and class numbers."""

import json
from collections.abc import Sequence

from unclip_jax.data.captions import cleaned, decode, field_of, texts_of
from unclip_jax.preparation.items import RawExample, Skip


def captions_of(raw: RawExample) -> tuple[str, ...]:
    """Returns the distinct captions of an example in order, without surrounding whitespace.

    Raises:
        Skip: there are no captions, all are empty, or one is not Unicode.
    """
    texts = _located(raw)
    if not texts:
        raise Skip("no caption")
    try:
        for text in texts:
            text.encode("utf-8")  # JSON escapes can encode half a surrogate pair
    except UnicodeError as error:
        raise Skip("bad UTF-8") from error
    captions = cleaned(texts)
    if not captions:
        raise Skip("empty caption")
    return captions


def _located(raw: RawExample) -> tuple[str, ...]:
    """Returns the texts of an example as stored."""
    if isinstance(raw.caption, tuple):
        return raw.caption
    try:
        text = decode(raw.caption) if isinstance(raw.caption, bytes) else raw.caption
    except UnicodeDecodeError as error:
        raise Skip("bad UTF-8") from error
    if raw.form == "class":
        return (_class_name(text.strip(), raw.classes),)
    if raw.form != "json":
        return (text,)
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Skip("caption is not JSON") from error
    return field_of(facts, raw.field) if isinstance(facts, dict) else texts_of(facts)


def _class_name(text: str, names: Sequence[str]) -> str:
    """Returns the caption of a class: its name, or the name of class number `text`."""
    if text.isascii() and text.isdigit():
        if int(text[:9]) >= len(names):
            raise Skip("class number without a name in classes.txt")
        text = names[int(text[:9])]
    return text.replace("_", " ")
