"""A scene (what a picture holds) and a request (what a caption asks for).

A scene is complete: every object with its place and size, the background, and the relation that
its captions speak of. A request holds only what was said, so a checker demands nothing more.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.core.checks import UserError, one_of
from unclip_jax.shapes.vocabulary import BACKGROUNDS, COLOURS, INVERSE, SAID_SIZES, SHAPES, SIZES


@dataclasses.dataclass(frozen=True)
class Item:
    """One object of a scene; lengths are fractions of the image side, y points down.

    Attributes:
        colour: a key of `COLOURS`.
        shape: a member of `SHAPES`.
        size: a key of `SIZES`.
        x: horizontal centre.
        y: vertical centre.
        radius: unit radius of the shape's outline (see `sdf`).
    """

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float

    def __post_init__(self) -> None:
        one_of("colour", self.colour, COLOURS)
        one_of("shape", self.shape, SHAPES)
        one_of("size", self.size, SIZES)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A background and one to four objects; `relation` holds of items[0] towards items[1]."""

    background: str
    items: tuple[Item, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        one_of("background", self.background, BACKGROUNDS)
        _check_relation(self.relation, len(self.items))


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One object as a caption names it; `size` is None when it is not said."""

    colour: str
    shape: str
    size: str | None = None

    def __post_init__(self) -> None:
        one_of("colour", self.colour, COLOURS)
        one_of("shape", self.shape, SHAPES)
        if self.size is not None:
            one_of("size", self.size, SIZES)


@dataclasses.dataclass(frozen=True)
class Request:
    """What a caption asks of a picture; None means that it is not said.

    Attributes:
        wanted: the objects; a count of three stars is three equal entries.
        relation: of wanted[0] towards wanted[1]; "above" means that the first one is higher.
        background: the background's name.
    """

    wanted: tuple[Wanted, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        if not self.wanted:
            raise UserError("a request names no object; give at least one.")
        _check_relation(self.relation, len(self.wanted))
        if self.background is not None:
            one_of("background", self.background, BACKGROUNDS)


def request_of(scene: Scene) -> Request:
    """Everything that a caption of `scene` can say; medium sizes stay unsaid."""
    wanted = tuple(
        Wanted(item.colour, item.shape, item.size if item.size in SAID_SIZES else None)
        for item in scene.items
    )
    return Request(wanted, scene.relation, scene.background)


def to_json(scene: Scene, captions: Sequence[str] = ()) -> str:
    """The scene as one line of JSON; `captions` (all true of it) travel along."""
    record = dataclasses.asdict(scene)
    record["captions"] = list(captions)
    return json.dumps(record, separators=(",", ":"))


def from_json(text: str) -> Scene:
    """The inverse of `to_json`; captions are dropped (see `captions_of`).

    Raises:
        UserError: not JSON, a field missing, or a word outside the vocabulary.
    """
    record = _record(text)
    try:
        items = tuple(Item(**item) for item in record["items"])
        return Scene(record["background"], items, record["relation"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"scene {_short(text)} lacks or misnames a field ({error}); expected background, "
            "items (colour, shape, size, x, y, radius) and relation. Write it with `prepare`."
        ) from error


def captions_of(text: str) -> tuple[str, ...]:
    """The captions that a scene's JSON carries; the first is the example's own.

    Raises:
        UserError: not a JSON object.
    """
    return tuple(_record(text).get("captions", ()))


def _record(text: str) -> Mapping[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"scene {_short(text)} is not JSON ({error}); only records of the shapes world carry "
            "a scene. Use a shapes data set here."
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"scene {_short(text)} is not a JSON object; use a shapes data set here.")
    return record


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _check_relation(relation: str | None, count: int) -> None:
    if relation is None:
        return
    one_of("relation", relation, INVERSE)
    if count != 2:
        raise UserError(f"relation {relation!r} needs exactly 2 objects; the scene has {count}.")
