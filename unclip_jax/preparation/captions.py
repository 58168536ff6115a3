"""Captions as people store them: text, JSON with one or several, and numbers of classes."""

import codecs
import json
from collections.abc import Sequence
from typing import Any

from unclip_jax.preparation.items import Raw, Skip

FIELDS = (  # tried in this order
    *("text", "caption", "captions", "prompt", "sentences"),
    *("sentence", "comment", "description"),
)
_INNER = ("raw", "text", "caption")  # of captions that are JSON objects themselves
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def captions_of(raw: Raw) -> tuple[str, ...]:
    """Returns the captions of an example, stripped, each once, in their order.

    Raises:
        Skip: there is none, all are empty, or one is not Unicode.
    """
    texts = _located(raw)
    if not texts:
        raise Skip("no caption")
    try:
        for text in texts:
            text.encode("utf-8")  # JSON escapes can state half a surrogate pair
    except UnicodeError as error:
        raise Skip("bad UTF-8") from error
    stripped = (text.replace("\0", "").strip() for text in texts)
    captions = tuple(dict.fromkeys(text for text in stripped if text))
    if not captions:
        raise Skip("empty caption")
    return captions


def texts_of(value: Any) -> tuple[str, ...]:
    """Returns the texts of a JSON value: a string, an object with one, or a list of these."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, dict):
        return next((texts_of(value[name]) for name in _INNER if name in value), ())
    if isinstance(value, list):
        return tuple(text for each in value for text in texts_of(each))
    return ()


def field_of(facts: dict[str, Any], field: str) -> tuple[str, ...]:
    """Returns the texts of the field called `field`; "" = of the first usual one that has any."""
    for name in (field, field.lower()) if field else FIELDS:
        if facts.get(name) is not None:
            return texts_of(facts[name])
    return ()


def decode(data: bytes) -> str:
    """Decodes UTF-8, or UTF-16 with a byte order mark.

    Raises:
        UnicodeDecodeError: the bytes are neither.
    """
    return data.decode("utf-16" if data.startswith(_MARKS) else "utf-8-sig")


def _located(raw: Raw) -> tuple[str, ...]:
    """Returns the texts of an example as they are stored."""
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
    """Returns the caption of a class: its name, or that of the number `text`."""
    if text.isascii() and text.isdigit():
        if int(text[:9]) >= len(names):
            raise Skip("class number without a name in classes.txt")
        text = names[int(text[:9])]
    return text.replace("_", " ")
