"""Held-out examples with their CLIP embeddings, with which every study compares samples."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from studies import statistics
from unclip_jax.core.checks import UserError
from unclip_jax.data import image_codec, sources
from unclip_jax.data.sources import Source
from unclip_jax.engine import image_inputs
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.metrics import frechet, scores, worlds
from unclip_jax.metrics.intervals import IntervalEstimate
from unclip_jax.metrics.worlds import WorldChecks

BATCH = 50  # captions per batch
REFERENCE = 2000  # training images of the reference distribution
FRECHET_RESAMPLES = 300

Record = dict[str, Any]
Distance = Callable[[np.ndarray], float]  # from embeddings to their Fréchet distance


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Held-out captions, their true images, and statistics that resample captions.

    Images of one caption stay together in every resample.

    Attributes:
        captions: one per image, equal ones adjacent.
        scenes: scene of the true image of each caption, as JSON; "" outside the procedural worlds.
        z_img: [images z] embeddings of the true images.
        z_txt: [images z] embeddings of the captions.
        images_per_caption: number of images of each caption.
        reference: moments of the embeddings of training images.
    """

    captions: tuple[str, ...]
    scenes: tuple[str, ...]
    z_img: np.ndarray
    z_txt: np.ndarray
    images_per_caption: int
    reference: frechet.Moments

    @property
    def count(self) -> int:
        """Number of captions."""
        return len(self.captions) // self.images_per_caption

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Returns the rows of the images of the captions with these indices."""
        return (
            indices[:, None] * self.images_per_caption + np.arange(self.images_per_caption)[None]
        ).ravel()

    def mean(self, values: np.ndarray) -> IntervalEstimate:
        """Computes the mean of one value per image; nan is ignored."""
        return statistics.interval(
            lambda indices: statistics.nan_mean(values[self.rows(indices)]), self.count
        )

    def difference(self, left: np.ndarray, right: np.ndarray) -> IntervalEstimate:
        """Computes the difference of two means, each of one value per image; nan is ignored."""

        def statistic(indices: np.ndarray) -> float:
            rows = self.rows(indices)
            return statistics.nan_mean(left[rows]) - statistics.nan_mean(right[rows])

        return statistics.interval(statistic, self.count)

    def distance(self, z: np.ndarray) -> float:
        """Computes the Fréchet distance of embeddings from those of training images."""
        return frechet.squared_distance(frechet.moments(z), self.reference)

    def distances(self, statistic: Callable[[Distance], float]) -> IntervalEstimate:
        """Computes the interval of a function of several Fréchet distances.

        The argument of `statistic` is a function from embeddings [images z] to the Fréchet distance
        of the resampled ones.
        """
        return statistics.interval(
            lambda indices: statistic(lambda z: self.distance(z[self.rows(indices)])),
            self.count,
            resamples=FRECHET_RESAMPLES,
            basic=True,
        )

    def diversity(self, z: np.ndarray) -> np.ndarray:
        """Computes 1 - cosine between images of one caption, per caption (unCLIP, section 5.2)."""
        groups = z.reshape(self.count, self.images_per_caption, -1)
        labels = [0] * self.images_per_caption
        return np.array([scores.diversity(group, labels).value for group in groups])


def build(
    engine: InferenceEngine,
    records: Sequence[Record],
    *,
    reference: frechet.Moments,
    images_per_caption: int = 1,
) -> EvaluationSet:
    """Embeds records with CLIP.

    Args:
        engine: the models.
        records: records of a held-out split; may be empty.
        reference: moments of the embeddings of training images.
        images_per_caption: number of repetitions of every record.

    Raises:
        UserError: an image cannot be read.
    """
    captions = tuple(str(r["caption"]) for r in records for _ in range(images_per_caption))
    scenes = tuple(_scene(r) for r in records for _ in range(images_per_caption))
    if not records:
        empty = np.zeros((0, engine.cascade.decoder.model.z_dim), np.float32)
        return EvaluationSet((), (), empty, empty, images_per_caption, reference)
    z_img = np.repeat(embed_records(engine, records), images_per_caption, axis=0)
    z_txt = np.asarray(engine.text_embeddings(captions))
    return EvaluationSet(captions, scenes, z_img, z_txt, images_per_caption, reference)


def select(
    engine: InferenceEngine, data: str, *, split: str, num: int, images: int
) -> tuple[EvaluationSet, np.ndarray]:
    """Returns the first captions of a split with a scene, and the true images, equal ones adjacent.

    Args:
        engine: the models, whose CLIP embeds captions and images.
        data: prepared data set of a procedural world.
        split: split of the captions; the reference is always "train".
        num: number of captions.
        images: images per caption.

    Raises:
        UserError: there are fewer captions, or an image cannot be read.
    """
    source = sources.open_source(data, split=split)
    records = [r for r in (source[i] for i in range(len(source))) if r["scene"]][:num]
    if len(records) < max(num, 2):
        raise UserError(
            f"split {split!r} of {data} has {len(records)} examples with a scene; "
            f"--num={num} asks for others. Give 2 to {len(records)}."
        )
    training_images = sources.open_source(data, split="train")
    reference = frechet.moments(embed_training_images(engine, training_images))
    examples = build(engine, records, reference=reference, images_per_caption=images)
    true = [image_codec.decode(record["image"]) for record in records for _ in range(images)]
    return examples, np.stack(true)


def world_of(captions: Sequence[str]) -> WorldChecks:
    """Returns the world of captions or scenes.

    Raises:
        UserError: they do not belong to one procedural world.
    """
    world = worlds.world_of(captions)
    if world is None:
        names = " or ".join(each.name for each in worlds.WORLDS)
        raise UserError(
            f"these {len(captions)} captions do not belong to one procedural world ({names}); give "
            "a data set of one of them."
        )
    return world


def embed_records(engine: InferenceEngine, records: Sequence[Record]) -> np.ndarray:
    """Computes the CLIP embeddings [n z] of the records' own images.

    Raises:
        UserError: an image cannot be read.
    """
    images = [
        image_inputs.from_bytes(r["image"], name=str(r["key"]), where=f"record {r['key']}")
        for r in records
    ]
    return np.asarray(engine.image_embeddings(images))


def embed_training_images(engine: InferenceEngine, source: Source) -> np.ndarray:
    """Computes the CLIP embeddings [n z] of the first `REFERENCE` images of a training split.

    Raises:
        UserError: an image cannot be read.
    """
    return embed_records(engine, [source[i] for i in range(min(REFERENCE, len(source)))])


def _scene(record: Record) -> str:
    scene = record["scene"]
    return scene if isinstance(scene, str) else json.dumps(scene)
