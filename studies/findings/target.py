"""The target of the prior: the embedding or its noise."""

from typing import Any

from studies import statistics
from studies.findings import baseline_runs
from studies.findings.harness import Harness
from studies.scoring import cosine, table_row

TITLE = "Target of the prior"
SOURCE = "section 2.2, equation 2"
CLAIM = "Predicting the unnoised z_img works better in the prior than predicting the noise."
ABOUT = (
    "Two priors trained for equally many steps that differ only in the target, one sample each, "
    "decoded by the same decoder. Learning rate, sampler and number of steps are those of the "
    "prior that predicts z_img. Nothing was tuned for the other prior, except that its x_0, which "
    "magnifies errors of the noise at high noise levels, is also clipped to 5 standard deviations, "
    "as Karlo's is. *cosine*: to the true z_img."
)
LIMIT = 5.0
CHART = ("bars", "cosine", "frechet", "followed")


def measure(harness: Harness) -> dict[str, Any]:
    """Samples from priors with either target."""
    examples, cosines, rows = harness.examples, {}, []
    systems = {
        "predicts z_img": ("x_0", None),
        "predicts the noise": ("eps", None),
        "predicts the noise, x_0 clipped": ("eps", LIMIT),
    }
    for name, (run, limit) in systems.items():
        z = harness.sample_prior(run, examples, candidates=1, limit=limit)
        cosines[name] = cosine(z, examples.z_img)
        scored = harness.score(harness.sample_images(baseline_runs.MAIN, z, label=name))
        row = {"name": name, "cosine": examples.mean(cosines[name])._asdict()}
        rows.append({**row, **table_row(examples, scored)})
    estimate = examples.difference(
        cosines["predicts z_img"], cosines["predicts the noise, x_0 clipped"]
    )
    name = "cosine to the true z_img, z_img predicted - noise predicted with x_0 clipped"
    return {
        "rows": rows,
        "tests": [statistics.inequality(name, estimate, captions=examples.count)],
    }
