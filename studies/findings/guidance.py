"""What guidance costs unCLIP and GLIDE: diversity within a caption, and distance from pictures."""

from typing import Any

import numpy as np

from studies import statistics
from studies.findings.harness import Workshop

TITLE = "Guidance and diversity"
SOURCE = "section 5.3, Figures 9 to 11"
CLAIM = (
    "Guidance costs GLIDE diversity and FID, unCLIP much less, because z_img has fixed what is "
    "shown before the decoder is guided."
)
ABOUT = (
    "Both decoders are trained for the same number of steps with the same network; unCLIP's z_img "
    "come from the prior and are the same at every scale, as is the noise of a picture. "
    "*diversity*: 1 − cosine between pictures of one caption, in CLIP's space."
)
CHART = ("curves", "guidance", ("diversity", "frechet", "followed"))
SCALES = (1.0, 2.0, 4.0)
SYSTEMS = {"unCLIP": "unclip", "GLIDE": "glide"}


def measure(shop: Workshop) -> dict[str, Any]:
    """Draw with both at every scale."""
    rows, z, spread = [], {}, {}
    truth = shop.truth
    for system, run in SYSTEMS.items():
        for scale in SCALES:
            label = f"{system}, guidance {scale:g}"
            images = shop.draw(run, shop.z_img("x_0"), guidance=scale, label=label)
            found = shop.judge(images)
            z[system, scale], spread[system, scale] = found.z, truth.diversity(found.z)
            facts = {"name": label, "line": system, "guidance": scale}
            rows.append({**facts, **truth.row(found)})
    least, most = SCALES[0], SCALES[-1]

    def lost(rows: np.ndarray) -> float:
        unclip, glide = (
            np.mean(spread[system, least][rows] - spread[system, most][rows]) for system in SYSTEMS
        )
        return float(glide - unclip)

    def farther(distance) -> float:
        unclip, glide = (
            distance(z[system, most]) - distance(z[system, least]) for system in SYSTEMS
        )
        return glide - unclip

    span = f"from guidance {least:g} to {most:g}, GLIDE - unCLIP"
    tests = [
        statistics.inequality(
            f"loss of diversity {span}",
            statistics.interval(lost, truth.count),
            captions=truth.count,
        ),
        statistics.inequality(
            f"rise of Fréchet distance {span}", truth.distances(farther), captions=truth.count
        ),
    ]
    return {"rows": rows, "tests": tests}
