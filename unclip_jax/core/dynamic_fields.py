"""Settings split into a static part and numbers that are arguments of a compiled function.

A frozen dataclass of settings is a static argument of a compiled function: one program per value.
Numbers of fields declared with `dynamic` are taken out before the call (`split`) and put back while
the function is traced (`join`), so that other values run the same program. The value `off` stays
static, because the program has less to do then.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_OFF = "off"
_PLACEHOLDER = -1.0  # in place of a number that was taken out


def dynamic(*, off: float) -> dict[str, float]:
    """Returns the metadata of a field whose value may be an argument of a compiled function.

    Args:
        off: the value for which there is a program of its own.
    """
    return {_OFF: off}


def is_static(value: Any, equal_to: float) -> bool:
    """True if a number is known when the program is traced, and equal to another."""
    return isinstance(value, int | float) and value == equal_to


def split(settings: T) -> tuple[T, tuple[float, ...]]:
    """Takes the numbers of dynamic fields out of settings, and of those inside them.

    Args:
        settings: a frozen dataclass, a tuple of them, or anything else, which is returned as it is.

    Returns:
        Settings that are equal for all values of these numbers, and the numbers.
    """
    numbers: list[float] = []

    def take(value: float) -> float:
        numbers.append(float(value))
        return _PLACEHOLDER

    return _replaced(settings, take), tuple(numbers)


def join(settings: T, numbers: Sequence[Any]) -> T:
    """Puts numbers, which may be traced, into settings that `split` returned."""
    left: Iterator[Any] = iter(numbers)
    return _replaced(settings, lambda _: next(left))


def _replaced(settings: Any, replace: Any) -> Any:
    """A copy of settings with other values in the dynamic fields that are not off."""
    if isinstance(settings, tuple):
        return tuple(_replaced(part, replace) for part in settings)
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return settings
    changed = copy.copy(settings)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if _OFF not in field.metadata:
            new = _replaced(value, replace)
        elif is_static(value, field.metadata[_OFF]):
            continue
        else:
            new = replace(value)
        object.__setattr__(changed, field.name, new)  # traced values cannot be checked again
    return changed
