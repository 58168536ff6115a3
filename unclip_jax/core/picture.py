"""8-bit images and labelled grids of them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8
from PIL import Image, ImageDraw

from unclip_jax.core import labels as text_labels

MARGIN = 4  # pixels between tiles
LEAST_TILE = 128  # smaller tiles are enlarged so that labels fit under them
LINES, LINE_HEIGHT = 3, 15  # of a label
# 1 / 127.5 as the sum of its first 16 bits and of the next 16, rounded up.
_COARSE = math.floor(2**22 / 127.5) / 2**22
_FINE = math.ceil((1 / 127.5 - _COARSE) * 2**38) / 2**38


def to_uint8(images: Any) -> Any:
    """Converts floats in [-1, 1] to uint8, rounded and clipped.

    Args:
        images: [... h w c] floating-point NumPy or JAX array; the result is of the same kind.
    """
    xp = jnp if isinstance(images, jax.Array) else np
    return xp.clip(xp.round((images + 1.0) * 127.5), 0.0, 255.0).astype(xp.uint8)


def to_float(images: UInt8[Array, " *shape"]) -> Float32[Array, " *shape"]:
    """Converts 0..255 to [-1, 1] on a device, as `data.image_codec.to_float` does on the host.

    The bits are the same on every device. A division is not rounded everywhere alike, and compilers
    replace it by a product; the two products here are exact, so that only their sum is rounded.
    """
    values = images.astype(jnp.float32)
    return (values * _COARSE + values * _FINE) - 1.0


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
    label_height = 0 if labels is None else LINE_HEIGHT * LINES
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
            text = text_labels.readable(labels[index])
            lines = text_labels.wrap(text, room=width * scale, lines=LINES)
            for number, line in enumerate(lines):
                top = y + height * scale + 1 + LINE_HEIGHT * number
                text_labels.draw(pen, line, x=x, y=top, room=width * scale)
    return sheet
