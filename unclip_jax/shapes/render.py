"""The renderer: scenes to anti-aliased pixels, many at a time.

Coverage of a pixel is the mean over SUBSAMPLES^2 points of clip(0.5 - distance), distance in
subsample pitches. Objects never overlap, so an image is its background plus one blended window
per object. Results depend on the scene alone, not on the batch it is rendered in.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from unclip_jax.core.checks import in_range
from unclip_jax.shapes import sdf
from unclip_jax.shapes.scene import Scene, SceneObject
from unclip_jax.shapes.vocabulary import BACKGROUNDS, BOUND, COLOURS, SIZES

SUBSAMPLES = 2  # per axis

PerObject = Float[np.ndarray, " n"]


def render(scenes: Sequence[Scene], *, size: int = 64) -> UInt8[np.ndarray, "b size size 3"]:
    """Renders `scenes` as square RGB images of side `size`.

    Raises:
        UserError: `size` outside 8..1024.
    """
    in_range("image size", size, 8, 1024)
    pad = window_side(SIZES["large"].high * size)
    side = size + 2 * pad
    grounds = np.array([BACKGROUNDS[scene.background] for scene in scenes], np.float32)
    canvas = np.empty((len(scenes), side, side, 3), np.float32)
    canvas[:] = grounds.reshape(-1, 1, 1, 3)
    objects = [(index, item) for index, scene in enumerate(scenes) for item in scene.items]
    objects.sort(key=_kind)
    for _, group in itertools.groupby(objects, key=_kind):
        _blend(canvas, grounds, list(group), size=size, pad=pad)
    inner = canvas[:, pad : pad + size, pad : pad + size]
    return (inner + 0.5).astype(np.uint8)


def window_side(radius: float) -> int:
    """Returns the side in pixels of a window that holds any shape of `radius` and its soft edge."""
    return 2 * math.ceil(BOUND * radius + 1.5)


def coverage(
    shape: str, *, x: PerObject, y: PerObject, radius: PerObject, side: int
) -> Float[np.ndarray, "n side side"]:
    """Computes the share of each pixel of a `side` x `side` window that one shape covers.

    Args:
        shape: a member of `SHAPES`.
        x: horizontal centres in pixels from the window's left edge.
        y: vertical centres in pixels from its upper edge.
        radius: unit radii in pixels.
        side: of the window, in pixels.
    """
    points = (np.arange(side * SUBSAMPLES, dtype=np.float32) + 0.5) / SUBSAMPLES
    scale = radius.astype(np.float32)[:, None, None]
    across = (points[None, None, :] - x.astype(np.float32)[:, None, None]) / scale
    down = (points[None, :, None] - y.astype(np.float32)[:, None, None]) / scale
    distances = sdf.distance(shape, across, down)
    soft = np.clip(0.5 - distances * (scale * SUBSAMPLES), 0, 1)
    rows = soft[:, :, 0::SUBSAMPLES] + soft[:, :, 1::SUBSAMPLES]
    return (rows[:, 0::SUBSAMPLES] + rows[:, 1::SUBSAMPLES]) * np.float32(1 / SUBSAMPLES**2)


def _kind(entry: tuple[int, SceneObject]) -> tuple[str, str]:
    return entry[1].shape, entry[1].size


def _blend(
    canvas: np.ndarray,
    grounds: np.ndarray,
    group: Sequence[tuple[int, SceneObject]],
    *,
    size: int,
    pad: int,
) -> None:
    """Adds objects of one shape and size class to the padded canvas, in place."""
    shape = group[0][1].shape
    x, y, radius = (
        np.array([getattr(item, name) for _, item in group]) * size for name in ("x", "y", "radius")
    )
    side = window_side(max(SIZES[group[0][1].size].high * size, float(radius.max())))
    left = np.floor(x).astype(int) - side // 2
    top = np.floor(y).astype(int) - side // 2
    covered = coverage(shape, x=x - left, y=y - top, radius=radius, side=side)
    colours = np.array([COLOURS[item.colour] for _, item in group], np.float32)
    owners = [index for index, _ in group]
    change = covered[..., None] * (colours - grounds[owners])[:, None, None, :]
    for k, (row, column) in enumerate(zip(top + pad, left + pad, strict=True)):
        canvas[owners[k], row : row + side, column : column + side] += change[k]
