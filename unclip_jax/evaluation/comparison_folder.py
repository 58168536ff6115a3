"""The folder of a comparison: files that raters may see, and the key, which they may not.

    comparison.json, index.html, pictures/     without the models
    answers/RATER.jsonl                        one line per answer
    key/protocol.json, sides.json, report.md   the models of both sides

Pictures are named by prompt, side and number, and stored without compression, so neither names nor
sizes of files depend on the model.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from unclip_jax.core import digests, json_text
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import read_small
from unclip_jax.evaluation import protocol_folder
from unclip_jax.evaluation.prompts import Prompt

COMPARISON, PICTURES, ANSWERS, KEY = "comparison.json", "pictures", "answers", "key"
SIDES = ("left", "right")
MODELS = ("A", "B")
ADVICE = "run `evaluate compare` again."


@dataclasses.dataclass(frozen=True)
class ComparedPrompt:
    """A prompt of a comparison.

    Attributes:
        id: digest of its row, category and text.
        number: row in the prompt file, from 1.
        category: category in the file.
        text: the caption.
    """

    id: str
    number: int
    category: str
    text: str

    def pictures(self, side: str, images: int) -> list[str]:
        """Returns the names of the pictures of one side."""
        return [f"{self.number:04d}_{side}_{index:02d}.png" for index in range(1, images + 1)]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison as raters see it, without the models.

    Attributes:
        id: digest of prompts, models, sides and seed.
        images: images of each side.
        prompts: in the order of their file.
    """

    id: str
    images: int
    prompts: tuple[ComparedPrompt, ...]


def identify(prompts: Sequence[Prompt]) -> tuple[ComparedPrompt, ...]:
    """Returns the prompts with identifiers, which differ even between equal texts."""
    return tuple(
        ComparedPrompt(
            digests.of_json([number, *prompt])[:12], number, prompt.category, prompt.text
        )
        for number, prompt in enumerate(prompts, 1)
    )


def write(folder: pathlib.Path, comparison: Comparison) -> None:
    """Writes the comparison as raters see it; this is the last file of a complete folder."""
    text = json.dumps(dataclasses.asdict(comparison), indent=2, ensure_ascii=False)
    protocol_folder.write(folder / COMPARISON, text + "\n")


def read(folder: pathlib.Path) -> Comparison:
    """Reads the comparison in a folder.

    Raises:
        UserError: there is no comparison, or it is damaged.
    """
    path = folder / COMPARISON
    if not path.is_file():
        raise UserError(f"{folder} holds no {COMPARISON}; give a folder that `compare` wrote.")
    content = json_text.parse_object(read_small(path), where=str(path), advice=ADVICE)
    try:
        prompts = tuple(ComparedPrompt(**row) for row in content["prompts"])
        comparison = Comparison(str(content["id"]), int(content["images"]), prompts)
        if not all(isinstance(prompt.number, int) for prompt in prompts):
            raise TypeError("a number of a prompt")
        return comparison
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}); {ADVICE}") from None


def draw_sides(categories: Sequence[str], entropy: Sequence[int]) -> list[str]:
    """Draws the model on the left of every prompt.

    In every category, and in all together, the numbers of prompts with A and with B on the left
    differ by one at most: sides alternate along a random order in which categories stay together.

    Args:
        categories: categories of the prompts, in order.
        entropy: integers that seed the draw.
    """
    rng = np.random.default_rng(list(entropy))
    names = list(dict.fromkeys(categories))
    order = [
        row
        for name in rng.permutation(len(names))
        for row in rng.permutation(np.flatnonzero([c == names[name] for c in categories]))
    ]
    first = int(rng.integers(2))
    left = [""] * len(categories)
    for position, row in enumerate(order):
        left[row] = MODELS[(first + position) % 2]
    return left


def stored_sides(
    folder: pathlib.Path, prompts: Sequence[ComparedPrompt], draw: Sequence[str]
) -> list[str]:
    """Returns the model on the left of every prompt, by the key of the folder.

    Args:
        folder: folder of the comparison.
        prompts: prompts of the comparison.
        draw: sides to store if there is no key yet. An existing key is not changed, because
            pictures and answers depend on it.

    Raises:
        UserError: the key is damaged.
    """
    path = folder / KEY / "sides.json"
    if not path.is_file():
        left = {prompt.id: model for prompt, model in zip(prompts, draw, strict=True)}
        text = json.dumps({"left": left}, indent=2)
        protocol_folder.write(path, text + "\n")
        return list(draw)
    advice = "the models of the sides are lost; delete the folder, or give another --out."
    content = json_text.parse_object(read_small(path), where=str(path), advice=advice)
    left = content.get("left")
    sides = [str(left.get(prompt.id)) for prompt in prompts] if isinstance(left, Mapping) else []
    if not sides or not set(sides) <= set(MODELS):
        raise UserError(f"{path} has no side for some prompts; {advice}")
    return sides
