"""Fields of requests: types, defaults, bounds and help, declared once for every interface.

A request is a frozen dataclass whose fields come from `option`. The command line derives its flags
from them, the HTTP API its schema, and `check` rejects a wrong value with the same message
from a flag, from JSON and from Python.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from unclip_jax.core.checks import UserError, check_unicode, in_range, one_of, suggest
from unclip_jax.engine import image_inputs
from unclip_jax.engine.image_inputs import ImageInput

T = TypeVar("T")
Scalar = Literal["integer", "number", "boolean", "text", "image"]

GREATEST = 1e9  # of a number that has no limit of its own
MAX_TEXT = 10_000  # characters; longer captions are rejected rather than silently cut
MAX_ITEMS = 4096  # of a list
_SCALARS: dict[Any, Scalar] = {
    int: "integer",
    float: "number",
    bool: "boolean",
    str: "text",
    ImageInput: "image",
}
_PLURALS = {"integer": "whole numbers", "number": "numbers", "text": "texts", "image": "images"}
_EXPECTED = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "text": "a text",
}
# Earlier names of fields; requests that use them are rejected with the new name.
RENAMED = {
    "picture": "image",
    "pictures": "images",
    "picture_weights": "image_weights",
}


@dataclasses.dataclass(frozen=True)
class Option:
    """Properties of a field apart from its type and default.

    Attributes:
        help: one line, without a full stop.
        low: least value of a number; None = unbounded.
        high: greatest value of a number.
        choices: the permitted values of a text; () = any.
        count: least and greatest number of items in a list.
        blank: True if a text may be empty.
        positional: True if the command line takes it without a flag.
        flag: name of the command line's flag; "" = the field's name.
        weights: field with one number per item of this list; a flag takes item and weight together.
        latent: True if an image may also be a latent file (.npz).
    """

    help: str
    low: int | float | None = None
    high: int | float | None = None
    choices: tuple[str, ...] = ()
    count: tuple[int, int] = (1, MAX_ITEMS)
    blank: bool = True
    positional: bool = False
    flag: str = ""
    weights: str = ""
    latent: bool = False


@dataclasses.dataclass(frozen=True)
class RequestField:
    """A field of a request, as `fields` returns it.

    Attributes:
        name: in Python and in JSON.
        scalar: type of the value, or of every item of a list.
        many: True for a list.
        optional: True if None is a value.
        required: True if there is no default.
        default: the default; None if there is no default.
        option: its other properties.
    """

    name: str
    scalar: Scalar
    many: bool
    optional: bool
    required: bool
    default: Any
    option: Option


def option(default: Any = dataclasses.MISSING, **metadata: Any) -> Any:
    """Declares a dataclass field with its `Option`; without a default it is required."""
    return dataclasses.field(default=default, metadata={"option": Option(**metadata)})


def fields(request: Any) -> dict[str, RequestField]:
    """Returns the fields of a request or of its class, by name."""
    cls = request if isinstance(request, type) else type(request)
    hints = typing.get_type_hints(cls)
    return {field.name: _field(field, hints[field.name]) for field in dataclasses.fields(cls)}


def build(cls: type[T], values: Mapping[str, Any], *, name: str) -> T:
    """Builds a request from values by name.

    Args:
        cls: a class of requests.
        values: values of fields; None = not set.
        name: name of the request, for messages.

    Raises:
        UserError: an unknown or missing field, or a value that `check` rejects.
    """
    declared = fields(cls)
    for key in values:
        if key in RENAMED and RENAMED[key] in declared:
            raise UserError(f"{name} has no {key!r}; it is called {RENAMED[key]!r} now.")
        if key not in declared:
            raise UserError(f"{name} has no {key!r}.{suggest(key, declared)}")
    present = {key: value for key, value in values.items() if value is not None}
    for field in declared.values():
        if field.required and field.name not in present:
            raise UserError(f"{name} needs {field.name!r}: {field.option.help}.")
    return cls(**{key: checked(declared[key], value) for key, value in present.items()})


def check(request: Any) -> None:
    """Checks and converts every field: lists to tuples, whole numbers to floats, images to pixels.

    Raises:
        UserError: a wrong type or a value out of range; the message names both.
    """
    for field in fields(request).values():
        object.__setattr__(request, field.name, checked(field, getattr(request, field.name)))


def checked(field: RequestField, value: Any) -> Any:
    """Checks and converts one value of a field.

    Raises:
        UserError: see `check`.
    """
    if value is None and field.optional:
        return None
    if not field.many:
        return _item(field, field.name, value)
    if not isinstance(value, (list, tuple)):
        raise _wrong(field.name, value, f"a list of {_PLURALS[field.scalar]}")
    in_range(f"number of {field.name}", len(value), *field.option.count)
    indexed = field.scalar == "image"
    return tuple(
        _item(field, f"{field.name}[{index}]" if indexed else field.name, item)
        for index, item in enumerate(value)
    )


def range_text(field: RequestField) -> str:
    """Returns the bounds of a field as text: "0 to 1", "at most 100"; "" without bounds."""
    low, high = field.option.low, field.option.high
    if low is None or high is None:
        return "" if low is None else f"at least {low:g}"
    return f"{low:.10g} to {high:.10g}"


def plain(request: Any) -> dict[str, Any]:
    """Returns the fields of a request, JSON-ready, with images by path or name."""
    values = {name: getattr(request, name) for name in fields(request)}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if type(value) is tuple:
        return [_plain(item) for item in value]
    return str(value.path) if hasattr(value, "path") else value


def _field(field: dataclasses.Field, hint: Any) -> RequestField:
    """Reads type and metadata of one dataclass field."""
    optional = isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)
    if optional:
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
    many = typing.get_origin(hint) is tuple
    scalar = _SCALARS[typing.get_args(hint)[0] if many else hint]
    required = field.default is dataclasses.MISSING
    default = None if required else field.default
    return RequestField(
        field.name, scalar, many, optional, required, default, field.metadata["option"]
    )


def _item(field: RequestField, name: str, value: Any) -> Any:
    """Checks and converts one value, or one item of a list."""
    option = field.option
    if field.scalar == "image":
        return image_inputs.read(value, where=name, latent=option.latent)
    if option.choices:
        return one_of(name, value, option.choices)
    types_of = {"integer": int, "number": (int, float), "boolean": bool, "text": str}
    wrong_bool = isinstance(value, bool) and field.scalar != "boolean"
    if wrong_bool or not isinstance(value, types_of[field.scalar]):
        raise _wrong(name, value, _EXPECTED[field.scalar])
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise UserError(f"{name} has {len(value)} characters; give at most {MAX_TEXT}.")
        check_unicode(name, value)
        if not option.blank and not value.strip():
            raise UserError(f"{name} is empty; say what the image should show.")
    if isinstance(value, int | float) and field.scalar == "number" and not abs(value) <= GREATEST:
        raise _wrong(name, value, "a finite number")
    if option.low is not None:
        high = float("inf") if option.high is None else option.high
        in_range(name, value, option.low, high)
    return float(value) if field.scalar == "number" else value


def _wrong(name: str, value: Any, expected: str) -> UserError:
    return UserError(f"{name} is {str(value)[:40]!r}; give {expected}.")
