"""The house style of error messages: what was wrong, its value, what was expected, what to do.

`UserError` is for anything a user can cause (a typo, a missing file, a wrong image). Entry points
print it as one line without a traceback; `assert` stays for what cannot happen.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A mistake that a user can fix; the message is one line and names the fix."""


def suggest(name: str, known: Iterable[str]) -> str:
    """' Did you mean "x"?' for a near miss, else a list of what is known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known)}."


def one_of(what: str, value: Any, choices: Iterable[Any]) -> Any:
    """Return `value` if it is among `choices`.

    Raises:
        UserError: it is not.
    """
    choices = list(choices)
    if value not in choices:
        hint = suggest(str(value), map(str, choices))
        raise UserError(f"unknown {what} {value!r}.{hint}")
    return value


def positive(what: str, value: Any) -> Any:
    """Return `value` if it is greater than zero.

    Raises:
        UserError: it is not.
    """
    if not value > 0:
        raise UserError(f"{what} is {value!r}; it must be greater than 0.")
    return value


def in_range(what: str, value: Any, low: Any, high: Any) -> Any:
    """Return `value` if low <= value <= high.

    Raises:
        UserError: it is outside.
    """
    if not low <= value <= high:
        raise UserError(f"{what} is {value!r}; it must lie in [{low}, {high}].")
    return value


def divisible(what: str, value: int, by: int, why: str) -> int:
    """Return `value` if `by` divides it; `why` ends the message.

    Raises:
        UserError: it does not divide.
    """
    if by <= 0 or value % by:
        raise UserError(f"{what} is {value}, which {by} does not divide; {why}")
    return value
