"""Pixels against a brute-force picture made of point samples."""

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.shapes import render, sdf, world
from unclip_jax.shapes.scene import Scene, SceneObject
from unclip_jax.shapes.vocabulary import BACKGROUNDS, COLOURS, SHAPES

FINE = 16  # samples per pixel and axis of the reference


def _brute_force(scene, size):
    """Every pixel is the mean of FINE^2 hard samples; membership by the sign of the distance."""
    at = (np.arange(size * FINE) + 0.5) / (size * FINE)
    picture = np.empty((size * FINE, size * FINE, 3))
    picture[:] = BACKGROUNDS[scene.background]
    for item in scene.items:
        x, y = (at[None, :] - item.x) / item.radius, (at[:, None] - item.y) / item.radius
        picture[sdf.distance(item.shape, x, y) < 0] = COLOURS[item.colour]
    return picture.reshape(size, FINE, size, FINE, 3).mean((1, 3))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [0.12, 0.25])
def test_coverage_is_that_of_a_supersampled_image(shape, radius):
    size = 64
    scene = Scene("black", (SceneObject("yellow", shape, "large", 0.503, 0.471, radius),))
    picture = render.render([scene], size=size)[0].astype(float)
    contrast = COLOURS["yellow"].red - BACKGROUNDS["black"].red
    error = np.abs(picture - _brute_force(scene, size))[..., 0] / contrast
    edge = error > 2 / 255
    assert error.max() < 0.12
    assert error[edge].mean() < 0.05 if edge.any() else True
    area = (picture[..., 0] - BACKGROUNDS["black"].red).sum() / contrast
    assert area == pytest.approx(sdf.moments(shape).area * (radius * size) ** 2, rel=0.01)


def test_axis_aligned_edges_are_exact():
    # A square whose sides cut pixels at known shares: half side 0.77 * r = 10.25 px round 32.
    scene = Scene("white", (SceneObject("blue", "square", "medium", 0.5, 0.5, 10.25 / 0.77 / 64),))
    row = render.render([scene], size=64)[0, 32].astype(float)
    white, blue = np.array(BACKGROUNDS["white"]), np.array(COLOURS["blue"])
    np.testing.assert_allclose(row[22:42], np.broadcast_to(blue, (20, 3)), atol=1)
    mixed = white + 0.25 * (blue - white)
    np.testing.assert_allclose(row[[21, 42]], np.stack([mixed, mixed]), atol=1)
    np.testing.assert_allclose(row[:21], np.broadcast_to(white, (21, 3)), atol=0)


def test_whole_scenes_match_brute_force():
    scenes = [world.example("train", seed=3, index=i).scene for i in range(12)]
    for scene, picture in zip(scenes, render.render(scenes, size=32), strict=True):
        assert np.abs(picture - _brute_force(scene, 32)).mean() < 0.35  # of 255


def test_image_does_not_depend_on_its_batch():
    scenes = [world.example("train", seed=1, index=i).scene for i in range(20)]
    together = render.render(scenes, size=64)
    alone = np.concatenate([render.render([scene], size=64) for scene in scenes])
    np.testing.assert_array_equal(together, alone)
    assert together.dtype == np.uint8 and together.shape == (20, 64, 64, 3)


def test_windows_hold_their_shape():
    # Nothing is cut: a window one pixel larger covers nothing more.
    for shape in SHAPES:
        radius = np.array([7.3, 7.9])
        side = render.window_side(7.9)
        middle = np.array([side / 2 + 0.49, side / 2 - 0.49])
        small = render.coverage(shape, x=middle, y=middle, radius=radius, side=side)
        large = render.coverage(shape, x=middle + 2, y=middle + 2, radius=radius, side=side + 4)
        np.testing.assert_allclose(small.sum((1, 2)), large.sum((1, 2)), rtol=1e-6)


def test_no_scenes_no_images():
    assert render.render([], size=64).shape == (0, 64, 64, 3)


@pytest.mark.parametrize("size", [4, 5000])
def test_image_size_outside_the_range_is_rejected(size):
    with pytest.raises(UserError, match="image size is .*must lie in"):
        render.render([], size=size)
