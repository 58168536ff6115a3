"""The page that `studies.manipulations` fills in: tables, figures as JSON, and some pictures."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.markdown_page import rate, table
from studies.manipulations import red_to_blue as text_diffs
from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import labelled_grid
from unclip_jax.metrics.shapes_checker import SUMMARY

TITLE = "# What the latent gives back\n\nMade by `python -m studies.manipulations`.\n\n"
COLUMNS = 6  # of the pictures: the original, and five etas or thetas


def tables(result: dict[str, Any], parts: Sequence[str]) -> str:
    """What was measured of `parts`, as Markdown."""
    text = (
        f"{result['num']} pictures of `{result['split']}` ({result['date']}, {result['device']}); "
        f"decoder on `{result['steps']}` steps with {result['refinements']} refinements unless a "
        f"row says otherwise, upsamplers on `{result['upsampler_steps'] or 'their own'}`; 95 % "
        "intervals.\n"
    )
    shown = [part for part in parts if part in result]
    return text + "".join(
        f"\n### {HEADS[part]}\n\n{SECTIONS[part](result[part])}" for part in shown
    )


def reconstruction(rows: Sequence[dict[str, Any]]) -> str:
    """PSNR at both sizes."""
    sizes = [f"PSNR at {rows[0][size]['px']} px, dB" for size in ("base", "full")]
    cells = [
        [
            row["name"],
            f"{row['steps']}, {row['refinements']}",
            *(decibels(row[size]) for size in ("base", "full")),
        ]
        for row in rows
    ]
    return table(("decoded from", "steps, refinements", *sizes), cells)


def variations(rows: Sequence[dict[str, Any]]) -> str:
    """Distances and the checker's rates by eta; the last row is of the originals."""
    names = [name for name in SUMMARY if all(name in row["checker"] for row in rows)]
    cells = []
    for row in rows:
        far = [mean(row[name]) if name in row else "0" for name in ("clip", "pixels")]
        told = [rate(row["checker"][name]) for name in names]
        cells.append([f"{row['eta']:g}" if "eta" in row else "originals", *far, *told])
    return table(("eta", "CLIP distance", "pixel distance", *names), cells)


def interpolation(found: dict[str, Any]) -> str:
    """One sentence."""
    return (
        f"Ends of {found['pairs']} paths differ from the reconstructions by at most "
        f"{found['most']} of 255 levels; {found['equal']} of {2 * found['pairs']} are equal bit "
        "for bit.\n"
    )


def text_diff(rows: Sequence[dict[str, Any]]) -> str:
    """Rates by what holds the composition, what the decoder is told, and theta."""
    told, names = ("inversion", "details", "caption"), text_diffs.JUDGED
    cells = [
        [*(row[name] for name in told), f"{row['guidance']:g}", f"{row['theta']:g}"]
        + [rate(row[name]) for name in names]
        for row in rows
    ]
    maps = "".join(
        f"; DDPM inversion with eta {row['eta']:g} and strength {row['strength']:g}"
        for row in [row for row in rows if "eta" in row][:1]
    )
    lead = (
        f"{rows[0]['steps']} steps without refinements{maps}. "
        "*caption*: the decoder is told none, or the picture's own "
        "while it is inverted and the target while it is drawn. *colour*: all that was red is "
        "blue. *rest*: all else has its colour. *shape*: everything has its shape. *place*: as "
        f"many things, each within {100 * text_diffs.NEAR:g} % of the side of where it was.\n\n"
    )
    return lead + table((*told, "guidance", "theta", *names), cells)


def decibels(found: dict[str, float]) -> str:
    """A mean PSNR with its interval."""
    return f"{found['value']:.1f} [{found['low']:.1f}, {found['high']:.1f}]"


def mean(found: dict[str, float]) -> str:
    """A mean distance with its interval."""
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def draw(out: pathlib.Path, labelled: Sequence[tuple[str, np.ndarray]]) -> None:
    """Pictures in rows of `COLUMNS`.

    Raises:
        UserError: the place cannot be written.
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
