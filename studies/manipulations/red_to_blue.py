"""Text diffs that turn red objects blue, and their side effects in the image."""

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from studies.manipulations.measurements import (
    EXAMPLES,
    Examples,
    Images,
    InversionChain,
    LabelledImages,
    decode,
    encode,
    squares,
)
from unclip_jax.core.checks import UserError
from unclip_jax.data.sources import Source
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.editing import edits, latents
from unclip_jax.editing.ddpm_latents import MapOptions
from unclip_jax.editing.latents import Latent
from unclip_jax.engine import inverted_images
from unclip_jax.engine.decode_batch import Conditioning
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.inverted_images import InvertedImages
from unclip_jax.inference import decoding
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.metrics import intervals, shapes_detector
from unclip_jax.metrics.shapes_detector import DetectedObject, Detection
from unclip_jax.shapes import scene as scene_module
from unclip_jax.shapes.scene import Scene, SceneObject

FROM, TO = "red", "blue"
STEPS = "50"  # refined inversions have so much noise that z_img has little effect


class Setting(NamedTuple):
    """A way to preserve the composition, to condition the decoder, and to rotate z_img.

    Attributes:
        inversion: "ddim" (x_T, as in the paper) or "ddpm" (the noise of every step).
        details: "inverted" or "fresh" noise of the upsamplers.
        caption: caption of the decoder: "none", or "target" for decoding and the image's own for
            inversion.
        guidance: guidance scale.
        thetas: shares of the arc.
    """

    inversion: str
    details: str
    caption: str
    guidance: float
    thetas: tuple[float, ...]


ALL = (0.0, 0.25, 0.5, 0.75, 1.0)
SETTINGS = (
    Setting("ddim", "inverted", "none", 1.0, ALL),
    Setting("ddim", "inverted", "none", 2.0, ALL),
    Setting("ddim", "inverted", "target", 2.0, (0.0, 0.25, 0.5)),
    Setting("ddim", "fresh", "none", 2.0, (0.5,)),
    Setting("ddpm", "fresh", "none", 1.0, ALL),
    Setting("ddpm", "fresh", "none", 2.0, (0.0, 0.5)),
    Setting("ddpm", "inverted", "none", 1.0, (0.0, 0.5)),
)
ILLUSTRATED = 4  # index of the setting of the example images
NEAR = 0.1  # share of the side: objects whose centres moved less are in place
CRITERIA = ("colour", "rest", "shape", "place", "all")


class TextDiffs(NamedTuple):
    """Rows of the table, and example images with their labels."""

    rows: list[dict[str, Any]]
    labelled: LabelledImages


def select(source: Source, num: int) -> list[int]:
    """Returns the first `num` examples whose caption names something red and nothing blue.

    Raises:
        UserError: there is none.
    """
    matching = (i for i in range(len(source)) if is_suitable(str(source[i]["caption"])))
    selected = list(itertools.islice(matching, num))
    if not selected:
        raise UserError(
            f"no caption of this split names something {FROM} and nothing {TO}; give a larger "
            "split."
        )
    return selected


def is_suitable(caption: str) -> bool:
    """True if the caption names the first colour and not the second."""
    words = re.findall(r"\w+", caption)
    return FROM in words and TO not in words


def recolour(caption: str) -> str:
    """Returns the target caption."""
    return re.sub(rf"\b{FROM}\b", TO, caption)


def measure(engine: InferenceEngine, reds: Examples, chain: InversionChain) -> TextDiffs:
    """Computes rates by theta for all `SETTINGS`, on `STEPS` without refinements."""
    editor = _Editor(engine, reds, chain._replace(steps=STEPS, refinements=0))
    scenes = [scene_module.from_json(scene) for scene in reds.scenes]
    rows, labelled = [], []
    for number, setting in enumerate(tqdm(SETTINGS, desc="text diffs", leave=False)):
        images = [editor.edit(setting, theta) for theta in setting.thetas]
        facts = {name: value for name, value in setting._asdict().items() if name != "thetas"}
        facts |= {"steps": STEPS}
        if setting.inversion == "ddpm":
            options = _map_options(setting.guidance)
            facts |= {"eta": options.eta, "strength": options.strength}
        rows += [
            {**facts, "theta": theta, **rates(batch, scenes)}
            for theta, batch in zip(setting.thetas, images, strict=True)
        ]
        if number == ILLUSTRATED:
            labelled = _label(reds, images)
    return TextDiffs(rows, labelled)


