"""Regions of an image of shapes: the border's colour and the objects' centres, by hand."""

import numpy as np
import pytest

from unclip_jax.metrics import shapes_regions
from unclip_jax.metrics.shapes_regions import MOST_OBJECTS, PALETTE, Regions
from unclip_jax.shapes import render
from unclip_jax.shapes.vocabulary import BACKGROUNDS, COLOURS, SHAPES

RNG = np.random.default_rng(0)


def test_the_background_is_the_median_of_the_outermost_pixels_each_counted_once():
    """Of 5 x 4 pixels 14 are outermost; no other set of pixels has the same medians."""
    pixels = RNG.uniform(0, 255, (40, 5, 4, 3)).astype(np.float32)
    outermost = np.ones((5, 4), bool)
    outermost[1:-1, 1:-1] = False
    expected = np.median(pixels[:, outermost], axis=1)
    np.testing.assert_array_equal(shapes_regions.border_colour(pixels), expected)


def test_centres_are_weighted_by_the_share_of_each_pixel():
    label = np.zeros((2, 3, 4), int)
    label[0, 0, 1:3], label[0, 2, 0], label[1, 1:, 3] = 1, 2, 3
    share = RNG.uniform(0.1, 1.0, label.shape)
    regions = Regions(label, share, np.array([0, 0, 1]), np.zeros(3, int))
    result = shapes_regions.centres(regions)
    for number in (1, 2, 3):
        _, rows, columns = np.nonzero(label == number)
        weights = share[label == number]
        np.testing.assert_allclose(result.area[number - 1], weights.sum(), rtol=1e-6)
        x, y = (np.average(at + 0.5, weights=weights) for at in (columns, rows))
        np.testing.assert_allclose([result.x[number - 1], result.y[number - 1]], [x, y], rtol=1e-6)


def test_a_pixel_belongs_to_the_colour_whose_line_from_the_background_passes_nearest():
    """Compared with a search over 2,001 points of every line."""
    grounds = np.array([BACKGROUNDS["white"], BACKGROUNDS["navy"]], np.float32)
    pixels = RNG.uniform(0, 255, (2, 9, 11, 3)).astype(np.float32)
    lines = PALETTE - grounds[:, None]
    colour, solid = shapes_regions._unmix(pixels - grounds[:, None, None], lines)
    shares = np.linspace(0, 1, 2001)
    for image in range(2):
        points = grounds[image] + shares[:, None, None] * lines[image]  # [shares colours 3]
        apart = np.linalg.norm(pixels[image][:, :, None, None] - points, axis=-1)
        nearest = apart.min(axis=2).argmin(axis=-1)
        np.testing.assert_array_equal(colour[image], nearest)
        share = shares[apart.argmin(axis=2)]
        expected = np.take_along_axis(share, nearest[..., None], axis=-1)[..., 0]
        clear = np.abs(expected - 0.5) > 1e-3
        np.testing.assert_array_equal(solid[image][clear], (expected >= 0.5)[clear])


def test_half_of_a_pixel_is_enough_and_a_colour_like_the_background_is_invisible():
    """Lines of 64 along one axis, so that shares of them are exact."""

    def solid(length: float, share: float) -> bool:
        lines = np.full((1, 7, 3), 1e3, np.float32)  # the others pass far away
        lines[0, 2] = (length, 0, 0)
        offset = np.array([length * share, 0, 0], np.float32).reshape(1, 1, 1, 3)
        colour, result = shapes_regions._unmix(offset, lines)
        assert colour.item() == 2 or not result.item()
        return result.item()

    assert solid(64, 0.5) and solid(64, 1.0) and solid(64, 1.5)
    assert not solid(64, 0.499) and not solid(64, -1)
    assert solid(36, 1.0) and not solid(35.9, 1.0)


