"""Thresholds on the predicted image, over guidance scales."""

from typing import Any

import numpy as np

from studies import statistics
from studies.imagen.harness import IMAGEN, Harness
from studies.scoring import table_row

TITLE = "Dynamic thresholding"
SOURCE = "section 2.3, appendix D.2, figures A.8 to A.10"
CLAIM = (
    "At large guidance scales static thresholding is better than none, and dynamic thresholding "
    "better than static in fidelity, with captions followed as well."
)
ABOUT = (
    "One base model and one upsampler; only the threshold of the base model's sampling changes. "
    "*border*: the share of the values of the base image at the ends of the range, which guidance "
    "saturates. The network predicts x_0, not eps as in the paper, so its predictions leave the "
    "range less."
)
CHART = ("curves", "guidance", ("frechet", "followed", "border"))
SCALES = (1.0, 2.0, 4.0, 8.0)
THRESHOLDS = ("none", "static", "dynamic")
LITTLE = 0.05


def measure(harness: Harness) -> dict[str, Any]:
    """Samples with every threshold at every scale."""
    examples, rows, z, followed = harness.examples, [], {}, {}
    for threshold in THRESHOLDS:
        for scale in SCALES:
            samples = harness.sample(IMAGEN, guidance_scale=scale, threshold=threshold)
            scored = harness.score(samples.images)
            z[threshold, scale], followed[threshold, scale] = scored.z, scored.followed
            facts = {"name": f"{threshold}, guidance {scale:g}", "line": threshold}
            cells = table_row(examples, scored)
            edge = examples.mean(border(samples.base))._asdict()
            rows.append({**facts, "guidance": scale, **cells, "border": edge})
    most = SCALES[-1]

    def less(better: str, worse: str) -> Any:
        return examples.distances(lambda d: d(z[worse, most]) - d(z[better, most]))

    at, count = f"at guidance {most:g}", examples.count
    tests = [
        statistics.inequality(
            f"Fréchet distance {at}, none - static", less("static", "none"), captions=count
        ),
        statistics.inequality(
            f"Fréchet distance {at}, static - dynamic", less("dynamic", "static"), captions=count
        ),
        statistics.inequality(
            f"captions followed {at}, dynamic - static",
            examples.difference(followed["dynamic", most], followed["static", most]),
            captions=count,
            margin=LITTLE,
        ),
    ]
    return {"rows": rows, "tests": tests}


def border(images: np.ndarray) -> np.ndarray:
    """Computes the share of values at 0 or 255 of each uint8 image [n h w c]."""
    ends = (images == 0) | (images == 255)
    return ends.reshape(len(images), -1).mean(axis=1)
