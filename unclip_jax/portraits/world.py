"""The examples of a split: portraits by index, with captions that are true of them.

A portrait depends on (split, seed, index) alone, so any range of any split can be generated
anywhere, in any order. Training portraits come in families of `SIBLINGS`: one portrait, and others
that differ from it in one attribute or in the order of its colours, so that a contrastive batch
that keeps families together cannot be solved by some attributes alone (hard negatives; Yuksekgonul
et al. 2022, arXiv 2210.01936). Random streams are Python's, used through `random()` only, whose
sequence is guaranteed across versions.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from unclip_jax.core.checks import in_range, one_of
from unclip_jax.portraits import grammar
from unclip_jax.portraits.scene import Portrait, PortraitSpec, hidden, to_spec
from unclip_jax.portraits.vocabulary import (
    ATTRIBUTES,
    BACKGROUNDS,
    CLOTHES_COLOURS,
    HAIR_COLOURS,
    SKINS,
    SPLITS,
    WORLD_VERSION,
    held_out,
    too_close,
)

T = TypeVar("T")

SIBLINGS = 4  # training portraits per family
EXCHANGED = 1 / 5  # siblings whose hair and clothes exchange their colours, where both have both
PARAPHRASES = 6  # captions per portrait, at most; the example's own comes first
# How often a value is sampled, relative to 1; the common face wears nothing on it.
WEIGHTS: dict[str, dict[str, float]] = {
    "hair": {"bald": 0.7},
    "facial_hair": {"none": 3.0},
    "glasses": {"none": 3.0},
    "eyes": {"open": 4.0},
}
# How often a caption names an attribute.
NAMED = {"hair": 0.95, "mouth": 0.75, "clothes": 0.85, "background": 0.85}
NAMED_IF_UNUSUAL = 0.95  # facial hair, glasses, and eyes that are not simply open
NAMED_IF_USUAL = 0.1  # no facial hair, no glasses, open eyes
BARE_COLOUR, BARE_STYLE = 0.12, 0.08  # shares of "red hair" and "curly hair" for "curly red hair"


class Example(NamedTuple):
    """A portrait and captions of it, all true; the first caption is the example's own."""

    portrait: Portrait
    captions: tuple[str, ...]


def example(split: str, *, seed: int, index: int) -> Example:
    """Generates example `index` of `split`.

    Args:
        split: "train" and "validation" hold no held-out pair of hair and clothes colour; every
            portrait of "compositional" holds one, and shows both colours.
        seed: of the whole data set.
        index: 0 or greater.

    Raises:
        UserError: unknown split or negative index.
    """
    one_of("split", split, SPLITS)
    in_range("portrait index", index, 0, float("inf"))
    rng = random.Random(f"portraits {WORLD_VERSION} {seed} {split} {index}")
    if split == "train":
        name = f"portraits {WORLD_VERSION} {seed} family {index // SIBLINGS}"
        portrait = _family(random.Random(name))[index % SIBLINGS]
    else:
        portrait = _first_valid(lambda: _sample(rng), unusual=split == "compositional")
    return Example(portrait, _captions(rng, portrait))


def legible(portrait: Portrait) -> bool:
    """True if every two colours that touch can be told apart."""
    hair, cloth = HAIR_COLOURS[portrait.hair_colour], CLOTHES_COLOURS[portrait.clothes_colour]
    skin, ground = SKINS[portrait.skin], BACKGROUNDS[portrait.background]
    pairs = [(skin, ground), (cloth, ground), (cloth, skin)]
    if "hair_colour" not in hidden(portrait):
        pairs += [(hair, ground), (hair, skin), (hair, cloth)]
    return not any(too_close(one, other) for one, other in pairs)


