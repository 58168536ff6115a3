import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.metrics import kernels


def normal(count, width=8, seed=0, shift=0.0):
    case = np.random.default_rng(seed).standard_normal((count, width)) + shift
    return case.astype(np.float32)


def test_kid_is_the_double_sum_over_different_pairs():
    real, fake = normal(7, seed=1), normal(5, seed=2)

    def k(x, y):
        return (np.dot(np.float64(x), np.float64(y)) / 8 + 1) ** 3

    def pairs(z):
        return [k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]

    expected = np.mean(pairs(real)) + np.mean(pairs(fake))
    expected -= 2 * np.mean([k(x, y) for x in real for y in fake])
    got = kernels.unbiased(real, fake, kernel=kernels.cubic)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_kid_of_one_distribution_is_zero_in_expectation_and_not_biased_by_size():
    values = {
        size: [
            kernels.kid(normal(size, seed=i), normal(size, seed=10_000 + i), subsets=1).value
            for i in range(400)
        ]
        for size in (4, 16)
    }
    for result in values.values():
        error = np.std(result) / np.sqrt(len(result))
        assert abs(np.mean(result)) < 4 * error
    assert min(values[4]) < 0  # an estimate that cannot be negative is not unbiased


def test_kid_expectation_is_the_closed_form_of_a_shift():
    # d = 1: E (xy + 1)^3 = 1 + 3 E x E y + 3 E x^2 E y^2 + E x^3 E y^3, x ~ N(0, 1), y ~ N(1, 1):
    # moments (0, 1, 0) and (1, 2, 4), so the MMD^2 is 3 (0 - 1)^2 + 3 (1 - 2)^2 + (0 - 4)^2 = 22.
    result = [
        kernels.kid(normal(64, 1, seed=i), normal(64, 1, seed=5000 + i, shift=1.0), subsets=1).value
        for i in range(300)
    ]
    assert abs(np.mean(result) - 22.0) < 4 * np.std(result) / np.sqrt(len(result))


def test_kid_records_its_protocol_and_depends_on_the_seed_alone():
    real, fake = normal(30, seed=1), normal(20, seed=2)
    one = kernels.kid(real, fake, subsets=5, size=1000, seed=3)
    assert one == kernels.kid(real, fake, subsets=5, size=1000, seed=3)
    assert (one.subsets, one.size, one.seed) == (5, 20, 3)
    small = [kernels.kid(real, fake, subsets=5, size=10, seed=seed).value for seed in (3, 4)]
    assert small[0] != small[1]


def test_kid_of_too_few_images_is_rejected():
    with pytest.raises(UserError, match="KID of 1 and 5 images"):
        kernels.kid(normal(1), normal(5))
    with pytest.raises(UserError, match="subsets is 0"):
        kernels.kid(normal(5), normal(5), subsets=0)


def test_cmmd_of_a_set_with_itself_is_zero_in_any_order_and_scale():
    z = normal(50)
    np.testing.assert_allclose(kernels.cmmd(z, 3 * z[::-1]), 0.0, atol=1e-9)


def test_cmmd_of_two_points_is_the_closed_form():
    one, other = np.float32([[1, 0]]), np.float32([[0, 2]])
    expected = 1000 * (2 - 2 * np.exp(-2 / (2 * 10.0**2)))
    np.testing.assert_allclose(kernels.cmmd(one, other), expected, rtol=1e-10)


def test_blocks_do_not_change_a_mean(monkeypatch):
    one, other = np.float64(normal(11, seed=1)), np.float64(normal(7, seed=2))
    whole = kernels.mean(one, other, kernel=kernels.gaussian(1.0))
    monkeypatch.setattr(kernels, "BLOCK", 3)
    np.testing.assert_allclose(
        kernels.mean(one, other, kernel=kernels.gaussian(1.0)), whole, rtol=1e-13
    )
