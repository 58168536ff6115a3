import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.data import degrade as module
from unclip_jax.data.degrade import DegradeConfig, area_downsample, degrade, gaussian_blur

RNG = np.random.default_rng(0)
PICTURE = RNG.uniform(-1, 1, (16, 24, 3)).astype(np.float32)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_area_downsample_is_the_mean_of_blocks(factor: int):
    blocks = PICTURE.reshape(16 // factor, factor, 24 // factor, factor, 3)
    want = blocks.astype(np.float64).mean(axis=(1, 3))
    np.testing.assert_allclose(area_downsample(PICTURE, factor), want, atol=1e-6)


def test_a_checkerboard_downsamples_to_grey():
    board = (np.indices((16, 16)).sum(axis=0) % 2 * 2 - 1).astype(np.float32)
    small = area_downsample(board[..., None].repeat(3, axis=2), 4)
    np.testing.assert_allclose(small, 0, atol=1e-7)


def test_blur_kernel_is_the_papers():
    # 1-D weights of kernel 3, sigma 0.6: exp(-k^2 / (2 sigma^2)), normalised
    weights = np.exp(-np.array([1, 0, 1]) / (2 * 0.6**2))
    weights /= weights.sum()
    np.testing.assert_allclose(weights, [0.16638, 0.66724, 0.16638], atol=1e-5)
    point = np.zeros((7, 7, 3), np.float32)
    point[3, 3] = 1
    blurred = gaussian_blur(point, size=module.BLUR_KERNEL, sigma=module.BLUR_SIGMA)
    np.testing.assert_allclose(blurred[2:5, 2:5, 0], np.outer(weights, weights), atol=1e-6)
    np.testing.assert_allclose(blurred[..., 0].sum(), 1, atol=1e-6)


def test_blur_keeps_constants_up_to_the_border():
    flat = np.full((5, 5, 3), 0.3, np.float32)
    np.testing.assert_allclose(gaussian_blur(flat, size=3, sigma=0.6), flat, atol=1e-6)


def test_corruption_is_blur_of_the_small_image():
    config = DegradeConfig(factor=4, name="blur", probability=1.0)
    got = degrade(PICTURE, config=config, rng=generator())
    small = area_downsample(PICTURE, 4)
    np.testing.assert_array_equal(got, gaussian_blur(small, size=3, sigma=0.6))
    assert np.abs(got - small).max() > 0.01


def test_without_corruption_the_image_is_only_shrunk():
    for config in (
        DegradeConfig(factor=4),
        DegradeConfig(factor=4, name="blur", probability=0.0),
    ):
        got = degrade(PICTURE, config=config, rng=generator())
        np.testing.assert_array_equal(got, area_downsample(PICTURE, 4))


def test_each_example_decides_for_itself():
    config = DegradeConfig(factor=4, name="blur", probability=0.3)
    clean = area_downsample(PICTURE, 4)
    hits = [
        not np.array_equal(degrade(PICTURE, config=config, rng=generator(seed)), clean)
        for seed in range(600)
    ]
    assert abs(np.mean(hits) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 600)


@pytest.mark.parametrize("name", module.CORRUPTIONS)
@pytest.mark.parametrize("factor", [2, 4])
def test_every_corruption_has_the_size_the_range_and_one_result_per_generator(name, factor):
    config = DegradeConfig(factor=factor, name=name, probability=1.0)
    for seed in range(10):
        first, second = (degrade(PICTURE, config=config, rng=generator(seed)) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert first.shape == (16 // factor, 24 // factor, 3) and first.dtype == np.float32
        assert np.abs(first).max() <= 1


def test_randomness_used_does_not_depend_on_the_outcome():
    values = []
    for probability in (0.0, 1.0):
        rng = generator(3)
        degrade(PICTURE, config=DegradeConfig(2, "blur", probability), rng=rng)
        values.append(rng.random())
    assert values[0] == values[1]


def test_unknown_corruption():
    with pytest.raises(UserError, match="unknown degradation 'blurr'.*'blur'"):
        DegradeConfig(factor=4, name="blurr")


def test_probability_out_of_range():
    with pytest.raises(UserError, match="degradation probability is 1.5"):
        DegradeConfig(factor=4, probability=1.5)


def test_factor_must_be_positive():
    with pytest.raises(UserError, match="degradation factor is 0"):
        DegradeConfig(factor=0)


def test_sides_must_be_multiples():
    with pytest.raises(UserError, match="16x24 image cannot be shrunk 5 times"):
        area_downsample(PICTURE, 5)
    for name in module.CORRUPTIONS:
        with pytest.raises(UserError, match="16x24 image cannot be shrunk 5 times"):
            degrade(PICTURE, config=DegradeConfig(5, name, 1.0), rng=generator())
