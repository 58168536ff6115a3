"""Checks of a component's config.json: values that may vary and values that are fixed."""

from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.core.checks import UserError, suggest


def check_class(settings: Mapping[str, Any], expected: str, *, where: str) -> None:
    """Refuses a config of another class.

    Raises:
        UserError: `_class_name` is set and differs.
    """
    name = settings.get("_class_name", expected)
    if name != expected:
        raise UserError(f"{where} is of a {name}; expected a {expected}.")


def required_values(settings: Mapping[str, Any], names: Sequence[str], *, where: str) -> list[Any]:
    """Returns the values of `names`.

    Raises:
        UserError: one is missing.
    """
    for name in names:
        if settings.get(name) is None:
            raise UserError(f"{where} lacks {name!r}; copy the config that came with the weights.")
    return [settings[name] for name in names]


def check_fixed(settings: Mapping[str, Any], fixed: Mapping[str, Any], *, where: str) -> None:
    """Refuses settings that differ from `fixed`; absent ones do not.

    Raises:
        UserError: naming the first setting that differs.
    """
    for name, expected in fixed.items():
        value = settings.get(name, expected)
        value = tuple(value) if isinstance(value, list) else value
        if value != expected:
            raise UserError(
                f"{where} has {name} {value!r}, an unsupported variant; expected {expected!r}."
            )


def check_known(settings: Mapping[str, Any], names: Sequence[str], *, where: str) -> None:
    """Refuses unknown keys, except for private ones and nulls.

    Raises:
        UserError: naming the first.
    """
    for name, value in settings.items():
        if not name.startswith("_") and name not in names and value is not None:
            raise UserError(f"{where} has the unknown key {name!r}.{suggest(name, names)}")
