"""Each operation against an independent implementation or a closed form, then the whole."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from unclip_jax.data import bsr
from unclip_jax.data.degrade import DegradeConfig, area_downsample, degrade

RNG = np.random.default_rng(0)
NOISY = RNG.random((24, 36, 3)).astype(np.float32)
Y, X = np.mgrid[:64, :64] / 64
SMOOTH = np.stack([X, Y, 0.5 + 0.4 * np.sin(9 * X) * np.cos(7 * Y)], -1).astype(np.float32)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def task(seed: int = 0, *, scale: int = 4, size: tuple[int, int] = (16, 16)) -> bsr.Task:
    return bsr.Task(scale, size, generator(seed))


@pytest.mark.parametrize("size", [5, 6, 11, 14, 25])
def test_convolving_is_scipy_s(size: int):
    kernel = RNG.random((size, size))
    kernel /= kernel.sum()
    want = ndimage.convolve(NOISY.astype(np.float64), kernel[..., None], mode="mirror")
    np.testing.assert_allclose(bsr.convolve(NOISY, kernel), want, atol=1e-6)


def test_kernels_wider_than_the_image_are_no_trouble():
    kernel = np.full((13, 13), 1 / 169)
    want = ndimage.convolve(NOISY[:3, :4].astype(np.float64), kernel[..., None], mode="mirror")
    np.testing.assert_allclose(bsr.convolve(NOISY[:3, :4], kernel), want, atol=1e-6)


def test_a_turned_gaussian_has_the_covariance_it_was_given():
    angle, variances = 0.7, np.array([3.0, 0.8])
    weights = bsr.anisotropic_gaussian(31, variances=variances, angle=angle)
    y, x = np.mgrid[-15:16, -15:16]
    result = [[(weights * a * b).sum() for b in (x, y)] for a in (x, y)]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(result, turn @ np.diag(variances) @ turn.T, atol=1e-4)
    np.testing.assert_allclose(weights.sum(), 1)


@pytest.mark.parametrize("sigma", [0.0, 1e-9, 0.01])
def test_a_gaussian_narrower_than_a_pixel_stays_on_the_nearest(sigma: float):
    np.testing.assert_allclose(bsr.gaussian_taps(bsr.centred(5), sigma=sigma), [0, 0, 1, 0, 0])
    halves = bsr.gaussian_taps(bsr.centred(6), sigma=sigma)
    np.testing.assert_allclose(halves, [0, 0, 0.5, 0.5, 0, 0])
    flat = bsr.anisotropic_gaussian(6, variances=np.array([sigma**2, sigma**2]), angle=0.3)
    np.testing.assert_allclose(flat.sum(), 1)
    assert np.isfinite(flat).all()


def test_taps_are_those_of_the_density():
    taps = bsr.gaussian_taps(bsr.centred(7), sigma=1.3)
    density = np.exp(-0.5 * (np.arange(-3, 4) / 1.3) ** 2)
    np.testing.assert_allclose(taps, density / density.sum())


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.4])
def test_filtered_pixels_sit_in_the_middle_of_their_blocks(scale: int, sigma: float):
    """On a ramp every symmetric filter is the identity, so values determine positions."""
    ramp = np.broadcast_to((np.arange(96) / 96)[None, :, None], (64, 96, 3)).astype(np.float32)
    inside = slice(24 // scale, -24 // scale)
    for picture, axis in ((ramp, 1), (ramp.transpose(1, 0, 2), 0)):
        got = bsr.filtered_stride(np.ascontiguousarray(picture), scale, sigma=sigma)
        want = area_downsample(np.ascontiguousarray(picture), scale)
        got, want = np.moveaxis(got, axis, 0)[inside], np.moveaxis(want, axis, 0)[inside]
        np.testing.assert_allclose(got, want, atol=2e-6)


def test_cubic_halving_is_pillow_s_away_from_the_border():
    picture = SMOOTH + 0.1 * RNG.random(SMOOTH.shape).astype(np.float32)
    channels = [
        np.asarray(Image.fromarray(picture[..., c]).resize((32, 32), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    want = np.stack(channels, -1)
    np.testing.assert_allclose(bsr.cubic_half(picture)[2:-2, 2:-2], want[2:-2, 2:-2], atol=1e-5)


@pytest.mark.parametrize("quality", [80, 95])
def test_jpeg_is_a_real_jpeg(quality: int, monkeypatch):
    """Pillow's own encoder and decoder, at the same quality and chroma subsampling."""
    monkeypatch.setattr(bsr, "JPEG_QUALITY", (quality, quality))
    monkeypatch.setattr(bsr, "JPEG_SHARE", 1.0)
    got = bsr.jpeg(SMOOTH, task())
    file = io.BytesIO()
    pixels = np.rint(SMOOTH * 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    want = np.asarray(Image.open(file)).astype(np.float64)
    assert np.abs(got * 255 - want).max() <= 1.01
    assert np.abs(got * 255 - pixels).max() > 1.01  # and it does something


def test_shrinking_comes_before_resizing_in_every_order():
    orders = {tuple(op.__name__ for op in bsr.order(generator(seed))) for seed in range(2000)}
    assert all(names.index("shrink") < names.index("resize") for names in orders)
    assert all(sorted(names) == sorted(op.__name__ for op in bsr.OPERATIONS) for names in orders)
    assert len(orders) == 60  # 5! / 2: nothing else is ruled out


def test_noise_has_three_kinds_and_two_levels():
    grey = np.full((64, 64, 3), 0.5, np.float32)
    counts = {"channels": 0, "grey": 0, "colour": 0}
    for seed in range(400):
        noise = (bsr.noise(grey, task(seed)) - 0.5).astype(np.float64)
        covariance = np.cov(noise.reshape(-1, 3).T) * 255**2
        deviations = np.sqrt(np.diag(covariance))
        level = np.abs(deviations[:, None] - [1.0, 2.0]).min(axis=1)
        if np.abs(covariance - covariance[0, 0]).max() < 1e-3:
            counts["grey"] += 1
            assert level.max() < 0.1
        elif level.max() < 0.1 and np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.3:
            counts["channels"] += 1
        else:
            counts["colour"] += 1
            assert np.linalg.eigvalsh(covariance).max() < 4 * 1.15  # at most level 2
    for kind, share in (("channels", 0.4), ("grey", 0.4), ("colour", 0.2)):
        assert abs(counts[kind] / 400 - share) < 4 * np.sqrt(share * (1 - share) / 400), counts


@pytest.mark.parametrize("factor", [2, 4])
def test_size_range_and_levels(factor: int):
    for seed in range(40):
        picture = generator(seed).uniform(-1, 1, (32, 48, 3)).astype(np.float32)
        got = bsr.bsr_light(picture, factor=factor, rng=generator(seed))
        assert got.shape == (32 // factor, 48 // factor, 3) and got.dtype == np.float32
        assert got.min() >= -1 and got.max() <= 1
        np.testing.assert_allclose((got + 1) * 127.5, np.rint((got + 1) * 127.5), atol=1e-4)


def test_tiny_images_survive():
    for seed in range(60):
        assert bsr.bsr_light(NOISY[:4, :8], factor=4, rng=generator(seed)).shape == (1, 2, 3)


def test_colours_survive():
    """Filters sum to 1 and noise has mean 0, so a flat picture stays what it is."""
    flat = np.broadcast_to(np.float32([0.4, -0.3, 0.1]), (64, 64, 3))
    for seed in range(40):
        got = bsr.bsr_light(flat, factor=4, rng=generator(seed))
        np.testing.assert_allclose(got.mean(axis=(0, 1)), flat[0, 0], atol=3 / 127.5)


@pytest.mark.parametrize(("size", "shift"), [(5, 0.0), (6, 0.5), (13, 0.0), (14, 0.5)])
def test_even_kernels_move_the_image_by_half_a_pixel(size: int, shift: float):
    kernel = bsr.anisotropic_gaussian(size, variances=np.array([2.0, 0.5]), angle=0.4)
    got = bsr.convolve(SMOOTH, kernel)[8:-8, 8:-8, :2]
    np.testing.assert_allclose(got, SMOOTH[8:-8, 8:-8, :2] + shift / 64, atol=1e-5)


def test_a_ramp_stays_where_it_is_but_for_even_kernels():
    """Half a pixel of the smallest size in between, which is half the final one, is one in all."""
    ramps = SMOOTH.copy()
    ramps[..., 2] = (X + Y) / 2
    ramps = np.pad(ramps, ((32, 32), (32, 32), (0, 0)), "reflect", reflect_type="odd") / 2
    want = area_downsample(ramps, 4)
    shifts = []
    for seed in range(150):
        got = bsr.bsr_light(ramps, factor=4, rng=generator(seed))
        shifts.append(np.mean((got - want)[6:-6, 6:-6]) * 2 * 64 / 4)
    assert np.abs(shifts).max() < 1.1
    assert abs(np.median(shifts)) < 0.05


def test_through_the_config_it_is_a_function_of_the_generator():
    config = DegradeConfig(factor=4, name="bsr", probability=1.0)
    picture = SMOOTH * 2 - 1
    first, again, other = (degrade(picture, config=config, rng=generator(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    assert np.abs(first - area_downsample(picture, 4)).max() > 0.01


def test_a_share_may_stay_clean():
    config = DegradeConfig(factor=4, name="bsr", probability=0.5)
    picture = SMOOTH * 2 - 1
    clean = area_downsample(picture, 4)
    same = [
        np.array_equal(degrade(picture, config=config, rng=generator(s)), clean) for s in range(200)
    ]
    assert abs(np.mean(same) - 0.5) < 4 * np.sqrt(0.25 / 200)
