"""Flags of a request, derived from its fields, and the request that they describe.

Importing it imports no JAX, so that --help is quick.
"""

import argparse
import json
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError
from unclip_jax.engine import request_fields
from unclip_jax.engine.image_inputs import InputImage
from unclip_jax.engine.request_base import Request
from unclip_jax.engine.request_fields import RequestField
from unclip_jax.engine.requests import REQUESTS

_METAVARS = {"integer": "N", "number": "X", "text": "TEXT", "image": "FILE"}


def add_fields(
    parser: Parser, request: type[Request], *, only: Collection[str] | None = None
) -> None:
    """Adds one argument per field of a request, or per field in `only`."""
    declared = request_fields.fields(request)
    # part of the flag of the weighted items
    joint = {field.option.weights for field in declared.values()}
    for field in declared.values():
        if field.name not in joint and (only is None or field.name in only):
            _add(parser, field)


def values(args: argparse.Namespace, request: type[Request]) -> dict[str, Any]:
    """Returns the values of fields that were set; numbers are parsed where possible.

    Raises:
        UserError: an item has more than one weight, or one that is not a number.
    """
    result: dict[str, Any] = {}
    for field in request_fields.fields(request).values():
        value = getattr(args, field.name, None)
        if value is None:
            continue
        if field.option.weights:
            items, weights = _weighted(field, value)
            result |= {field.name: items, field.option.weights: weights}
        else:
            result[field.name] = (
                [_read(field, v) for v in value] if field.many else _read(field, value)
            )
    return result


class StoredRequest(NamedTuple):
    """A request of an earlier result, and the prior that ran it (None in a chain without one)."""

    request: Request
    prior: str | None


def from_result(path: pathlib.Path) -> StoredRequest:
    """Reads the request from the JSON of an earlier result.

    Its images are searched beside the file, then in the current directory.

    Raises:
        UserError: the file is not the JSON of a result, or images are missing.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        name, values = stored["command"], dict(stored["request"])
        request = REQUESTS[name]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not the JSON of a result ({type(error).__name__}: {error}); give the JSON "
            "that was written beside the images."
        ) from None
    for field in request_fields.fields(request).values():
        if field.scalar == "image" and values.get(field.name):
            names = values[field.name]
            values[field.name] = (
                [_beside(path, name) for name in names] if field.many else _beside(path, names)
            )
    built = request_fields.build(request, values, name=name)
    _check_inputs(built, stored, path)
    return StoredRequest(built, stored.get("prior"))


def _check_inputs(request: Request, stored: dict[str, Any], path: pathlib.Path) -> None:
    """Rejects images whose content differs from that of the inputs of the earlier result.

    Raises:
        UserError: an image differs; names it.
    """
    digests = {entry.get("sha256", entry.get("source")) for entry in stored.get("inputs", ())}
    for field in request_fields.fields(request).values():
        value = getattr(request, field.name) if field.scalar == "image" else None
        for image in value if field.many and value else (value,):
            if isinstance(image, InputImage) and image.sha256 not in digests:
                raise UserError(
                    f"{image.path} is not the image that {path} was made with; put that one beside "
                    "the JSON, or run the original command again."
                )


def _add(parser: Parser, field: RequestField) -> None:
    """Adds the argument of one field."""
    option, flag = field.option, f"--{(field.option.flag or field.name).replace('_', '-')}"
    if field.scalar == "boolean":
        settings = {"dest": field.name, "default": None}
        if field.default:
            what = f"do not {_help(field)}"
            parser.add_argument(f"--no-{flag[2:]}", action="store_false", help=what, **settings)
        else:
            parser.add_argument(flag, action="store_true", help=_help(field), **settings)
        return
    shape: dict[str, Any] = {"help": _help(field), "metavar": _METAVARS[field.scalar]}
    if option.choices:
        shape["metavar"] = "|".join(option.choices)
    if option.weights:
        shape |= {"action": "append", "nargs": "+", "metavar": (shape["metavar"], "WEIGHT")}
    elif field.many:
        shape["nargs"] = "*" if option.positional else "+"
    if option.positional:
        parser.add_argument(field.name, **{**shape, "metavar": field.name.upper()})
    else:
        parser.add_argument(flag, dest=field.name, required=field.required, **shape)


def _help(field: RequestField) -> str:
    """Returns the help of a field with its range and its default."""
    notes = [request_fields.range_text(field)]
    default = field.default
    if field.scalar != "boolean" and default not in (None, ()):
        value = " ".join(f"{x:g}" for x in default) if field.many else default
        notes.append(f"default: {value}")
    text = "; ".join(note for note in notes if note)
    return f"{field.option.help} ({text})" if text else field.option.help


def _read(field: RequestField, value: Any) -> Any:
    """Returns the number in a flag; other values are returned unchanged, to be rejected later."""
    kind = {"integer": int, "number": float}.get(field.scalar)
    if kind is None or not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError:
        return value


def _weighted(field: RequestField, pairs: Sequence[Sequence[str]]) -> tuple[list[str], list[float]]:
    """Returns items and their weights.

    Raises:
        UserError: a weight that is not a number, or more than one.
    """
    items, weights = [], []
    for item, *rest in pairs:
        try:
            (weight,) = rest or ["1"]
            weights.append(float(weight))
        except ValueError:
            raise UserError(
                f"--{field.option.flag} {item} {' '.join(rest)}: give one weight, a number such as "
                "0.5."
            ) from None
        items.append(item)
    return items, weights


def _beside(result: pathlib.Path, name: str) -> str:
    path = result.parent / name
    return str(path) if path.is_file() else name
