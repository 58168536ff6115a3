"""The cost of guidance in unCLIP and GLIDE: diversity, and distance from training images."""

from typing import Any

import numpy as np

from studies import statistics
from studies.findings.harness import Harness
from studies.scoring import table_row

TITLE = "Guidance and diversity"
SOURCE = "section 5.3, Figures 9 to 11"
CLAIM = (
    "Guidance costs GLIDE diversity and FID, and unCLIP much less, because z_img fixes the content "
    "before the decoder is guided."
)
ABOUT = (
    "Both decoders have the same network and are trained for the same number of steps. unCLIP's "
    "z_img come from the prior and are the same at every scale, as is the noise of an image. "
    "*diversity*: 1 − cosine between images of one caption, in CLIP's space."
)
CHART = ("curves", "guidance", ("diversity", "frechet", "followed"))
SCALES = (1.0, 2.0, 4.0)
SYSTEMS = {"unCLIP": "unclip", "GLIDE": "glide"}


def measure(harness: Harness) -> dict[str, Any]:
    """Samples from both systems at every scale."""
    rows, z, diversity = [], {}, {}
    examples = harness.examples
    for system, run in SYSTEMS.items():
        for scale in SCALES:
            label = f"{system}, guidance {scale:g}"
            images = harness.sample_images(run, harness.z_img("x_0"), guidance=scale, label=label)
            scored = harness.score(images)
            z[system, scale], diversity[system, scale] = scored.z, examples.diversity(scored.z)
            facts = {"name": label, "line": system, "guidance": scale}
            rows.append({**facts, **table_row(examples, scored)})
    least, most = SCALES[0], SCALES[-1]

    def loss(captions: np.ndarray) -> float:
        unclip, glide = (
            np.mean(diversity[system, least][captions] - diversity[system, most][captions])
            for system in SYSTEMS
        )
        return float(glide - unclip)

    def rise(distance) -> float:
        unclip, glide = (
            distance(z[system, most]) - distance(z[system, least]) for system in SYSTEMS
        )
        return glide - unclip

    span = f"from guidance {least:g} to {most:g}, GLIDE - unCLIP"
    tests = [
        statistics.inequality(
            f"loss of diversity {span}",
            statistics.interval(loss, examples.count),
            captions=examples.count,
        ),
        statistics.inequality(
            f"rise of Fréchet distance {span}", examples.distances(rise), captions=examples.count
        ),
    ]
    return {"rows": rows, "tests": tests}
