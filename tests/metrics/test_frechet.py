import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from unclip_jax.core.checks import UserError
from unclip_jax.metrics.frechet import Moments, moments, root, squared_distance


def gaussian(seed, dim=6, rank=None):
    generator = np.random.default_rng(seed)
    factor = generator.normal(size=(dim, rank or dim))
    return Moments(generator.normal(size=dim), factor @ factor.T)


def rotation(dim, seed=0):
    return scipy.stats.ortho_group.rvs(dim, random_state=seed)


def test_a_set_has_no_distance_to_itself_whatever_its_rank():
    vectors = np.random.default_rng(0).normal(size=(5, 12))  # fewer vectors than dimensions
    assert squared_distance(moments(vectors), moments(vectors[::-1])) < 1e-12


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_gaussians_whose_covariances_commute_in_closed_form(shift):
    """Of one basis: |m_1 - m_2|^2 + sum (s_1 - s_2)^2 over standard deviations."""
    basis, one, other = rotation(4), np.array([1.0, 2.0, 0.5, 0.0]), np.array([3.0, 2.0, 0.1, 1.0])
    zero = np.zeros(4)
    first = Moments(zero, basis @ np.diag(one**2) @ basis.T)
    second = Moments(zero + shift, basis @ np.diag(other**2) @ basis.T)
    expected = 4 * shift**2 + np.sum((one - other) ** 2)
    assert squared_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_a_shifted_set_is_as_far_as_its_shift():
    vectors = np.random.default_rng(1).normal(size=(50, 3))
    by = np.array([1.0, -2.0, 0.5])
    result = squared_distance(moments(vectors), moments(vectors + by))
    assert result == pytest.approx(by @ by, rel=1e-12)


def test_the_general_case_is_that_of_the_matrix_square_root():
    one, other = gaussian(2), gaussian(3)
    product = scipy.linalg.sqrtm(one.covariance @ other.covariance)
    spread = np.trace(one.covariance + other.covariance - 2 * np.real(product))
    expected = np.sum((one.mean - other.mean) ** 2) + spread
    assert squared_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_it_is_symmetric_and_obeys_the_triangle():
    a, b, c = gaussian(4), gaussian(5, rank=2), gaussian(6)
    assert squared_distance(a, b) == pytest.approx(squared_distance(b, a), rel=1e-12)
    ab, bc, ac = (np.sqrt(squared_distance(*pair)) for pair in ((a, b), (b, c), (a, c)))
    assert ac <= ab + bc


def test_rotating_both_sets_changes_nothing():
    one, other = gaussian(7), gaussian(8)
    turn = rotation(6, seed=1)
    rotated = [Moments(turn @ each.mean, turn @ each.covariance @ turn.T) for each in (one, other)]
    assert squared_distance(*rotated) == pytest.approx(squared_distance(one, other), rel=1e-10)


def test_covariance_is_the_unbiased_one_in_double_precision():
    vectors = np.random.default_rng(9).normal(loc=1e3, size=(20, 3)).astype(np.float32)
    result = moments(vectors)
    np.testing.assert_allclose(result.covariance, np.cov(np.float64(vectors), rowvar=False))
    assert result.covariance.dtype == np.float64


def test_the_root_squares_to_its_matrix():
    covariance = gaussian(10, rank=3).covariance
    np.testing.assert_allclose(root(covariance) @ root(covariance), covariance, atol=1e-12)


def test_invalid_vectors_are_rejected():
    with pytest.raises(UserError, match="1 vectors have no covariance"):
        moments(np.zeros((1, 3)))
    with pytest.raises(UserError, match="not finite"):
        moments(np.full((4, 3), np.nan))
    with pytest.raises(UserError, match="6 and 3 dimensions"):
        squared_distance(gaussian(0), gaussian(0, dim=3))
