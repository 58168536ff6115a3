import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion import spherical

slerp = jax.jit(spherical.slerp)
SHAPES = [(3, 7), (3, 4, 4, 2)]


def pair(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    key_a, key_b = jax.random.split(jax.random.key(0))
    return jax.random.normal(key_a, shape), 2.0 * jax.random.normal(key_b, shape)


def unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x.reshape(len(x), -1), axis=1).reshape((-1,) + (1,) * (x.ndim - 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_ends_are_exact(shape):
    a, b = pair(shape)
    np.testing.assert_array_equal(slerp(a, b, 0.0), a)
    np.testing.assert_array_equal(slerp(a, b, 1.0), b)


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_norms_are_kept_and_the_angle_grows_linearly(shape):
    a, b = map(unit, pair(shape))
    flat_a, flat_b = a.reshape(3, -1), b.reshape(3, -1)
    whole = np.arccos(np.sum(np.float64(flat_a) * np.float64(flat_b), axis=1))
    for theta in (0.25, 0.5, 0.9):
        c = np.float64(slerp(a, b, theta).reshape(3, -1))
        np.testing.assert_allclose(np.linalg.norm(c, axis=1), 1.0, atol=1e-6)
        angle = np.arccos(np.sum(c * flat_a, axis=1))
        np.testing.assert_allclose(angle, theta * whole, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_walking_from_the_other_end_gives_the_same_point(shape):
    a, b = pair(shape)
    np.testing.assert_allclose(slerp(a, b, 0.25), slerp(b, a, 0.75), atol=1e-6)


def test_a_quarter_turn_in_closed_form():
    a, b = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    thirty = [[np.cos(np.pi / 6), np.sin(np.pi / 6)]]
    np.testing.assert_allclose(slerp(a, b, 1 / 3), thirty, atol=1e-6)


def test_one_theta_per_example():
    a, b = pair((3, 4, 4, 2))
    theta = jnp.array([0.0, 0.3, 1.0])
    got = slerp(a, b, theta)
    for i in range(3):
        np.testing.assert_allclose(got[i], slerp(a, b, float(theta[i]))[i], atol=1e-6)


@pytest.mark.parametrize("scale_b", [1.0, 3.0, 0.0, -1.0])
def test_where_no_arc_exists_it_is_linear_with_finite_gradients(scale_b):
    a = pair((3, 7))[0]
    b = scale_b * a
    np.testing.assert_allclose(slerp(a, b, 0.25), 0.75 * a + 0.25 * b, atol=1e-5)
    weights = jax.grad(lambda theta: slerp(a, b, theta).sum())(0.25)
    assert np.isfinite(weights)


def test_a_small_angle_is_as_exact_as_a_large_one():
    angle = 2e-3  # the arc cosine of a float32 would be off by several percent of its square
    a, b = jnp.array([[1.0, 0.0]]), jnp.array([[np.cos(angle), np.sin(angle)]], jnp.float32)
    np.testing.assert_allclose(slerp(a, b, 0.5)[0, 1], np.sin(angle / 2), rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_mean_of_two_is_the_point_on_their_arc(shape, weight):
    a, b = (unit(x)[:1] for x in pair(shape))
    both = jnp.concatenate([a, b])
    for iterations in (1, 32):  # one is exact for two
        weights = jnp.array([1.0 - weight, weight])
        middle = spherical.mean(both, weights=weights, iterations=iterations)
        np.testing.assert_allclose(middle, slerp(a, b, weight)[0], atol=2e-6)


def test_the_mean_of_many_minimises_squared_angles():
    units = unit(jnp.abs(pair((3, 7))[0]))  # in one orthant, so the mean is unique
    weights = jnp.array([0.2, 1.0, 0.5])
    middle = spherical.mean(units, weights=weights)

    def cost(m):
        angles = np.arccos(np.clip(np.float64(units) @ (m / np.linalg.norm(m)), -1, 1))
        return float(np.float64(weights) @ angles**2)

    best = cost(np.float64(middle))
    for direction in np.random.default_rng(0).normal(size=(50, 7)):
        assert cost(np.float64(middle) + 1e-2 * direction) > best
    np.testing.assert_allclose(jnp.linalg.norm(middle), 1.0, atol=1e-6)


def test_the_mean_does_not_know_the_order_nor_the_sum_of_weights_and_keeps_norms():
    points, weights = 3.0 * unit(jnp.abs(pair((3, 7))[0])), jnp.array([0.2, 1.0, 0.5])
    middle = spherical.mean(points, weights=weights)
    reverse = spherical.mean(points[::-1], weights=7.0 * weights[::-1])
    np.testing.assert_allclose(reverse, middle, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(middle), 3.0, rtol=1e-6)
    np.testing.assert_allclose(
        spherical.mean(points[:1], weights=weights[:1]), points[0], atol=1e-5
    )
