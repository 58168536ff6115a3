"""Pixels against direct painting at full size, outlines against areas in closed form."""

import math

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.portraits import faces, render, world
from unclip_jax.portraits.pen import Paint, Pen, mirror, smooth
from unclip_jax.portraits.scene import Portrait
from unclip_jax.portraits.vocabulary import BACKGROUNDS, CLOTHES_COLOURS

PLAIN = {
    "hair": "bald",
    "hair_colour": "black",
    "facial_hair": "none",
    "glasses": "none",
    "eyes": "hearts",
    "mouth": "serious",
    "clothes": "t-shirt",
    "clothes_colour": "blue",
    "background": "yellow",
    "skin": "tan",
}


def _portraits(count):
    return [world.example("validation", seed=2, index=index).portrait for index in range(count)]


def _painted_directly(portrait, size):
    """Every layer over the whole canvas, one after the other."""
    canvas = np.empty((size, size, 3))
    canvas[:] = BACKGROUNDS[portrait.background]
    for index, part in enumerate(render.PARTS):
        kind, colour = render.values_of(index, portrait)
        rgb = np.array(render.PALETTES[part.colour][colour], float)
        for layer in part.draw(Pen(size), kind):
            paint, base = layer.paint, np.array(layer.paint.rgb or rgb, float)
            shade = -paint.shade if paint.contrast and base.mean() >= 128 else paint.shade
            mixed = base * (1 - abs(shade)) + (255 if shade > 0 else 0) * abs(shade)
            share = layer.coverage[..., None] * paint.opacity
            canvas = canvas * (1 - share) + share * mixed
    return canvas


def test_images_are_the_layers_painted_one_after_the_other():
    portraits = _portraits(25)
    images = render.render(portraits, size=32)
    for portrait, image in zip(portraits, images, strict=True):
        np.testing.assert_allclose(image, _painted_directly(portrait, 32), atol=0.51)


def test_a_batch_is_its_images():
    portraits = _portraits(9)
    images = render.render(portraits)
    assert images.shape == (9, 64, 64, 3) and images.dtype == np.uint8
    for portrait, image in zip(portraits, images, strict=True):
        np.testing.assert_array_equal(render.render([portrait])[0], image)
    assert render.render([], size=32).shape == (0, 32, 32, 3)


def test_sizes_show_the_same_portrait():
    portraits = _portraits(20)
    small = render.render(portraits, size=64).astype(float)
    large = render.render(portraits, size=128).astype(float)
    averaged = large.reshape(20, 64, 2, 64, 2, 3).mean(axis=(2, 4))
    assert np.sqrt(np.mean((averaged - small) ** 2)) < 2.5  # blending and averaging do not commute


def test_colours_are_the_palettes():
    portrait = Portrait(**PLAIN)
    image = render.render([portrait], size=64)[0]
    assert tuple(image[2, 2]) == BACKGROUNDS["yellow"]
    assert tuple(image[60, 32]) == CLOTHES_COLOURS["blue"]


def test_symmetric_portraits_are_symmetric():
    image = render.render([Portrait(**PLAIN)], size=64)[0]
    assert np.abs(image.astype(int) - image[:, ::-1]).max() <= 255 / 8  # one fine pixel of a stroke


def test_outlines_of_faces_hold_their_features():
    pen = Pen(64)
    skull = faces.skull(pen)
    np.testing.assert_array_equal(skull, mirror(skull))
    for x, y in ((faces.EYE_X, faces.EYE_Y), (50, 60), (50, 52)):
        assert skull[int(y * pen.side / 100), int(x * pen.side / 100)]
    assert not skull[: int(0.15 * pen.side)].any()


@pytest.mark.parametrize("radii", [(10, 10), (30, 12), (3, 20)])
def test_areas_of_ellipses(radii):
    pen = Pen(64)
    mask = pen.ellipse((50, 50), radii)
    area = pen.layer(mask, Paint()).coverage.sum() * (100 / 64) ** 2
    assert area == pytest.approx(math.pi * radii[0] * radii[1], rel=0.01)
    np.testing.assert_array_equal(mask, mirror(mask))


def test_areas_of_smooth_outlines():
    pen = Pen(64)
    circle = [(50 + 30 * math.sin(a), 50 - 30 * math.cos(a)) for a in np.arange(12) * math.pi / 6]
    area = pen.layer(pen.blob(circle), Paint()).coverage.sum() * (100 / 64) ** 2
    assert area == pytest.approx(math.pi * 900, rel=0.02)
    square = pen.polygon([(20, 20), (60, 20), (60, 60), (20, 60)])
    assert square.sum() * (100 / pen.side) ** 2 == pytest.approx(1600, rel=0.02)
    line = pen.stroke([(20, 50), (80, 50)], 4)  # and two half discs
    assert line.sum() * (100 / pen.side) ** 2 == pytest.approx(60 * 4 + math.pi * 4, rel=0.06)


def test_smooth_curves_pass_through_their_points():
    points = [(0.0, 0.0), (3.0, 5.0), (8.0, 4.0), (9.0, -2.0)]
    for closed in (True, False):
        curve = smooth(points, closed=closed)
        assert all(min(math.dist(p, q) for q in curve) < 1e-9 for p in points)
    straight = smooth([(0, 0), (1, 1), (2, 2), (3, 3)], closed=False)
    assert all(x == pytest.approx(y) for x, y in straight)


@pytest.mark.parametrize("size", [15, 513])
def test_sizes_that_are_rejected(size):
    with pytest.raises(UserError, match=f"image size is {size}"):
        render.render(_portraits(1), size=size)
