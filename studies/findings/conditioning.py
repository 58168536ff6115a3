"""What the decoder is told: a caption alone, z_txt zero-shot or trained, z_img drawn or true."""

from typing import Any

from studies import statistics
from studies.findings.harness import Workshop
from studies.scoring import Judged, Truth

TITLE = "What the decoder is told"
SOURCE = "section 5.1, Figure 8"
CLAIM = (
    "z_img from a prior is the best condition: FID 7.99, against 9.16 for a decoder trained on "
    "z_txt and 16.55 for z_txt given zero-shot; the caption alone is clearly worst."
)
ABOUT = (
    "One decoder told six things, and one trained on z_txt for as many steps; same captions, noise "
    "and guidance. The paper sweeps guidance for each, here it is as exported."
)
CHART = ("bars", "frechet", "followed")


def measure(shop: Workshop) -> dict[str, Any]:
    """Draw under every condition."""
    truth = shop.truth
    prior, nothing = shop.z_img("x_0"), truth.z_txt  # z_txt is not read there
    drawn = {
        "caption only": shop.draw("unclip", nothing, reads_z=False, label="caption only"),
        "z_txt, zero-shot": shop.draw("unclip", truth.z_txt, label="z_txt, zero-shot"),
        "z_txt, trained": shop.draw("z_txt", truth.z_txt, label="z_txt, trained"),
        "autoregressive prior": shop.draw("unclip", shop.z_img("autoregressive"), label="AR prior"),
        "diffusion prior": shop.draw("unclip", prior, label="diffusion prior"),
        "the true z_img": shop.draw("unclip", truth.z_img, label="the true z_img"),
    }
    judged = {name: shop.judge(images) for name, images in drawn.items()}
    rows = [{"name": name, **truth.row(found)} for name, found in judged.items()]
    return {"rows": rows, "tests": _tests(judged, truth)}


def _tests(judged: dict[str, Judged], truth: Truth) -> list[dict[str, Any]]:
    """The order of the paper's three figures, and the caption alone last."""
    pairs = [
        ("z_txt, trained", "diffusion prior"),
        ("z_txt, zero-shot", "z_txt, trained"),
        ("z_txt, zero-shot", "diffusion prior"),
        ("caption only", "diffusion prior"),
    ]

    def apart(worse: str, better: str):
        return truth.distances(lambda d: d(judged[worse].z) - d(judged[better].z))

    return [
        statistics.inequality(
            f"Fréchet distance, {worse} - {better}",
            apart(worse, better),
            captions=truth.count,
        )
        for worse, better in pairs
    ]
