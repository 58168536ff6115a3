"""The diffusion prior against the autoregressive one, drawn by the same decoder."""

from typing import Any

from studies import statistics
from studies.findings import baseline_runs
from studies.findings.harness import Workshop
from studies.scoring import cosine

TITLE = "Which prior"
SOURCE = "section 2.2, Tables 1 and 2"
CLAIM = (
    "The diffusion prior is better than the autoregressive one: COCO FID 10.39 against 10.63, and "
    "against GLIDE people prefer its pictures more often for captions and diversity."
)
ABOUT = (
    "How long either prior was trained is in the table above (in Table 3 of the paper 600,000 "
    "steps, and 1,000,000 for the autoregressive one); decoder, captions and noise are the same. "
    "*cosine*: to the true z_img."
)
CHART = ("bars", "frechet", "followed", "cosine")


def measure(shop: Workshop) -> dict[str, Any]:
    """Draw from either prior, from z_txt and from the true z_img."""
    truth = shop.truth
    origins = {
        "diffusion prior": shop.z_img("x_0"),
        "autoregressive prior": shop.z_img("autoregressive"),
        "no prior: z_txt as z_img": truth.z_txt,
        "the true z_img": truth.z_img,
    }
    near = {name: cosine(z, truth.z_img) for name, z in origins.items()}
    judged = {
        name: shop.judge(shop.draw(baseline_runs.MAIN, z, label=name))
        for name, z in origins.items()
    }
    rows = [
        {"name": name, "cosine": truth.mean(near[name])._asdict(), **truth.row(found)}
        for name, found in judged.items()
    ]
    one, other = judged["diffusion prior"], judged["autoregressive prior"]
    tests = [
        statistics.inequality(
            "Fréchet distance, autoregressive - diffusion",
            truth.distances(lambda distance: distance(other.z) - distance(one.z)),
            captions=truth.count,
        ),
        statistics.inequality(
            "captions followed, diffusion - autoregressive",
            truth.difference(one.followed, other.followed),
            captions=truth.count,
        ),
        statistics.inequality(
            "cosine to the true z_img, diffusion - autoregressive",
            truth.difference(near["diffusion prior"], near["autoregressive prior"]),
            captions=truth.count,
        ),
    ]
    return {"rows": rows, "tests": tests}
