import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.metrics import neighbours


def whole(count, seed, shift=0, width=4):
    """Vectors of whole numbers, whose distances are exact."""
    rng = np.random.default_rng(seed)
    return (rng.integers(-50, 50, (count, width)) + shift).astype(np.float32)


def brute(real, fake, k, k_density):
    """The definitions, by loops."""

    def distance(x, y):
        return float(np.sum((np.float64(x) - np.float64(y)) ** 2))

    def ball(z, index, k):
        return sorted(distance(z[index], other) for other in z)[k]

    real_r = [ball(real, i, k) for i in range(len(real))]
    fake_r = [ball(fake, j, k) for j in range(len(fake))]
    dense = [ball(real, i, k_density) for i in range(len(real))]
    d = [[distance(x, y) for y in fake] for x in real]
    n, m = range(len(real)), range(len(fake))
    return (
        np.mean([any(d[i][j] <= real_r[i] for i in n) for j in m]),
        np.mean([any(d[i][j] <= fake_r[j] for j in m) for i in n]),
        np.sum([d[i][j] < dense[i] for i in n for j in m]) / (k_density * len(fake)),
        np.mean([any(d[i][j] < dense[i] for j in m) for i in n]),
    )


@pytest.mark.parametrize("block", [7, 2048])
@pytest.mark.parametrize(("shift", "k", "k_density"), [(0, 3, 5), (20, 1, 2), (60, 3, 5)])
def test_overlap_is_the_definition(monkeypatch, block, shift, k, k_density):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    real, fake = whole(40, 0), whole(25, 1, shift)
    got = neighbours.overlap(real, fake, k=k, k_density=k_density)
    np.testing.assert_allclose(got, brute(real, fake, k, k_density), rtol=1e-12)


def test_identical_sets_have_one_in_all_four():
    real = whole(60, 2)
    assert len(np.unique(real, axis=0)) == 60
    np.testing.assert_allclose(neighbours.overlap(real, real[::-1]), 1.0)


def test_sets_far_apart_have_zero_in_all_four():
    assert neighbours.overlap(whole(30, 3), whole(30, 4, 10_000)) == (0, 0, 0, 0)


def test_a_collapsed_set_is_precise_but_recalls_little():
    real = whole(200, 5)
    fake = real[0] + np.random.default_rng(6).normal(0, 0.1, (200, 4)).astype(np.float32)
    result = neighbours.overlap(real, fake)
    assert result.precision == 1.0
    assert result.recall < 0.05
    assert result.coverage < 0.2


def test_density_of_one_distribution_is_one_in_expectation():
    # arXiv 2002.09797, section 4.1: E[density] = 1 for identical distributions.
    rng = np.random.default_rng(7)
    result = [
        neighbours.overlap(*rng.standard_normal((2, 80, 2)).astype(np.float32)).density
        for _ in range(60)
    ]
    assert abs(np.mean(result) - 1.0) < 4 * np.std(result) / np.sqrt(len(result))


def test_coverage_of_one_distribution_is_the_closed_form():
    # arXiv 2002.09797, lemma 2, for equally many: 1 - prod_{i<k} (N - 1 - i) / (2N - 1 - i).
    rng, count, k = np.random.default_rng(8), 50, 5
    factors = [(count - 1 - i) / (2 * count - 1 - i) for i in range(k)]
    result = [
        neighbours.overlap(*rng.standard_normal((2, count, 3)).astype(np.float32)).coverage
        for _ in range(100)
    ]
    assert abs(np.mean(result) - (1 - np.prod(factors))) < 4 * np.std(result) / np.sqrt(len(result))


def test_a_radius_is_that_of_the_kth_other():
    line = np.float32([[0], [1], [3], [7]])
    np.testing.assert_array_equal(neighbours.radii(line, k=1), [1, 1, 4, 16])
    np.testing.assert_array_equal(neighbours.radii(line, k=2), [9, 4, 9, 36])


def test_too_few_vectors_for_k_neighbours_are_rejected():
    with pytest.raises(UserError, match="the fake set has 5 images; 5 neighbours need at least"):
        neighbours.overlap(whole(9, 0), whole(5, 1))
