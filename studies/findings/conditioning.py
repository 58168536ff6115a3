"""Conditions of the decoder: a caption alone, z_txt zero-shot or trained, several z_img."""

from typing import Any

from studies import statistics
from studies.evaluation_set import EvaluationSet
from studies.findings.harness import Harness
from studies.scoring import ScoredImages, table_row

TITLE = "Conditions of the decoder"
SOURCE = "section 5.1, Figure 8"
CLAIM = (
    "z_img from a prior is the best condition: FID 7.99, against 9.16 for a decoder trained on "
    "z_txt and 16.55 for z_txt zero-shot; the caption alone is clearly worst."
)
ABOUT = (
    "One decoder under six conditions, and a second decoder trained on z_txt for as many steps, "
    "with the same captions, noise and guidance. The paper sweeps guidance for each; here it is "
    "the exported one."
)
CHART = ("bars", "frechet", "followed")


def measure(harness: Harness) -> dict[str, Any]:
    """Samples under every condition."""
    examples = harness.examples
    z_txt, z_img = examples.z_txt, examples.z_img
    prior, autoregressive = harness.z_img("x_0"), harness.z_img("autoregressive")
    sample = harness.sample_images
    images = {  # without z_img the decoder ignores its argument
        "caption only": sample("unclip", z_txt, reads_z=False, label="caption only"),
        "z_txt, zero-shot": sample("unclip", z_txt, label="z_txt, zero-shot"),
        "z_txt, trained": sample("z_txt", z_txt, label="z_txt, trained"),
        "autoregressive prior": sample("unclip", autoregressive, label="AR prior"),
        "diffusion prior": sample("unclip", prior, label="diffusion prior"),
        "the true z_img": sample("unclip", z_img, label="the true z_img"),
    }
    scored = {name: harness.score(batch) for name, batch in images.items()}
    rows = [{"name": name, **table_row(examples, entry)} for name, entry in scored.items()]
    return {"rows": rows, "tests": _tests(scored, examples)}


def _tests(scored: dict[str, ScoredImages], examples: EvaluationSet) -> list[dict[str, Any]]:
    """Tests the order of the paper's three figures, and that the caption alone is worst."""
    pairs = [
        ("z_txt, trained", "diffusion prior"),
        ("z_txt, zero-shot", "z_txt, trained"),
        ("z_txt, zero-shot", "diffusion prior"),
        ("caption only", "diffusion prior"),
    ]

    def difference(worse: str, better: str):
        return examples.distances(
            lambda distance: distance(scored[worse].z) - distance(scored[better].z)
        )

    return [
        statistics.inequality(
            f"Fréchet distance, {worse} - {better}",
            difference(worse, better),
            captions=examples.count,
        )
        for worse, better in pairs
    ]
