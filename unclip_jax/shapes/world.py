"""Scene number `index` of a split: what it holds, and captions that are true of it.

A scene depends on (split, seed, index) alone, so any range of any split can be made anywhere, in
any order, and made again. Training scenes come in families of `SIBLINGS`: neighbours share colours,
sizes and background and differ in shapes, relation or count. A contrastive batch that keeps
families together cannot be solved by colours alone (hard negatives; Yuksekgonul et al. 2022,
arXiv 2210.01936, show that CLIP otherwise learns bags of words). Random streams are Python's, used
through `random()` only, whose sequence is guaranteed across versions.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.shapes import grammar, layout
from unclip_jax.shapes.scene import Item, Request, Scene, Wanted
from unclip_jax.shapes.vocabulary import (
    BACKGROUNDS,
    COUNTS,
    RELATIONS,
    SIZES,
    SPLITS,
    WORLD_VERSION,
    held_out,
    seen,
)

T = TypeVar("T")

SHARE_SINGLE, SHARE_PAIR = 0.3, 0.5  # the rest are counts
SIBLINGS = 4  # training scenes per family
NAMES_BACKGROUND = 1 / 2  # share of captions that name the background
PARAPHRASES = 6  # captions kept per scene, at most; the example's own comes first
SINGLE_SIZES = ("small", "medium", "medium", "large")
PAIR_SIZES = (
    *[("medium", "medium")] * 4,
    ("small", "medium"),
    ("medium", "small"),
    ("small", "small"),
    ("large", "small"),
    ("small", "large"),
)
COUNT_SIZES = ("small", "medium")


class Example(NamedTuple):
    """A scene and captions of it, all true; the first caption is the example's own."""

    scene: Scene
    captions: tuple[str, ...]


def example(split: str, *, seed: int, index: int) -> Example:
    """Example `index` of `split`.

    Args:
        split: "train" and "validation" hold seen colour-shape pairs only; every scene of
            "compositional" holds at least one held-out pair.
        seed: of the whole data set.
        index: 0 or greater.

    Raises:
        UserError: unknown split or negative index.
    """
    one_of("split", split, SPLITS)
    in_range("scene index", index, 0, float("inf"))
    rng = random.Random(f"shapes {WORLD_VERSION} {seed} {split} {index}")
    if split == "train":
        name = f"shapes {WORLD_VERSION} {seed} family {index // SIBLINGS}"
        request = _family(random.Random(name))[index % SIBLINGS]
    else:
        request = _draw_request(rng, held=split == "compositional")
    scene = _arrange(rng, request)
    return Example(scene, _tell(rng, scene))


def arrange(request: Request, *, seed: int) -> Scene:
    """A scene that fulfils `request`; what it leaves open is drawn, unsaid sizes are medium.

    Raises:
        UserError: unlike objects without a relation, more than four, or no room for them.
    """
    in_range("number of objects", len(request.wanted), 1, 4)
    if request.relation is None and len(set(request.wanted)) > 1:
        raise UserError("a scene of unlike objects needs a relation between two of them.")
    return _arrange(random.Random(f"shapes {WORLD_VERSION} arrange {seed}"), request)


def _draw_request(rng: random.Random, *, held: bool) -> Request:
    kind = rng.random()
    ground = _pick(rng, tuple(BACKGROUNDS))
    first = _pick(rng, sorted(held_out()) if held else seen())
    if kind < SHARE_SINGLE:
        return Request((Wanted(*first, _pick(rng, SINGLE_SIZES)),), None, ground)
    if kind >= SHARE_SINGLE + SHARE_PAIR:
        wanted = Wanted(*first, _pick(rng, COUNT_SIZES))
        return Request((wanted,) * _pick(rng, tuple(COUNTS.values())), None, ground)
    others = (*seen(), *sorted(held_out())) if held else seen()
    both = [first, _pick(rng, [pair for pair in others if pair != first])]
    if rng.random() < 0.5:
        both.reverse()
    sizes = _pick(rng, PAIR_SIZES)
    wanted = tuple(Wanted(*pair, size) for pair, size in zip(both, sizes, strict=True))
    return Request(wanted, _pick(rng, RELATIONS), ground)


def _family(rng: random.Random) -> list[Request]:
    """`SIBLINGS` different requests with the same colours, sizes and background."""
    family = [_draw_request(rng, held=False)]
    while len(family) < SIBLINGS:
        sibling = _sibling(rng, family[0])
        kinds = {(one.colour, one.shape) for one in sibling.wanted}
        if sibling not in family and len(kinds) == (1 if sibling.relation is None else 2):
            family.append(sibling)
    return family


def _sibling(rng: random.Random, first: Request) -> Request:
    """Other shapes, relation or count; half of the siblings of a pair differ in relation alone."""
    if first.relation is not None:
        same = rng.random() < 0.5
        wanted = first.wanted if same else tuple([_reshaped(rng, one) for one in first.wanted])
        return Request(wanted, _pick(rng, RELATIONS), first.background)
    count = _pick(rng, tuple(COUNTS.values())) if len(first.wanted) > 1 else 1
    wanted = (_reshaped(rng, next(iter(first.wanted))),) * count
    return Request(wanted, None, first.background)


def _reshaped(rng: random.Random, one: Wanted) -> Wanted:
    shapes = [shape for colour, shape in seen() if colour == one.colour]
    return Wanted(one.colour, _pick(rng, shapes), one.size)


def _arrange(rng: random.Random, request: Request) -> Scene:
    background = request.background or _pick(rng, tuple(BACKGROUNDS))
    sizes = [wanted.size or "medium" for wanted in request.wanted]
    if request.relation is None:
        radii = [_radius(rng, sizes[0])] * len(sizes)
        places = layout.scattered(rng, count=len(sizes), radius=radii[0])
    else:
        radii = [_radius(rng, size) for size in sizes]
        if not layout.fits(radii):
            radii = [SIZES[size].low for size in sizes]
        places = layout.related(rng, relation=request.relation, radii=(radii[0], radii[1]))
    items = tuple(
        Item(wanted.colour, wanted.shape, size, round(x, 5), round(y, 5), round(radius, 5))
        for wanted, size, (x, y), radius in zip(request.wanted, sizes, places, radii, strict=True)
    )
    return Scene(background, items, request.relation)


def _tell(rng: random.Random, scene: Scene) -> tuple[str, ...]:
    """The example's caption and up to PARAPHRASES - 1 others, all different."""
    told: list[str] = []
    for _ in range(2 * PARAPHRASES):
        named = rng.random() < NAMES_BACKGROUND
        caption = _pick(rng, grammar.captions(scene, background=named))
        if caption not in told:
            told.append(caption)
        if len(told) == PARAPHRASES:
            break
    return tuple(told)


def _radius(rng: random.Random, size: str) -> float:
    low, high = SIZES[size]
    return low + (high - low) * rng.random()


def _pick(rng: random.Random, choices: Sequence[T]) -> T:
    return choices[int(rng.random() * len(choices))]
