"""The page of the manipulations: tables as Markdown, and example images."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.markdown_page import interval, table
from studies.manipulations import red_to_blue
from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import labelled_grid
from unclip_jax.metrics.shapes_checker import SUMMARY

TITLE = "# Reconstruction and edits, measured\n\nWritten by `python -m studies.manipulations`.\n\n"
COLUMNS = 6  # columns of example images: the original, and five etas or thetas


def tables(result: dict[str, Any], parts: Sequence[str]) -> str:
    """Formats those of `parts` that were measured as Markdown."""
    text = (
        f"{result['num']} images of `{result['split']}` ({result['date']}, {result['device']}); "
        f"decoder on `{result['steps']}` steps with {result['refinements']} refinements unless a "
        f"row says otherwise, upsamplers on `{result['upsampler_steps'] or 'their own'}`; 95 % "
        "intervals.\n"
    )
    sections = [
        f"\n### {HEADS[part]}\n\n{SECTIONS[part](result[part])}" for part in parts if part in result
    ]
    return text + "".join(sections)


def reconstruction(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the PSNR at both sizes."""
    sizes = [f"PSNR at {rows[0][size]['px']} px, dB" for size in ("base", "full")]
    cells = [
        [
            row["name"],
            f"{row['steps']}, {row['refinements']}",
            *(interval(row[size], digits=1) for size in ("base", "full")),
        ]
        for row in rows
    ]
    return table(("decoded from", "steps, refinements", *sizes), cells)


def variations(rows: Sequence[dict[str, Any]]) -> str:
    """Formats distances and the checker's rates by eta; the last row is for the originals."""
    names = [name for name in SUMMARY if all(name in row["checker"] for row in rows)]
    cells = []
    for row in rows:
        distances = [
            interval(row[name], digits=3) if name in row else "0" for name in ("clip", "pixels")
        ]
        rates = [interval(row["checker"][name]) for name in names]
        cells.append([f"{row['eta']:g}" if "eta" in row else "originals", *distances, *rates])
    return table(("eta", "CLIP distance", "pixel distance", *names), cells)


def interpolation(result: dict[str, Any]) -> str:
    """Formats one sentence."""
    return (
        f"Ends of {result['pairs']} paths differ from the reconstructions by at most "
        f"{result['most']} of 255 levels; {result['equal']} of {2 * result['pairs']} are equal bit "
        "for bit.\n"
    )


def text_diff(rows: Sequence[dict[str, Any]]) -> str:
    """Formats rates by inversion, the decoder's caption, and theta."""
    settings, names = ("inversion", "details", "caption"), red_to_blue.CRITERIA
    cells = [
        [*(row[name] for name in settings), f"{row['guidance']:g}", f"{row['theta']:g}"]
        + [interval(row[name]) for name in names]
        for row in rows
    ]
    maps = "".join(
        f"; DDPM inversion with eta {row['eta']:g} and strength {row['strength']:g}"
        for row in [row for row in rows if "eta" in row][:1]
    )
    legend = (
        f"{rows[0]['steps']} steps without refinements{maps}. "
        "*caption*: the decoder receives none, or the image's own for the inversion and the target "
        "for decoding. *colour*: all red objects are blue. *rest*: all other objects have their "
        "colour. *shape*: all objects have their shape. *place*: as many objects, each within "
        f"{100 * red_to_blue.NEAR:g} % of the side of its position.\n\n"
    )
    return legend + table((*settings, "guidance", "theta", *names), cells)


def write_grid(out: pathlib.Path, labelled: Sequence[tuple[str, np.ndarray]]) -> None:
    """Writes images in rows of `COLUMNS`.

    Raises:
        UserError: the file cannot be written.
    """
    labels, images = zip(*labelled, strict=True)
    grid = labelled_grid(np.stack(images), labels=list(labels), columns=COLUMNS)
    try:
        grid.quantize(128).save(out, optimize=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another --out.") from None


HEADS = {
    "reconstruction": "Reconstruction",
    "variations": "Variations",
    "interpolation": "Interpolation",
    "text_diff": 'Text diff "red" to "blue"',
}
SECTIONS = {
    "reconstruction": reconstruction,
    "variations": variations,
    "interpolation": interpolation,
    "text_diff": text_diff,
}
