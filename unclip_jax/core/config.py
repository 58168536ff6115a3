"""Typed configs: nested mappings to frozen dataclasses, without silent defaults.

Only the loading of experiments sees a ConfigDict; everything below receives the dataclasses built
here. A misspelt key raises with a suggestion.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from unclip_jax.core.checks import UserError, in_range, short, suggest

T = TypeVar("T")
MAX_NUMBER = 10**300  # of an integer that stands for a float
# Largest integers in configs by the end of their names; what exceeds them is damage or a slip.
LARGEST = {"depth": 256, "image_size": 2**14, "patch_size": 2**14, "crop": 2**14, "": 2**24}
MAX_INTEGERS = 64  # in a list


def build(cls: type[T], mapping: Mapping[str, Any], *, where: str) -> T:
    """Builds the dataclass `cls` from `mapping`, recursing into dataclass fields.

    Args:
        cls: a dataclass whose annotations are plain types, tuples, optionals, dataclasses, or a
            plain type or a tuple.
        mapping: field name -> value; every key must be a field of `cls`.
        where: dotted path of this mapping, for messages ("config.optim").

    Raises:
        UserError: an unknown key, a missing key, or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in fields:
            raise UserError(f"{where} has no key {key!r}.{suggest(key, fields)}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in mapping:
            raise UserError(f"{where}.{name} is missing; give it in the experiment file.")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in mapping.items()}
    return cls(**values)


def as_dict(tree: Any) -> Any:
    """Converts dataclasses to JSON-ready dicts (tuples become lists), the inverse of `build`."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {f.name: as_dict(getattr(tree, f.name)) for f in dataclasses.fields(tree)}
    if isinstance(tree, (list, tuple)):
        return [as_dict(item) for item in tree]
    if isinstance(tree, Mapping):
        return {key: as_dict(value) for key, value in tree.items()}
    return tree


def check_limits(config: Any, *, where: str) -> Any:
    """Rejects a config with sizes that no network has, before anything is built from it.

    Args:
        config: the config, a dataclass.
        where: dotted path of the config in messages.

    Raises:
        UserError: naming an integer that is negative or beyond `LARGEST`, a number that is not
            finite, or a list of too many integers.
    """
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{where}.{field.name}"
        if dataclasses.is_dataclass(value):
            check_limits(value, where=path)
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, float) and not math.isfinite(number):
                raise _wrong(path, number, "a finite number")
            if isinstance(number, int):
                most = next(most for end, most in LARGEST.items() if field.name.endswith(end))
                in_range(path, number, 0, most)
        if len(numbers) > MAX_INTEGERS and isinstance(numbers[0], int):
            raise UserError(f"{path} has {len(numbers)} numbers; expected at most {MAX_INTEGERS}.")
    return config


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Checks or converts one value against one annotation."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        inner, *others = [option for option in options if option is not type(None)]
        if others and isinstance(value, Sequence) != (typing.get_origin(inner) is tuple):
            (inner,) = others  # a number, or a list of them
        return _convert(inner, value, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        if not isinstance(value, Mapping):
            raise _wrong(where, value, "a group of keys")
        return build(typing.cast(type, hint), value, where=where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(where, value, "a group of keys")
        return value
    if origin is tuple:
        return _convert_tuple(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > MAX_NUMBER:
            raise _wrong(where, value, f"a number of at most {MAX_NUMBER:g}")
        return float(value)
    if isinstance(hint, type) and hint is not Any:
        wrong_bool = isinstance(value, bool) and hint is not bool
        if wrong_bool or not isinstance(value, hint):
            raise _wrong(where, value, f"{hint.__name__}")
    return value


def _convert_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong(where, value, "a list")
    args = typing.get_args(hint)
    inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(inner) != len(value):
        raise _wrong(where, value, f"a list of {len(inner)}")
    pairs = zip(inner, value, strict=True)
    return tuple(_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(pairs))


def _wrong(where: str, value: Any, expected: str) -> UserError:
    return UserError(f"{where} is {short(value)} ({type(value).__name__}); expected {expected}.")
