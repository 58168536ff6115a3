import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.objectives.low_res_fidelity import block_means, colour_shift, low_res_error

RNG = np.random.default_rng(0)
LOW = jnp.asarray(RNG.uniform(-1, 1, (3, 4, 6, 3)), jnp.float32)


def repeat(low, factor: int):
    return jnp.repeat(jnp.repeat(low, factor, axis=1), factor, axis=2)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_repeating_pixels_is_consistent(factor: int):
    images = repeat(LOW, factor)
    np.testing.assert_allclose(block_means(images, factor=factor), LOW, atol=1e-6)
    np.testing.assert_allclose(low_res_error(images, LOW), 0, atol=1e-4)
    np.testing.assert_allclose(colour_shift(images, LOW), 0, atol=1e-4)


def test_detail_within_a_low_res_pixel_costs_nothing():
    detail = RNG.normal(size=(3, 16, 24, 3)).astype(np.float32)
    detail -= np.repeat(np.repeat(block_means(jnp.array(detail), factor=4), 4, axis=1), 4, axis=2)
    images = repeat(LOW, 4) + detail
    assert low_res_error(images, LOW) < 1e-3 and colour_shift(images, LOW) < 1e-3
    assert jnp.abs(detail).max() > 0.5


def test_a_tint_is_measured_in_levels():
    tint = jnp.array([3.0, -4.0, 0.0]) / 127.5
    images = repeat(LOW, 2) + tint[None, None, None]
    want = np.sqrt((9 + 16) / 3)
    np.testing.assert_allclose(colour_shift(images, LOW), want, rtol=1e-4)
    np.testing.assert_allclose(low_res_error(images, LOW), want, rtol=1e-4)


def test_misplaced_pixels_are_an_error_but_no_shift():
    """Rolled by whole low-res pixels, every mean stays; brute force gives the error."""
    images = repeat(jnp.roll(LOW, 1, axis=2), 2)
    want = 127.5 * np.sqrt(np.mean((np.roll(LOW, 1, axis=2) - np.asarray(LOW)) ** 2))
    np.testing.assert_allclose(low_res_error(images, LOW), want, rtol=1e-5)
    np.testing.assert_allclose(colour_shift(images, LOW), 0, atol=1e-4)
