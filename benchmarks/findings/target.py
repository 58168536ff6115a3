"""What the prior predicts: the embedding itself, or the noise in it."""

from typing import Any

from benchmarks.findings import training, verdict
from benchmarks.findings.judging import cosine
from benchmarks.findings.workshop import Workshop

TITLE = "What the prior predicts"
SOURCE = "section 2.2, equation 2"
CLAIM = "In the prior it is better to predict the unnoised z_img than the noise."
ABOUT = (
    "Two priors of equal length that differ in nothing but the target, one draw each, pictures by "
    "the same decoder. Rates, sampler and number of steps are those of the prior that predicts "
    "z_img; nothing was tuned for the other. *cosine*: to the true z_img."
)
CHART = ("bars", "cosine", "frechet", "followed")


def measure(shop: Workshop) -> dict[str, Any]:
    """Draw from both."""
    truth, names = shop.truth, {"x_0": "predicts z_img", "eps": "predicts the noise"}
    near, rows = {}, []
    for run, name in names.items():
        z = shop.imagine(run, truth, candidates=1)
        near[run] = cosine(z, truth.z_img)
        found = shop.judge(shop.draw(training.MAIN, z, label=name))
        row = {"name": name, "cosine": truth.mean(near[run])._asdict()}
        rows.append({**row, **truth.row(found)})
    found = truth.difference(near["x_0"], near["eps"])
    name = "cosine to the true z_img, z_img predicted - noise predicted"
    return {"rows": rows, "tests": [verdict.inequality(name, found, captions=truth.count)]}
