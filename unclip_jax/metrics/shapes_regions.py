"""Segmentation of images of the shapes world into coloured objects.

A soft edge is a mixture of the background and one palette colour. A pixel is therefore assigned to
the colour whose line from the background passes nearest, and its position on that line is the share
that the object covers. All functions process a whole batch.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from unclip_jax.shapes import sdf
from unclip_jax.shapes.vocabulary import COLOURS, SHAPES, SIZES

LEAST_AREA = 0.25  # share of the smallest object of the world; smaller regions are noise
LEAST_CONTRAST = 36.0  # RGB distance; object colours nearer to the background are invisible
SPLIT_SHARE = 0.25  # a second colour with this share of a component makes it two objects
MOST_OBJECTS = 8  # largest objects kept per image; a caption names at most four

PALETTE = np.array(list(COLOURS.values()), np.float32)
_KINDS = len(COLOURS)
_WITHIN = np.zeros((3, 3, 3), bool)  # joins neighbours within an image, never across the batch
_WITHIN[1] = ndimage.generate_binary_structure(2, 1)

Pixels = Float[np.ndarray, "b h w 3"]
Grounds = Float[np.ndarray, "b 3"]
Labels = Int[np.ndarray, "b h w"]
Marks = Bool[np.ndarray, "b h w"]
PerObject = Float[np.ndarray, " n"]


class Regions(NamedTuple):
    """The objects of a batch of images, numbered from 0.

    Attributes:
        label: [b h w]; 0 outside all objects, k + 1 on object k and on the pixels that touch it.
        share: [b h w]; share of each pixel that its object covers.
        image: [n] index of the image of each object.
        colour: [n] index of each object's colour in `COLOURS`.
    """

    label: Labels
    share: Float[np.ndarray, "b h w"]
    image: Int[np.ndarray, " n"]
    colour: Int[np.ndarray, " n"]


class Centres(NamedTuple):
    """Area and centre of mass per object, in pixels from the image's upper left corner."""

    area: PerObject
    x: PerObject
    y: PerObject


def border_colour(pixels: Pixels) -> Grounds:
    """Computes the median colour of the outermost pixels of each image, [b h w 3] -> [b 3]."""
    top, bottom = pixels[:, 0], pixels[:, -1]
    left, right = pixels[:, 1:-1, 0], pixels[:, 1:-1, -1]
    return np.median(np.concatenate([top, bottom, left, right], axis=1), axis=1)


def find_regions(pixels: Pixels, grounds: Grounds) -> Regions:
    """Joins half-covered pixels to objects of one colour each, without tiny regions.

    Args:
        pixels: [b h w 3], 0-255.
        grounds: [b 3] background of each image.
    """
    offset, lines = pixels - grounds[:, None, None, :], PALETTE - grounds[:, None]
    colour, solid = _unmix(offset, lines)
    colour = _main_colour(colour, solid)
    label = _drop_small(_join(colour, solid), least=_least_area(pixels.shape[1]))
    numbers, first = np.unique(label, return_index=True)
    first = first[numbers > 0]
    image, main = first // label[0].size, colour.ravel()[first]
    label = np.where(label > 0, label, ndimage.maximum_filter(label, size=(1, 3, 3)))
    line = np.concatenate([np.zeros((1, 3), np.float32), lines[image, main]])
    length = np.maximum(np.sum(line**2, axis=-1), 1)
    share = np.sum(offset * (line / length[:, None])[label], axis=-1)
    return Regions(label, np.clip(share, 0, 1), image, main)


def centres(regions: Regions) -> Centres:
    """Computes area and centre of mass of every object, weighted by share."""
    rows, columns = (np.arange(n) + 0.5 for n in regions.label.shape[1:])
    label, count = regions.label.ravel(), len(regions.image) + 1

    def total(weight: np.ndarray) -> PerObject:
        return np.bincount(label, weight.ravel(), minlength=count)[1:].astype(np.float64)

    area = total(regions.share)
    x = total(regions.share * columns[None, None, :]) / area
    return Centres(area, x, total(regions.share * rows[None, :, None]) / area)


def windows(
    regions: Regions, *, left: Int[np.ndarray, " n"], top: Int[np.ndarray, " n"], side: int
) -> Float[np.ndarray, "n side side"]:
    """Crops the share of each object in a square window, [n side side]; zero outside the image."""
    pad = ((0, 0), (side, side), (side, side))
    label, share = np.pad(regions.label, pad), np.pad(regions.share, pad)
    cut = np.zeros((len(left), side, side), np.float32)
    for k, owner in enumerate(regions.image):
        rows = slice(top[k] + side, top[k] + 2 * side)
        columns = slice(left[k] + side, left[k] + 2 * side)
        cut[k] = share[owner, rows, columns] * (label[owner, rows, columns] == k + 1)
    return cut


def _unmix(offset: Pixels, lines: Float[np.ndarray, "b k 3"]) -> tuple[Labels, Marks]:
    """Finds the most likely palette colour of every pixel, and the pixels that it half covers."""
    length = np.sum(lines**2, axis=-1)
    scale = (length >= LEAST_CONTRAST**2) / np.maximum(length, 1)
    share = np.clip(np.einsum("bhwc,bkc->bhwk", offset, lines * scale[..., None]), 0, 1)
    # |offset - share * line|^2 without the term common to all colours
    dots = np.einsum("bhwc,bkc->bhwk", offset, lines)
    error = share * (share * length[:, None, None] - 2 * dots)
    colour = error.argmin(-1)
    return colour, np.take_along_axis(share, colour[..., None], axis=-1)[..., 0] >= 0.5


def _main_colour(colour: Labels, solid: Marks) -> Labels:
    """Assigns its main colour to every component, unless a second one covers a sizeable share."""
    label, count = _components(solid)
    votes = np.bincount((label * _KINDS + colour).ravel(), minlength=(count + 1) * _KINDS)
    votes = votes.reshape(count + 1, _KINDS)
    second = np.sort(votes, axis=1)[:, -2]
    split = second >= np.maximum(_least_area(colour.shape[1]), SPLIT_SHARE * votes.sum(1))
    return np.where(split[label], colour, votes.argmax(1)[label])


def _join(colour: Labels, solid: Marks) -> Labels:
    """Numbers the connected regions of equal colour."""
    label, total = np.zeros(solid.shape, np.int64), 0
    for index in range(_KINDS):
        part, count = _components(solid & (colour == index))
        label += np.where(part > 0, part + total, 0)
        total += count
    return label


def _drop_small(label: Labels, *, least: float) -> Labels:
    """Removes regions smaller than `least` pixels and all but the largest few, and renumbers."""
    area = np.bincount(label.ravel())
    keep = area >= least
    keep[0] = False
    for plane in label:
        inside = np.unique(plane)
        inside = inside[keep[inside]]
        if len(inside) > MOST_OBJECTS:
            keep[inside[np.argsort(-area[inside], kind="stable")[MOST_OBJECTS:]]] = False
    return (np.cumsum(keep) * keep)[label]


def _components(mask: Marks) -> tuple[Labels, int]:
    label = np.empty(mask.shape, np.int32)
    return label, int(np.asarray(ndimage.label(mask, structure=_WITHIN, output=label)))


def _least_area(side: int) -> float:
    """Returns the smallest area of an object in pixels."""
    smallest = min(sdf.moments(shape).area for shape in SHAPES)
    return LEAST_AREA * smallest * (SIZES["small"].low * side) ** 2
