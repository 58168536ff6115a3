"""The part of `benchmarks.manipulations` that turns red things blue, and sees what else changes."""

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks import manipulations_measure as measures
from benchmarks.manipulations_measure import SHOWN, Chain, Known
from unclip_jax.commands.order import Told
from unclip_jax.commands.studio import Studio
from unclip_jax.core.checks import UserError
from unclip_jax.data import image as codec
from unclip_jax.data.sources import Source
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.diffusion.noise_maps import NoiseMaps
from unclip_jax.metrics import intervals, shapes_detector
from unclip_jax.metrics.shapes_detector import Found, Sight
from unclip_jax.pipeline import decoding, edits, latents, text_to_image
from unclip_jax.pipeline.decoding import DecodeOptions
from unclip_jax.pipeline.latents import Latent
from unclip_jax.pipeline.noise_maps import MapOptions
from unclip_jax.shapes import scene as scenes
from unclip_jax.shapes.scene import Item, Scene

FROM, TO = "red", "blue"
STEPS = "50"  # refined inversions have noise so large that z_img counts for little


class Way(NamedTuple):
    """What holds the composition, what the decoder is told, and how far z_img is turned.

    Attributes:
        inversion: "ddim" (x_T, the paper's) or "ddpm" (the noise of every step).
        details: "inverted" or "fresh" noise of the upsamplers.
        caption: for the decoder: "none", or "target" when it draws and the picture's own before.
        guidance: scale.
        thetas: shares of the arc.
    """

    inversion: str
    details: str
    caption: str
    guidance: float
    thetas: tuple[float, ...]


ALL = (0.0, 0.25, 0.5, 0.75, 1.0)
WAYS = (
    Way("ddim", "inverted", "none", 1.0, ALL),
    Way("ddim", "inverted", "none", 2.0, ALL),
    Way("ddim", "inverted", "target", 2.0, (0.0, 0.25, 0.5)),
    Way("ddim", "fresh", "none", 2.0, (0.5,)),
    Way("ddpm", "fresh", "none", 1.0, ALL),
    Way("ddpm", "fresh", "none", 2.0, (0.0, 0.5)),
    Way("ddpm", "inverted", "none", 1.0, (0.0, 0.5)),
)
PICTURED = 4  # the way that the picture shows
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
    """Rates by theta, for several ways to hold on to a picture and to tell the decoder what it is.

    On `STEPS` without refinements, whatever the chain says.
    """
    bench = _Bench(studio, reds, chain._replace(steps=STEPS, refinements=0))
    known = [scenes.from_json(scene) for scene in reds.scenes]
    rows, shown = [], []
    for number, way in enumerate(tqdm(WAYS, unit="way", desc="text diffs", leave=False)):
        images = [bench.draw(way, theta) for theta in way.thetas]
        told = {name: value for name, value in way._asdict().items() if name != "thetas"}
        rows += [
            {**told, "theta": theta, **rates(each, known)}
            for theta, each in zip(way.thetas, images, strict=True)
        ]
        if number == PICTURED:
            shown = _shown(reds, images)
    return Diffs(rows, shown)


class _Bench:
    """Pictures with something red, encoded once for every way."""

    def __init__(self, studio: Studio, reds: Known, chain: Chain):
        self.studio, self.reds, self.chain = studio, reds, chain
        targets = [changed(caption) for caption in reds.captions]
        none = [None] * len(targets)
        self.before = {"none": none, "target": reds.captions}
        self.after = {"none": none, "target": targets}
        self.z_target = studio.text_embeddings(targets)
        self.z_source = studio.text_embeddings(reds.captions)
        self.by_x_T = functools.cache(self._by_x_T)
        self.by_maps = functools.cache(self._by_maps)

    def draw(self, way: Way, theta: float) -> measures.Images:
        """Every picture at one theta."""
        captions = self.after[way.caption]
        if way.inversion == "ddpm":
            maps, latent = self.by_maps(way)
            count = len(captions)
            told = Told(self.turned(latent, theta).z_img, captions, range(count))
            base = self.studio.decode_maps(maps, told, of=range(count), options=_maps_of(way))
            keys = text_to_image.keys_for(0, jnp.asarray(told.indices))
            steps = self.chain.upsampler_steps
            large = self.studio.enlarge(base, keys, held=latent.details, steps=steps)
            return codec.to_uint8(np.asarray(large))
        latent = self.turned(self.by_x_T(way.caption), theta)
        kept = latent if way.details == "inverted" else latent._replace(details=())
        options = DecodeOptions(decoding.faithful(STEPS), GuidanceSchedule(way.guidance))
        return measures.draw(self.studio, kept, self.chain, captions=captions, options=options)

    def turned(self, latent: Latent, theta: float) -> Latent:
        """Every picture's latent, turned towards the difference of its captions."""
        paths = [
            edits.text_diff(
                latents.take(latent, [index]),
                z_target=self.z_target[index : index + 1],
                z_source=self.z_source[index : index + 1],
                thetas=np.asarray([theta], np.float32),
            ).latent
            for index in range(latent.z_img.shape[0])
        ]
        return latents.join(paths)

    def _by_x_T(self, caption: str) -> Latent:
        own = {"captions": self.before[caption]}
        return measures.encode(self.studio, self.reds.pictures, self.chain, **own).latent

    def _by_maps(self, way: Way) -> tuple[NoiseMaps, Latent]:
        given, options = self.reds.pictures, _maps_of(way)
        z_img = self.studio.image_embeddings(given)
        told = Told(z_img, self.before[way.caption], range(len(given)))
        maps = self.studio.encode_maps(given, told, options=options)
        details = ()
        if way.details == "inverted":
            base = self.studio.decode_maps(maps, told, of=range(len(given)), options=options)
            steps = self.chain.upsampler_steps
            details = self.studio.encode_details(base, given, steps=steps)
        return maps, Latent(z_img, maps.x_t, details)


def _maps_of(way: Way) -> MapOptions:
    return MapOptions(steps=STEPS, guidance=GuidanceSchedule(way.guidance))


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


def _shown(reds: Known, by_theta: Sequence[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    originals, thetas = measures.squares(reds.pictures, by_theta[0].shape[1]), WAYS[PICTURED].thetas
    labelled = []
    for index in range(min(SHOWN, len(originals))):
        labelled.append((changed(reds.captions[index]), originals[index]))
        labelled += [
            (f"theta {theta:g}", images[index])
            for theta, images in zip(thetas, by_theta, strict=True)
        ]
    return labelled
