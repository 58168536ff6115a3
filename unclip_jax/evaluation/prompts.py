"""Prompt files by category, as DrawBench's: draw every prompt, look at them, score by category.

    python -m unclip_jax.evaluate prompts drawbench.tsv --models=RUN --out=DIR --images=4

FILE is a TSV, CSV or JSONL with a prompt and a category per row. OUT gets a labelled grid per
category and prompts.json; in the shapes world the exact checker joins in.
"""

import argparse
import csv
import io
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from unclip_jax.cli import flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, positive
from unclip_jax.core.picture import labelled_grid
from unclip_jax.evaluation import feature_extraction, sampled_set, sweep_points
from unclip_jax.evaluation.image_sets import PictureSet
from unclip_jax.inference import load
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.metrics import scores, shapes_checker
from unclip_jax.metrics.extractors import clip
from unclip_jax.metrics.intervals import bootstrap
from unclip_jax.metrics.kernels import unit

PROMPT = ("prompt", "prompts", "caption", "text")  # names of the column
CATEGORY = ("category", "categories")
COLUMNS = tuple(name for name in shapes_checker.SUMMARY if name != "background")
SEPARATORS = {".tsv": "\t", ".csv": ","}


class Prompt(NamedTuple):
    """One row of a prompt file."""

    category: str
    text: str


def parser() -> Parser:
    """Command-line arguments."""
    made = Parser(
        "evaluate prompts",
        description="Draw and score a file of prompts by category.",
    )
    made.add_argument("file", type=pathlib.Path, help="TSV, CSV or JSONL: prompt, category")
    made.add_argument("--images", type=int, default=4, help="pictures per prompt")
    sampled_set.add_drawing(made)
    return made


def run(args: argparse.Namespace) -> None:
    """Draw what is missing, write grids and OUT/prompts.json, print a table.

    Args:
        args: of `parser`.

    Raises:
        UserError: a mistake in the arguments, the file or the models.
    """
    sampled_set.check(args)
    positive("--images", args.images)
    prompts = read(args.file)
    flags.check_captions([prompt.text for prompt in prompts])
    loaded = load.load_cascade(args.models, prior_name=args.prior)
    captions = [prompt.text for prompt in prompts for _ in range(args.images)]
    drawn = sampled_set.sample_all(args, loaded, captions)
    images = np.concatenate(list(drawn.batches(args.batch, slice(None))))
    studio = InferenceEngine(loaded, batch=args.batch)
    cosines = _cosines(studio, drawn, captions, batch=args.batch)
    found = by_category(prompts, cosines.reshape(len(prompts), -1), images=images)
    if jax.process_index() > 0:
        return
    rows = np.arange(len(captions)).reshape(len(prompts), -1)
    for category in found:
        mine = [index for index, prompt in enumerate(prompts) if prompt.category == category]
        taken = rows[mine].ravel()
        labels = [captions[int(i)] for i in taken]
        grid = labelled_grid(images[taken], labels=labels, columns=args.images)
        grid.save(args.out / f"{slug(category)}.png")
    protocol = json.loads((args.out / "protocol.json").read_text())
    told = "CLIP score: 100 x cosine in the cascade's own CLIP, mean over prompts, bootstrapped"
    whole = {"file": args.file.name, "images": args.images, "score": told}
    text = json.dumps({**whole, "protocol": protocol, "categories": found}, indent=2)
    sweep_points.write(args.out / "prompts.json", text + "\n")
    sys.stdout.write(table(found))


def read(path: pathlib.Path) -> list[Prompt]:
    """The rows of a prompt file in order.

    Raises:
        UserError: no such file, another kind of file, a column that is missing, an empty cell, or
            two categories with one file name.
    """
    known = (*SEPARATORS, ".jsonl")
    if path.suffix.lower() not in known:
        raise UserError(f"{path} is none of {', '.join(known)}; save the prompts as one of them.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); save it as UTF-8.") from None
    rows = _jsonl(text, path) if path.suffix.lower() == ".jsonl" else _table(text, path)
    found = [_prompt(row, where=f"{path}, row {number}") for number, row in rows]
    if not found:
        raise UserError(f"{path} holds no prompt; give a row per prompt below the names.")
    names: dict[str, str] = {}
    for prompt in found:
        other = names.setdefault(slug(prompt.category), prompt.category)
        if other != prompt.category:
            raise UserError(
                f"{path}: categories {other!r} and {prompt.category!r} would share the file "
                f"{slug(other)}.png; rename one."
            )
    return found


