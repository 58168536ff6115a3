"""The words of the shapes world and their meaning in pixels.

Lengths are fractions of the image side, x to the right and y down. Changing anything here changes
the data: raise `WORLD_VERSION` with it.
"""

import functools
import hashlib
from typing import NamedTuple

WORLD_VERSION = "1.1.0"


class Rgb(NamedTuple):
    """An sRGB colour, 0-255 per channel."""

    red: int
    green: int
    blue: int


class Range(NamedTuple):
    """A closed interval of lengths."""

    low: float
    high: float


COLOURS: dict[str, Rgb] = {
    "red": Rgb(226, 54, 54),
    "orange": Rgb(245, 133, 38),
    "yellow": Rgb(250, 204, 46),
    "green": Rgb(46, 160, 82),
    "blue": Rgb(40, 104, 220),
    "purple": Rgb(134, 66, 196),
    "pink": Rgb(244, 140, 184),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": Rgb(255, 255, 255),
    "black": Rgb(18, 18, 22),
    "navy": Rgb(22, 34, 92),
    "cream": Rgb(251, 233, 192),
    "mint": Rgb(180, 230, 208),
    "gray": Rgb(136, 140, 148),
}
SHAPES: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "diamond",
    "star",
    "heart",
    "ring",
    "cross",
)
# Radius by size word; "medium" is never named. The gaps between the ranges let a checker read a
# size back: see `size_of`.
SIZES: dict[str, Range] = {
    "small": Range(0.115, 0.130),
    "medium": Range(0.160, 0.182),
    "large": Range(0.232, 0.258),
}
SAID_SIZES: tuple[str, ...] = ("small", "large")
COUNTS: dict[str, int] = {"two": 2, "three": 3, "four": 4}
INVERSE: dict[str, str] = {
    "above": "below",
    "below": "above",
    "left of": "right of",
    "right of": "left of",
}
RELATIONS: tuple[str, ...] = tuple(INVERSE)
SPLITS: tuple[str, ...] = ("train", "validation", "compositional")

BOUND = 1.1  # every shape of radius r lies within a disc of radius BOUND * r
GAP = 0.06  # least distance between the bounding discs of two objects
MARGIN = 0.03  # least distance between a bounding disc and the image's edge
NUM_HELD_OUT = 6  # of 56 colour-shape pairs, about a tenth


@functools.cache
def held_out() -> frozenset[tuple[str, str]]:
    """Returns the (colour, shape) pairs of the compositional split alone, chosen by hash."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    return frozenset(sorted(pairs, key=_hash)[:NUM_HELD_OUT])


@functools.cache
def training_pairs() -> tuple[tuple[str, str], ...]:
    """Returns the (colour, shape) pairs of training and validation, in a fixed order."""
    return tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in held_out())


def size_of(radius: float) -> str:
    """Returns the size word whose range is nearest to `radius`, a fraction of the image side."""
    small, medium, large = SIZES["small"], SIZES["medium"], SIZES["large"]
    if radius < (small.high + medium.low) / 2:
        return "small"
    return "medium" if radius < (medium.high + large.low) / 2 else "large"


def _hash(pair: tuple[str, str]) -> bytes:
    return hashlib.sha256(" ".join(pair).encode()).digest()
