"""The page: the systems in one table, their training, and images of the same captions in rows."""

import pathlib
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import markdown_page
from benchmarks.markdown_page import cell, table
from unclip_jax.core import picture

TITLE = "# The history of text-to-image generation in miniature\n\n"
SCORES = ("followed", "joint", "shape", "relation", "binding", "frechet", "diversity")
HEADS = {"followed": "caption followed", "joint": "all at once", "frechet": "Fréchet distance"}


def write(out: pathlib.Path, report: dict[str, Any]) -> None:
    """Writes the tables between the marks of the page, or a new page.

    Raises:
        UserError: the page has no marks, or a file cannot be written.
    """
    text = "\n".join([protocol(report), scores(report), costs(report), training(report)])
    text += f"\n![Images of the same captions]({grid_file(out).name})\n"
    markdown_page.write(out, text, report, title=TITLE)


def grid_file(out: pathlib.Path) -> pathlib.Path:
    """Returns the file of the images beside a page."""
    return out.with_suffix(".png")


def write_grid(out: pathlib.Path, images: dict[str, np.ndarray], captions: list[str]) -> None:
    """Draws one row of images per caption, one column per system."""
    tiles = np.stack([column[i] for i in range(len(captions)) for column in images.values()])
    names = list(images)
    labels = [f"{name}: {captions[i]}" for i in range(len(captions)) for name in names]
    sheet = picture.labelled_grid(tiles, labels=labels, columns=len(names))
    sheet.quantize(128, dither=Image.Dither.NONE).save(grid_file(out), optimize=True)


def protocol(report: dict[str, Any]) -> str:
    """Formats a paragraph about the captions and the machine."""
    facts = report["facts"]
    return (
        f"{facts['date']}, {facts['device']}, JAX {facts['jax']}: {facts['num']} captions of "
        f"`{facts['split']}`, {facts['images']} images of each, seed {facts['seed']}. Images are "
        f"judged at {facts['side']} px. {facts['note']}".rstrip()
        + "\n"
        + (f"\nNot measured yet: {', '.join(facts['missing'])}.\n" if facts["missing"] else "")
    )


def scores(report: dict[str, Any]) -> str:
    """Formats the scores with 95 % intervals over captions."""
    heads = ("system", *(HEADS.get(name, name) for name in SCORES))
    rows = [[row["name"], *(cell(row[name]) for name in SCORES)] for row in report["rows"]]
    return table(heads, rows)


def costs(report: dict[str, Any]) -> str:
    """Formats sizes and costs of the systems."""
    heads = ("system", "paper", "px", "parameters", "GFLOPs per image", "seconds per image")
    rows = [
        [
            row["name"],
            row["paper"],
            str(row["side"]),
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['flops'] / 1e9:.3g}",
            f"{row['seconds']:.2g}",
        ]
        for row in report["rows"]
        if "side" in row
    ]
    return table(heads, rows)


def training(report: dict[str, Any]) -> str:
    """Formats steps and compute of every stage."""
    heads = ("stage", "of", "steps", "batch", "training TFLOPs", "minutes")
    rows = []
    for name, stage in report["stages"].items():
        minutes = stage.get("minutes")
        cells = [name, ", ".join(stage["systems"]), str(stage["steps"]), str(stage["batch"])]
        cells += [f"{stage['flops'] / 1e12:.3g}", "" if minutes is None else f"{minutes:.1f}"]
        rows.append(cells)
    return table(heads, rows)
