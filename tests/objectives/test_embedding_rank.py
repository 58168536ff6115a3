"""Ranks of spaces whose singular values are known, and NumPy's SVD."""

import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.objectives.embedding_rank import rank_metrics, singular_values

RNG = np.random.default_rng(0)


def with_values(values, *, b: int = 64, z: int = 16):
    """A centred matrix [b z] with these singular values."""
    rows = RNG.normal(size=(b, len(values)))
    left = np.linalg.qr(rows - rows.mean(axis=0))[0]  # columns sum to 0, so centring keeps them
    right = np.linalg.qr(RNG.normal(size=(z, len(values))))[0]
    return jnp.asarray(left * values @ right.T, jnp.float32)


@pytest.mark.parametrize("b", [8, 16, 200])
def test_singular_values_are_numpy_s(b: int):
    z = RNG.normal(size=(b, 16)).astype(np.float32) + 3
    want = np.linalg.svd(z.astype(np.float64) - z.mean(axis=0), compute_uv=False)
    want = np.append(want, np.zeros(16))[:16]
    np.testing.assert_allclose(singular_values(jnp.asarray(z)), want, atol=1e-3 * want[0])


@pytest.mark.parametrize("rank", [1, 5, 15])
def test_equal_directions_are_counted(rank: int):
    result = rank_metrics(with_values(np.full(rank, 2.0)) + 0.7, name="z")
    np.testing.assert_allclose(result["z_effective_rank"], rank, rtol=0.02)
    assert result["z_rank"] == rank
    assert result["z_components"] == rank


def test_unequal_directions_by_their_definitions():
    values = np.array([10.0, 5.0, 1.0, 0.2, 0.05])
    result = rank_metrics(with_values(values), name="z")
    assert result["z_rank"] == 4  # 0.05 is less than 1 % of 10
    assert result["z_components"] == 2  # 125 of 126.04
    p = values / values.sum()
    np.testing.assert_allclose(
        result["z_effective_rank"], np.exp(-(p * np.log(p)).sum()), rtol=0.01
    )


def test_a_collapsed_space_has_one_dimension_at_most():
    result = rank_metrics(jnp.ones((8, 4)), name="z")
    assert result["z_effective_rank"] <= 1 and result["z_rank"] == 0
    assert all(np.isfinite(value) for value in result.values())


def test_a_sharper_embedding_rank_has_a_lower_rank():
    falls = [np.exp(-rate * np.arange(12)) for rate in (0.0, 0.3, 1.0)]
    ranks = [rank_metrics(with_values(fall), name="z")["z_effective_rank"] for fall in falls]
    assert ranks[0] > ranks[1] > ranks[2] > 1