def by_category(
    prompts: Sequence[Prompt], cosines: np.ndarray, *, images: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Scores of every category, in the order of the file, and of all together; JSON-ready.

    Args:
        prompts: in order.
        cosines: [prompts images] of a picture and its prompt.
        images: [prompts x images h w 3], likewise.
    """
    requests = [prompt.text for prompt in prompts for _ in range(cosines.shape[1])]
    known = shapes_checker.all_parse(requests)
    verdicts = shapes_checker.check(images, requests) if known else []
    rows = np.arange(len(requests)).reshape(cosines.shape)
    groups = {name: [p.category == name for p in prompts] for name in _order(prompts)}
    found = {}
    for name, chosen in groups.items():
        taken = np.flatnonzero(chosen)
        score = bootstrap(scores.CLIP_SCALE * cosines[taken].mean(axis=1))
        found[name] = {"prompts": len(taken), "clip_score": score._asdict()}
        if verdicts:
            rates = shapes_checker.report([verdicts[int(i)] for i in rows[taken].ravel()])
            found[name]["checker"] = {n: r._asdict() for n, r in rates.items() if r.total}
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """Categories as a person reads them."""
    checked = [n for n in COLUMNS if any(n in each.get("checker", {}) for each in found.values())]
    lines = [f"{'':28}{'prompts':>8}{'CLIP score':>24}" + "".join(f"{n:>10}" for n in checked)]
    for name, each in found.items():
        score = each["clip_score"]
        shown = f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"
        cells = [each.get("checker", {}).get(n) for n in checked]
        rates = "".join(f"{'-' if c is None else format(c['value'], '.2f'):>10}" for c in cells)
        lines.append(f"{name[:27]:28}{each['prompts']:>8}{shown:>24}{rates}")
    return "\n".join(lines) + "\n"


def slug(category: str) -> str:
    """A category as a file name."""
    return re.sub(r"[^a-z0-9]+", "_", category.lower()).strip("_") or "category"


def _order(prompts: Sequence[Prompt]) -> list[str]:
    return list(dict.fromkeys(prompt.category for prompt in prompts))


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
            raise UserError(f"{path}, row {number} is no JSON object; write one per line.")
        yield number, row


def _prompt(row: dict[str, Any], *, where: str) -> Prompt:
    cells = {str(name).strip().lower(): value for name, value in row.items()}
    return Prompt(_cell(cells, CATEGORY, where), _cell(cells, PROMPT, where))


def _cell(cells: dict[str, Any], names: Sequence[str], where: str) -> str:
    for name in names:
        if name in cells:
            value = cells[name]
            if isinstance(value, str) and value.strip():
                return " ".join(value.split())
            raise UserError(f"{where}: {name} is {value!r}; give a text.")
    raise UserError(f"{where} has columns {sorted(cells)}; one must be named {' or '.join(names)}.")


def _cosines(
    studio: InferenceEngine, drawn: PictureSet, captions: Sequence[str], *, batch: int
) -> np.ndarray:
    """Of every picture and its caption, in the cascade's own CLIP."""
    cascade, params = studio.cascade, studio.params
    judge = clip(params["clip"], cfg=cascade.clip.model, weights=studio.clip_id[:16])
    seen = feature_extraction.features(judge, drawn, batch_size=batch, name="CLIP")
    z_img = np.concatenate([each["pool"] for each in seen])
    z_txt = np.asarray(studio.text_embeddings(captions))
    return np.sum(unit(z_img) * unit(z_txt), axis=1)
