"""User errors and checks of arguments.

A `UserError` is anything a user can cause (a typo, a missing file, a wrong image): one line that
says what was wrong, the value, what was expected and what to do. Commands print it without a
traceback; `assert` is for programming errors.
"""

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8


class UserError(ValueError):
    """A mistake that a user can fix; the message is one line and names the fix."""


def short(value: Any) -> str:
    """Returns `repr(value)`, shortened in its middle where it is long."""
    return _SHORT.repr(value)


def suggest(name: str, choices: Iterable[str]) -> str:
    """Returns ' Did you mean "x"?' for a near miss, else a list of the choices."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(choices)}." if choices else ""


def listed(items: Sequence[Any], *, most: int = 10, separator: str = "; ") -> str:
    """Returns the first `most` items in one line, and the number of the others."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*map(str, items[:most]), *more])


def one_of(what: str, value: Any, choices: Iterable[Any]) -> Any:
    """Returns `value` if it is among `choices`.

    Raises:
        UserError: it is not.
    """
    choices = list(choices)
    if value not in choices:
        hint = suggest(str(value), map(str, choices))
        raise UserError(f"unknown {what} {short(value)}.{hint}")
    return value


def positive(what: str, value: Any) -> Any:
    """Returns `value` if it is greater than zero.

    Raises:
        UserError: it is not.
    """
    if not value > 0:
        raise UserError(f"{what} is {value!r}; it must be greater than 0.")
    return value


def in_range(what: str, value: Any, low: Any, high: Any) -> Any:
    """Returns `value` if low <= value <= high.

    Raises:
        UserError: it is outside.
    """
    if not low <= value <= high:
        raise UserError(f"{what} is {value!r}; it must lie in [{low}, {high}].")
    return value


MAX_SEED = 2**31 - 1  # of every command, request and config: JAX's keys take an int32 everywhere


def check_seed(what: str, seed: int) -> int:
    """Returns `seed` if it lies in the range that every part of the project takes.

    Raises:
        UserError: it is outside.
    """
    return in_range(what, seed, 0, MAX_SEED)


def divisible(what: str, value: int, by: int, advice: str) -> int:
    """Returns `value` if `by` divides it; `advice` ends the message.

    Raises:
        UserError: it does not divide.
    """
    if by <= 0 or value % by:
        raise UserError(f"{what} is {value}, which {by} does not divide; {advice}")
    return value


def check_unicode(what: str, text: str) -> str:
    """Returns `text` if it can be written as UTF-8.

    Raises:
        UserError: it holds half of a surrogate pair, or bytes of another encoding.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} holds {text[error.start]!r} at character {error.start}, which is no text; "
            "give it as UTF-8."
        ) from None
    return text
