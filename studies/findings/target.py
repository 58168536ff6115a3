"""What the prior predicts: the embedding itself, or the noise in it."""

from typing import Any

from studies import statistics
from studies.findings import baseline_runs
from studies.findings.harness import Workshop
from studies.scoring import cosine

TITLE = "What the prior predicts"
SOURCE = "section 2.2, equation 2"
CLAIM = "In the prior it is better to predict the unnoised z_img than the noise."
ABOUT = (
    "Two priors of equal length that differ in nothing but the target, one draw each, pictures by "
    "the same decoder. Rates, sampler and number of steps are those of the prior that predicts "
    "z_img; nothing was tuned for the other, but that its x_0, in which errors of the noise are "
    "magnified where there is much of it, is also held within 5 standard deviations, as Karlo is "
    "sampled. *cosine*: to the true z_img."
)
LIMIT = 5.0
CHART = ("bars", "cosine", "frechet", "followed")


def measure(shop: Workshop) -> dict[str, Any]:
    """Draw from both."""
    truth, near, rows = shop.truth, {}, []
    arms = {
        "predicts z_img": ("x_0", None),
        "predicts the noise": ("eps", None),
        "predicts the noise, x_0 held": ("eps", LIMIT),
    }
    for name, (run, limit) in arms.items():
        z = shop.imagine(run, truth, candidates=1, limit=limit)
        near[name] = cosine(z, truth.z_img)
        found = shop.judge(shop.draw(baseline_runs.MAIN, z, label=name))
        row = {"name": name, "cosine": truth.mean(near[name])._asdict()}
        rows.append({**row, **truth.row(found)})
    found = truth.difference(near["predicts z_img"], near["predicts the noise, x_0 held"])
    name = "cosine to the true z_img, z_img predicted - noise predicted with x_0 held"
    return {"rows": rows, "tests": [statistics.inequality(name, found, captions=truth.count)]}
