"""Reading a component's config.json: what may differ, and what must be as our networks have it."""

from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.core.checks import UserError, suggest


def kind(settings: Mapping[str, Any], expected: str, *, where: str) -> None:
    """Refuses a config of another class.

    Raises:
        UserError: `_class_name` is there and differs.
    """
    found = settings.get("_class_name", expected)
    if found != expected:
        raise UserError(f"{where} is of a {found}; expected a {expected}.")


def need(settings: Mapping[str, Any], names: Sequence[str], *, where: str) -> list[Any]:
    """The values of `names`.

    Raises:
        UserError: one is missing.
    """
    for name in names:
        if settings.get(name) is None:
            raise UserError(f"{where} lacks {name!r}; copy the config that came with the weights.")
    return [settings[name] for name in names]


def only(settings: Mapping[str, Any], fixed: Mapping[str, Any], *, where: str) -> None:
    """Refuses settings that our network does not have; absent ones mean the value given.

    Raises:
        UserError: naming the first setting that differs.
    """
    for name, value in fixed.items():
        found = settings.get(name, value)
        found = tuple(found) if isinstance(found, list) else found
        if found != value:
            raise UserError(
                f"{where} has {name} {found!r}, an unsupported variant; expected {value!r}."
            )


def known(settings: Mapping[str, Any], names: Sequence[str], *, where: str) -> None:
    """Refuses keys that are unknown, unless they are private or say nothing (null).

    Raises:
        UserError: naming the first.
    """
    for name, value in settings.items():
        if not name.startswith("_") and name not in names and value is not None:
            raise UserError(f"{where} has the unknown key {name!r}.{suggest(name, names)}")
