"""The examples of a split: scenes by index, with captions that are true of them.

A scene depends on (split, seed, index) alone, so any range of any split can be generated anywhere,
in any order. Training scenes come in families of `SIBLINGS`: neighbours share colours, sizes and
background and differ in shapes, relation or count. A contrastive batch that keeps
families together cannot be solved by colours alone (hard negatives; Yuksekgonul et al. 2022,
arXiv 2210.01936, show that CLIP otherwise learns bags of words). Random streams are Python's, used
through `random()` only, whose sequence is guaranteed across versions.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from unclip_jax.core.checks import in_range, one_of
from unclip_jax.shapes import grammar, layout
from unclip_jax.shapes.scene import ObjectSpec, Scene, SceneObject, SceneSpec
from unclip_jax.shapes.vocabulary import (
    BACKGROUNDS,
    COUNTS,
    RELATIONS,
    SIZES,
    SPLITS,
    WORLD_VERSION,
    held_out,
    training_pairs,
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
    """Generates example `index` of `split`.

    Args:
        split: "train" and "validation" hold training colour-shape pairs only; every scene of
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
        spec = _family(random.Random(name))[index % SIBLINGS]
    else:
        spec = _sample_spec(rng, compositional=split == "compositional")
    scene = _arrange(rng, spec)
    return Example(scene, _captions(rng, scene))


def _sample_spec(rng: random.Random, *, compositional: bool) -> SceneSpec:
    kind = rng.random()
    ground = _pick(rng, tuple(BACKGROUNDS))
    first = _pick(rng, sorted(held_out()) if compositional else training_pairs())
    if kind < SHARE_SINGLE:
        return SceneSpec((ObjectSpec(*first, _pick(rng, SINGLE_SIZES)),), None, ground)
    if kind >= SHARE_SINGLE + SHARE_PAIR:
        repeated = ObjectSpec(*first, _pick(rng, COUNT_SIZES))
        return SceneSpec((repeated,) * _pick(rng, tuple(COUNTS.values())), None, ground)
    others = (*training_pairs(), *sorted(held_out())) if compositional else training_pairs()
    both = [first, _pick(rng, [pair for pair in others if pair != first])]
    if rng.random() < 0.5:
        both.reverse()
    sizes = _pick(rng, PAIR_SIZES)
    objects = tuple(ObjectSpec(*pair, size) for pair, size in zip(both, sizes, strict=True))
    return SceneSpec(objects, _pick(rng, RELATIONS), ground)


def _family(rng: random.Random) -> list[SceneSpec]:
    """Samples `SIBLINGS` different specs with the same colours, sizes and background."""
    family = [_sample_spec(rng, compositional=False)]
    while len(family) < SIBLINGS:
        sibling = _sibling(rng, family[0])
        kinds = {(one.colour, one.shape) for one in sibling.objects}
        if sibling not in family and len(kinds) == (1 if sibling.relation is None else 2):
            family.append(sibling)
    return family


def _sibling(rng: random.Random, first: SceneSpec) -> SceneSpec:
    """Samples other shapes, relation or count; half of a pair's siblings change relation alone."""
    if first.relation is not None:
        same = rng.random() < 0.5
        objects = first.objects if same else tuple([_reshaped(rng, one) for one in first.objects])
        return SceneSpec(objects, _pick(rng, RELATIONS), first.background)
    count = _pick(rng, tuple(COUNTS.values())) if len(first.objects) > 1 else 1
    objects = (_reshaped(rng, next(iter(first.objects))),) * count
    return SceneSpec(objects, None, first.background)


def _reshaped(rng: random.Random, one: ObjectSpec) -> ObjectSpec:
    shapes = [shape for colour, shape in training_pairs() if colour == one.colour]
    return ObjectSpec(one.colour, _pick(rng, shapes), one.size)


def _arrange(rng: random.Random, spec: SceneSpec) -> Scene:
    background = spec.background or _pick(rng, tuple(BACKGROUNDS))
    sizes = [entry.size or "medium" for entry in spec.objects]
    if spec.relation is None:
        radii = [_radius(rng, sizes[0])] * len(sizes)
        places = layout.scattered(rng, count=len(sizes), radius=radii[0])
    else:
        radii = [_radius(rng, size) for size in sizes]
        if not layout.fits(radii):
            radii = [SIZES[size].low for size in sizes]
        places = layout.related(rng, relation=spec.relation, radii=(radii[0], radii[1]))
    items = tuple(
        SceneObject(entry.colour, entry.shape, size, round(x, 5), round(y, 5), round(radius, 5))
        for entry, size, (x, y), radius in zip(spec.objects, sizes, places, radii, strict=True)
    )
    return Scene(background, items, spec.relation)


def _captions(rng: random.Random, scene: Scene) -> tuple[str, ...]:
    """Samples the example's caption and up to PARAPHRASES - 1 others, all different."""
    captions: list[str] = []
    for _ in range(2 * PARAPHRASES):
        named = rng.random() < NAMES_BACKGROUND
        caption = _pick(rng, grammar.captions(scene, background=named))
        if caption not in captions:
            captions.append(caption)
        if len(captions) == PARAPHRASES:
            break
    return tuple(captions)


def _radius(rng: random.Random, size: str) -> float:
    low, high = SIZES[size]
    return low + (high - low) * rng.random()


def _pick(rng: random.Random, choices: Sequence[T]) -> T:
    return choices[int(rng.random() * len(choices))]
