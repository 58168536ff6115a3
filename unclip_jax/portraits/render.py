"""The renderer: portraits to anti-aliased pixels.

Every part is drawn once per image size and painted once per colour; a portrait is its background
with ten painted parts blended over it, each within its own window.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from unclip_jax.core.checks import in_range
from unclip_jax.portraits import clothes, faces, hair
from unclip_jax.portraits.pen import Layer, Paint, Pen
from unclip_jax.portraits.scene import Portrait
from unclip_jax.portraits.vocabulary import BACKGROUNDS, CLOTHES_COLOURS, HAIR_COLOURS, SKINS, Rgb

DARK_BELOW = 128.0  # mean channel value of a colour on which contrasting details are lighter


class Tile(NamedTuple):
    """A painted part within its window: canvas = canvas * keep + colour."""

    rows: slice
    columns: slice
    keep: Float[np.ndarray, "h w 3"]
    colour: Float[np.ndarray, "h w 3"]


class Part(NamedTuple):
    """One step of painting.

    Attributes:
        kind: the attribute of a portrait that chooses the drawing, or "" for the same on all.
        colour: the attribute that chooses its colour, or "".
        draw: the drawing of a value of `kind`.
    """

    kind: str
    colour: str
    draw: Callable[[Pen, str], list[Layer]]


# From the farthest to the nearest.
PARTS: tuple[Part, ...] = (
    Part("hair", "hair_colour", hair.hair_behind),
    Part("", "skin", lambda pen, _: faces.neck(pen)),
    Part("clothes", "clothes_colour", clothes.clothes),
    Part("", "skin", lambda pen, _: faces.head(pen)),
    Part("facial_hair", "hair_colour", faces.facial_hair),
    Part("mouth", "", faces.mouth),
    Part("eyes", "", faces.eyes),
    Part("hair", "hair_colour", hair.hair_before),
    Part("glasses", "", faces.glasses),
)
PALETTES = {
    "hair_colour": HAIR_COLOURS,
    "clothes_colour": CLOTHES_COLOURS,
    "skin": SKINS,
    "": {"": Rgb(0, 0, 0)},
}


def render(portraits: Sequence[Portrait], *, size: int = 64) -> UInt8[np.ndarray, "b size size 3"]:
    """Renders `portraits` as square RGB images of side `size`.

    Raises:
        UserError: `size` outside 16..512.
    """
    in_range("image size", size, 16, 512)
    canvas = np.empty((len(portraits), size, size, 3), np.float32)
    for image, portrait in zip(canvas, portraits, strict=True):
        image[:] = BACKGROUNDS[portrait.background]
        for index in range(len(PARTS)):
            painted = tile(index, *values_of(index, portrait), size)
            if painted is not None:
                blend(image, painted)
    return (canvas + 0.5).astype(np.uint8)


def blend(canvas: Float[np.ndarray, "H W 3"], over: Tile) -> None:
    """Blends a tile over a canvas, in place."""
    window = canvas[over.rows, over.columns]
    window *= over.keep
    window += over.colour


def values_of(index: int, portrait: Portrait) -> tuple[str, str]:
    """Returns the values of `portrait` that choose drawing and colour of part `index`."""
    part = PARTS[index]
    kind = getattr(portrait, part.kind) if part.kind else ""
    return kind, getattr(portrait, part.colour) if part.colour else ""


@functools.lru_cache(maxsize=4096)
def tile(index: int, kind: str, colour: str, size: int) -> Tile | None:
    """Paints one part; None if there is nothing to paint.

    Args:
        index: of the part in `PARTS`.
        kind: a value of the part's attribute.
        colour: a name of the part's palette.
        size: side of the image in pixels.
    """
    layers = _drawing(index, kind, size)
    if not layers:
        return None
    covered = np.max([layer.coverage for layer in layers], axis=0)
    rows, columns = (_extent(covered.any(axis=axis)) for axis in (1, 0))
    rgb = PALETTES[PARTS[index].colour][colour]
    keep = np.ones((*covered[rows, columns].shape, 1), np.float32)
    result = np.zeros((*keep.shape[:2], 3), np.float32)
    for layer in layers:
        share = layer.coverage[rows, columns, None] * np.float32(layer.paint.opacity)
        keep = keep * (1 - share)
        result = result * (1 - share) + share * _mixed(layer.paint, rgb)
    return Tile(rows, columns, np.repeat(keep, 3, axis=2), result)


@functools.lru_cache(maxsize=512)
def _drawing(index: int, kind: str, size: int) -> tuple[Layer, ...]:
    return tuple(PARTS[index].draw(Pen(size), kind))


def _extent(occupied: np.ndarray) -> slice:
    indices = np.flatnonzero(occupied)
    return slice(int(indices[0]), int(indices[-1]) + 1)


def _mixed(paint: Paint, rgb: tuple[int, int, int]) -> Float[np.ndarray, "3"]:
    base = np.array(paint.rgb or rgb, np.float32)
    shade = paint.shade
    if paint.contrast and base.mean() >= DARK_BELOW:
        shade = -shade
    target = np.float32(255 if shade > 0 else 0)
    return base + (target - base) * np.float32(abs(shade))
