"""Regions of an image of shapes: the border's colour and the objects' centres, by hand."""

import numpy as np

from unclip_jax.metrics import shapes_regions
from unclip_jax.metrics.shapes_regions import Regions

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
    found = shapes_regions.centres(regions)
    for number in (1, 2, 3):
        _, rows, columns = np.nonzero(label == number)
        weights = share[label == number]
        np.testing.assert_allclose(found.area[number - 1], weights.sum(), rtol=1e-6)
        x, y = (np.average(at + 0.5, weights=weights) for at in (columns, rows))
        np.testing.assert_allclose([found.x[number - 1], found.y[number - 1]], [x, y], rtol=1e-6)
