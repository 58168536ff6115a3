"""Unit norm: values, types, and a gradient without NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.arrays import unit

ROWS = np.random.default_rng(0).normal(size=(2, 3, 5))


def test_rows_have_norm_1_and_their_direction():
    scaled = unit(ROWS)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=-1), 1.0, rtol=1e-14)
    np.testing.assert_allclose(scaled * np.linalg.norm(ROWS, axis=-1, keepdims=True), ROWS)


def test_library_and_type_are_those_of_the_rows():
    assert isinstance(unit(ROWS), np.ndarray) and unit(ROWS).dtype == np.float64
    rows = jnp.asarray(ROWS, jnp.float32)
    assert isinstance(unit(rows), jax.Array) and unit(rows).dtype == jnp.float32
    np.testing.assert_allclose(unit(rows), unit(ROWS), atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-20, 1e-13])
def test_short_rows_stay_short_and_their_gradient_is_finite(size):
    rows = size * jnp.asarray(ROWS[0], jnp.float32)
    assert float(jnp.linalg.norm(unit(rows))) <= 1.0
    slope = jax.grad(lambda z: jnp.sum(unit(z)))(rows)
    assert np.isfinite(slope).all()


def test_gradient_is_that_of_the_normalised_vector():
    def ideal(z):
        return z / np.linalg.norm(z)

    z, step = np.float64(ROWS[0, 0]), 1e-6
    by_difference = [
        (ideal(z + step * e) - ideal(z - step * e)).sum() / (2 * step) for e in np.eye(5)
    ]
    slope = jax.grad(lambda z: jnp.sum(unit(z)))(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(slope, by_difference, atol=1e-5)
