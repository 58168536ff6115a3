"""A request read by its form: everything that can be checked without models is checked here.

A request is a command of `sample` and a mapping of values; catalogue.py says which. The command
checks the rest, as it does on the command line.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.core.checks import UserError, in_range, one_of, suggest
from unclip_jax.data import image_codec
from unclip_jax.inference import image_files
from unclip_jax.serving.catalogue import FORMS, Field, Form


@dataclasses.dataclass(frozen=True)
class Limits:
    """What strangers may ask for at once.

    Attributes:
        images: pictures per request.
        captions: characters per caption.
        pictures: uploads per request.
        pixels: of one upload; more are refused before decoding.
        file: bytes of one upload.
        body: bytes of one HTTP request.
        waiting: requests in the queue behind the one at work.
    """

    images: int = 16
    captions: int = 1000
    pictures: int = 6
    pixels: int = 25_000_000
    file: int = 16 * 2**20
    body: int = 48 * 2**20
    waiting: int = 8


@dataclasses.dataclass(frozen=True)
class Request:
    """Checked values of one form; pictures are the bytes of their files."""

    form: Form
    values: Mapping[str, Any]

    def uploads(self) -> dict[str, list[bytes]]:
        """The files by field."""
        kinds = {field.name: field.kind for field in self.form.fields}
        return {
            name: [value] if kinds[name] == "picture" else list(value)
            for name, value in self.values.items()
            if kinds[name] in ("picture", "pictures")
        }


def read(command: str, given: Mapping[str, Any], *, limits: Limits | None = None) -> Request:
    """Check a request.

    Args:
        command: one of `FORMS`.
        given: values by name; pictures as bytes; None counts as not given.
        limits: of this server; None = the usual.

    Raises:
        UserError: naming the value that is wrong.
    """
    form, limits = FORMS[one_of("command", command, FORMS)], limits or Limits()
    fields = {field.name: field for field in form.fields}
    for name in given:
        if name not in fields:
            raise UserError(f"{command} has no {name!r}.{suggest(name, fields)}")
    values = {
        name: _value(field, given[name], limits)
        for name, field in fields.items()
        if given.get(name) is not None
    }
    for name, field in fields.items():
        if field.required and name not in values:
            raise UserError(f"{command} needs {name!r}: {field.help}.")
    for things, weights in form.weighted.items():
        _check_weights(things, weights, values)
    count = form.count(values)
    if count > limits.images:
        raise UserError(
            f"that would be {count} pictures; this server draws at most {limits.images} at once."
        )
    return Request(form, values)


def arguments(request: Request, *, files: Mapping[str, Sequence[str]]) -> list[str]:
    """The request as arguments of the command line; `files` names its uploads by field."""
    flags, positional = [], []
    weights = request.form.weighted
    for field in request.form.fields:
        if field.name not in request.values or field.name in weights.values():
            continue
        value = request.values[field.name]
        if field.name in weights:
            things = files[field.name] if field.kind == "pictures" else value
            shares = request.values.get(weights[field.name], [1] * len(things))
            for thing, share in zip(things, shares, strict=True):
                # a space before it makes a value of what would look like a flag; CLIP ignores it
                word = f" {thing}" if thing.startswith("-") else thing
                flags += [field.flag, word, f"{share:g}"]
        elif field.kind in ("picture", "pictures"):
            positional += files[field.name]
        elif field.kind == "bool":
            flags += [] if value else [field.flag]
        elif field.kind in ("ints", "floats"):
            flags += [field.flag, *(f"{each:g}" for each in value)]
        elif field.flag:
            flags.append(f"{field.flag}={value}")
        else:
            positional += [value] if field.kind == "text" else value
    # what follows "--" is no flag, whatever it begins with
    return [*flags, "--", *positional] if positional else flags


def _value(field: Field, value: Any, limits: Limits) -> Any:
    """One value, checked and of the type its kind promises.

    Raises:
        UserError: it is of another type, or outside its bounds.
    """
    name = field.name
    if field.kind == "bool":
        return _typed(name, value, bool, "true or false")
    if field.kind in ("int", "float"):
        return _number(field, value)
    if field.kind in ("ints", "floats"):
        in_range(f"number of {name}", len(_typed(name, value, list, "a list of numbers")), 1, 64)
        return [_number(field, each) for each in value]
    if field.kind == "choice":
        return one_of(name, value, field.choices)
    if field.kind == "text":
        return _caption(name, value, limits, blank=not field.required)
    if field.kind == "texts":
        in_range(f"number of {name}", len(_typed(name, value, list, "a list of texts")), 1, 64)
        return [_caption(name, each, limits, blank=False) for each in value]
    if field.kind == "picture":
        return _picture(name, value, limits)
    most = min(int(field.high), limits.pictures)
    given = _typed(name, value, list, "a list of pictures")
    in_range(f"number of {name}", len(given), int(field.low), most)
    return [_picture(f"{name}[{index}]", each, limits) for index, each in enumerate(given)]


def _check_weights(things: str, weights: str, values: Mapping[str, Any]) -> None:
    """As many weights as things.

    Raises:
        UserError: there are more, or fewer.
    """
    count = len(values.get(things, []))
    if weights in values and len(values[weights]) != count:
        raise UserError(
            f"{weights} has {len(values[weights])} numbers for {count} {things}; give one each, or "
            "none at all."
        )


def _typed(name: str, value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"{name} is {str(value)[:40]!r}; give {what}.")
    return value


def _number(field: Field, value: Any) -> int | float:
    whole = field.kind in ("int", "ints")
    good = isinstance(value, int) if whole else isinstance(value, int | float)
    if isinstance(value, bool) or not good:
        what = "a whole number" if whole else "a number"
        raise UserError(f"{field.name} is {str(value)[:40]!r}; give {what}.")
    return in_range(field.name, value, field.low, field.high)


def _caption(name: str, value: Any, limits: Limits, *, blank: bool) -> str:
    words = _typed(name, value, str, "a text")
    if len(words) > limits.captions:
        raise UserError(f"{name} has {len(words)} characters; give at most {limits.captions}.")
    if not blank and not words.strip():
        raise UserError(f"{name} is empty; say what the picture should show.")
    return words


def _picture(name: str, value: Any, limits: Limits) -> bytes:
    data = _typed(name, value, bytes, "a picture file")
    if len(data) > limits.file:
        raise UserError(f"{name} has {len(data)} bytes; give a file of at most {limits.file}.")
    shape = image_codec.Limits(max_pixels=limits.pixels)
    image_files.from_bytes(data, name=name, where=name, limits=shape)
    return data
