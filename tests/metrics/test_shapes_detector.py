"""The detector recovers the scenes that were rendered."""

import numpy as np
import pytest
from scipy import ndimage

from unclip_jax.core.checks import UserError
from unclip_jax.metrics.shapes_detector import detect
from unclip_jax.metrics.shapes_regions import MOST_OBJECTS
from unclip_jax.shapes import render, world
from unclip_jax.shapes.scene import Scene, SceneObject
from unclip_jax.shapes.vocabulary import BACKGROUNDS, COLOURS, SHAPES


def _match(item, detection):
    return min(detection.objects, key=lambda o: (o.x - item.x) ** 2 + (o.y - item.y) ** 2)


@pytest.mark.parametrize("split", ["validation", "compositional"])
@pytest.mark.parametrize(("size", "place"), [(64, 0.004), (32, 0.008)])
def test_every_object_is_found_where_it_was_drawn(split, size, place):
    scenes = [world.example(split, seed=11, index=i).scene for i in range(60)]
    for case, detection in zip(scenes, detect(render.render(scenes, size=size)), strict=True):
        assert detection.background == case.background
        assert len(detection.objects) == len(case.items)
        for item in case.items:
            result = _match(item, detection)
            assert (result.colour, result.shape, result.size) == (
                item.colour,
                item.shape,
                item.size,
            )
            assert max(abs(result.x - item.x), abs(result.y - item.y)) < place
            assert result.radius == pytest.approx(item.radius, rel=0.04)
            assert result.overlap > 0.95


def test_every_colour_and_shape_on_every_background():
    scenes = [
        Scene(ground, (SceneObject(colour, shape, "medium", 0.5, 0.5, 0.17),))
        for ground in BACKGROUNDS
        for colour in COLOURS
        for shape in SHAPES
    ]
    detections = detect(render.render(scenes, size=32))
    for case, detection in zip(scenes, detections, strict=True):
        (result,) = detection.objects
        assert detection.background == case.background
        assert (result.colour, result.shape) == (case.items[0].colour, case.items[0].shape)


def test_float_and_uint8_images_give_the_same_detections():
    scenes = [world.example("train", seed=2, index=i).scene for i in range(8)]
    pictures = render.render(scenes, size=32)
    floats = pictures.astype(np.float32) / 127.5 - 1
    for one, other in zip(detect(pictures), detect(floats), strict=True):
        assert one.background == other.background
        for a, b in zip(one.objects, other.objects, strict=True):
            assert a[:3] == b[:3]
            np.testing.assert_allclose(a[3:], b[3:], atol=1e-4)


def test_touching_objects_of_two_colours_are_two():
    radius = 0.17
    half = 0.77 * radius
    items = tuple(
        SceneObject(colour, "square", "medium", 0.5 + side * half, 0.5, radius)
        for colour, side in (("red", -1), ("blue", 1))
    )
    (detection,) = detect(render.render([Scene("cream", items)], size=64))
    assert {result.colour for result in detection.objects} == {"red", "blue"}
    assert [result.shape for result in detection.objects] == ["square", "square"]


def test_specks_are_not_objects_and_blobs_have_no_shape():
    rng = np.random.default_rng(0)
    picture = np.full((1, 64, 64, 3), 255, np.uint8)
    picture[0, rng.integers(1, 63, 40), rng.integers(1, 63, 40)] = COLOURS["red"]
    assert detect(picture) == [("white", ())]
    picture[0, 30:33, 4:60] = COLOURS["green"]  # a bar
    (result,) = detect(picture)[0].objects
    assert result.colour == "green" and result.shape is None


def test_soft_and_noisy_images_are_still_read():
    scenes = [world.example("validation", seed=21, index=i).scene for i in range(100)]
    pictures = render.render(scenes, size=64) / 127.5 - 1
    rng = np.random.default_rng(1)
    soft = ndimage.gaussian_filter(pictures, (0, 0.8, 0.8, 0))
    noisy = np.clip(soft + 0.08 * rng.standard_normal(soft.shape), -1, 1).astype(np.float32)
    right = total = 0
    for case, detection in zip(scenes, detect(noisy), strict=True):
        assert detection.background == case.background and len(detection.objects) == len(case.items)
        for item in case.items:
            result = _match(item, detection)
            right += (result.colour, result.shape, result.size) == (
                item.colour,
                item.shape,
                item.size,
            )
            total += 1
    assert right >= 0.99 * total


def test_noise_has_few_objects():
    noise = np.random.default_rng(0).uniform(-1, 1, (4, 64, 64, 3)).astype(np.float32)
    assert all(len(detection.objects) <= MOST_OBJECTS for detection in detect(noise))


def test_a_painted_background_is_named_by_its_colour():
    picture = np.empty((1, 32, 32, 3), np.uint8)
    picture[:] = COLOURS["red"]
    assert detect(picture) == [("red", ())]


def test_invalid_images_are_rejected():
    with pytest.raises(UserError, match="images are 32 x 16"):
        detect(np.zeros((1, 32, 16, 3), np.uint8))
    with pytest.raises(UserError, match="squares of at least 16"):
        detect(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="float images reach 255"):
        detect(np.full((1, 32, 32, 3), 255, np.float32))
    with pytest.raises(UserError, match="float images reach nan"):
        detect(np.full((1, 32, 32, 3), np.nan, np.float32))


def test_no_images_give_no_detections():
    assert detect(np.zeros((0, 32, 32, 3), np.uint8)) == []
