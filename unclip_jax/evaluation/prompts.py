"""Evaluates prompt files with categories, such as DrawBench: samples all, and scores by category.

A file is a TSV, CSV or JSONL with a prompt and a category per row, or prompts alone, which may be
the lines of a .txt. OUT receives a labelled grid per category and prompts.json; captions of the
procedural worlds are also scored by the exact checker. Chains without a CLIP have no CLIP score.
"""

import csv
import dataclasses
import io
import itertools
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError, check_unicode, positive
from unclip_jax.core.picture import labelled_grid
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.evaluation import feature_extraction, protocol_folder, sampled_set
from unclip_jax.evaluation.image_sets import ImageSet
from unclip_jax.evaluation.sampled_set import SampledSetConfig
from unclip_jax.metrics import scores, worlds
from unclip_jax.metrics.extractors import clip
from unclip_jax.metrics.intervals import bootstrap

PROMPT = ("prompt", "prompts", "caption", "text")  # names of the column
CATEGORY = ("category", "categories")
RESULT = "prompts.json"
ALL = "all"  # the category of prompts without one
_MOST_BYTES = 120  # of a file name
COLUMNS = tuple(name for name in worlds.SUMMARY if name != "background")
SCORE = "CLIP score: 100 x cosine in the cascade's own CLIP, mean over prompts, bootstrapped"
SEPARATORS = {".tsv": "\t", ".csv": ","}


class Prompt(NamedTuple):
    """One row of a prompt file."""

    category: str
    text: str


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """An evaluation on categorised prompts.

    Attributes:
        prompts: in order; see `read`.
        source: name of their file, for the result.
        sampling: how the images are sampled.
        images: images per prompt.
    """

    prompts: tuple[Prompt, ...]
    source: str
    sampling: SampledSetConfig
    images: int = 4

    def __post_init__(self):
        """Checks the number of images."""
        positive("--images", self.images)


def evaluate_prompts(config: PromptsConfig) -> dict[str, dict[str, Any]]:
    """Samples the missing images, writes grids and OUT/prompts.json; returns the scores.

    Raises:
        UserError: the models or the settings cannot be used.
    """
    out, batch, prompts = config.sampling.out, config.sampling.batch, config.prompts
    loaded = config.sampling.load()
    captions = [prompt.text for prompt in prompts for _ in range(config.images)]
    image_set = sampled_set.sample_all(config.sampling, loaded, captions)
    images = np.concatenate(list(image_set.batches(batch, slice(None))))
    cosines = None
    if loaded.cascade.has("clip"):
        engine = InferenceEngine(loaded, batch=batch)
        cosines = _cosines(engine, image_set, captions, batch=batch).reshape(len(prompts), -1)
    categories = by_category(prompts, cosines, images=images)
    if jax.process_index() > 0:
        return categories
    rows = np.arange(len(captions)).reshape(len(prompts), -1)
    names = file_names(categories)
    for category in categories:
        members = [index for index, prompt in enumerate(prompts) if prompt.category == category]
        selected = rows[members].ravel()
        labels = [captions[int(i)] for i in selected]
        grid = labelled_grid(images[selected], labels=labels, columns=config.images)
        grid.save(out / f"{names[category]}.png")
    result = {
        "file": config.source,
        "images": config.images,
        "score": None if cosines is None else SCORE,
        "protocol": json.loads((out / protocol_folder.PROTOCOL).read_text()),
        "categories": categories,
        "prompts": _as_json(prompts, cosines),
    }
    protocol_folder.write(out / RESULT, json.dumps(result, indent=2) + "\n")
    return categories


def read(path: pathlib.Path) -> list[Prompt]:
    """Reads the rows of a prompt file in order.

    Raises:
        UserError: no such file, another kind of file, a missing column, or an empty cell.
    """
    suffixes = (*SEPARATORS, ".jsonl", ".txt")
    if path.suffix.lower() not in suffixes:
        raise UserError(
            f"{path} is none of {', '.join(suffixes)}; save the prompts as one of them."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); save it as UTF-8.") from None
    readers = {".jsonl": _jsonl, ".txt": _lines}
    rows = readers.get(path.suffix.lower(), _table)(text, path)
    prompts = [_prompt(row, where=f"{path}, row {number}") for number, row in rows]
    if not prompts:
        raise UserError(f"{path} holds no prompt; give a row per prompt below the column names.")
    return prompts


