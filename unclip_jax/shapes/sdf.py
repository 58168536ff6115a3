"""Signed distances to the eight shapes, and their areas and centres in closed form.

Unit coordinates: origin at the shape's centre, x right, y down, and the shape within a disc of
radius `BOUND`. Distances are negative inside. They are exact beside the smooth parts and straight
sides of an outline and never too large in magnitude; near corners they may be too small.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from unclip_jax.core.checks import one_of

Plane = Float[np.ndarray, "..."]  # x and y broadcast against each other

CIRCLE = 0.90  # radius
SQUARE = 0.77  # half side
TRIANGLE = 1.10  # radius of the circle through its corners
DIAMOND = (0.82, 1.10)  # half width, half height
STAR = (1.10, 0.55)  # radius of its points, of its inner corners
HEART = (1.20, 0.18)  # side of the tilted square whose upper sides carry half discs; shift up
RING = (0.72, 0.24)  # radius of its middle line, half width
CROSS = (1.00, 0.34)  # arm length, half width


class AreaMoments(NamedTuple):
    """Area and centre of mass of a unit shape; all are symmetric in x, so only y is stored."""

    area: float
    centre_y: float


def distance(shape: str, x: Plane, y: Plane) -> Plane:
    """Computes the signed distance from (x, y) to the outline of `shape`, in unit coordinates.

    Raises:
        UserError: no such shape.
    """
    return _DISTANCES[one_of("shape", shape, _DISTANCES)](x, y)


def moments(shape: str) -> AreaMoments:
    """Returns the exact area and centre of mass of a unit `shape`.

    Raises:
        UserError: no such shape.
    """
    return _MOMENTS[one_of("shape", shape, _MOMENTS)]


def _circle(x: Plane, y: Plane) -> Plane:
    return np.hypot(x, y) - CIRCLE


def _square(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.abs(x), np.abs(y)) - SQUARE


def _triangle(x: Plane, y: Plane) -> Plane:
    """Equilateral, point up: the two slanted sides are one by symmetry."""
    slanted = np.abs(x) * (math.sqrt(3) / 2) - y / 2
    return np.maximum(slanted, y) - TRIANGLE / 2


def _diamond(x: Plane, y: Plane) -> Plane:
    wide, high = DIAMOND
    return (np.abs(x) * high + np.abs(y) * wide - wide * high) / math.hypot(wide, high)


def _star(x: Plane, y: Plane) -> Plane:
    """Folds the plane into one tenth, where the outline is a single segment."""
    outer, inner = STAR
    sector = 2 * math.pi / 5
    angle = np.arctan2(x, -y)
    angle = np.abs(angle - sector * np.round(angle / sector))
    radius = np.hypot(x, y)
    along, across = radius * np.cos(angle) - outer, radius * np.sin(angle)
    side_x = inner * math.cos(sector / 2) - outer
    side_y = inner * math.sin(sector / 2)
    t = np.clip((along * side_x + across * side_y) / (side_x**2 + side_y**2), 0, 1)
    length = np.hypot(along - t * side_x, across - t * side_y)
    return np.where(along * side_y - across * side_x > 0, length, -length)


def _heart(x: Plane, y: Plane) -> Plane:
    """A square standing on its corner with a half disc on either upper side."""
    side, shift = HEART
    x, y = np.abs(x), y - shift
    square = (x + np.abs(y)) / math.sqrt(2) - side / 2
    middle = side / math.sqrt(8)
    return np.minimum(square, np.hypot(x - middle, y + middle) - side / 2)


def _ring(x: Plane, y: Plane) -> Plane:
    middle, half = RING
    return np.abs(np.hypot(x, y) - middle) - half


def _cross(x: Plane, y: Plane) -> Plane:
    arm, half = CROSS
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - arm, y - half), np.maximum(x - half, y - arm))


def _heart_moments() -> AreaMoments:
    """Square plus two half discs, whose centres lie 4 r / (3 pi) beyond the upper sides."""
    side, shift = HEART
    square, discs = side**2, math.pi * side**2 / 4
    out = (side / 2 + 4 * (side / 2) / (3 * math.pi)) / math.sqrt(2)
    return AreaMoments(square + discs, shift - out * discs / (square + discs))


_DISTANCES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "cross": _cross,
}
_MOMENTS: dict[str, AreaMoments] = {
    "circle": AreaMoments(math.pi * CIRCLE**2, 0.0),
    "square": AreaMoments(4 * SQUARE**2, 0.0),
    "triangle": AreaMoments(3 * math.sqrt(3) / 4 * TRIANGLE**2, 0.0),
    "diamond": AreaMoments(2 * DIAMOND[0] * DIAMOND[1], 0.0),
    "star": AreaMoments(5 * STAR[0] * STAR[1] * math.sin(math.pi / 5), 0.0),
    "heart": _heart_moments(),
    "ring": AreaMoments(4 * math.pi * RING[0] * RING[1], 0.0),
    "cross": AreaMoments(8 * CROSS[0] * CROSS[1] - 4 * CROSS[1] ** 2, 0.0),
}
