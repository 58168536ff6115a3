"""Scenes that fulfil a spec, and the distance between their objects."""

import math
import random
from collections.abc import Sequence

from unclip_jax.shapes import world
from unclip_jax.shapes.scene import Scene, SceneSpec
from unclip_jax.shapes.vocabulary import BOUND


def arrange(spec: SceneSpec, *, seed: int) -> Scene:
    """A random scene that fulfils `spec`; sizes that it does not name are medium."""
    return world._arrange(random.Random(f"arrange {seed}"), spec)


def separation(scene: Scene) -> float:
    """Least distance between the bounding discs of two objects; infinite for a lone one."""
    return least_gap([(i.x, i.y) for i in scene.items], [i.radius for i in scene.items])


def least_gap(places: Sequence[tuple[float, float]], radii: Sequence[float]) -> float:
    """Least distance between two bounding discs of these centres and radii."""
    gaps = [
        math.dist(places[i], places[j]) - BOUND * (radii[i] + radii[j])
        for i in range(len(places))
        for j in range(i)
    ]
    return min(gaps, default=math.inf)
