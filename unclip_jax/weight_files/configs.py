"""Checks of a component's config.json: values that may vary and values that are fixed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from unclip_jax.core import config as typed
from unclip_jax.core.checks import UserError, short, suggest
from unclip_jax.core.config import check_limits

T = TypeVar("T")


def check_class(settings: Mapping[str, Any], expected: str, *, where: str) -> None:
    """Rejects a config of another class.

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


def group(settings: Mapping[str, Any], name: str, *, where: str) -> dict[str, Any]:
    """Returns the object under a key of settings; {} where it is absent or null.

    Raises:
        UserError: it holds something else.
    """
    value = settings.get(name)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{where} has {name} {short(value)}; expected an object of settings.")
    return value or {}


def integer(value: Any, what: str) -> int:
    """Returns a value that must be a positive integer.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{what} is {short(value)}; expected a positive integer.")
    return value


def sized(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Builds the config of a network from the sizes in a public config.

    Raises:
        UserError: a value of another type, or beyond what any network has.
    """
    try:
        return check_limits(typed.build(cls, values, where=where), where=where)
    except (TypeError, ArithmeticError) as error:
        raise UserError(f"{where} describes no network ({error}); copy it again.") from None


def described(shapes: Callable[[], T], *, where: str) -> T:
    """Returns the shapes or the blocks of a network whose sizes come from a public config.

    Raises:
        UserError: no network has such sizes.
    """
    try:
        return shapes()
    except UserError:
        raise
    except Exception as error:  # from any layer: sizes that do not divide or fit
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"{where} describes no network ({reason}); check that weights and config belong "
            "together."
        ) from error


def required_sizes(settings: Mapping[str, Any], names: Sequence[str], *, where: str) -> list[int]:
    """Returns the values of `names`, positive integers.

    Raises:
        UserError: one is missing or something else.
    """
    values = required_values(settings, names, where=where)
    return [integer(v, f"{n} in {where}") for n, v in zip(names, values, strict=True)]


def check_fixed(settings: Mapping[str, Any], fixed: Mapping[str, Any], *, where: str) -> None:
    """Rejects settings that differ from `fixed`; absent ones do not.

    Raises:
        UserError: naming the first setting that differs.
    """
    for name, expected in fixed.items():
        value = settings.get(name, expected)
        value = tuple(value) if isinstance(value, list) else value
        if value != expected:
            raise UserError(
                f"{where} has {name} {short(value)}, an unsupported variant; expected {expected!r}."
            )


def check_known(settings: Mapping[str, Any], names: Sequence[str], *, where: str) -> None:
    """Rejects unknown keys, except for private ones and nulls.

    Raises:
        UserError: naming the first.
    """
    for name, value in settings.items():
        if not name.startswith("_") and name not in names and value is not None:
            raise UserError(f"{where} has the unknown key {name!r}.{suggest(name, names)}")
