"""The grammar of captions: writes captions of a scene and parses them.

It is finite and unambiguous: `parse` reads back every caption that `captions` writes.

    caption  = [opening] phrase [on a BACKGROUND background]
    phrase   = noun | noun relation noun
    noun     = a [SIZE] COLOUR SHAPE | two/three/four [SIZE] COLOUR SHAPEs
"""

import re

from unclip_jax.core.checks import UserError
from unclip_jax.shapes.scene import ObjectSpec, Scene, SceneSpec
from unclip_jax.shapes.vocabulary import BACKGROUNDS, COLOURS, COUNTS, INVERSE, SAID_SIZES, SHAPES

OPENINGS: tuple[str, ...] = ("", "an image of ", "a picture of ")
WORDINGS: dict[str, tuple[str, ...]] = {
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
}
GROUNDS: tuple[str, ...] = ("on a {} background", "against a {} background")

_MEANING = {wording: name for name, wordings in WORDINGS.items() for wording in wordings}
_NUMBER = {number: word for word, number in COUNTS.items()}


def captions(scene: Scene, *, background: bool) -> tuple[str, ...]:
    """Returns every caption of `scene` that names its background, or every one that does not.

    Sizes other than medium are always named. A pair is described from either side: "X above Y"
    and "Y below X".
    """
    endings = [" " + ground.format(scene.background) for ground in GROUNDS] if background else [""]
    return tuple(
        opening + phrase + ending
        for opening in OPENINGS
        for phrase in _phrases(scene)
        for ending in endings
    )


def parse(caption: str) -> SceneSpec:
    """Parses `caption`; case, extra spaces and a final full stop do not matter.

    Raises:
        UserError: the caption is not a sentence of this grammar.
    """
    match = _SENTENCE.fullmatch(" ".join(caption.lower().strip().rstrip(".").split()))
    if match is None:
        raise UserError(_complaint(caption))
    background = match["background"]
    first = _objects(match, "1")
    if match["relation"] is None:
        return SceneSpec(first, None, background)
    second = _objects(match, "2")
    if len(first) + len(second) != 2:
        raise UserError(f"caption {caption!r} relates groups; a relation joins two single objects.")
    return SceneSpec(first + second, _MEANING[match["relation"]], background)


def vocabulary() -> tuple[str, ...]:
    """Returns every word of the grammar, sorted."""
    words = {*COLOURS, *BACKGROUNDS, *SHAPES, *COUNTS, *SAID_SIZES, "a", "an", "background"}
    words |= {_plural(shape) for shape in SHAPES}
    for text in (*OPENINGS, *_MEANING, *(ground.replace("{} ", "") for ground in GROUNDS)):
        words |= set(text.split())
    return tuple(sorted(words))


def _phrases(scene: Scene) -> list[str]:
    items = scene.items
    if scene.relation is None:
        return [_noun(items[0].colour, items[0].shape, items[0].size, len(items))]
    nouns = [_noun(item.colour, item.shape, item.size, 1) for item in items]
    first, second = nouns
    both = ((first, scene.relation, second), (second, INVERSE[scene.relation], first))
    return [f"{a} {word} {b}" for a, relation, b in both for word in WORDINGS[relation]]


def _noun(colour: str, shape: str, size: str, count: int) -> str:
    words = ([] if size not in SAID_SIZES else [size]) + [colour]
    if count > 1:
        return " ".join([_NUMBER[count], *words, _plural(shape)])
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words, shape])


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _objects(match: re.Match[str], suffix: str) -> tuple[ObjectSpec, ...]:
    count = COUNTS.get(match["number" + suffix], 1)
    shape = match["shape" + suffix]
    name = shape if count == 1 else next(s for s in SHAPES if _plural(s) == shape)
    return (ObjectSpec(match["colour" + suffix], name, match["size" + suffix]),) * count


def _noun_pattern(suffix: str) -> str:
    """Returns the pattern of one noun, as named groups; a number word requires the plural."""
    one, many = "|".join(SHAPES), "|".join(map(_plural, SHAPES))
    return (
        f"(?P<number{suffix}>an?|(?P<plural{suffix}>{'|'.join(COUNTS)})) "
        f"(?:(?P<size{suffix}>{'|'.join(SAID_SIZES)}) )?"
        f"(?P<colour{suffix}>{'|'.join(COLOURS)}) "
        f"(?P<shape{suffix}>(?(plural{suffix})(?:{many})|(?:{one})))"
    )


def _complaint(caption: str) -> str:
    words = set(re.findall(r"[a-z]+", caption.lower()))
    unknown = sorted(words - set(vocabulary()))
    reason = f" (unknown: {', '.join(unknown)})" if unknown else ""
    return (
        f"caption {caption!r} is not in the grammar of the shapes world{reason}; write for example "
        '"a red circle above a blue square on a navy background" or "three small green stars".'
    )


_SENTENCE = re.compile(
    "(?:an? (?:image|picture) of )?"
    + _noun_pattern("1")
    + f"(?: (?P<relation>{'|'.join(sorted(_MEANING, key=len, reverse=True))}) "
    + _noun_pattern("2")
    + ")?"
    + f"(?: (?:on|against) an? (?P<background>{'|'.join(BACKGROUNDS)}) background)?"
)
