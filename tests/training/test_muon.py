import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from unclip_jax.training.muon import orthogonal, scale_by_muon


def matrix(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("shape", [(6, 6), (4, 20), (20, 4)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]):
    x = matrix(3, *shape)
    for before, after in zip(np.asarray(x), np.asarray(orthogonal(x)), strict=True):
        u, _, v = np.linalg.svd(before, full_matrices=False)
        inner = u.T @ after @ v.T
        assert np.diag(inner).min() > 0.6 and np.diag(inner).max() < 1.3
        np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-4)


def test_orthogonalisation_ignores_scale_and_keeps_zero():
    x = matrix(1, 5, 7)
    np.testing.assert_allclose(orthogonal(x), orthogonal(1e-3 * x), atol=1e-4)
    np.testing.assert_array_equal(orthogonal(jnp.zeros((1, 5, 7))), jnp.zeros((1, 5, 7)))


PARAMS = {
    "wide": matrix(6, 20),
    "tall": matrix(20, 6, seed=1),
    "stack": matrix(3, 8, 5, seed=2),
    "conv": matrix(3, 3, 4, 6, seed=3),
}


def test_muon_equals_optax_over_several_steps():
    numbers = {
        "wide": MuonDimensionNumbers((0,), (1,)),
        "tall": MuonDimensionNumbers((0,), (1,)),
        "stack": MuonDimensionNumbers((1,), (2,)),
        "conv": MuonDimensionNumbers((0, 1, 2), (3,)),
    }
    reference = optax.contrib.muon(0.1, beta=0.9, muon_weight_dimension_numbers=numbers)
    stacked = {name: name == "stack" for name in PARAMS}
    ours = optax.chain(scale_by_muon(stacked, momentum=0.9), optax.scale(-0.1))
    states = reference.init(PARAMS), ours.init(PARAMS)
    for step in range(4):
        grads = {name: jnp.cos(x * (step + 1)) for name, x in PARAMS.items()}
        expected, first = jax.jit(reference.update)(grads, states[0], PARAMS)
        updates, second = jax.jit(ours.update)(grads, states[1], PARAMS)
        states = first, second
        for name, value in expected.items():
            np.testing.assert_allclose(updates[name], value, atol=2e-5, err_msg=f"{name} {step}")