def by_category(
    prompts: Sequence[Prompt], cosines: np.ndarray | None, *, images: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Computes the scores of every category, in the order of the file; JSON-ready.

    Args:
        prompts: in order.
        cosines: [prompts images] of an image and its prompt; None = no CLIP, and no CLIP score.
        images: [prompts x images h w 3], in the same order.
    """
    rows = np.arange(len(images)).reshape(len(prompts), -1)
    captions = [prompt.text for prompt in prompts for _ in rows[0]]
    world = worlds.world_of(captions)
    verdicts = world.check(images, captions) if world else []
    results: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(prompt.category for prompt in prompts):
        members = np.flatnonzero([prompt.category == name for prompt in prompts])
        results[name] = {"prompts": len(members)}
        if cosines is not None:
            score = bootstrap(scores.CLIP_SCALE * cosines[members].mean(axis=1))
            results[name]["clip_score"] = score._asdict()
        if world:
            rates = world.report([verdicts[int(i)] for i in rows[members].ravel()])
            results[name]["checker"] = worlds.as_json(rates)
    return results


def table(categories: dict[str, dict[str, Any]]) -> str:
    """Formats the scores as text, with a line per category."""
    columns = [
        n for n in COLUMNS if any(n in entry.get("checker", {}) for entry in categories.values())
    ]
    widths = [max(10, len(name) + 2) for name in columns]
    names = "".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True))
    lines = [f"{'':28}{'prompts':>8}{'CLIP score':>24}{names}"]
    for name, entry in categories.items():
        score, interval = entry.get("clip_score"), "-"
        if score is not None:
            interval = f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"
        cells = [entry.get("checker", {}).get(n) for n in columns]
        texts = ["-" if cell is None else format(cell["value"], ".2f") for cell in cells]
        rates = "".join(f"{t:>{width}}" for t, width in zip(texts, widths, strict=True))
        lines.append(f"{name[:27]:28}{entry['prompts']:>8}{interval:>24}{rates}")
    return "\n".join(lines) + "\n"


def file_names(categories: Iterable[str]) -> dict[str, str]:
    """Returns a file name for every category, without a suffix and all different.

    Letters and digits of any script are kept, in lower case; equal names are numbered.
    """
    names: dict[str, str] = {}
    for category in categories:
        plain = unicodedata.normalize("NFC", category).lower()
        stem = re.sub(r"\W+", "_", plain).strip("_").encode()[:_MOST_BYTES].decode(errors="ignore")
        numbered = (f"{stem or 'category'}_{number}" for number in itertools.count(2))
        candidates = itertools.chain([stem or "category"], numbered)
        names[category] = next(name for name in candidates if name not in names.values())
    return names


def _lines(text: str, path: pathlib.Path) -> Iterable[tuple[int, dict[str, Any]]]:
    del path
    return (
        (number, {"prompt": line})
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    )


def _table(text: str, path: pathlib.Path) -> Iterable[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=SEPARATORS[path.suffix.lower()]
    )
    return enumerate(reader, 2)


def _jsonl(text: str, path: pathlib.Path) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, row {number} is not JSON ({error}); correct it.") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number} is not a JSON object; write one per line.")
        yield number, row


def _prompt(row: dict[str, Any], *, where: str) -> Prompt:
    cells = {str(name).strip().lower(): value for name, value in row.items()}
    has_category = any(name in cells for name in CATEGORY) or len(cells) > 1
    category = _cell(cells, CATEGORY, where) if has_category else ALL
    return Prompt(category, _cell(cells, PROMPT, where))


def _cell(cells: dict[str, Any], names: Sequence[str], where: str) -> str:
    for name in names:
        if name in cells:
            value = cells[name]
            if isinstance(value, str) and value.strip():
                return check_unicode(f"{where}: {name}", " ".join(value.split()))
            raise UserError(f"{where}: {name} is {value!r}; give a text.")
    raise UserError(f"{where} has columns {sorted(cells)}; one must be named {' or '.join(names)}.")


def _as_json(prompts: Sequence[Prompt], cosines: np.ndarray | None) -> list[dict[str, Any]]:
    """Returns every prompt with its CLIP score, the mean over its images; None without a CLIP."""
    means = None if cosines is None else scores.CLIP_SCALE * cosines.mean(axis=1)
    return [
        {**prompt._asdict(), "clip_score": None if means is None else float(means[index])}
        for index, prompt in enumerate(prompts)
    ]


def _cosines(
    engine: InferenceEngine, images: ImageSet, captions: Sequence[str], *, batch: int
) -> np.ndarray:
    """Computes the cosine of every image and its caption in the cascade's own CLIP."""
    extractor = clip(
        engine.params["clip"], cfg=engine.cascade.clip.model, weights=engine.clip_id[:16]
    )
    batches = feature_extraction.features(extractor, images, batch_size=batch, name="CLIP")
    z_img = np.concatenate([features["pool"] for features in batches])
    z_txt = np.asarray(engine.text_embeddings(captions))
    return np.sum(unit(z_img.astype(np.float64)) * unit(z_txt.astype(np.float64)), axis=1)
