"""The commands that strangers may ask for, and what each takes: the table behind API and page.

`forms` reads requests by it; the commands themselves check whatever is not said here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

KINDS = (
    *("int", "float", "ints", "floats", "text", "texts", "choice", "bool", "picture", "pictures"),
)
SCHEDULES = "constant, rising, falling, or interval:LOW:HIGH"


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
        weighted: fields whose things are flags with a weight each -> the field of the weights.
    """

    command: str
    says: str
    fields: tuple[Field, ...]
    count: Callable[[Mapping[str, Any]], int]
    weighted: Mapping[str, str] = dataclasses.field(default_factory=dict)


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
    Field(
        "details",
        "choice",
        "what upsamplers draw from: noise of the pictures, or any",
        flag="--details",
        choices=("inverted", "fresh"),
    ),
    Field("upsampler_steps", "text", "grid of the upsamplers", flag="--upsampler-steps"),
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
                Field(
                    "inversion",
                    "choice",
                    "what holds the composition: x_T, or the noise of every step",
                    flag="--inversion",
                    choices=("ddim", "ddpm"),
                ),
                Field("strength", "float", "ddpm: share drawn anew", flag="--strength", high=1),
                Field("eta", "float", "ddpm: noise share", flag="--eta", high=1),
                *(_FRAMES, _ANIMATE, *_DRAWING, *_ENCODING),
                _PICTURE,
                Field("target", "text", "caption of what is wanted", required=True),
            ),
            lambda v: v.get("frames", 7),
        ),
        Form(
            "blend",
            "Draw what lies between pictures and captions.",
            (
                Field("pictures", "pictures", "to blend", flag="--picture", low=1, high=64),
                Field("picture_weights", "floats", "one per picture [1]", high=1e6),
                Field("texts", "texts", "captions to blend", flag="--text", low=1, high=64),
                Field("text_weights", "floats", "one per caption [1]", high=1e6),
                Field(
                    "noise",
                    "choice",
                    "x_T of the pictures, or any",
                    flag="--noise",
                    choices=("inverted", "fresh"),
                ),
                _NUM,
                *(*_DRAWING, *_ENCODING),
            ),
            lambda v: v.get("num", 1),
            weighted={"pictures": "picture_weights", "texts": "text_weights"},
        ),
        Form(
            "probe-pca",
            "Draw pictures from the first principal components of their z_img.",
            (
                Field("components", "ints", "how many, rising", flag="--components", high=4096),
                *_DRAWING,
                Field("pictures", "pictures", "picture files", required=True, low=1, high=64),
            ),
            lambda v: len(v["pictures"]) * len(v.get("components", [0] * 8)),
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
    if field.kind in ("int", "float", "ints", "floats"):
        made["range"] = [field.low, field.high]
    if field.choices:
        made["choices"] = list(field.choices)
    return made
