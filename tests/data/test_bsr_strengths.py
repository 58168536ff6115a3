"""Strengths of the BSR degradation: how often and how strongly, by their distributions.

Latent diffusion's released configuration for a factor of 4, which the module cites.
"""

import cv2
import numpy as np
import pytest
from scipy import stats

from unclip_jax.data import bsr

COUNT = 1500
IMAGE = np.full((64, 96, 3), 0.5, np.float32)


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def task(seed: int, scale: int = 4) -> bsr.Task:
    return bsr.Task(scale, (16, 24), generator(seed))


def is_uniform(values, low: float, high: float) -> bool:
    """By the test of Kolmogorov and Smirnov; false alarms are rarer than 1 in 10,000."""
    return stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-4


def is_share(count: int, share: float, of: int = COUNT) -> bool:
    return abs(count - share * of) < 4.5 * np.sqrt(share * (1 - share) * of)


@pytest.fixture
def calls(monkeypatch):
    """Replaces what the operations call by functions that remember their arguments."""
    arguments = {name: [] for name in ("resized", "stride", "anisotropic", "round", "convolved")}

    def resized(picture, size, rng):
        arguments["resized"].append(size)
        return picture

    def stride(picture, scale, *, sigma):
        arguments["stride"].append((scale, sigma))
        return picture

    def anisotropic(size, *, variances, angle):
        arguments["anisotropic"].append((size, *variances, angle))
        return np.ones((1, 1))

    def taps(positions, *, sigma):
        arguments["round"].append((len(positions), sigma))
        return np.ones(1)

    for name, function in (
        ("_resized", resized),
        ("filtered_stride", stride),
        ("anisotropic_gaussian", anisotropic),
        ("gaussian_taps", taps),
        ("convolve", lambda picture, kernel: arguments["convolved"].append(1) or picture),
    ):
        monkeypatch.setattr(bsr, name, function)
    return arguments


@pytest.mark.parametrize("scale", [2, 4])
def test_shrinking_is_uniform_up_to_twice_the_scale(scale, calls):
    large = np.broadcast_to(np.float32(0), (8000, 12000, 3))
    for seed in range(COUNT):
        bsr.shrink(large, task(seed, scale))
    height, width = np.array(calls["resized"], float).T
    assert is_uniform(8000 / height, 1, 2 * scale)
    np.testing.assert_allclose(12000 / width, 8000 / height, rtol=2e-3)
    assert is_share(len(height), 0.8)
    scales, sigma = np.array(calls["stride"]).T
    assert (scales == scale).all() and len(sigma) + len(height) == COUNT
    assert is_uniform(sigma, 0.1, 0.6 * scale)


@pytest.mark.parametrize("scale", [2, 4])
def test_blur_is_round_or_turned_half_of_the_time_and_grows_with_the_scale(scale, calls):
    for seed in range(COUNT):
        bsr.blur(IMAGE, task(seed, scale))
    size, first, second, angle = np.array(calls["anisotropic"]).T
    assert is_share(len(size), 0.5)
    assert set(size) == set(range(5, 15))
    for variances in (first, second):
        assert is_uniform(variances, 0, (4 + scale) / 4)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2
    assert is_uniform(angle, 0, np.pi)
    size, sigma = np.array(calls["round"]).T
    assert set(size) == {5, 6, 7}
    assert is_uniform(sigma, 0, (2 + 0.2 * scale) / 4)
    assert len(calls["convolved"]) == COUNT


def test_resizing_ends_at_the_final_size_with_every_interpolation_as_often(monkeypatch):
    resizes = []

    def resize(picture, size, *, interpolation):
        resizes.append((size, interpolation))
        return picture

    monkeypatch.setattr(bsr.cv2, "resize", resize)
    for seed in range(COUNT):
        bsr.resize(IMAGE, task(seed))
    assert {size for size, _ in resizes} == {(24, 16)}  # OpenCV: width, height
    for kind in (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA):
        assert is_share(sum(k == kind for _, k in resizes), 1 / 3)


def test_jpeg_has_every_quality_from_80_to_95_nine_times_in_ten(monkeypatch):
    encodings = []
    monkeypatch.setattr(
        bsr.cv2, "imencode", lambda _, levels, options: encodings.append(options) or ("", levels)
    )
    monkeypatch.setattr(bsr.cv2, "imdecode", lambda coded, kind: coded)
    for seed in range(COUNT):
        bsr.jpeg(IMAGE[:8, :8], task(seed))
    assert is_share(len(encodings), 0.9)
    assert {options[0] for options in encodings} == {cv2.IMWRITE_JPEG_QUALITY}
    counts = np.bincount([options[1] for options in encodings])
    assert counts[80:].all() and not counts[:80].any() and len(counts) == 96
    assert stats.chisquare(counts[80:]).pvalue > 1e-4


def test_a_quarter_of_images_for_a_factor_of_4_is_halved_first(monkeypatch):
    halved = []
    monkeypatch.setattr(bsr, "_halved", lambda picture, rng: halved.append(1) or picture[::2, ::2])
    monkeypatch.setattr(bsr, "_jpeg", lambda picture, rng: picture)
    scales = []
    monkeypatch.setattr(bsr, "order", lambda rng: [lambda p, task: scales.append(task) or p])
    for factor, share in ((4, 0.25), (2, 0.0)):
        halved.clear(), scales.clear()
        for seed in range(COUNT):
            bsr.bsr_light(IMAGE, factor=factor, rng=generator(seed))
        assert is_share(len(halved), share) if share else not halved
        assert sum(each.scale == 2 for each in scales) == (len(halved) if factor == 4 else COUNT)
        assert {each.size for each in scales} == {(64 // factor, 96 // factor)}


def test_halving_is_by_interpolation_or_by_the_cubic_filter_as_often(monkeypatch):
    sizes = []
    monkeypatch.setattr(bsr, "_resized", lambda picture, size, rng: sizes.append(size) or picture)
    for seed in range(COUNT):
        bsr._halved(IMAGE, generator(seed))
    assert set(sizes) == {(32, 48)}
    assert is_share(len(sizes), 0.5)


def test_coloured_noise_has_random_axes_and_uniform_variances():
    eigenvalues, first_axes = [], []
    for seed in range(COUNT):
        root = bsr._colour_root(generator(seed))
        values, axes = np.linalg.eigh(root.T @ root)
        eigenvalues.append(values)
        first_axes.append(axes[:, 0])
    assert is_uniform(np.ravel(eigenvalues), 0, 1)
    assert np.ptp(np.abs(first_axes)) > 0.9
