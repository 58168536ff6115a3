"""Compares two models on the same prompts, side by side and blind, as DrawBench's raters did.

Imagen, arXiv 2205.11487, section 4.3 and appendix C: raters see two sets of images of a prompt and
say which has the higher quality and which represents the caption better. `compare` writes the
folder that raters see (comparison_folder.py) and the report of their answers so far, with the
exact checker of the procedural worlds and the CLIP score.
"""

import dataclasses
import io
import json
import pathlib
import sys
from typing import Any

import numpy as np
from PIL import Image

from unclip_jax.core import digests
from unclip_jax.core.checks import UserError, check_seed
from unclip_jax.core.files import write_atomically
from unclip_jax.evaluation import (
    comparison_folder,
    comparison_page,
    image_sets,
    preferences,
    protocol_folder,
    questionnaire,
    sampled_prompts,
)
from unclip_jax.evaluation.comparison_folder import KEY, PICTURES, SIDES, Comparison
from unclip_jax.evaluation.sampled_prompts import SampledPrompts
from unclip_jax.metrics import worlds
from unclip_jax.metrics.worlds import WorldChecks


@dataclasses.dataclass(frozen=True)
class ComparisonConfig:
    """A comparison of two outputs of `evaluate prompts`.

    Attributes:
        a: folder of model A.
        b: folder of model B.
        out: folder to write.
        seed: seed of the sides.
    """

    a: pathlib.Path
    b: pathlib.Path
    out: pathlib.Path
    seed: int = 0

    def __post_init__(self):
        """Checks the seed, and that the folders differ."""
        check_seed("--seed", self.seed)
        if self.out.resolve() in (self.a.resolve(), self.b.resolve()):
            raise UserError(f"--out is {str(self.out)!r}, a folder to compare; give another one.")


def compare(config: ComparisonConfig) -> dict[str, Any]:
    """Writes missing files of the folder and the report of the answers so far; returns the report.

    Raises:
        UserError: outputs that cannot be compared, a folder of another comparison, or answers that
            do not belong to it.
    """
    a, b = sampled_prompts.open_sampled(config.a), sampled_prompts.open_sampled(config.b)
    sampled_prompts.check_comparable(a, b)
    protocol = {
        "a": digests.of_json(a.protocol)[:16],
        "b": digests.of_json(b.protocol)[:16],
        "prompts": digests.of_json(a.prompts)[:16],
        "images": a.images,
        "seed": config.seed,
    }
    key = config.out / KEY
    protocol_folder.claim(key, protocol, first=True, contents="a comparison", folder=".")
    prompts = comparison_folder.identify(a.prompts)
    entropy = (config.seed, int(digests.of_json(protocol), 16))  # depends on the models
    draw = comparison_folder.draw_sides([prompt.category for prompt in prompts], entropy)
    left = comparison_folder.stored_sides(config.out, prompts, draw)
    identity = digests.of_json([protocol, left])[:16]
    comparison = Comparison(identity, a.images, prompts)
    if not (config.out / comparison_folder.COMPARISON).is_file():
        write_pictures(config.out / PICTURES, comparison, left, a, b)
        write_atomically(config.out / "index.html", comparison_page.page(comparison))
        comparison_folder.write(config.out, comparison)
    elif comparison_folder.read(config.out) != comparison:
        raise UserError(
            f"{config.out} is damaged: {comparison_folder.COMPARISON} and {KEY}/sides.json do not "
            "belong together; delete the folder, or give another --out."
        )
    report = report_of(config, comparison, left, a, b)
    protocol_folder.write(key / "report.json", json.dumps(report, indent=2) + "\n")
    protocol_folder.write(key / "report.md", preferences.markdown(report))
    return report


def write_pictures(
    folder: pathlib.Path,
    comparison: Comparison,
    left: list[str],
    a: SampledPrompts,
    b: SampledPrompts,
) -> None:
    """Writes the images of both models under the names of their sides.

    All are PNG files of one size in pixels and in bytes: smaller images are enlarged, and nothing
    is compressed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = max(*a.image_set.size, *b.image_set.size)
    sets = [image_sets.resized(each.image_set, size) for each in (a, b)]
    batches = (each.batches(comparison.images, slice(None)) for each in sets)
    for prompt, model, images in zip(
        comparison.prompts, left, zip(*batches, strict=True), strict=True
    ):
        by_side = dict(zip(SIDES, images if model == "A" else images[::-1], strict=True))
        for side in SIDES:
            names = prompt.pictures(side, comparison.images)
            for name, image in zip(names, by_side[side], strict=True):
                write_atomically(folder / name, _png(image))
    sys.stderr.write(f"{2 * comparison.images * len(left)} images in {folder}\n")


def report_of(
    config: ComparisonConfig,
    comparison: Comparison,
    left: list[str],
    a: SampledPrompts,
    b: SampledPrompts,
) -> dict[str, Any]:
    """Computes the report of the answers so far, the checker and the CLIP score; JSON-ready.

    Raises:
        UserError: answers that do not belong to the comparison.
    """
    answers, warnings = questionnaire.all_answers(config.out, comparison)
    categories = [prompt.category for prompt in comparison.prompts]
    world = worlds.world_of([prompt.text for prompt in comparison.prompts])
    checker = clip_score = None
    if world is not None:
        criteria = (criteria_met(each, world) for each in (a, b))
        checker = preferences.by_checker(categories, *criteria)
    if sampled_prompts.clip_of(a, b) is not None:
        assert a.scores is not None and b.scores is not None
        clip_score = preferences.by_clip(categories, a.scores, b.scores)
    return {
        "comparison": comparison.id,
        "models": {
            name: {"folder": str(each.folder), "protocol": each.protocol}
            for name, each in (("A", a), ("B", b))
        },
        "seed": config.seed,
        "prompts": len(comparison.prompts),
        "images": comparison.images,
        "raters": sorted({answer.rater for answer in answers}),
        "answers": len(answers),
        "warnings": [*sampled_prompts.warnings_of(a, b), *warnings],
        "people": preferences.by_people(comparison, answers, left),
        "checker": checker,
        "clip_score": clip_score,
    }


def criteria_met(sampled: SampledPrompts, world: WorldChecks) -> np.ndarray:
    """Counts the criteria of the caption that the images of every prompt meet in total."""
    counts = []
    batches = sampled.image_set.batches(sampled.images, slice(None))
    for prompt, images in zip(sampled.prompts, batches, strict=True):
        verdicts = world.check(images, [prompt.text] * len(images))
        counts.append(sum(getattr(v, name) is True for v in verdicts for name in world.criteria))
    return np.array(counts)


def _png(image: np.ndarray) -> bytes:
    """Encodes without compression, so that the file size depends only on the image size."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