def test_objects_of_an_image_with_soft_edges():
    """A square of 12 x 12 pixels whose right column is covered by 3/4, and one of 9 x 9 by it."""
    ground = np.array(BACKGROUNDS["gray"], np.float32)
    pixels = np.tile(ground, (3, 64, 64, 1))
    red, blue = (np.array(COLOURS[name], np.float32) for name in ("red", "blue"))
    pixels[1, 5:17, 40:52] = red
    pixels[1, 5:17, 51] = ground + 0.75 * (red - ground)
    pixels[1, 5:17, 52] = ground + 0.25 * (red - ground)  # touches it
    pixels[1, 30:39, 3:12] = blue
    pixels[2, 5:17, 40:52] = blue
    result = shapes_regions.find_regions(pixels, np.tile(ground, (3, 1)))
    order = np.lexsort((result.colour, result.image))
    names = [list(COLOURS)[k] for k in result.colour[order]]
    assert list(zip(result.image[order].tolist(), names, strict=True)) == [
        (1, "red"), (1, "blue"), (2, "blue"),
    ]  # fmt: skip
    number = [int(k) + 1 for k in order]
    label, share = np.zeros((3, 64, 64), int), np.zeros((3, 64, 64))
    label[1, 4:18, 39:53], label[1, 29:40, 2:13] = number[0], number[1]  # with what touches them
    label[2, 4:18, 39:53] = number[2]
    share[1, 5:17, 40:52], share[1, 30:39, 3:12], share[2, 5:17, 40:52] = 1, 1, 1
    share[1, 5:17, 51], share[1, 5:17, 52] = 0.75, 0.25
    np.testing.assert_array_equal(result.label, label)
    np.testing.assert_allclose(result.share, share, atol=1e-5)


def test_shares_lie_between_0_and_1_and_are_0_off_all_objects():
    """Though pixels of a model are darker than the palette, and its background is not flat."""
    ground = np.array(BACKGROUNDS["gray"], np.float32)
    pixels = ground + RNG.uniform(-6, 6, (1, 64, 64, 3)).astype(np.float32)
    line = np.array(COLOURS["red"], np.float32) - ground
    pixels[0, 20:40, 20:40] = ground + 1.2 * line
    pixels[0, 19, 20:40] = ground - 0.2 * line  # touches it
    result = shapes_regions.find_regions(pixels, ground[None])
    assert result.colour.tolist() == [list(COLOURS).index("red")]
    assert (result.share[0, 20:40, 20:40] == 1).all() and (result.share[0, 19, 20:40] == 0).all()
    assert (result.share[result.label == 0] == 0).all()


def test_objects_that_touch_keep_their_pixels():
    ground = np.array(BACKGROUNDS["white"], np.float32)
    pixels = np.tile(ground, (1, 64, 64, 1))
    for column, name in ((4, "red"), (14, "blue"), (24, "green")):
        pixels[0, 10:20, column : column + 10] = COLOURS[name]
    result = shapes_regions.find_regions(pixels, ground[None])
    names = [list(COLOURS)[k] for k in result.colour]
    assert sorted(names) == ["blue", "green", "red"]
    for column, name in ((4, "red"), (14, "blue"), (24, "green")):
        assert (result.label[0, 10:20, column : column + 10] == 1 + names.index(name)).all()


def test_windows_show_one_object_each_and_nothing_beyond_the_image():
    label = RNG.integers(0, 4, (2, 6, 7))
    label[0][label[0] == 3], label[1][label[1] != 3] = 0, 0  # objects 1 and 2, and object 3
    share = RNG.uniform(0.1, 1.0, label.shape)
    regions = Regions(label, share, np.array([0, 0, 1]), np.zeros(3, int))
    left, top = np.array([-2, 5, 3]), np.array([4, -4, 1])
    result = shapes_regions.windows(regions, left=left, top=top, side=5)
    assert result.shape == (3, 5, 5)
    for k, image in enumerate((0, 0, 1)):
        for row in range(5):
            for column in range(5):
                y, x = top[k] + row, left[k] + column
                inside = 0 <= y < 6 and 0 <= x < 7 and label[image, y, x] == k + 1
                expected = share[image, y, x] if inside else 0.0
                assert result[k, row, column] == np.float32(expected)


