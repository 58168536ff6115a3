"""Detection of the background and the objects of an image of the shapes world.

Area and centre of mass of a region determine size and position for each candidate shape; the shape
is the one whose rendered template then has the largest overlap. `shapes_regions` segments images.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from unclip_jax.core.checks import UserError
from unclip_jax.metrics import shapes_regions
from unclip_jax.metrics.shapes_regions import PALETTE, PerObject, Pixels, Regions
from unclip_jax.shapes import render, sdf
from unclip_jax.shapes.vocabulary import BACKGROUNDS, COLOURS, SHAPES, size_of

CHUNK = 128  # images per batch, to bound memory
LEAST_SIDE = 16  # pixels
LEAST_OVERLAP = 0.60  # intersection over union with the best template; below, there is no shape

Images = UInt8[np.ndarray, "b h w 3"] | Float[np.ndarray, "b h w 3"]

_COLOURS = tuple(COLOURS)
_GROUNDS = (*BACKGROUNDS, *COLOURS)
_GROUND_PALETTE = np.concatenate([np.array(list(BACKGROUNDS.values()), np.float32), PALETTE])


class DetectedObject(NamedTuple):
    """One detected object; lengths are fractions of the image side, y points down.

    Attributes:
        colour: nearest palette colour.
        shape: best template, or None if none fits.
        size: nearest size word.
        x: horizontal centre, as in `shapes.scene.SceneObject`.
        y: vertical centre.
        radius: unit radius of the shape's outline.
        overlap: intersection over union with the best template.
    """

    colour: str
    shape: str | None
    size: str
    x: float
    y: float
    radius: float
    overlap: float


class Detection(NamedTuple):
    """The content of an image; `background` may also be an object colour if a model paints one."""

    background: str
    objects: tuple[DetectedObject, ...]


class _Fit(NamedTuple):
    """Best template per object: index, overlap, and the implied position and radius (pixels)."""

    shape: Int[np.ndarray, " n"]
    overlap: PerObject
    x: PerObject
    y: PerObject
    radius: PerObject


def detect(images: Images) -> list[Detection]:
    """Detects background and objects of every image.

    Args:
        images: square RGB, uint8 or float in [-1, 1].

    Raises:
        UserError: images are not square, smaller than LEAST_SIDE, or floats outside [-1, 1].
    """
    _check(images)
    detections: list[Detection] = []
    for start in range(0, len(images), CHUNK):
        pixels = images[start : start + CHUNK].astype(np.float32)
        if images.dtype != np.uint8:
            pixels = (pixels + 1) * np.float32(127.5)
        detections += _detect(pixels)
    return detections


def _check(images: np.ndarray) -> None:
    height, width = images.shape[1:3]
    if height != width or height < LEAST_SIDE:
        raise UserError(
            f"images are {height} x {width}; the checker needs squares of at least "
            f"{LEAST_SIDE} pixels. Resize them."
        )
    if images.dtype == np.uint8 or not images.size:
        return
    reach = np.abs(images).max()
    if not reach <= 1 + 1e-3:  # also true of nan
        raise UserError(f"float images reach {reach:.4g}; expected [-1, 1]; clip or rescale them.")


def _detect(pixels: Pixels) -> list[Detection]:
    side = pixels.shape[1]
    grounds = shapes_regions.border_colour(pixels)
    distance = np.linalg.norm(grounds[:, None] - _GROUND_PALETTE, axis=-1)
    regions = shapes_regions.find_regions(pixels, grounds)
    fit = _fit(regions)
    objects: list[list[DetectedObject]] = [[] for _ in pixels]
    for k, owner in enumerate(regions.image):
        overlap = float(fit.overlap[k])
        shape = SHAPES[fit.shape[k]] if overlap >= LEAST_OVERLAP else None
        x, y, radius = (float(value[k]) / side for value in (fit.x, fit.y, fit.radius))
        colour = _COLOURS[regions.colour[k]]
        objects[owner].append(DetectedObject(colour, shape, size_of(radius), x, y, radius, overlap))
    names = [_GROUNDS[k] for k in distance.argmin(-1)]
    return [Detection(name, tuple(group)) for name, group in zip(names, objects, strict=True)]


def _fit(regions: Regions) -> _Fit:
    """Fits every template to an object's area and centre of mass, and selects the best overlap."""
    count = len(regions.image)
    if not count:
        nothing = np.zeros(0)
        return _Fit(np.zeros(0, int), nothing, nothing, nothing, nothing)
    area, x, y = shapes_regions.centres(regions)
    radii = np.stack([np.sqrt(area / sdf.moments(shape).area) for shape in SHAPES])
    middle = y - radii * np.array([sdf.moments(shape).centre_y for shape in SHAPES])[:, None]
    side = render.window_side(float(radii.max()) + 1.0)
    left, top = (np.floor(value).astype(int) - side // 2 for value in (x, y))
    observed = shapes_regions.windows(regions, left=left, top=top, side=side)
    overlap = np.zeros((len(SHAPES), count))
    for k, shape in enumerate(SHAPES):
        template = render.coverage(shape, x=x - left, y=middle[k] - top, radius=radii[k], side=side)
        both, either = np.minimum(template, observed), np.maximum(template, observed)
        overlap[k] = both.sum((1, 2)) / either.sum((1, 2))
    best, every = overlap.argmax(0), np.arange(count)
    return _Fit(best, overlap[best, every], x, middle[best, every], radii[best, every])
