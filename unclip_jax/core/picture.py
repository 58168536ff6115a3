"""8-bit images and labelled grids of them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

MARGIN = 4  # pixels between tiles
LEAST_TILE = 128  # smaller tiles are enlarged so that labels fit under them
LINES = 3  # most lines of a label


def to_uint8(images: Any) -> Any:
    """Converts floats in [-1, 1] to uint8, rounded and clipped.

    Args:
        images: [... h w c] floating-point NumPy or JAX array; the result is of the same kind.
    """
    xp = jnp if isinstance(images, jax.Array) else np
    return xp.clip(xp.round((images + 1.0) * 127.5), 0.0, 255.0).astype(xp.uint8)


def labelled_grid(
    images: UInt8[np.ndarray, " n h w 3"],
    *,
    labels: Sequence[str] | None = None,
    columns: int | None = None,
) -> Image.Image:
    """Draws a grid of images in reading order, each with its label below.

    Args:
        images: uint8 RGB.
        labels: one per image; None = no labels.
        columns: tiles per row; None = nearly square.
    """
    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    scale = max(1, math.ceil(LEAST_TILE / width))
    font = ImageFont.load_default(size=12)
    label_height = 0 if labels is None else 15 * LINES
    tile_w, tile_h = width * scale + MARGIN, height * scale + label_height + MARGIN
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * tile_w + MARGIN, rows * tile_h + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        x, y = MARGIN + index % columns * tile_w, MARGIN + index // columns * tile_h
        tile = Image.fromarray(image).resize(
            (width * scale, height * scale), Image.Resampling.NEAREST
        )
        sheet.paste(tile, (x, y))
        if labels is not None:
            words = wrap(
                labels[index], width=width * scale, measure=lambda s: pen.textlength(s, font)
            )
            pen.multiline_text(
                (x, y + height * scale + 1), words, fill="black", font=font, spacing=1
            )
    return sheet


def wrap(text: str, *, width: int, measure) -> str:
    """Breaks `text` into at most `LINES` lines no wider than `width` by `measure`."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if measure(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], lines[LINES - 1] + "…"]
    return "\n".join(lines)