@pytest.mark.parametrize(
    ("part", "splits"),
    [(0, False), (21, False), (29, False), (30, True), (60, True), (90, True), (91, False)],
)
def test_a_component_is_two_objects_if_a_quarter_of_it_is_of_another_colour(part, splits):
    """Of 120 pixels 30; a single one of a third colour goes the way of the others."""
    solid = np.zeros((2, 64, 64), bool)
    solid[1, 10:20, 20:32] = True
    colour = RNG.integers(0, 7, solid.shape)  # where nothing is solid, colours mean nothing
    places = np.argwhere(solid[1])
    values = np.array([4] * part + [1] * (120 - part))
    colour[1][solid[1]] = values
    if not splits:
        colour[1][tuple(places[-1])] = 6
    result = shapes_regions._main_colour(colour, solid)
    main = 4 if part > 60 else 1
    expected = values if splits else np.full(120, main)
    np.testing.assert_array_equal(result[1][solid[1]], expected)


def test_a_second_colour_must_have_the_area_of_an_object():
    """A quarter of the smallest one: at 64 pixels a little more than 21 pixels."""
    assert 21 < shapes_regions._least_area(64) < 22
    for part, splits in ((21, False), (22, True)):
        solid = np.zeros((1, 64, 64), bool)
        solid[0, 3, :60] = True
        colour = np.full(solid.shape, 2)
        colour[0, 3, :part] = 5
        result = np.unique(shapes_regions._main_colour(colour, solid)[solid])
        assert (len(result) == 2) == splits


@pytest.mark.parametrize("side", [32, 64, 256])
def test_the_least_area_is_a_quarter_of_that_of_the_smallest_object(side):
    radius = 0.115 * side  # of the smallest objects, in the vocabulary of the world
    middle = np.array([side / 2])
    placement = {"x": middle, "y": middle, "radius": np.array([radius]), "side": side}
    areas = [render.coverage(shape, **placement).sum() for shape in SHAPES]
    assert shapes_regions._least_area(side) == pytest.approx(min(areas) / 4, rel=0.03)


def test_parts_of_equal_colour_are_joined_by_their_sides_within_an_image():
    rows = ["110.2", "0.022", "1110.", ".0113"]
    colour = np.array([[[int(c) if c != "." else 0 for c in row] for row in rows]] * 2)
    solid = np.array([[[c != "." for c in row] for row in rows]] * 2)
    label = shapes_regions._join(colour, solid)
    parts = {}
    for place in np.argwhere(label):
        parts.setdefault(int(label[tuple(place)]), set()).add(tuple(int(n) for n in place))
    expected = [
        {(0, 0), (0, 1)}, {(0, 2), (1, 2)}, {(0, 4), (1, 3), (1, 4)}, {(1, 0)},
        {(2, 0), (2, 1), (2, 2), (3, 2), (3, 3)}, {(2, 3)}, {(3, 1)}, {(3, 4)},
    ]  # fmt: skip
    both = [{(k, *place) for place in part} for k in range(2) for part in expected]
    assert sorted(map(sorted, parts.values())) == sorted(map(sorted, both))
    assert sorted(parts) == list(range(1, 17))
    assert not label[~solid].any()


def test_small_parts_and_all_but_the_largest_of_an_image_are_dropped():
    """Of ten parts of 3, 4, ... 12 pixels the eight largest; of another image, all large ones."""
    label = np.zeros((2, 12, 13), int)
    areas = [7, 3, 12, 9, 4, 10, 5, 11, 6, 8]
    for row, area in enumerate(areas):
        label[0, row, :area] = row + 1
    label[1, 0, :4], label[1, 1, :3], label[1, 2, :5] = 11, 12, 13
    rows = [row for row, area in enumerate(areas) if area >= 5]
    assert len(rows) == MOST_OBJECTS
    expected = np.zeros_like(label)
    for number, row in enumerate(rows):
        expected[0, row, : areas[row]] = number + 1
    expected[1, 0, :4], expected[1, 2, :5] = 9, 10
    np.testing.assert_array_equal(shapes_regions._drop_small(label, least=4.0), expected)
    none = shapes_regions._drop_small(label, least=12.5)
    assert not none.any()
    most = shapes_regions._drop_small(label, least=1.0)
    assert len(np.unique(most[0])) == 1 + MOST_OBJECTS and len(np.unique(most[1])) == 1 + 3
    ties = np.repeat(np.arange(10), 13)[:130].reshape(1, 10, 13)  # nine of 13 pixels
    assert np.unique(shapes_regions._drop_small(ties, least=1.0)).tolist() == list(range(9))
    assert not shapes_regions._drop_small(ties, least=1.0)[0, 9].any()  # the last of them