def _first_valid(sample: Callable[[], Portrait], *, unusual: bool) -> Portrait:
    """Samples until a portrait is legible and its pair of colours (un)usual."""
    while True:
        portrait = sample()
        pair = (portrait.hair_colour, portrait.clothes_colour)
        is_unusual = pair in held_out() and "hair_colour" not in hidden(portrait)
        if is_unusual == unusual and legible(portrait):
            return portrait


def _sample(rng: random.Random) -> Portrait:
    """Samples every attribute on its own."""
    return _without_hidden({name: _weighted(rng, name) for name in ATTRIBUTES})


def _without_hidden(values: dict[str, str]) -> Portrait:
    """Returns the portrait of `values`; what cannot be seen has its first value."""
    unseen = {name: ATTRIBUTES[name][0] for name in hidden(Portrait(**values))}
    return Portrait(**{**values, **unseen})


def _family(rng: random.Random) -> list[Portrait]:
    """Samples `SIBLINGS` portraits, no two of which all captions fit alike."""
    family = [_first_valid(lambda: _sample(rng), unusual=False)]
    while len(family) < SIBLINGS:
        sibling = _first_valid(lambda: _sibling(rng, family[0]), unusual=False)
        if to_spec(sibling) not in [to_spec(other) for other in family]:
            family.append(sibling)
    return family


def _sibling(rng: random.Random, first: Portrait) -> Portrait:
    """Samples one attribute of those that captions name anew, or exchanges the colours."""
    values = dict(vars(first))
    hair, cloth = values["hair_colour"], values["clothes_colour"]
    if rng.random() < EXCHANGED and hair in CLOTHES_COLOURS and cloth in HAIR_COLOURS:
        values["hair_colour"], values["clothes_colour"] = cloth, hair
    else:
        name = _pick(rng, [name for name in ATTRIBUTES if name != "skin"])
        values[name] = _pick(rng, list(ATTRIBUTES[name]))
    return _without_hidden(values)


def _weighted(rng: random.Random, name: str) -> str:
    weights = [WEIGHTS.get(name, {}).get(value, 1.0) for value in ATTRIBUTES[name]]
    left = rng.random() * sum(weights)
    for value, weight in zip(ATTRIBUTES[name], weights, strict=True):
        left -= weight
        if left < 0:
            return value
    return ATTRIBUTES[name][-1]


def _captions(rng: random.Random, portrait: Portrait) -> tuple[str, ...]:
    """Samples the example's caption and up to PARAPHRASES - 1 others, all different."""
    captions: list[str] = []
    for _ in range(2 * PARAPHRASES):
        spec = _omit(rng, to_spec(portrait))
        caption = grammar.write(spec, choose=lambda options: _pick(rng, options))
        if caption not in captions:
            captions.append(caption)
        if len(captions) == PARAPHRASES:
            break
    return tuple(captions)


def _omit(rng: random.Random, full: PortraitSpec) -> PortraitSpec:
    """Samples what a caption names of all that it could."""
    omitted = set()
    for part, colour in (("hair", "hair_colour"), ("clothes", "clothes_colour")):
        share, detail = rng.random(), rng.random()
        if share >= NAMED[part]:
            omitted |= {part, colour}
        elif detail < BARE_COLOUR:
            omitted.add(part)
        elif detail < BARE_COLOUR + BARE_STYLE:
            omitted.add(colour)
    omitted |= {name for name in ("mouth", "background") if rng.random() >= NAMED[name]}
    for name, usual in (("facial_hair", "none"), ("glasses", "none"), ("eyes", "open")):
        is_usual = getattr(full, name) == usual
        if rng.random() >= (NAMED_IF_USUAL if is_usual else NAMED_IF_UNUSUAL):
            omitted.add(name)
    if full.hair == "bald" and omitted & {"hair", "facial_hair"}:
        omitted.add("hair_colour")  # only "no hair and a red beard" says it
    return PortraitSpec(**{k: v for k, v in full.named().items() if k not in omitted})


def _pick(rng: random.Random, choices: Sequence[T]) -> T:
    return choices[int(rng.random() * len(choices))]
