"""The words of the portraits world and their colours.

Changing anything here changes the data: raise `WORLD_VERSION` with it.
"""

import functools
import hashlib
import math
from typing import NamedTuple

WORLD_VERSION = "1.3.0"


class Rgb(NamedTuple):
    """An sRGB colour, 0-255 per channel."""

    red: int
    green: int
    blue: int


HAIR: tuple[str, ...] = (
    "bald",
    "short",
    "spiky",
    "mohawk",
    "curly",
    "afro",
    "bob",
    "straight",
    "wavy",
    "bun",
    "pigtails",
)
HAIR_COLOURS: dict[str, Rgb] = {
    "black": Rgb(38, 34, 42),
    "brown": Rgb(110, 64, 40),
    "blonde": Rgb(236, 196, 92),
    "red": Rgb(204, 68, 30),
    "gray": Rgb(168, 170, 180),
    "pink": Rgb(238, 104, 162),
    "blue": Rgb(48, 108, 216),
    "green": Rgb(62, 160, 92),
}
FACIAL_HAIR: tuple[str, ...] = ("none", "beard", "goatee", "moustache")
GLASSES: tuple[str, ...] = ("none", "round", "square", "sunglasses")
EYES: tuple[str, ...] = ("open", "closed", "winking", "hearts")
MOUTHS: tuple[str, ...] = ("smiling", "sad", "serious", "shouting")
CLOTHES: tuple[str, ...] = ("hoodie", "t-shirt", "turtleneck", "overalls", "suit", "striped")
CLOTHES_COLOURS: dict[str, Rgb] = {
    "black": Rgb(44, 48, 58),
    "white": Rgb(248, 248, 248),
    "gray": Rgb(140, 146, 156),
    "red": Rgb(222, 48, 56),
    "orange": Rgb(244, 130, 40),
    "yellow": Rgb(250, 206, 50),
    "green": Rgb(44, 148, 88),
    "blue": Rgb(44, 100, 222),
    "purple": Rgb(128, 72, 190),
    "pink": Rgb(250, 124, 180),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": Rgb(255, 255, 255),
    "gray": Rgb(204, 208, 216),
    "orange": Rgb(255, 178, 96),
    "yellow": Rgb(255, 226, 118),
    "green": Rgb(158, 224, 178),
    "blue": Rgb(128, 198, 250),
    "navy": Rgb(30, 42, 92),
    "pink": Rgb(255, 188, 208),
}
SKINS: dict[str, Rgb] = {
    "pale": Rgb(255, 222, 196),
    "light": Rgb(242, 194, 152),
    "tan": Rgb(222, 160, 110),
    "brown": Rgb(174, 112, 70),
    "dark": Rgb(138, 88, 56),
    "deep": Rgb(102, 66, 48),
}
# Every attribute of a portrait and its values, in the order of `scene.Portrait`.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hair": HAIR,
    "hair_colour": tuple(HAIR_COLOURS),
    "facial_hair": FACIAL_HAIR,
    "glasses": GLASSES,
    "eyes": EYES,
    "mouth": MOUTHS,
    "clothes": CLOTHES,
    "clothes_colour": tuple(CLOTHES_COLOURS),
    "background": tuple(BACKGROUNDS),
    "skin": tuple(SKINS),
}
SPLITS: tuple[str, ...] = ("train", "validation", "compositional")

LEAST_CONTRAST = 50.0  # RGB distance of two colours that touch
NUM_HELD_OUT = 8  # of 80 pairs of hair and clothes colour


@functools.cache
def held_out() -> frozenset[tuple[str, str]]:
    """Returns the (hair, clothes) colours of the compositional split alone, chosen by hash."""
    pairs = [
        (hair, cloth)
        for hair, one in HAIR_COLOURS.items()
        for cloth, other in CLOTHES_COLOURS.items()
        if not too_close(one, other)
    ]
    return frozenset(sorted(pairs, key=_hash)[:NUM_HELD_OUT])


def too_close(one: Rgb, other: Rgb) -> bool:
    """True if two colours that touch could be taken for one."""
    return math.dist(one, other) < LEAST_CONTRAST


def _hash(pair: tuple[str, str]) -> bytes:
    return hashlib.sha256(" ".join(pair).encode()).digest()
