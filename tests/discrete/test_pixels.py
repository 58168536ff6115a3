import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.discrete import pixels


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, 0.0), (1.5, -1.0), (-2.0, 0.5)])
def test_the_density_integrates_to_one(mean, log_scale):
    logits = np.linspace(mean - 40, mean + 40, 200_001)
    x = 1 / (1 + np.exp(-logits))
    inside = (x > 1e-7) & (x < 1 - 1e-7)
    x = x[inside]
    nats = pixels.logit_laplace_nats(
        jnp.asarray(x), *(jnp.full(x.shape, v) for v in (mean, log_scale))
    )
    assert np.trapezoid(np.exp(-np.float64(nats)), x) == pytest.approx(1.0, abs=2e-3)


def test_it_is_the_density_of_a_squashed_laplace_variable():
    from scipy import stats

    x, mean, scale = np.array([0.1, 0.35, 0.9]), np.array([0.3, -1.0, 2.0]), np.array([0.5, 1.0, 2])
    expected = stats.laplace.logpdf(np.log(x / (1 - x)), mean, scale) - np.log(x * (1 - x))
    nats = pixels.logit_laplace_nats(*map(jnp.asarray, (x, mean, np.log(scale))))
    np.testing.assert_allclose(nats, -expected, rtol=1e-5)


def test_the_scale_weights_pixels_by_its_reciprocal():
    slope = jax.grad(lambda m, s: pixels.logit_laplace_nats(jnp.float32(0.7), m, s))
    assert float(slope(2.0, jnp.log(0.25))) == pytest.approx(4.0)
    assert float(slope(-2.0, jnp.log(0.25))) == pytest.approx(-4.0)


def test_every_byte_survives_the_map_and_its_inverse():
    images = np.arange(256, dtype=np.float32)[:, None, None, None] / 127.5 - 1
    mapped = pixels.to_open(jnp.asarray(images))
    assert float(mapped.min()) == pytest.approx(0.1) and float(mapped.max()) == pytest.approx(0.9)
    np.testing.assert_allclose(pixels.from_open(mapped), images, atol=1e-6)
    outside = pixels.from_open(jnp.full((1, 1, 1, 1), 0.99))
    assert float(outside[0, 0, 0, 0]) == 1.0
