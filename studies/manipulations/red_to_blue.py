"""The part of `studies.manipulations` that turns red things blue, and sees what else changes."""

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from studies.manipulations import measurements as measures
from studies.manipulations.measurements import SHOWN, Chain, Known
from unclip_jax.core.checks import UserError
from unclip_jax.data.sources import Source
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.inference import ddpm_images, decoding, edits, latents
from unclip_jax.inference.ddpm_images import InvertedImages
from unclip_jax.inference.ddpm_latents import MapOptions
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.latents import Latent
from unclip_jax.inference.requests import Conditioning
from unclip_jax.metrics import intervals, shapes_detector
from unclip_jax.metrics.shapes_detector import DetectedObject, Detection
from unclip_jax.shapes import scene as scenes
from unclip_jax.shapes.scene import Scene, SceneObject

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
JUDGED = ("colour", "rest", "shape", "place", "all")


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


def measure(studio: InferenceEngine, reds: Known, chain: Chain) -> Diffs:
    """Rates by theta, for several ways to hold on to a picture and to tell the decoder what it is.

    On `STEPS` without refinements, whatever the chain says.
    """
    bench = _Bench(studio, reds, chain._replace(steps=STEPS, refinements=0))
    known = [scenes.from_json(scene) for scene in reds.scenes]
    rows, shown = [], []
    for number, way in enumerate(tqdm(WAYS, unit="way", desc="text diffs", leave=False)):
        images = [bench.draw(way, theta) for theta in way.thetas]
        told = {name: value for name, value in way._asdict().items() if name != "thetas"}
        told |= {"steps": STEPS}
        if way.inversion == "ddpm":
            told |= {"eta": _maps_of(way.guidance).eta, "strength": _maps_of(way.guidance).strength}
        rows += [
            {**told, "theta": theta, **rates(each, known)}
            for theta, each in zip(way.thetas, images, strict=True)
        ]
        if number == PICTURED:
            shown = _shown(reds, images)
    return Diffs(rows, shown)


class _Bench:
    """Pictures with something red, encoded once for every way."""

    def __init__(self, studio: InferenceEngine, reds: Known, chain: Chain):
        self.studio, self.reds, self.chain = studio, reds, chain
        self.grid = chain.upsampler_steps
        targets = [changed(caption) for caption in reds.captions]
        none = [None] * len(targets)
        self.before = {"none": none, "target": reds.captions}
        self.after = {"none": none, "target": targets}
        self.z_target = studio.text_embeddings(targets)
        self.z_source = studio.text_embeddings(reds.captions)
        self.z_img = studio.image_embeddings(reds.pictures)
        self.by_x_T = functools.cache(self._by_x_T)
        self.by_maps = functools.cache(self._by_maps)

    def draw(self, way: Way, theta: float) -> measures.Images:
        """Every picture at one theta."""
        captions = self.after[way.caption]
        if way.inversion == "ddpm":
            found, count = self.by_maps(way.caption, way.guidance, way.details), len(captions)
            latent = self.turned(Latent(self.z_img, found.maps.x_t), theta)
            told = Conditioning(latent.z_img, captions, range(count))
            how = {"of": range(count), "options": _maps_of(way.guidance)}
            return ddpm_images.draw(self.studio, found, told, **how, upsampler_steps=self.grid)
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

    def _by_maps(self, caption: str, guidance: float, details: str) -> InvertedImages:
        told = Conditioning(self.z_img, self.before[caption], range(len(self.reds.pictures)))
        how = {"options": _maps_of(guidance), "upsampler_steps": self.grid}
        wanted = details == "inverted"
        return ddpm_images.encode(self.studio, self.reds.pictures, told, details=wanted, **how)


def _maps_of(guidance: float) -> MapOptions:
    return MapOptions(steps=STEPS, guidance=GuidanceSchedule(guidance))


def rates(images: measures.Images, known: Sequence[Scene]) -> dict[str, Any]:
    """Share of pictures that are right in each respect, with 95 % intervals."""
    seen = [judge(*pair) for pair in zip(shapes_detector.detect(images), known, strict=True)]
    return {
        name: intervals.wilson(sum(each[name] for each in seen), len(seen))._asdict()
        for name in JUDGED
    }


def judge(detection: Detection, scene: Scene) -> dict[str, bool]:
    """What became of a scene, its things and those seen matched one to one by where they lie.

    Returns:
        colour: each red thing is blue. rest: all others have their colours. shape: all have their
            shapes. place: as many things as there were, each within `NEAR` of where it was.
    """
    pairs = matched(scene.items, detection.objects)
    red = [found for item, found in pairs if item.colour == FROM]
    rest = [(item, found) for item, found in pairs if item.colour != FROM]
    holds = {
        "colour": all(found is not None and found.colour == TO for found in red),
        "rest": all(found is not None and found.colour == item.colour for item, found in rest),
        "shape": all(found is not None and found.shape == item.shape for item, found in pairs),
        "place": all(found is not None and distance(item, found) < NEAR for item, found in pairs),
    }
    holds["place"] &= len(detection.objects) == len(scene.items)
    return {**holds, "all": all(holds.values())}


def matched(
    items: Sequence[SceneObject], objects: Sequence[DetectedObject]
) -> list[tuple[SceneObject, DetectedObject | None]]:
    """Every item with the object that is it, by the least sum of distances; None = none is left."""
    apart = np.array([[distance(item, found) for found in objects] for item in items])
    apart = apart.reshape(len(items), len(objects))
    taken = dict(zip(*linear_sum_assignment(apart), strict=True))
    return [
        (item, objects[taken[index]] if index in taken else None)
        for index, item in enumerate(items)
    ]


def distance(item: SceneObject, found: DetectedObject) -> float:
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
