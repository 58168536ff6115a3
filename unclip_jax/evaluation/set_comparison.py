"""Scores of two sets of images, and statistics of one; docs/evaluation.md has the protocols."""

import dataclasses
import json
import pathlib

import jax

from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.evaluation import feature_extraction, image_sets
from unclip_jax.evaluation.image_sets import ImageSetOptions
from unclip_jax.metrics import npz, report, resize
from unclip_jax.metrics.extractors import Extractor
from unclip_jax.metrics.report import Report, SetFeatures
from unclip_jax.metrics.score_options import ScoreOptions


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """Settings of the features of sets of images.

    Attributes:
        features: "inception:FILE" or "clip:EXPORT".
        resize: how Inception's input is resized.
        read: how sets are read.
        batch: images per batch.
    """

    features: str
    resize: str = "tf1"
    read: ImageSetOptions = image_sets.AS_STORED
    batch: int = 64

    def __post_init__(self):
        """Checks the batch size and the name of the resize."""
        positive("--batch", self.batch)
        one_of("--resize", self.resize, resize.RESIZES)

    def open_extractor(self) -> Extractor:
        """Opens the extractor.

        Raises:
            UserError: see `feature_extraction.open_extractor`.
        """
        return feature_extraction.open_extractor(self.features, resize=self.resize)


def compare_sets(
    real: str,
    fake: str,
    *,
    config: FeatureConfig,
    options: ScoreOptions,
    out: pathlib.Path | None = None,
) -> Report:
    """Scores a set of images against a reference and writes the report to `out`, a JSON file.

    Args:
        real: the reference: a folder of images, an .npz batch, .npz statistics, or a data set.
        fake: the set to score.
        config: settings of the features.
        options: settings of the scores.
        out: JSON file to write; None = none.

    Raises:
        UserError: the sets or the extractor cannot be used.
    """
    extractor = config.open_extractor()
    sides = [
        collect(path, extractor, config.read, batch=config.batch, name=name, statistics=reference)
        for path, name, reference in ((real, "real", True), (fake, "fake", False))
    ]
    result = report.compare(*sides, kind=extractor.kind, options=options)
    if out is not None and jax.process_index() == 0:
        out.write_text(json.dumps(result.plain(), indent=2) + "\n")
    return result


def write_statistics(images: str, out: pathlib.Path, *, config: FeatureConfig) -> int:
    """Writes the statistics of a set as an .npz file; returns the number of images.

    Raises:
        UserError: the set or the extractor cannot be used.
    """
    extractor = config.open_extractor()
    features = collect(images, extractor, config.read, batch=config.batch, name="features")
    if jax.process_index() == 0:
        npz.write_statistics(out, feature_extraction.statistics(features))
    return int(features.facts["count"])


def collect(
    path: str,
    extractor: Extractor,
    options: ImageSetOptions,
    *,
    batch: int,
    name: str,
    statistics: bool = False,
) -> SetFeatures:
    """Returns features of the images at `path` or, if allowed, the statistics stored there.

    Of a reference batch with both, Fréchet distances use the statistics and all other scores the
    images, as in guided-diffusion's evaluator; blurred sets use the images only.

    Args:
        path: see `compare_sets`.
        extractor: the feature extractor.
        options: how the set is read.
        batch: images per batch.
        name: label of the progress bar.
        statistics: True if stored statistics may replace the images.

    Raises:
        UserError: there are neither images nor statistics that may be used.
    """
    stored = npz.array_names(pathlib.Path(path)) if statistics and path.endswith(".npz") else set()
    if "mu" in stored and npz.IMAGES not in stored:
        if options.blur:
            raise UserError(
                f"--blur is {options.blur:g}, but {path} holds statistics without their images, "
                "which cannot be blurred; give the images."
            )
        return feature_extraction.from_statistics(pathlib.Path(path))
    images = image_sets.open_set(path, options)
    features = feature_extraction.collect(extractor, images, batch_size=batch, name=name)
    if "mu" not in stored or options.blur:
        return features
    reference = feature_extraction.from_statistics(pathlib.Path(path))
    return SetFeatures(**{**vars(reference), "pool": features.pool})
