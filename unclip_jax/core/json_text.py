"""Parsing of JSON that others wrote: any text ends in a value or in a `UserError`."""

import json
import math
from typing import Any, NoReturn

from unclip_jax.core.checks import UserError

MAX_DEPTH = 64  # nesting of objects and lists; the deepest file of this project has 7


def parse(text: str | bytes, *, where: str, advice: str) -> Any:
    """Parses JSON text, UTF-8 if given as bytes.

    Args:
        text: the text.
        where: names the file in messages.
        advice: ends them.

    Raises:
        UserError: no text, no JSON, NaN or infinite numbers, or deeper nesting than `MAX_DEPTH`.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(text, parse_constant=_reject)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read; {advice}") from None
    except ValueError as error:
        raise UserError(f"{where} cannot be read as JSON ({error}); {advice}") from None
    _check(value, where=where, advice=advice)
    return value


def parse_object(text: str | bytes, *, where: str, advice: str) -> dict[str, Any]:
    """Parses a JSON object, as `parse`.

    Raises:
        UserError: as `parse`, or another value than an object.
    """
    value = parse(text, where=where, advice=advice)
    if not isinstance(value, dict):
        raise UserError(f"{where} holds a {type(value).__name__}, not an object; {advice}")
    return value


def _reject(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _check(value: Any, *, where: str, advice: str) -> None:
    """Rejects deep nesting, infinite numbers and half surrogates, without recursion."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise UserError(f"{where} is nested deeper than {MAX_DEPTH} levels; {advice}")
        children: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                children += [*item, *item.values()]
            elif isinstance(item, list):
                children += item
            elif isinstance(item, float) and not math.isfinite(item):  # 1e999
                raise UserError(f"{where} holds a number that is not finite; {advice}")
            elif isinstance(item, str) and not item.isascii():
                try:
                    item.encode()
                except UnicodeEncodeError:
                    raise UserError(f"{where} holds text that is not Unicode; {advice}") from None
        level, depth = children, depth + 1