class _Editor:
    """Edits images with something red, which are inverted once per kind of inversion."""

    def __init__(self, engine: InferenceEngine, reds: Examples, chain: InversionChain):
        self.engine, self.reds, self.chain = engine, reds, chain
        self.grid = chain.upsampler_steps
        targets = [recolour(caption) for caption in reds.captions]
        none = [None] * len(targets)
        self.before = {"none": none, "target": reds.captions}
        self.after = {"none": none, "target": targets}
        self.z_target = engine.text_embeddings(targets)
        self.z_source = engine.text_embeddings(reds.captions)
        self.z_img = engine.image_embeddings(reds.images)
        self.ddim_latents = functools.cache(self._ddim_latents)
        self.ddpm_latents = functools.cache(self._ddpm_latents)

    def edit(self, setting: Setting, theta: float) -> Images:
        """Edits all images at one theta."""
        captions = self.after[setting.caption]
        if setting.inversion == "ddpm":
            inverted = self.ddpm_latents(setting.caption, setting.guidance, setting.details)
            indices = range(len(captions))
            latent = self.rotate(Latent(self.z_img, inverted.maps.x_t), theta)
            return inverted_images.decode(
                self.engine,
                inverted,
                Conditioning(latent.z_img, captions, indices),
                of=indices,
                options=_map_options(setting.guidance),
                upsampler_steps=self.grid,
            )
        latent = self.rotate(self.ddim_latents(setting.caption), theta)
        if setting.details == "fresh":
            latent = latent._replace(details=())
        options = DecodeOptions(decoding.faithful(STEPS), GuidanceSchedule(setting.guidance))
        return decode(self.engine, latent, self.chain, captions=captions, options=options)

    def rotate(self, latent: Latent, theta: float) -> Latent:
        """Rotates the z_img of every image towards the difference of its captions."""
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

    def _ddim_latents(self, caption: str) -> Latent:
        captions = self.before[caption]
        return encode(self.engine, self.reds.images, self.chain, captions=captions).latent

    def _ddpm_latents(self, caption: str, guidance: float, details: str) -> InvertedImages:
        images = self.reds.images
        return inverted_images.invert(
            self.engine,
            images,
            Conditioning(self.z_img, self.before[caption], range(len(images))),
            options=_map_options(guidance),
            details=details == "inverted",
            upsampler_steps=self.grid,
        )


def _map_options(guidance: float) -> MapOptions:
    return MapOptions(steps=STEPS, guidance=GuidanceSchedule(guidance))


def rates(images: Images, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Computes the share of images that meet each criterion, with 95 % intervals."""
    detections = shapes_detector.detect(images)
    verdicts = [judge(*pair) for pair in zip(detections, scenes, strict=True)]
    return {
        name: intervals.wilson(sum(v[name] for v in verdicts), len(verdicts))._asdict()
        for name in CRITERIA
    }


def judge(detection: Detection, scene: Scene) -> dict[str, bool]:
    """Compares detected objects with a scene, matched one to one by their positions.

    Returns:
        colour: each red item is blue. rest: all others have their colours. shape: all have their
            shapes. place: as many objects as items, each within `NEAR` of its item.
    """
    pairs = match(scene.items, detection.objects)
    red = [actual for item, actual in pairs if item.colour == FROM]
    others = [(item, actual) for item, actual in pairs if item.colour != FROM]
    verdict = {
        "colour": all(actual is not None and actual.colour == TO for actual in red),
        "rest": all(actual is not None and actual.colour == item.colour for item, actual in others),
        "shape": all(actual is not None and actual.shape == item.shape for item, actual in pairs),
        "place": all(
            actual is not None and distance(item, actual) < NEAR for item, actual in pairs
        ),
    }
    verdict["place"] &= len(detection.objects) == len(scene.items)
    return {**verdict, "all": all(verdict.values())}


def match(
    items: Sequence[SceneObject], objects: Sequence[DetectedObject]
) -> list[tuple[SceneObject, DetectedObject | None]]:
    """Matches items with objects by the smallest sum of distances; None = no object is left."""
    distances = np.array([[distance(item, actual) for actual in objects] for item in items])
    distances = distances.reshape(len(items), len(objects))
    assignment = dict(zip(*linear_sum_assignment(distances), strict=True))
    return [
        (item, objects[assignment[index]] if index in assignment else None)
        for index, item in enumerate(items)
    ]


def distance(item: SceneObject, actual: DetectedObject) -> float:
    """Computes the distance of centres as a share of the side."""
    return float(np.hypot(item.x - actual.x, item.y - actual.y))


def _label(reds: Examples, by_theta: Sequence[Images]) -> LabelledImages:
    """Labels originals and edits, image by image."""
    originals = squares(reds.images, by_theta[0].shape[1])
    labelled = []
    for index in range(min(EXAMPLES, len(originals))):
        labelled.append((recolour(reds.captions[index]), originals[index]))
        labelled += [
            (f"theta {theta:g}", images[index])
            for theta, images in zip(SETTINGS[ILLUSTRATED].thetas, by_theta, strict=True)
        ]
    return labelled
