"""The content of the first principal components of z_img, seen through the decoder."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from studies import statistics
from studies.evaluation_set import EvaluationSet
from studies.findings import baseline_runs
from studies.findings.harness import Harness
from studies.scoring import ScoredImages
from unclip_jax.editing import pca_probe

TITLE = "Principal components"
SOURCE = "section 4, Figure 7"
CLAIM = (
    "The first principal components of z_img represent the kinds of objects, later ones their "
    "shapes and exact form."
)
ABOUT = (
    "True z_img are reconstructed from their first components and decoded without a caption, with "
    "fixed noise. The image is checked against the original scene. *kept*: how far a group of "
    "rates has moved from its value without components (the mean embedding) to its value with all "
    "components."
)
CHART = ("curves", "components", ("coarse", "fine"))


class Groups(NamedTuple):
    """The attributes of a world's scenes, by the area that they take up in an image."""

    coarse: tuple[str, ...]
    fine: tuple[str, ...]


GROUPS = {
    "shapes": Groups(("background", "count", "colour"), ("shape", "size", "relation")),
    "portraits": Groups(
        ("background", "hair", "hair_colour", "clothes", "clothes_colour"),
        ("facial_hair", "glasses", "eyes", "mouth"),
    ),
}


def measure(harness: Harness) -> dict[str, Any]:
    """Decodes from ever more components."""
    coarse, fine = GROUPS[harness.world.name]
    examples = harness.select(num=harness.config.num, images=1)
    counts = (0, *pca_probe.default_counts(examples.z_img.shape[1]))
    pca = pca_probe.fit(harness.training_embeddings)
    truncated = np.stack([pca_probe.keep_first(pca, z, counts=counts) for z in examples.z_img])
    scored = []
    for index, count in enumerate(counts):
        images = harness.sample_images(
            baseline_runs.MAIN,
            truncated[:, index],
            examples=examples,
            caption=False,
            label=f"{count} components",
        )
        scored.append(harness.score(images, examples.scenes))
    share = np.cumsum(pca.variance) / pca.variance.sum()
    rows = [
        {
            "name": f"{count} of {counts[-1]}",
            "components": count,
            "variance": float(share[count - 1]) if count else 0.0,
            "coarse": _rate(entry, coarse, examples),
            "fine": _rate(entry, fine, examples),
            **{name: examples.mean(entry.correct[name])._asdict() for name in (*coarse, *fine)},
        }
        for count, entry in zip(counts, scored, strict=True)
    ]

    def difference(captions: np.ndarray) -> float:
        rows = examples.rows(captions)
        return retained(scored, coarse, rows) - retained(scored, fine, rows)

    name = "share kept by few components (mean over counts), coarse - fine"
    estimate = statistics.interval(difference, examples.count)
    test = statistics.inequality(name, estimate, captions=examples.count)
    note = f"Coarse: {', '.join(coarse)}; fine: {', '.join(fine)}.".replace("_", " ")
    return {"rows": rows, "tests": [test], "note": note}


def retained(scored: Sequence[ScoredImages], names: Sequence[str], rows: np.ndarray) -> float:
    """Computes the mean of (rate - rate of none) / (rate of all - rate of none) over counts.

    The counts are those between no components and all components.
    """
    rates = np.array([mean_rate(entry, names, rows) for entry in scored])
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean((rates[1:-1] - rates[0]) / (rates[-1] - rates[0])))


def mean_rate(scored: ScoredImages, names: Sequence[str], rows: np.ndarray) -> float:
    """Computes the mean over attributes of their rates."""
    rates = [statistics.nan_mean(scored.correct[name][rows]) for name in names]
    return statistics.nan_mean(np.array(rates))


def _rate(scored: ScoredImages, names: Sequence[str], examples: EvaluationSet) -> dict[str, float]:
    estimate = statistics.interval(
        lambda captions: mean_rate(scored, names, examples.rows(captions)), examples.count
    )
    return estimate._asdict()
