"""The diffusion prior against the autoregressive one, with the same decoder."""

from typing import Any

from studies import statistics
from studies.findings import baseline_runs
from studies.findings.harness import Harness
from studies.scoring import cosine, table_row

TITLE = "Prior type"
SOURCE = "section 2.2, Tables 1 and 2"
CLAIM = (
    "The diffusion prior is better than the autoregressive one: COCO FID 10.39 against 10.63, and "
    "compared with GLIDE, people prefer its images more often for captions and diversity."
)
ABOUT = (
    "The table of baselines states how long each prior was trained (in Table 3 of the paper, "
    "600,000 steps, and 1,000,000 for the autoregressive prior). Decoder, captions and noise are "
    "the same. *cosine*: to the true z_img."
)
CHART = ("bars", "frechet", "followed", "cosine")


def measure(harness: Harness) -> dict[str, Any]:
    """Samples images from either prior, from z_txt and from the true z_img."""
    examples = harness.examples
    sources = {
        "diffusion prior": harness.z_img("x_0"),
        "autoregressive prior": harness.z_img("autoregressive"),
        "no prior: z_txt as z_img": examples.z_txt,
        "the true z_img": examples.z_img,
    }
    cosines = {name: cosine(z, examples.z_img) for name, z in sources.items()}
    scored = {
        name: harness.score(harness.sample_images(baseline_runs.MAIN, z, label=name))
        for name, z in sources.items()
    }
    rows = [
        {
            "name": name,
            "cosine": examples.mean(cosines[name])._asdict(),
            **table_row(examples, entry),
        }
        for name, entry in scored.items()
    ]
    diffusion, autoregressive = scored["diffusion prior"], scored["autoregressive prior"]
    tests = [
        statistics.inequality(
            "Fréchet distance, autoregressive - diffusion",
            examples.distances(lambda distance: distance(autoregressive.z) - distance(diffusion.z)),
            captions=examples.count,
        ),
        statistics.inequality(
            "captions followed, diffusion - autoregressive",
            examples.difference(diffusion.followed, autoregressive.followed),
            captions=examples.count,
        ),
        statistics.inequality(
            "cosine to the true z_img, diffusion - autoregressive",
            examples.difference(cosines["diffusion prior"], cosines["autoregressive prior"]),
            captions=examples.count,
        ),
    ]
    return {"rows": rows, "tests": tests}
