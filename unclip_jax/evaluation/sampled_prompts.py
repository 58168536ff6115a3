"""Reads the output of `evaluate prompts`, and checks whether two outputs are comparable."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from unclip_jax.core import json_text
from unclip_jax.core.checks import UserError, short
from unclip_jax.core.files import read_small
from unclip_jax.evaluation import image_sets, prompts, protocol_folder, sampled_set
from unclip_jax.evaluation.image_sets import ImageSet
from unclip_jax.evaluation.prompts import Prompt

AGAIN = "run `evaluate prompts` with the same arguments again"
_CHANCE = ("seed", "part")  # fields of a protocol that do not depend on the model


@dataclasses.dataclass(frozen=True)
class SampledPrompts:
    """One output of `evaluate prompts`.

    Attributes:
        folder: its path, for messages and reports.
        prompts: in order.
        images: images per prompt.
        protocol: description of the models and their settings.
        scores: CLIP score of every prompt; None for a chain without a CLIP.
        image_set: the images, prompt by prompt.
    """

    folder: pathlib.Path
    prompts: tuple[Prompt, ...]
    images: int
    protocol: dict[str, Any]
    scores: np.ndarray | None
    image_set: ImageSet


def open_sampled(folder: pathlib.Path) -> SampledPrompts:
    """Opens an output of `evaluate prompts`.

    Raises:
        UserError: the folder is not such an output, unfinished, damaged, or of an earlier version.
    """
    result, protocol = folder / prompts.RESULT, folder / protocol_folder.PROTOCOL
    if not result.is_file():
        if protocol.is_file():
            raise UserError(f"{folder} is unfinished: it has no {result.name}; {AGAIN}.")
        raise UserError(
            f"{folder} is not an output of `evaluate prompts`; give a folder that it wrote."
        )
    content = json_text.parse_object(read_small(result), where=str(result), advice=f"{AGAIN}.")
    rows, images = content.get("prompts"), content.get("images")
    if not isinstance(rows, list):
        raise UserError(
            f"{result} lists no prompts, since an earlier version wrote it; {AGAIN}; existing "
            "images are kept."
        )
    try:
        listed = tuple(Prompt(str(row["category"]), str(row["text"])) for row in rows)
        values = [row["clip_score"] for row in rows]
        scores = None if None in values else np.array(values, np.float64)
        facts = dict(content["protocol"])
        count, part = int(facts["count"]), int(facts["part"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{result} is damaged ({error!r}); {AGAIN}.") from None
    if not listed or not isinstance(images, int) or count != images * len(listed) or part < 1:
        raise UserError(
            f"{result} states {short(images)} images for each of {len(listed)} prompts and {count} "
            f"in all; {AGAIN}."
        )
    image_set = _image_set(folder, count=count, part=part)
    return SampledPrompts(folder, listed, images, facts, scores, image_set)


def check_comparable(a: SampledPrompts, b: SampledPrompts) -> None:
    """Checks that two outputs have the same prompts and numbers of images.

    Raises:
        UserError: they differ; the message names the first difference.
    """
    if len(a.prompts) != len(b.prompts):
        raise UserError(
            f"{a.folder} has {len(a.prompts)} prompts, {b.folder} has {len(b.prompts)}; sample "
            "both from the same file."
        )
    for number, (one, other) in enumerate(zip(a.prompts, b.prompts, strict=True), 1):
        for name in Prompt._fields:
            here, there = getattr(one, name), getattr(other, name)
            if here != there:
                raise UserError(
                    f"the {name} of prompt {number} is {short(here)} in {a.folder} and "
                    f"{short(there)} in {b.folder}; sample both from the same file."
                )
    if a.images != b.images:
        raise UserError(
            f"{a.folder} has {a.images} images per prompt, {b.folder} has {b.images}; sample both "
            "with the same --images."
        )


def warnings_of(a: SampledPrompts, b: SampledPrompts) -> list[str]:
    """Returns warnings about a comparison of two outputs."""
    lines = []
    if a.protocol == b.protocol:
        lines.append("A and B are the same images: models, settings and seed agree.")
    elif _model(a) == _model(b):
        lines.append(
            "A and B are of the same models and settings; only their images' seeds differ."
        )
    if a.image_set.size != b.image_set.size:
        small, large = sorted((a, b), key=lambda each: min(each.image_set.size))
        name = "A" if small is a else "B"
        lines.append(
            f"images of {name} are enlarged from {_times(small)} to {_times(large)} pixels, the "
            "size of the other model's."
        )
    return lines


def clip_of(a: SampledPrompts, b: SampledPrompts) -> str | None:
    """Returns the CLIP whose scores both outputs have; None if there is no common one."""
    if a.scores is None or b.scores is None or a.protocol.get("clip") != b.protocol.get("clip"):
        return None
    return a.protocol.get("clip")


def _image_set(folder: pathlib.Path, *, count: int, part: int) -> ImageSet:
    """Opens the parts of an output, which must be complete."""
    paths = [folder / sampled_set.FOLDER / f"{n:06d}.npz" for n in range(0, count, part)]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{folder} is unfinished: there is no {path}; {AGAIN}.")
    image_set = image_sets.from_parts(paths)
    if image_set.count != count:
        raise UserError(
            f"{folder} is unfinished: its parts hold {image_set.count} images of {count}; delete "
            f"{folder / sampled_set.FOLDER} and {AGAIN}."
        )
    return image_set


def _model(sampled: SampledPrompts) -> dict[str, Any]:
    return {name: value for name, value in sampled.protocol.items() if name not in _CHANCE}


def _times(sampled: SampledPrompts) -> str:
    height, width = sampled.image_set.size
    return f"{width} x {height}"
