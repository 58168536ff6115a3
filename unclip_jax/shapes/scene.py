"""Scenes (the content of an image) and specs (the content of a caption).

A scene is complete: every object with its position and size, the background, and the relation that
its captions name. A spec holds only what a caption says, so a checker demands nothing more.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.core.checks import UserError, one_of
from unclip_jax.shapes.vocabulary import BACKGROUNDS, COLOURS, INVERSE, SAID_SIZES, SHAPES, SIZES


@dataclasses.dataclass(frozen=True)
class SceneObject:
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
    """A background and one to four objects; `relation` is that of items[0] to items[1]."""

    background: str
    items: tuple[SceneObject, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        one_of("background", self.background, BACKGROUNDS)
        _check_relation(self.relation, len(self.items))


@dataclasses.dataclass(frozen=True)
class ObjectSpec:
    """One object as a caption names it; `size` is None where the caption names none."""

    colour: str
    shape: str
    size: str | None = None

    def __post_init__(self) -> None:
        one_of("colour", self.colour, COLOURS)
        one_of("shape", self.shape, SHAPES)
        if self.size is not None:
            one_of("size", self.size, SIZES)


@dataclasses.dataclass(frozen=True)
class SceneSpec:
    """The content of a caption; None where the caption says nothing.

    Attributes:
        objects: one entry per object; "three stars" is three equal entries.
        relation: of objects[0] to objects[1]; "above" means that the first one is higher.
        background: name of the background.
    """

    objects: tuple[ObjectSpec, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        if not self.objects:
            raise UserError("the caption names no object; name at least one.")
        _check_relation(self.relation, len(self.objects))
        if self.background is not None:
            one_of("background", self.background, BACKGROUNDS)


def to_spec(scene: Scene) -> SceneSpec:
    """Returns all that a caption of `scene` can say; medium sizes are never named."""
    objects = tuple(
        ObjectSpec(item.colour, item.shape, item.size if item.size in SAID_SIZES else None)
        for item in scene.items
    )
    return SceneSpec(objects, scene.relation, scene.background)


def to_json(scene: Scene, captions: Sequence[str] = ()) -> str:
    """Serialises a scene, and captions that are true of it, as one line of JSON."""
    record = dataclasses.asdict(scene)
    record["captions"] = list(captions)
    return json.dumps(record, separators=(",", ":"))


def from_json(text: str) -> Scene:
    """Parses what `to_json` writes; captions are dropped.

    Raises:
        UserError: not JSON, a field missing, or a word outside the vocabulary.
    """
    record = _record(text)
    try:
        items = tuple(SceneObject(**item) for item in record["items"])
        return Scene(record["background"], items, record["relation"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"scene {_short(text)} lacks or misnames a field ({error}); expected background, "
            "items (colour, shape, size, x, y, radius) and relation. Write it with `prepare`."
        ) from error


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
