"""What the first principal components of z_img say, seen through the decoder."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from studies import statistics
from studies.findings import baseline_runs
from studies.findings.harness import Workshop
from studies.scoring import Judged, Truth, mean
from unclip_jax.inference import pca_probe

TITLE = "Principal components"
SOURCE = "section 4, Figure 7"
CLAIM = (
    "The first principal components of z_img carry what kinds of things there are, later ones "
    "their shapes and exact form."
)
ABOUT = (
    "True z_img are rebuilt from their first components and decoded without a caption, the noise "
    "held fixed; the picture is checked against the scene of the original. *kept*: how far a group "
    "of rates has come from that with no component (the mean embedding) to that with all. Coarse: "
    "background, count, colour; fine: shape, size, relation."
)
CHART = ("curves", "components", ("coarse", "fine"))
COARSE, FINE = ("background", "count", "colour"), ("shape", "size", "relation")


def measure(shop: Workshop) -> dict[str, Any]:
    """Decode from ever more components."""
    truth = shop.look(shop.args.num, 1)
    counts = (0, *pca_probe.default_counts(truth.z_img.shape[1]))
    pca = pca_probe.fit(shop.known)
    rebuilt = np.stack([pca_probe.keep_first(pca, z, counts=counts) for z in truth.z_img])
    judged = []
    for index, count in enumerate(counts):
        z = rebuilt[:, index]
        images = shop.draw(
            baseline_runs.MAIN, z, truth=truth, caption=False, label=f"{count} components"
        )
        judged.append(shop.judge(images, truth.scenes))
    share = np.cumsum(pca.variance) / pca.variance.sum()
    rows = [
        {
            "name": f"{count} of {counts[-1]}",
            "components": count,
            "variance": float(share[count - 1]) if count else 0.0,
            "coarse": _rate(found, COARSE, truth),
            "fine": _rate(found, FINE, truth),
            **{name: truth.mean(found.right[name])._asdict() for name in (*COARSE, *FINE)},
        }
        for count, found in zip(counts, judged, strict=True)
    ]

    def apart(chosen: np.ndarray) -> float:
        taken = truth.rows(chosen)
        return kept(judged, COARSE, taken) - kept(judged, FINE, taken)

    name = "share kept by few components (mean over counts), coarse - fine"
    found = statistics.interval(apart, truth.count)
    return {"rows": rows, "tests": [statistics.inequality(name, found, captions=truth.count)]}


def kept(judged: Sequence[Judged], names: Sequence[str], rows: np.ndarray) -> float:
    """Mean over all counts but none and all of (rate - rate of none) / (rate of all - of none)."""
    rates = np.array([group(found, names, rows) for found in judged])
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean((rates[1:-1] - rates[0]) / (rates[-1] - rates[0])))


def group(found: Judged, names: Sequence[str], rows: np.ndarray) -> float:
    """Mean over attributes of their rates."""
    return mean(np.array([mean(found.right[name][rows]) for name in names]))


def _rate(found: Judged, names: Sequence[str], truth: Truth) -> dict[str, float]:
    made = statistics.interval(lambda rows: group(found, names, truth.rows(rows)), truth.count)
    return made._asdict()
