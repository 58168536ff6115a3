"""Portraits (the content of an image) and specs (the content of a caption).

A portrait is complete. A spec holds only what a caption says, so a checker demands nothing more.
"""

import dataclasses
import json
from collections.abc import Sequence

from unclip_jax.core.checks import UserError, one_of
from unclip_jax.portraits.vocabulary import ATTRIBUTES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Portrait:
    """One portrait; every field is a word of the vocabulary's list of that name.

    Attributes:
        hair: a member of `HAIR`.
        hair_colour: a key of `HAIR_COLOURS`, of facial hair too.
        facial_hair: a member of `FACIAL_HAIR`.
        glasses: a member of `GLASSES`.
        eyes: a member of `EYES`.
        mouth: a member of `MOUTHS`.
        clothes: a member of `CLOTHES`.
        clothes_colour: a key of `CLOTHES_COLOURS`.
        background: a key of `BACKGROUNDS`.
        skin: a key of `SKINS`.
    """

    hair: str
    hair_colour: str
    facial_hair: str
    glasses: str
    eyes: str
    mouth: str
    clothes: str
    clothes_colour: str
    background: str
    skin: str

    def __post_init__(self) -> None:
        for name, values in ATTRIBUTES.items():
            one_of(name.replace("_", " "), getattr(self, name), values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PortraitSpec:
    """The content of a caption, fields as in `Portrait`; None where the caption says nothing."""

    hair: str | None = None
    hair_colour: str | None = None
    facial_hair: str | None = None
    glasses: str | None = None
    eyes: str | None = None
    mouth: str | None = None
    clothes: str | None = None
    clothes_colour: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        for name, value in self.named().items():
            one_of(name.replace("_", " "), value, ATTRIBUTES[name])
        bare = self.hair == "bald" and self.facial_hair in (None, "none")
        if bare and self.hair_colour is not None:
            raise UserError(
                f"{self.hair_colour} is the colour of no hair at all; name a beard, a goatee or a "
                "moustache with it, or leave the colour out."
            )

    def named(self) -> dict[str, str]:
        """Returns the attributes that the caption names."""
        return {name: value for name, value in vars(self).items() if value is not None}


def hidden(portrait: Portrait) -> frozenset[str]:
    """Returns the attributes that cannot be seen, which no caption names."""
    names = set()
    if portrait.glasses == "sunglasses":
        names.add("eyes")
    if portrait.hair == "bald" and portrait.facial_hair == "none":
        names.add("hair_colour")
    return frozenset(names)


def to_spec(portrait: Portrait) -> PortraitSpec:
    """Returns all that a caption of `portrait` can say: everything visible but the skin."""
    omitted = hidden(portrait) | {"skin"}
    return PortraitSpec(**{k: v for k, v in vars(portrait).items() if k not in omitted})


def to_json(portrait: Portrait, captions: Sequence[str] = ()) -> str:
    """Serialises a portrait, and captions that are true of it, as one line of JSON."""
    record = {**vars(portrait), "captions": list(captions)}
    return json.dumps(record, separators=(",", ":"))


def from_json(text: str) -> Portrait:
    """Parses what `to_json` writes; captions are dropped.

    Raises:
        UserError: not JSON, a field missing, or a word outside the vocabulary.
    """
    try:
        record = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"scene {_short(text)} is not JSON ({error}); only records of the portraits world "
            "carry a portrait. Use a portraits data set here."
        ) from error
    if not isinstance(record, dict) or not record.keys() >= ATTRIBUTES.keys():
        raise UserError(
            f"scene {_short(text)} is not a portrait; expected a JSON object with "
            f"{', '.join(ATTRIBUTES)}. Write it with `prepare`."
        )
    return Portrait(**{name: record[name] for name in ATTRIBUTES})


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
