"""Drawing of parts: smooth outlines on a square of 100 x 100 units, filled far above pixel size.

A mask says which fine pixels an outline covers; a layer is a mask, brought down to coverage per
pixel, with a paint. x points right and y down, and faces are symmetric about x = 50.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

FINE_SIDE = 512  # least side of a mask in fine pixels
LEAST_SUBSAMPLES = 4  # fine pixels per pixel and axis
CURVE_STEPS = 12  # straight pieces between two points of a smooth outline

Mask = Bool[np.ndarray, "s s"]
Number = int | float
Point = tuple[Number, Number]


@dataclasses.dataclass(frozen=True)
class Paint:
    """The colour of a layer.

    Attributes:
        rgb: a fixed colour, or None for the colour of the part.
        shade: moves the colour towards white (up to 1) or black (down to -1).
        opacity: of the layer where it covers a pixel.
        contrast: moves towards white if the colour is dark and towards black if it is light.
    """

    rgb: tuple[int, int, int] | None = None
    shade: float = 0.0
    opacity: float = 1.0
    contrast: bool = False


@dataclasses.dataclass(frozen=True)
class Layer:
    """Coverage per pixel, 0-1, and the paint on it."""

    coverage: Float[np.ndarray, "size size"]
    paint: Paint


class Pen:
    """Draws masks and layers for images of one size."""

    def __init__(self, size: int):
        """Prepares drawing for square images of `size` pixels."""
        self.size = size
        self.subsamples = max(LEAST_SUBSAMPLES, FINE_SIDE // size)
        self.side = size * self.subsamples

    def ellipse(self, centre: Point, radii: Point) -> Mask:
        """Fills an axis-aligned ellipse."""
        points = (np.arange(self.side, dtype=np.float32) + 0.5) * np.float32(100 / self.side)
        across = ((points - centre[0]) / radii[0]) ** 2
        down = ((points - centre[1]) / radii[1]) ** 2
        return across[None, :] + down[:, None] <= 1

    def polygon(self, points: Sequence[Point]) -> Mask:
        """Fills a polygon with straight sides."""
        image = Image.new("L", (self.side, self.side))
        scaled = [(x * self.side / 100 - 0.5, y * self.side / 100 - 0.5) for x, y in points]
        ImageDraw.Draw(image).polygon(scaled, fill=255)
        return np.asarray(image) > 0

    def blob(self, points: Sequence[Point]) -> Mask:
        """Fills the smooth closed curve (Catmull-Rom) through `points`."""
        return self.polygon(smooth(points, closed=True))

    def symmetric(self, points: Sequence[Point]) -> Mask:
        """Fills the smooth curve through `points` and their mirror images.

        Args:
            points: the right half of the outline, from the top to the bottom.
        """
        left = [(100 - x, y) for x, y in reversed(points) if x != 50]
        mask = self.blob([*points, *left])
        return mask | mirror(mask)  # the edges of polygons are not exactly symmetric

    def stroke(self, points: Sequence[Point], width: Number) -> Mask:
        """Draws the smooth open curve through `points` with round ends."""
        curve = smooth(points, closed=False) if len(points) > 2 else list(points)
        image = Image.new("L", (self.side, self.side))
        canvas = ImageDraw.Draw(image)
        scaled = [(x * self.side / 100 - 0.5, y * self.side / 100 - 0.5) for x, y in curve]
        thickness = width * self.side / 100
        canvas.line(scaled, fill=255, width=max(1, round(thickness)), joint="curve")
        half = thickness / 2
        for x, y in (scaled[0], scaled[-1]):
            canvas.ellipse((x - half, y - half, x + half, y + half), fill=255)
        return np.asarray(image) > 0

    def nothing(self) -> Mask:
        """Returns an empty mask."""
        return np.zeros((self.side, self.side), bool)

    def layer(self, mask: Mask, paint: Paint) -> Layer:
        """Averages a mask over each pixel and paints it."""
        blocks = mask.reshape(self.size, self.subsamples, self.size, self.subsamples)
        return Layer(blocks.mean(axis=(1, 3), dtype=np.float32), paint)


def mirror(mask: Mask) -> Mask:
    """Mirrors a mask about x = 50."""
    return mask[:, ::-1]


def smooth(points: Sequence[Point], *, closed: bool) -> list[Point]:
    """Interpolates `points` by a Catmull-Rom spline (Catmull & Rom 1974), uniform, tension 1/2."""
    count = len(points)
    if closed:
        padded = [points[-1], *points, points[0], points[1]]
    else:
        padded = [points[0], *points, points[-1]]
    corners = np.array(padded, np.float64)
    t = np.linspace(0, 1, CURVE_STEPS, endpoint=False)[:, None]
    pieces = []
    for k in range(count if closed else count - 1):
        a, b, c, d = corners[k : k + 4]
        cubic = (-a + 3 * b - 3 * c + d) * t**3 + (2 * a - 5 * b + 4 * c - d) * t**2
        pieces.append(b + ((c - a) * t + cubic) / 2)
    if not closed:
        pieces.append(corners[-1:])
    return [(float(x), float(y)) for x, y in np.concatenate(pieces)]
