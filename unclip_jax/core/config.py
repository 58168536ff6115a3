"""Typed configs: nested mappings to frozen dataclasses, without silent defaults.

Only the loading of experiments sees a ConfigDict; everything below receives the dataclasses built
here. A misspelt key raises with a suggestion.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from unclip_jax.core.checks import UserError, suggest

T = TypeVar("T")


def build(cls: type[T], mapping: Mapping[str, Any], *, where: str) -> T:
    """Builds the dataclass `cls` from `mapping`, recursing into dataclass fields.

    Args:
        cls: a dataclass whose annotations are plain types, tuples, optionals or dataclasses.
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


def as_dict(record: Any) -> Any:
    """Converts dataclasses to JSON-ready dicts (tuples become lists), the inverse of `build`."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: as_dict(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, (list, tuple)):
        return [as_dict(item) for item in record]
    if isinstance(record, Mapping):
        return {key: as_dict(value) for key, value in record.items()}
    return record


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Checks or converts one value against one annotation."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        (inner,) = [option for option in options if option is not type(None)]
        return _convert(inner, value, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        if not isinstance(value, Mapping):
            raise _wrong(where, value, "a group of keys")
        return build(typing.cast(type, hint), value, where=where)
    if origin is tuple:
        return _convert_tuple(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
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
    return UserError(f"{where} is {value!r} ({type(value).__name__}); expected {expected}.")
