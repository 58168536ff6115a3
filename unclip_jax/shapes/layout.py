"""Placement of objects: inside the image, apart from each other, in an unambiguous relation.

Every function takes the scene's own random stream and calls only its `random()`, whose sequence
Python guarantees across versions.
"""

import math
import random
from collections.abc import Sequence

from unclip_jax.core.checks import UserError
from unclip_jax.shapes.vocabulary import BOUND, GAP, MARGIN

SLANT = 0.4  # |offset across| <= SLANT * distance along, so that no relation is ambiguous
TRIES = 24  # positions tried before a scattered layout starts again
RESTARTS = 40

Point = tuple[float, float]


def related(rng: random.Random, *, relation: str, radii: tuple[float, float]) -> list[Point]:
    """Samples centres of two objects, the first in `relation` to the second.

    The bounding discs are at least GAP apart along the relation's axis, and across it the centres
    differ by at most SLANT of their distance.

    Raises:
        UserError: the two are too large to stand side by side.
    """
    if not fits(radii):
        raise UserError(
            f"objects of radius {radii[0]:.3f} and {radii[1]:.3f} do not fit side by side; make "
            "one of them small."
        )
    ahead = relation in ("above", "left of")  # the first one has the smaller coordinate
    near, far = radii if ahead else radii[::-1]
    free = _free_length(radii)
    first, second = sorted((rng.random() * free, rng.random() * free))
    near_at = MARGIN + BOUND * near + first
    far_at = near_at + BOUND * (near + far) + GAP + (second - first)
    near_off = _inside(rng, near)
    reach = SLANT * (far_at - near_at)
    edge = MARGIN + BOUND * far
    low, high = max(edge, near_off - reach), min(1 - edge, near_off + reach)
    far_off = low + (high - low) * rng.random()
    places = [(near_at, near_off), (far_at, far_off)]
    if relation in ("above", "below"):
        places = [(off, at) for at, off in places]
    return places if ahead else places[::-1]


def scattered(rng: random.Random, *, count: int, radius: float) -> list[Point]:
    """Samples centres of `count` (1-4) equal objects whose bounding discs are at least GAP apart.

    Raises:
        UserError: the objects are too large.
    """
    if count > 1 and not fits((radius, radius)):
        raise UserError(f"{count} objects of radius {radius:.3f} do not fit; make them smaller.")
    least = 2 * BOUND * radius + GAP
    for _ in range(RESTARTS):
        places: list[Point] = []
        for _ in range(TRIES):
            place = (_inside(rng, radius), _inside(rng, radius))
            if all(math.dist(place, other) >= least for other in places):
                places.append(place)
            if len(places) == count:
                return places
    return _quadrants(rng, count=count, radius=radius)


def fits(radii: Sequence[float]) -> bool:
    """True if two objects fit side by side."""
    return _free_length(radii) >= 0


def _free_length(radii: Sequence[float]) -> float:
    """Length along one axis that margins, gap and bounding discs leave free."""
    return 1 - 2 * MARGIN - GAP - 2 * BOUND * sum(radii)


def _inside(rng: random.Random, radius: float) -> float:
    edge = MARGIN + BOUND * radius
    return edge + (1 - 2 * edge) * rng.random()


def _quadrants(rng: random.Random, *, count: int, radius: float) -> list[Point]:
    """One object in each of `count` quarters, the fallback of `scattered`."""
    near, far = MARGIN + BOUND * radius, 0.5 - GAP / 2 - BOUND * radius
    corners = [(0, 0), (1, 0), (0, 1), (1, 1)]
    del corners[: 4 - count]
    places = []
    for right, low in corners:
        a, b = (near + (far - near) * rng.random() for _ in range(2))
        places.append((1 - a if right else a, 1 - b if low else b))
    return places
