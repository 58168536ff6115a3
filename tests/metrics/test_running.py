import numpy as np
import pytest
from scipy import linalg

from unclip_jax.core.checks import UserError
from unclip_jax.metrics.frechet import Moments, squared_distance
from unclip_jax.metrics.running import RunningMoments


def frechet_distance(mean_a, cov_a, mean_b, cov_b):
    return squared_distance(Moments(mean_a, cov_a), Moments(mean_b, cov_b))


def spd(size, seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((size, size))
    return a @ a.T / size + 0.1 * np.eye(size)


def test_distance_of_shifted_and_scaled_gaussians_is_the_closed_form():
    mean, cov = np.arange(6.0), spd(6, 0)
    shift, scale = np.linspace(-1, 2, 6), 1.7
    # C_b = s^2 C_a commutes with C_a: |shift|^2 + (s - 1)^2 Tr C_a
    expected = np.sum(shift**2) + (scale - 1) ** 2 * np.trace(cov)
    got = frechet_distance(mean, cov, mean + shift, scale**2 * cov)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_distance_of_gaussians_with_common_axes_is_the_closed_form():
    basis = linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    a, b = np.array([0.0, 1, 2, 3, 4]), np.array([4.0, 0, 2, 1, 9])
    cov_a, cov_b = (basis @ np.diag(x) @ basis.T for x in (a, b))
    expected = np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    got = frechet_distance(np.zeros(5), cov_a, np.zeros(5), cov_b)
    np.testing.assert_allclose(got, expected, rtol=1e-7)  # a root of a rounding error


def test_distance_is_that_of_the_root_of_the_product():
    cov_a, cov_b = spd(20, 2), spd(20, 3)
    root = np.real(linalg.sqrtm(cov_a @ cov_b))
    expected = np.trace(cov_a + cov_b - 2 * root) + 20.0
    got = frechet_distance(np.zeros(20), cov_a, np.ones(20), cov_b)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_distance_of_equals_is_zero_even_when_singular():
    features = np.random.default_rng(4).standard_normal((5, 12)).astype(np.float32)
    moments = RunningMoments.of(features).moments()
    assert squared_distance(moments, moments) < 1e-6


@pytest.mark.parametrize("cuts", [[], [0], [1, 7, 7, 30], [49]])
def test_parts_merge_to_the_whole(cuts):
    # a mean a thousand times the deviation is where float32 sums and naive formulas fail
    features = 1000 + np.random.default_rng(5).standard_normal((50, 4)).astype(np.float32)
    moments = RunningMoments.none(4)
    for part in np.split(features, cuts):
        moments = moments.merge(RunningMoments.of(part))
    assert moments.count == 50
    wide = features.astype(np.float64)
    np.testing.assert_allclose(moments.mean, wide.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.moments().covariance, np.cov(wide, rowvar=False), atol=1e-10)


def test_adding_in_batches_is_one_pass():
    features = np.random.default_rng(6).standard_normal((30, 3)).astype(np.float32)
    streamed = RunningMoments.none(3).add(features[:11]).add(features[11:])
    np.testing.assert_allclose(streamed.scatter, RunningMoments.of(features).scatter, rtol=1e-12)


@pytest.mark.parametrize("count", [0, 1])
def test_one_sample_has_no_covariance(count):
    with pytest.raises(UserError, match=f"{count} images have no covariance"):
        RunningMoments.of(np.zeros((count, 3), np.float32)).moments()


def test_features_that_are_not_finite_are_rejected():
    with pytest.raises(UserError, match="not finite"):
        RunningMoments.of(np.array([[0, np.nan], [1, 2]])).moments()
