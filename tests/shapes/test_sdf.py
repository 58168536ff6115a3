"""Distances against outlines that are written down here a second time, point by point."""

import math

import numpy as np
import pytest
from matplotlib.path import Path

from unclip_jax.core.checks import UserError
from unclip_jax.shapes import sdf
from unclip_jax.shapes.vocabulary import BOUND, SHAPES


def _corners(shape):
    if shape == "square":
        return [(0.77, 0.77), (0.77, -0.77), (-0.77, -0.77), (-0.77, 0.77)]
    if shape == "triangle":
        low = 1.1 * math.sin(math.pi / 6)
        wide = 1.1 * math.cos(math.pi / 6)
        return [(0, -1.1), (wide, low), (-wide, low)]
    if shape == "diamond":
        return [(0, -1.1), (0.82, 0), (0, 1.1), (-0.82, 0)]
    if shape == "star":
        turns = [(k, 1.1 if k % 2 == 0 else 0.55) for k in range(10)]
        return [(r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5)) for k, r in turns]
    a, b = 1.0, 0.34
    quarter = [(b, -a), (b, -b), (a, -b)]
    return [p for turn in range(4) for p in [_rotate(x, y, turn * math.pi / 2) for x, y in quarter]]


def _rotate(x, y, angle):
    return (
        x * math.cos(angle) - y * math.sin(angle),
        x * math.sin(angle) + y * math.cos(angle),
    )


def _outline(shape, n=4000):
    """Points on the outline, close together."""
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
    disc = np.stack([np.cos(turn), np.sin(turn)], -1)
    if shape == "circle":
        return 0.9 * disc
    if shape == "ring":
        return np.concatenate([0.96 * disc, 0.48 * disc])
    if shape == "heart":  # two half discs on the upper sides of a square that stands on a corner
        c = 1.2 / math.sqrt(8)
        outward = disc[disc @ [1, -1] >= -1e-9]
        right = np.array([c, 0.18 - c]) + 0.6 * outward
        side = np.linspace(0, 1, n)[:, None]
        lower = (1 - side) * [2 * c, 0.18] + side * [0.0, 0.18 + 2 * c]
        half = np.concatenate([right, lower])
        return np.concatenate([half, half * [-1, 1]])
    corners = np.array(_corners(shape))
    ends = np.roll(corners, -1, axis=0)
    t = np.linspace(0, 1, n // len(corners))[:, None, None]
    return (corners * (1 - t) + ends * t).reshape(-1, 2)


def inside(shape, points):
    """Membership by another route than a distance."""
    x, y = points[:, 0], points[:, 1]
    if shape == "circle":
        return x**2 + y**2 < 0.9**2
    if shape == "ring":
        return (x**2 + y**2 < 0.96**2) & (x**2 + y**2 > 0.48**2)
    if shape == "heart":
        c, y = 1.2 / math.sqrt(8), y - 0.18
        discs = (np.abs(x) - c) ** 2 + (y + c) ** 2 < 0.6**2
        return discs | (np.abs(x) + np.abs(y) < 0.6 * math.sqrt(2))
    return Path(_corners(shape)).contains_points(points)


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).uniform(-1.3, 1.3, (1500, 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_sign_is_membership(shape, points):
    d = sdf.distance(shape, points[:, 0], points[:, 1])
    np.testing.assert_array_equal(d < 0, inside(shape, points))


@pytest.mark.parametrize("shape", SHAPES)
def test_magnitude_is_never_above_the_distance_to_the_outline(shape, points):
    outline = _outline(shape)
    true = np.sqrt(((points[:, None] - outline) ** 2).sum(-1)).min(1)
    d = np.abs(sdf.distance(shape, points[:, 0], points[:, 1]))
    assert (d <= true + 1e-3).all()
    near = true < 0.1
    # equal beside sides and arcs; corners are the exception, and few points lie at corners
    assert np.mean(np.abs(d - true)[near] < 2e-3) > 0.85


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_fits_its_bounding_disc(shape):
    assert np.hypot(*_outline(shape).T).max() <= BOUND + 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_area_and_centre_are_those_of_a_fine_grid(shape):
    grid = (np.arange(1200) + 0.5) / 1200 * 2.4 - 1.2
    cells = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    interior = cells[inside(shape, cells)]
    area, centre_y = sdf.moments(shape)
    assert len(interior) * (2.4 / 1200) ** 2 == pytest.approx(area, rel=2e-3)
    assert interior[:, 1].mean() == pytest.approx(centre_y, abs=1e-3)
    assert interior[:, 0].mean() == pytest.approx(0, abs=1e-3)


def test_unknown_shape():
    with pytest.raises(UserError, match=r"unknown shape 'sqare'. Did you mean 'square'\?"):
        sdf.distance("sqare", np.zeros(1), np.zeros(1))
    with pytest.raises(UserError, match="unknown shape"):
        sdf.moments("blob")
