"""Captions in files: text in UTF-8 or UTF-16, and JSON with one or several captions."""

import codecs
from collections.abc import Iterable
from typing import Any

FIELDS = (  # in order of preference
    *("text", "caption", "captions", "prompt", "sentences"),
    *("sentence", "comment", "description"),
)
_INNER = ("raw", "text", "caption")  # fields of a caption that is itself a JSON object
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


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
    """Returns the texts of `field`; with "", those of the first usual field that has any."""
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


def cleaned(texts: Iterable[str]) -> tuple[str, ...]:
    """Returns the distinct non-empty texts in order, without surrounding whitespace."""
    stripped = (text.replace("\0", "").strip() for text in texts)
    return tuple(dict.fromkeys(text for text in stripped if text))
