"""Detection of the attributes of an image of the portraits world, by analysis by synthesis.

Starting from a guess by colours, attributes are replaced one group at a time by the value whose
rendering is nearest to the image (least squares within the window that the group can change), until
nothing changes. The renderer itself thus accounts for parts that hide others.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from unclip_jax.core.checks import UserError
from unclip_jax.portraits import render
from unclip_jax.portraits.scene import Portrait, hidden
from unclip_jax.portraits.vocabulary import (
    ATTRIBUTES,
    BACKGROUNDS,
    CLOTHES_COLOURS,
    HAIR_COLOURS,
    SKINS,
    Rgb,
)

SIDE = 64  # larger images are reduced to it where it divides their side
LEAST_SIDE = 32  # pixels
ROUNDS = 4  # of improvement at most
BLURS = (0.0, 0.4, 0.6, 0.8, 1.0, 1.3)  # standard deviations of blurred renderings in pixels
MARGIN = 2  # pixels around a window that blur affects
SKIN_GUESSES = 3  # starts of the search at most
GOOD = 6.0  # root mean square error below which the first start suffices
LIKELY = 4  # colours tried in combination with every style
SPREAD = 30.0  # RGB distance up to which a pixel supports a colour
# Regions of the first guess in percent of the side: low x, high x, low y, high y.
CORNERS = ((0, 14, 0, 20), (86, 100, 0, 20))
FACE = (36, 64, 36, 66)
HEAD = (15, 85, 0, 74)
CHEST = (12, 88, 80, 100)
JOINT = (
    ("clothes", "clothes_colour"),
    ("hair", "hair_colour"),
    ("skin",),
    ("glasses", "eyes"),
    ("facial_hair", "mouth"),
)

Images = UInt8[np.ndarray, "b h w 3"] | Float[np.ndarray, "b h w 3"]
Pixels = Float[np.ndarray, "h w 3"]
Values = dict[str, str]  # attribute -> value


class Window(NamedTuple):
    """A rectangle of pixels; `bottom` and `right` are exclusive."""

    top: int
    bottom: int
    left: int
    right: int


class Detection(NamedTuple):
    """The content of one image.

    Attributes:
        portrait: the portrait whose rendering is nearest; hidden attributes have their first value.
        confidence: per visible attribute, how much nearer the image is to the rendering of its
            value than to that of any other, all else equal: 1 for the rendering itself, 0 halfway.
        error: root mean square difference from the rendering, 0-255.
    """

    portrait: Portrait
    confidence: dict[str, float]
    error: float


def detect(images: Images) -> list[Detection]:
    """Detects the attributes of every image.

    Args:
        images: square RGB, uint8 or float in [-1, 1].

    Raises:
        UserError: images are not square, smaller than LEAST_SIDE, or floats outside [-1, 1].
    """
    _check(images)
    return [_detect(_to_pixels(image)) for image in images]


def _check(images: np.ndarray) -> None:
    height, width = images.shape[1:3]
    if height != width or height < LEAST_SIDE:
        raise UserError(
            f"images are {height} x {width}; the checker of portraits needs squares of at least "
            f"{LEAST_SIDE} pixels. Resize them."
        )
    if images.dtype == np.uint8 or not images.size:
        return
    reach = np.abs(images).max()
    if not reach <= 1 + 1e-3:  # also true of nan
        raise UserError(f"float images reach {reach:.4g}; expected [-1, 1]; clip or rescale them.")


def _to_pixels(image: np.ndarray) -> Pixels:
    pixels = image.astype(np.float32)
    if image.dtype != np.uint8:
        pixels = (pixels + 1) * np.float32(127.5)
    side, factor = len(pixels), len(pixels) // SIDE
    return _reduce(pixels, factor) if factor > 1 and side % SIDE == 0 else pixels


def _reduce(pixels: Pixels, factor: int) -> Float[np.ndarray, "H W 3"]:
    """Averages blocks of `factor` x `factor` pixels."""
    side = len(pixels) // factor
    return pixels.reshape(side, factor, side, factor, 3).mean(axis=(1, 3))


def _detect(pixels: Pixels) -> Detection:
    small = _reduce(pixels, 2) if len(pixels) >= 2 * LEAST_SIDE and len(pixels) % 2 == 0 else pixels
    values = _coarse(small)
    blur = _blur(pixels, values)
    confidence: dict[str, float] = {}
    for _ in range(ROUNDS):
        before = dict(values)
        for name in ATTRIBUTES:
            # without hair the colour is that of the facial hair; both are unknown before
            pair = ("facial_hair", "hair_colour")
            names = pair if name in pair and values["hair"] == "bald" else (name,)
            comparison = _compare(pixels, values, _options(names, values, {}), blur=blur)
            values |= comparison.best
            confidence[name] = comparison.confidence(name)
        if values == before:
            break
    omitted = hidden(Portrait(**values))
    values |= {name: ATTRIBUTES[name][0] for name in omitted}
    confidence = {name: value for name, value in confidence.items() if name not in omitted}
    return Detection(Portrait(**values), confidence, _error(pixels, values, blur))


def _coarse(pixels: Pixels) -> Values:
    """Finds the values of all attributes, almost always correctly, from a guess of the skin."""
    best: tuple[float, Values] = (math.inf, {})
    for skin in _likely(pixels, FACE, SKINS)[:SKIN_GUESSES]:
        values = _from_skin(pixels, skin)
        best = min(best, (_error(pixels, values, 0.0), values), key=lambda pair: pair[0])
        if best[0] < GOOD:
            break
    return best[1]


def _from_skin(pixels: Pixels, skin: str) -> Values:
    likely = {
        "hair_colour": _likely(pixels, HEAD, HAIR_COLOURS),
        "clothes_colour": _likely(pixels, CHEST, CLOTHES_COLOURS),
    }
    corners = np.concatenate([_region(pixels, corner) for corner in CORNERS])
    values = {name: choices[0] for name, choices in ATTRIBUTES.items()} | {"skin": skin}
    values["background"] = _nearest(np.median(corners, axis=0), BACKGROUNDS)
    values |= {name: colours[0] for name, colours in likely.items()}
    for names in JOINT:
        values |= _compare(pixels, values, _options(names, values, likely), blur=0.0).best
    # for colours that are too rare for `likely`, such as striped shirts under long hair
    return values | _compare(pixels, values, _options(JOINT[0], values, {}), blur=0.0).best


def _blur(pixels: Pixels, values: Values) -> float:
    """Estimates the blur of an image in pixels from the rendering of its attributes."""
    return min(BLURS, key=lambda blur: _error(pixels, values, blur))


def _error(pixels: Pixels, values: Values, blur: float) -> float:
    size = len(pixels)
    window = Window(0, size, 0, size)
    (rendering,) = _renderings(values, [{}], size=size, window=window, blur=blur)
    return float(np.sqrt(np.mean((pixels - rendering) ** 2)))


def _options(
    names: Sequence[str], values: Values, likely: Mapping[str, Sequence[str]]
) -> list[Values]:
    """Lists all combinations of values of `names`; restricted to `likely` values where given."""

    def product(names: Sequence[str], likely: Mapping[str, Sequence[str]]) -> list[Values]:
        allowed = [likely.get(name, ATTRIBUTES[name]) for name in names]
        return [dict(zip(names, choice, strict=True)) for choice in itertools.product(*allowed)]

    options = product(names, likely)
    if names[0] == "hair" and len(names) > 1:
        beards = [dict(hair="bald", **o) for o in product(("facial_hair", "hair_colour"), {})]
        options = [option | {"facial_hair": values["facial_hair"]} for option in options] + beards
    return options


class _Comparison(NamedTuple):
    """Squared distances of an image from alternative renderings, and between these."""

    options: Sequence[Values]
    errors: Float[np.ndarray, " n"]
    apart: Float[np.ndarray, " n"]  # from the nearest rendering

    @property
    def best(self) -> Values:
        """The option whose rendering is nearest."""
        return self.options[int(np.argmin(self.errors))]

    def confidence(self, name: str) -> float:
        """Computes the smallest margin over renderings with another value of attribute `name`.

        For renderings a (nearest) and b, (|x - b|^2 - |x - a|^2) / |a - b|^2 is 1 at x = a and 0
        halfway between them, independent of components of x outside both.
        """
        value = self.best[name]
        other = np.array([option[name] != value for option in self.options]) & (self.apart > 0)
        if not other.any():
            return 0.0
        margins = (self.errors - self.errors.min())[other] / self.apart[other]
        return float(np.clip(margins.min(), 0, 1))


def _compare(
    pixels: Pixels, values: Values, options: Sequence[Values], *, blur: float
) -> _Comparison:
    """Renders `values` with each of `options` substituted, in the window that these can change."""
    size = len(pixels)
    window = _window(tuple(options[0]), size)
    renderings = _renderings(values, options, size=size, window=window, blur=blur)
    target = pixels[window.top : window.bottom, window.left : window.right]
    errors = _squares(renderings - target)
    return _Comparison(options, errors, _squares(renderings - renderings[errors.argmin()]))


def _squares(differences: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, " n"]:
    flat = differences.reshape(len(differences), -1)
    return np.einsum("np,np->n", flat, flat)


def _region(pixels: Pixels, bounds: tuple[int, int, int, int]) -> Float[np.ndarray, "n 3"]:
    low_x, high_x, low_y, high_y = (round(bound * len(pixels) / 100) for bound in bounds)
    return pixels[low_y:high_y, low_x:high_x].reshape(-1, 3)


def _nearest(colour: Float[np.ndarray, "3"], palette: Mapping[str, Rgb]) -> str:
    distance = np.linalg.norm(np.array(list(palette.values())) - colour, axis=-1)
    return list(palette)[int(distance.argmin())]


def _likely(
    pixels: Pixels, bounds: tuple[int, int, int, int], palette: Mapping[str, Rgb]
) -> tuple[str, ...]:
    """Returns the colours to which most pixels of a region are near."""
    colours = np.array(list(palette.values()), np.float32)
    distance = np.linalg.norm(_region(pixels, bounds)[:, None] - colours, axis=-1)
    votes = np.exp(-((distance / SPREAD) ** 2)).sum(axis=0)
    return tuple(list(palette)[k] for k in np.argsort(-votes, kind="stable")[:LIKELY])


def _renderings(
    values: Values, options: Sequence[Values], *, size: int, window: Window, blur: float
) -> Float[np.ndarray, "n h w 3"]:
    """Renders `values` with each of `options` substituted, within `window`.

    Neighbouring parts that no option changes are combined first, so that they are blended once.
    """
    names = set(options[0])
    choosers = [(part.kind, part.colour) for part in render.PARTS]
    height, width = window.bottom - window.top, window.right - window.left
    steps: list[int | render.Tile] = []
    for index, part in enumerate(render.PARTS):
        if {part.kind, part.colour} & names:
            steps.append(index)
            continue
        tile = _clipped(index, values.get(part.kind, ""), values.get(part.colour, ""), size, window)
        if tile is not None:
            run = steps[-1] if steps else 0
            if isinstance(run, int):
                run = _blank(height, width)
                steps.append(run)
            run.keep[tile.rows, tile.columns] *= tile.keep
            render.blend(run.colour, tile)
    images = np.empty((len(options), height, width, 3), np.float32)
    for image, option in zip(images, options, strict=True):
        altered = values | option
        image[:] = BACKGROUNDS[altered["background"]]
        for step in steps:
            if isinstance(step, int):
                kind, colour = (altered.get(name, "") for name in choosers[step])
                tile = _clipped(step, kind, colour, size, window)
            else:
                tile = step
            if tile is not None:  # inlined `blend`: this is the innermost loop
                region = image[tile.rows, tile.columns]
                region *= tile.keep
                region += tile.colour
    if not blur:
        return images
    return ndimage.gaussian_filter(images, (0, blur, blur, 0), mode="nearest", truncate=3.0)


def _blank(height: int, width: int) -> render.Tile:
    """Returns a tile that changes nothing."""
    shape = (height, width, 3)
    return render.Tile(
        slice(0, height), slice(0, width), np.ones(shape, np.float32), np.zeros(shape, np.float32)
    )


@functools.lru_cache(maxsize=16384)
def _clipped(index: int, kind: str, colour: str, size: int, window: Window) -> render.Tile | None:
    """Clips a tile of the renderer to a window, in the window's coordinates."""
    tile = render.tile(index, kind, colour, size)
    if tile is None:
        return None
    top, bottom = max(window.top, tile.rows.start), min(window.bottom, tile.rows.stop)
    left, right = max(window.left, tile.columns.start), min(window.right, tile.columns.stop)
    if top >= bottom or left >= right:
        return None
    rows = slice(top - tile.rows.start, bottom - tile.rows.start)
    columns = slice(left - tile.columns.start, right - tile.columns.start)
    return render.Tile(
        slice(top - window.top, bottom - window.top),
        slice(left - window.left, right - window.left),
        tile.keep[rows, columns],
        tile.colour[rows, columns],
    )


@functools.lru_cache(maxsize=64)
def _window(names: tuple[str, ...], size: int) -> Window:
    """Returns the smallest window with everything that the attributes `names` can change."""
    if "background" in names:
        return Window(0, size, 0, size)
    tiles = [
        tile
        for index, part in enumerate(render.PARTS)
        if part.kind in names or part.colour in names
        for kind in ATTRIBUTES.get(part.kind, ("",))
        if (tile := render.tile(index, kind, next(iter(render.PALETTES[part.colour])), size))
    ]
    return Window(
        max(min(tile.rows.start for tile in tiles) - MARGIN, 0),
        min(max(tile.rows.stop for tile in tiles) + MARGIN, size),
        max(min(tile.columns.start for tile in tiles) - MARGIN, 0),
        min(max(tile.columns.stop for tile in tiles) + MARGIN, size),
    )
