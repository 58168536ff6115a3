"""Scores of individual sampled images: their CLIP embeddings and the verdicts of the checker."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from studies import evaluation_set, statistics
from studies.evaluation_set import EvaluationSet
from unclip_jax.engine.image_inputs import InputImage
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.metrics.worlds import WorldChecks


@dataclasses.dataclass(frozen=True)
class ScoredImages:
    """Sampled images with their scores.

    Attributes:
        z: [images z] CLIP embeddings of the images.
        correct: attribute -> [images] 1, 0, or nan if the caption does not name it.
        criteria: attributes that captions of this world name.
    """

    z: np.ndarray
    correct: dict[str, np.ndarray]
    criteria: tuple[str, ...]

    @classmethod
    def from_verdicts(
        cls, z: np.ndarray, verdicts: Sequence[Any], world: WorldChecks
    ) -> "ScoredImages":
        """Returns the scores of images with embeddings `z` and a checker's verdicts."""
        values = {name: [getattr(v, name) for v in verdicts] for name in world.attributes}
        correct = {
            name: np.array([float("nan") if value is None else float(value) for value in column])
            for name, column in values.items()
        }
        return cls(z, correct, world.criteria)

    @property
    def followed(self) -> np.ndarray:
        """[images] share of the criteria named by the caption that the image meets."""
        return np.nanmean(np.stack([self.correct[name] for name in self.criteria]), axis=0)


def score_images(
    engine: InferenceEngine, images: np.ndarray, targets: Sequence[str]
) -> ScoredImages:
    """Embeds images and checks each against its target: a caption, or a scene as JSON.

    Raises:
        UserError: the targets do not belong to one procedural world.
    """
    world = evaluation_set.world_of(targets)
    verdicts = world.check(images, list(targets))
    z = engine.image_embeddings([InputImage(image, "", "") for image in images])
    return ScoredImages.from_verdicts(np.asarray(z), verdicts, world)


def cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Computes the cosines of the rows of two arrays of unit vectors."""
    return np.sum(left.astype(np.float64) * right, axis=1)


def table_row(examples: EvaluationSet, scored: ScoredImages) -> dict[str, Any]:
    """Computes the columns of every table of sampled images; JSON-ready except for nan.

    The Fréchet distance has no interval: for so few images it is mostly due to their number, which
    does not affect differences between systems (`EvaluationSet.distances`).
    """
    columns = {"followed": scored.followed}
    columns |= {name: scored.correct[name] for name in (*scored.criteria, "joint")}
    cells = {name: examples.mean(v) for name, v in columns.items() if not np.isnan(v).all()}
    if examples.images_per_caption > 1:
        spread = examples.diversity(scored.z)
        cells["diversity"] = statistics.interval(
            lambda rows: statistics.nan_mean(spread[rows]), examples.count
        )
    row: dict[str, Any] = {name: cell._asdict() for name, cell in cells.items()}
    return {**row, "frechet": examples.distance(scored.z)}


def reduce(images: np.ndarray, *, side: int) -> np.ndarray:
    """Reduces images to `side` pixels by averaging squares."""
    if images.shape[1] == side:
        return images
    small = [Image.fromarray(x).resize((side, side), Image.Resampling.BOX) for x in images]
    return np.stack([np.asarray(image) for image in small])
