"""The part of `benchmarks.manipulations` that turns red things blue, and sees what else changes."""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import manipulations_measure as measures
from benchmarks.manipulations_measure import SHOWN, Chain, Known
from unclip_jax.commands.studio import Studio
from unclip_jax.core.checks import UserError
from unclip_jax.data.sources import Source
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.metrics import intervals, shapes_detector
from unclip_jax.metrics.shapes_detector import Found, Sight
from unclip_jax.pipeline import decoding, edits, latents
from unclip_jax.pipeline.decoding import DecodeOptions
from unclip_jax.shapes import scene as scenes
from unclip_jax.shapes.scene import Item, Scene

FROM, TO = "red", "blue"
STEPS = "50"  # refined inversions have noise so large that z_img counts for little


class Way(NamedTuple):
    """What the decoder is told, its guidance, and how far z_img is turned."""

    caption: str
    guidance: float
    thetas: tuple[float, ...]


WAYS = (
    Way("none", 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
    Way("none", 2.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
    Way("source", 1.0, (0.0, 0.5)),
    Way("target", 2.0, (0.0, 0.25, 0.5)),
)
NEAR = 0.1  # of the side: an object whose centre moved less stayed where it was
JUDGED = ("colour", "shape", "place", "all three")


class Diffs(NamedTuple):
    """Rows of the table, and some pictures with their labels."""

    rows: list[dict[str, Any]]
    shown: list[tuple[str, np.ndarray]]


def choose(source: Source, num: int) -> list[int]:
    """The first `num` examples whose caption speaks of a red thing and of no blue one.

    Raises:
        UserError: there is none.
    """
    found = (i for i in range(len(source)) if suits(str(source[i]["caption"])))
    chosen = list(itertools.islice(found, num))
    if not chosen:
        raise UserError(
            f"no caption of this split speaks of something {FROM} and of nothing {TO}; give a "
            "larger one."
        )
    return chosen


def suits(caption: str) -> bool:
    """Whether the colour can be changed in a caption, and the change be seen."""
    words = re.findall(r"\w+", caption)
    return FROM in words and TO not in words


def changed(caption: str) -> str:
    """What the caption should become."""
    return re.sub(rf"\b{FROM}\b", TO, caption)


def measure(studio: Studio, reds: Known, chain: Chain) -> Diffs:
    """Rates by theta, for several ways to tell the decoder what it draws.

    Pictures are inverted without a caption and decoded so, or inverted with their own and decoded
    with that or with the target; on `STEPS` without refinements, whatever the chain says.
    """
    chain = chain._replace(steps=STEPS, refinements=0)
    targets = [changed(caption) for caption in reds.captions]
    known = [scenes.from_json(scene) for scene in reds.scenes]
    told = {"none": [None] * len(known), "source": reds.captions, "target": targets}
    bare = measures.encode(studio, reds.pictures, chain).latent
    own = measures.encode(studio, reds.pictures, chain, captions=reds.captions).latent
    z_target = studio.text_embeddings(targets)
    z_source = studio.text_embeddings(reds.captions)
    rows, shown = [], []
    for way in WAYS:
        latent = bare if way.caption == "none" else own
        paths = [
            edits.text_diff(
                latents.take(latent, [index]),
                z_target=z_target[index : index + 1],
                z_source=z_source[index : index + 1],
                thetas=np.asarray(way.thetas, np.float32),
            ).latent
            for index in range(len(known))
        ]
        repeated = [caption for caption in told[way.caption] for _ in way.thetas]
        guided = DecodeOptions(decoding.faithful(STEPS), GuidanceSchedule(way.guidance))
        images = measures.draw(
            studio, latents.join(paths), chain, captions=repeated, options=guided
        )
        by_theta = images.reshape(len(known), len(way.thetas), *images.shape[1:]).swapaxes(0, 1)
        rows += [
            {"caption": way.caption, "guidance": way.guidance, "theta": theta, **rates(each, known)}
            for theta, each in zip(way.thetas, by_theta, strict=True)
        ]
        if way == WAYS[1]:
            shown = _shown(reds, by_theta)
    return Diffs(rows, shown)


def rates(images: measures.Images, known: Sequence[Scene]) -> dict[str, Any]:
    """Share of pictures that are right in each respect, with 95 % intervals."""
    seen = [judge(*pair) for pair in zip(shapes_detector.look(images), known, strict=True)]
    return {
        name: intervals.wilson(sum(each[name] for each in seen), len(seen))._asdict()
        for name in JUDGED
    }


def judge(sight: Sight, scene: Scene) -> dict[str, bool]:
    """What became of a scene.

    Returns:
        colour: whatever lies nearest to each red thing is blue. shape: and has its shape. place:
        as many things as there were, one within `NEAR` of each.
    """
    pairs = [(item, nearest(item, sight.objects)) for item in scene.items]
    turned = [found for item, found in pairs if item.colour == FROM]
    kept = [(item, found) for item, found in pairs if item.colour == FROM]
    colour = all(found is not None and found.colour == TO for found in turned)
    shape = all(found is not None and found.shape == item.shape for item, found in kept)
    near = all(found is not None and distance(item, found) < NEAR for item, found in pairs)
    place = near and len(sight.objects) == len(scene.items)
    return {
        "colour": colour,
        "shape": shape,
        "place": place,
        "all three": colour and shape and place,
    }


def nearest(item: Item, objects: Sequence[Found]) -> Found | None:
    """The object whose centre is nearest to an item's."""
    return min(objects, key=lambda found: distance(item, found), default=None)


def distance(item: Item, found: Found) -> float:
    """Between centres, as a share of the side."""
    return float(np.hypot(item.x - found.x, item.y - found.y))


def _shown(reds: Known, by_theta: np.ndarray) -> list[tuple[str, np.ndarray]]:
    originals = measures.squares(reds.pictures, by_theta.shape[2])
    labelled = []
    for index in range(min(SHOWN, len(originals))):
        labelled.append((changed(reds.captions[index]), originals[index]))
        labelled += [
            (f"theta {theta:g}", images[index])
            for theta, images in zip(WAYS[1].thetas, by_theta, strict=True)
        ]
    return labelled
