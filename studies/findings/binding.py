"""Binding of colours to shapes: in CLIP's embedding, with a caption, and in GLIDE."""

import dataclasses
from typing import Any

import numpy as np

from studies import statistics
from studies.evaluation_set import EvaluationSet
from studies.findings import baseline_runs
from studies.findings.harness import Harness
from studies.scoring import cosine
from unclip_jax.metrics import shapes_checker
from unclip_jax.shapes.scene import ObjectSpec

TITLE = "Binding of attributes"
SOURCE = "sections 2.1 and 7, Figures 14 and 15"
CLAIM = (
    "GLIDE binds attributes to objects better than unCLIP, whose CLIP embedding mixes them up; "
    "giving the caption to the decoder as well helps little."
)
ABOUT = (
    "Captions of two objects that differ in colour and shape. *binding*: the share of images with "
    "each colour on its own shape, among the images that contain both colours and both shapes "
    "(*images*: their number). *objects*: the same share among all images. GLIDE is compared with "
    "an unCLIP decoder trained for as many steps. The rows with and without the caption use the "
    "same decoder, which was trained without a caption in half of its examples. Helping little "
    "means by less than 0.1."
)
CHART = ("bars", "binding", "objects", "colour", "shape")
LITTLE = 0.1


def unlike(caption: str) -> bool:
    """True if a caption names two objects that differ in colour and in shape."""
    objects = shapes_checker.as_spec(caption).objects
    first, last = objects[0], objects[-1]
    return len(objects) == 2 and first.colour != last.colour and first.shape != last.shape


def swap_colours(caption: str) -> str:
    """Returns the caption with the colours of its two objects exchanged, word by word."""
    first, second = shapes_checker.as_spec(caption).objects
    exchange = {first.colour: second.colour, second.colour: first.colour}
    words = caption.split()
    places = [i for i, word in enumerate(words) if word in exchange][:2]
    for place in places:
        words[place] = exchange[words[place]]
    for place in places:  # an article before the colour
        if place and words[place - 1] in ("a", "an"):
            words[place - 1] = "an" if words[place][0] in "aeiou" else "a"
    swapped = " ".join(words)
    expected = (_coloured(first, second.colour), _coloured(second, first.colour))
    assert shapes_checker.as_spec(swapped).objects == expected, swapped
    return swapped


def measure(harness: Harness) -> dict[str, Any]:
    """Samples the same captions from five systems, and compares captions in CLIP's space."""
    config = harness.config
    examples = harness.select(num=config.num, images=config.images, accept=unlike)
    if not examples.count:
        return {
            "rows": [],
            "tests": [],
            "note": "This split has no caption of two objects that differ in colour and shape.",
        }
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
        cells = {column: examples.mean(correct[column])._asdict() for column in CHART[1:]}
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
    return {"rows": rows, "tests": tests, "note": _compare_in_clip(harness, examples)}


def _compare_in_clip(harness: Harness, examples: EvaluationSet) -> str:
    """Describes how often CLIP prefers the caption to the one with exchanged colours."""
    swapped = [swap_colours(caption) for caption in examples.captions]
    z_swapped = np.asarray(harness.main.text_embeddings(swapped))
    prefers = cosine(examples.z_img, examples.z_txt) > cosine(examples.z_img, z_swapped)
    rate = examples.mean(prefers.astype(np.float64))
    return (
        "CLIP itself ranks the caption of a true image above the same caption with exchanged "
        f"colours in {rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}] of "
        f"{examples.count} cases; chance is 0.5."
    )


def _applicable(values: np.ndarray) -> int:
    """Returns the number of images on which binding can be judged."""
    return int(np.sum(~np.isnan(values)))


def _coloured(item: ObjectSpec, colour: str) -> ObjectSpec:
    return dataclasses.replace(item, colour=colour)
