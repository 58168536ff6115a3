"""Binding of colours to parts: in CLIP's embedding, with a caption, and in GLIDE."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from studies import statistics
from studies.evaluation_set import EvaluationSet
from studies.findings import baseline_runs
from studies.findings.harness import Harness
from studies.scoring import cosine
from unclip_jax.core.checks import UserError
from unclip_jax.metrics import portraits_checker, shapes_checker
from unclip_jax.portraits.scene import PortraitSpec
from unclip_jax.portraits.vocabulary import CLOTHES_COLOURS, HAIR_COLOURS
from unclip_jax.shapes.scene import ObjectSpec

TITLE = "Binding of attributes"
SOURCE = "sections 2.1 and 7, Figures 14 and 15"
CLAIM = (
    "GLIDE binds attributes to objects better than unCLIP, whose CLIP embedding mixes them up; "
    "giving the caption to the decoder as well helps little."
)
ABOUT = (
    "Captions that name two colours and what has them. *binding*: the share of images with each "
    "colour where the caption names it. GLIDE is compared with an unCLIP decoder trained for as "
    "many steps. The rows with and without the caption use the same decoder, which was trained "
    "without a caption in a part of its examples. Helping little means by less than 0.1."
)
CHART = ("bars", "binding")
LITTLE = 0.1


class Binding(NamedTuple):
    """The binding of colours in a world.

    Attributes:
        accept: True for captions that name two different colours, which could be exchanged.
        swap: returns such a caption with the two colours exchanged, word by word.
        columns: attributes shown in the table.
        about: what the captions name, and of which images `binding` is a share.
    """

    accept: Callable[[str], bool]
    swap: Callable[[str], str]
    columns: tuple[str, ...]
    about: str


def unlike(caption: str) -> bool:
    """True if a caption of shapes names two objects that differ in colour and in shape."""
    objects = shapes_checker.as_spec(caption).objects
    first, last = objects[0], objects[-1]
    return len(objects) == 2 and first.colour != last.colour and first.shape != last.shape


def swap_colours(caption: str) -> str:
    """Returns a caption of shapes with the colours of its two objects exchanged, word by word."""
    first, second = shapes_checker.as_spec(caption).objects
    exchange = {first.colour: second.colour, second.colour: first.colour}
    words = caption.split()
    places = [i for i, word in enumerate(words) if word in exchange][:2]
    swapped = _exchange(words, places, exchange)
    expected = (_coloured(first, second.colour), _coloured(second, first.colour))
    assert shapes_checker.as_spec(swapped).objects == expected, swapped
    return swapped


def differently_coloured(caption: str) -> bool:
    """True if a caption of portraits names two colours of hair and clothes that both can have."""
    spec = portraits_checker.as_spec(caption)
    colours = {spec.hair_colour, spec.clothes_colour}
    return len(colours) == 2 and colours <= {*HAIR_COLOURS} & {*CLOTHES_COLOURS}


def swap_hair_and_clothes(caption: str) -> str:
    """Returns a caption of portraits with the colours of hair and clothes exchanged."""
    spec = portraits_checker.as_spec(caption)
    hair, clothes = str(spec.hair_colour), str(spec.clothes_colour)
    expected = dataclasses.replace(spec, hair_colour=clothes, clothes_colour=hair)
    words, exchange = caption.split(), {hair: clothes, clothes: hair}
    places = [i for i, word in enumerate(words) if word in exchange]
    for pair in itertools.combinations(places, 2):  # a background can have one of the colours
        swapped = _exchange(list(words), pair, exchange)
        if _parse(swapped) == expected:
            return swapped
    raise AssertionError(f"no two words of {caption!r} are its colours of hair and clothes")


BINDINGS = {
    "shapes": Binding(
        unlike,
        swap_colours,
        ("binding", "objects", "colour", "shape"),
        "Captions of two objects that differ in colour and shape; *binding* is a share of the "
        "images that contain both colours and both shapes (*images*: their number), *objects* the "
        "same share of all images.",
    ),
    "portraits": Binding(
        differently_coloured,
        swap_hair_and_clothes,
        ("binding", "hair_colour", "clothes_colour", "background"),
        "Captions that name different colours of hair and clothes; *binding* is a share of all "
        "images, and includes the background if it is named.",
    ),
}


def measure(harness: Harness) -> dict[str, Any]:
    """Samples the same captions from five systems, and compares captions in CLIP's space."""
    config = harness.config
    binds = BINDINGS[harness.world.name]
    examples = harness.select(num=config.num, images=config.images, accept=binds.accept)
    if not examples.count:
        note = "This split has no caption that names two different colours."
        return {"rows": [], "tests": [], "note": note}
    prior = harness.sample_prior("x_0", examples)
    systems = {
        "unCLIP, prior and caption": (baseline_runs.MAIN, prior, True),
        "unCLIP, prior without caption": (baseline_runs.MAIN, prior, False),
        "unCLIP, true z_img without caption": (baseline_runs.MAIN, examples.z_img, False),
        "unCLIP, as long as GLIDE": ("unclip", prior, True),
        "GLIDE": ("glide", examples.z_txt, True),
    }
    rows, binding = [], {}
    for name, (run, z, caption) in systems.items():
        images = harness.sample_images(run, z, examples=examples, caption=caption, label=name)
        correct = harness.score(images, examples.captions).correct
        binding[name] = correct["binding"]
        cells = {column: examples.mean(correct[column])._asdict() for column in binds.columns}
        rows.append({"name": name, **cells, "images": _applicable(binding[name])})
    with_caption, without, _, twin, glide = binding.values()
    tests = [
        statistics.inequality(
            "binding, GLIDE - unCLIP of equal length",
            examples.difference(glide, twin),
            captions=_applicable(glide),
        ),
        statistics.inequality(
            "binding, without the caption - with it",
            examples.difference(without, with_caption),
            captions=_applicable(with_caption),
            margin=LITTLE,
        ),
    ]
    note = f"{binds.about} {_compare_in_clip(harness, examples, swap=binds.swap)}"
    return {"rows": rows, "tests": tests, "note": note}


def _compare_in_clip(
    harness: Harness, examples: EvaluationSet, *, swap: Callable[[str], str]
) -> str:
    """Describes how often CLIP prefers the caption to the one with exchanged colours."""
    swapped = [swap(caption) for caption in examples.captions]
    z_swapped = np.asarray(harness.main.text_embeddings(swapped))
    prefers = cosine(examples.z_img, examples.z_txt) > cosine(examples.z_img, z_swapped)
    rate = examples.mean(prefers.astype(np.float64))
    return (
        "CLIP itself ranks the caption of a true image above the same caption with exchanged "
        f"colours in {rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}] of "
        f"{examples.count} cases; chance is 0.5."
    )


def _exchange(words: list[str], places: Sequence[int], exchange: Mapping[str, str]) -> str:
    """Exchanges the words at some places, and mends the articles before them."""
    for place in places:
        words[place] = exchange[words[place]]
    for place in places:
        if place and words[place - 1] in ("a", "an"):
            words[place - 1] = "an" if words[place][0] in "aeiou" else "a"
    return " ".join(words)


def _parse(caption: str) -> PortraitSpec | None:
    """Parses a caption of portraits; None if it is none."""
    try:
        return portraits_checker.as_spec(caption)
    except UserError:
        return None


def _applicable(values: np.ndarray) -> int:
    """Returns the number of images on which binding can be judged."""
    return int(np.sum(~np.isnan(values)))


def _coloured(item: ObjectSpec, colour: str) -> ObjectSpec:
    return dataclasses.replace(item, colour=colour)
