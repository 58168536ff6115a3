"""What a request may hold: one table for the HTTP API, the page and their documentation.

A request is a command of `sample` and a mapping of values. Reading it checks everything that can be
checked without models; the command checks the rest, as it does on the command line.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unclip_jax.commands import pictures
from unclip_jax.core.checks import UserError, in_range, one_of, suggest
from unclip_jax.data import image as codec

KINDS = ("int", "float", "floats", "text", "texts", "choice", "bool", "picture", "pictures")
SCHEDULES = "constant, rising, falling, or interval:LOW:HIGH"


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
class Field:
    """One value of a request.

    Attributes:
        name: in JSON.
        kind: one of `KINDS`.
        help: one line.
        required: whether it has to be given; otherwise the command's own default holds.
        flag: of the command line; "" = positional.
        low: least value, or least number of things in a list.
        high: greatest.
        choices: of a "choice".
    """

    name: str
    kind: str
    help: str
    required: bool = False
    flag: str = ""
    low: int | float = 0
    high: int | float = 0
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Form:
    """A command as strangers may ask for it.

    Attributes:
        command: its name.
        says: one line.
        fields: in the order of the command line.
        count: how many pictures values ask for; what is not given counts as the default.
    """

    command: str
    says: str
    fields: tuple[Field, ...]
    count: Callable[[Mapping[str, Any]], int]


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


_DRAWING = (
    Field("seed", "int", "another seed, another picture", flag="--seed", high=2**31 - 1),
    Field("upsample", "bool", "false stops at the decoder's size", flag="--no-upsample"),
    Field("steps", "text", "grid of the decoder: 50, ddim250, ...", flag="--steps"),
    Field("guidance", "float", "scale, 1 = off", flag="--guidance", high=20),
    Field("guidance_schedule", "text", SCHEDULES, flag="--guidance-schedule"),
    Field("negative", "text", "a caption that guidance leads away from", flag="--negative"),
)
_ENCODING = (
    Field("caption", "text", "caption of the pictures, if any", flag="--caption"),
    Field("refine", "int", "fixed-point iterations of the inversion", flag="--refine", high=5),
)
_FRAMES = Field(
    "frames", "int", "pictures of a path, ends counted", flag="--frames", low=2, high=64
)
_ANIMATE = Field(
    "animate", "choice", "also a moving picture", flag="--animate", choices=("gif", "webp")
)
_NUM = Field("num", "int", "pictures of each", flag="--num", low=1, high=64)
_PICTURE = Field("picture", "picture", "a picture file", required=True)

FORMS: dict[str, Form] = {
    form.command: form
    for form in (
        Form(
            "text",
            "Draw pictures for captions.",
            (
                Field("captions", "texts", "what to draw", required=True, low=1, high=64),
                _NUM,
                *(field for field in _DRAWING if field.name != "upsample"),
                Field("prior_guidance", "float", "of the prior", flag="--prior-guidance", high=20),
                Field("prior_steps", "text", "grid of the prior", flag="--prior-steps"),
                Field(
                    "candidates", "int", "z_img to choose from", flag="--candidates", low=1, high=8
                ),
            ),
            lambda v: len(v["captions"]) * v.get("num", 1),
        ),
        Form(
            "reconstruct",
            "Encode pictures to (z_img, x_T) and decode them again.",
            (
                *(*_DRAWING, *_ENCODING),
                Field("pictures", "pictures", "picture files", required=True, low=1, high=64),
            ),
            lambda v: len(v["pictures"]),
        ),
        Form(
            "variations",
            "Draw pictures like one picture, the freer the larger eta.",
            (
                Field("etas", "floats", "noise shares", flag="--etas", low=0, high=1),
                _NUM,
                *(*_DRAWING, *_ENCODING),
                _PICTURE,
            ),
            lambda v: len(v.get("etas", [0.0] * 5)) * v.get("num", 3),
        ),
        Form(
            "interpolate",
            "Walk from picture to picture.",
            (
                _FRAMES,
                Field(
                    "noise",
                    "choice",
                    "x_T of the pictures, or one for the whole path",
                    flag="--noise",
                    choices=("inverted", "shared"),
                ),
                *(_ANIMATE, *_DRAWING, *_ENCODING),
                Field("pictures", "pictures", "in order", required=True, low=2, high=64),
            ),
            lambda v: (len(v["pictures"]) - 1) * (v.get("frames", 7) - 1) + 1,
        ),
        Form(
            "text-diff",
            "Turn a picture towards a caption.",
            (
                Field("source", "text", "caption of the picture, or a dummy", flag="--source"),
                Field("theta", "float", "end of the path", flag="--theta", high=1),
                *(_FRAMES, _ANIMATE, *_DRAWING, *_ENCODING),
                _PICTURE,
                Field("target", "text", "caption of what is wanted", required=True),
            ),
            lambda v: v.get("frames", 7),
        ),
        Form(
            "upscale",
            "Enlarge pictures with the upsamplers.",
            (
                Field("seed", "int", "of the upsamplers' noise", flag="--seed", high=2**31 - 1),
                Field("pictures", "pictures", "picture files", required=True, low=1, high=64),
            ),
            lambda v: len(v["pictures"]),
        ),
        Form(
            "inpaint",
            "Draw the light part of a mask anew.",
            (
                Field("caption", "text", "what the whole should show", flag="--caption"),
                _NUM,
                Field("eta", "float", "noise share", flag="--eta", high=1),
                *_DRAWING,
                _PICTURE,
                Field(
                    "mask", "picture", "of the picture's size; white is drawn anew", required=True
                ),
            ),
            lambda v: v.get("num", 4),
        ),
    )
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
    count = form.count(values)
    if count > limits.images:
        raise UserError(
            f"that would be {count} pictures; this server draws at most {limits.images} at once."
        )
    return Request(form, values)


def arguments(request: Request, *, files: Mapping[str, Sequence[str]]) -> list[str]:
    """The request as arguments of the command line; `files` names its uploads by field."""
    flags, positional = [], []
    for field in request.form.fields:
        if field.name not in request.values:
            continue
        value = request.values[field.name]
        if field.kind in ("picture", "pictures"):
            positional += files[field.name]
        elif field.kind == "bool":
            flags += [] if value else [field.flag]
        elif field.kind == "floats":
            flags += [field.flag, *(f"{each:g}" for each in value)]
        elif field.flag:
            flags.append(f"{field.flag}={value}")
        else:
            positional += [value] if field.kind == "text" else value
    return [*flags, "--", *positional]  # what follows is no flag, whatever it begins with


def described() -> dict[str, Any]:
    """All forms, JSON-ready, for readers of the API."""
    return {
        form.command: {
            "does": form.says,
            "fields": {field.name: _described(field) for field in form.fields},
        }
        for form in FORMS.values()
    }


def _described(field: Field) -> dict[str, Any]:
    made: dict[str, Any] = {"kind": field.kind, "help": field.help, "required": field.required}
    if field.kind in ("int", "float", "floats"):
        made["range"] = [field.low, field.high]
    if field.choices:
        made["choices"] = list(field.choices)
    return made


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
    if field.kind == "floats":
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


def _typed(name: str, value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"{name} is {str(value)[:40]!r}; give {what}.")
    return value


def _number(field: Field, value: Any) -> int | float:
    whole = field.kind == "int"
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
    shape = codec.Limits(max_pixels=limits.pixels)
    pictures.from_bytes(data, name=name, where=name, limits=shape)
    return data
