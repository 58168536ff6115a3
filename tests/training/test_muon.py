import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers

from unclip_jax.parallel.mesh import MeshConfig, make_mesh, replicated, traced_on
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
    "square": matrix(8, 10, seed=4),
}


def test_muon_equals_optax_over_several_steps():
    numbers = {
        "wide": MuonDimensionNumbers((0,), (1,)),
        "tall": MuonDimensionNumbers((0,), (1,)),
        "stack": MuonDimensionNumbers((1,), (2,)),
        "conv": MuonDimensionNumbers((0, 1, 2), (3,)),
        "square": MuonDimensionNumbers((0,), (1,)),
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


KERNELS = {  # four of one shape (one of them two layers), one alone, and one nearly square
    "first": matrix(6, 20),
    "second": matrix(6, 20, seed=1),
    "layers": matrix(2, 6, 20, seed=2),
    "alone": matrix(20, 6, seed=3),
    "square": matrix(8, 10, seed=4),
}


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_equal_shapes_shared_by_devices_keep_their_own_updates(devices: int):
    stacked = {name: name == "layers" for name in KERNELS}
    ours = scale_by_muon(stacked, momentum=0.9)
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:devices])
    update = jax.jit(traced_on(mesh, ours.update))
    kernels = jax.device_put(KERNELS, replicated(mesh))
    updates, _ = update(kernels, ours.init(kernels))
    for name, x in KERNELS.items():
        parts = list(x) if name == "layers" else [x]
        for index, part in enumerate(parts):
            u, _, v = np.linalg.svd(np.asarray(part, np.float64), full_matrices=False)
            value = updates[name][index] if name == "layers" else updates[name]
            inner = u.T @ np.asarray(value) @ v.T / np.sqrt(max(1, part.shape[1] / part.shape[0]))
            assert np.diag(inner).min() > 0.6 and np.diag(inner).max() < 1.3
            np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-4)


def test_parameters_that_are_split_themselves_have_the_same_updates():
    tx = scale_by_muon({name: name == "layers" for name in KERNELS}, momentum=0.9)
    alone, _ = jax.jit(tx.update)(KERNELS, tx.init(KERNELS))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    places = {
        name: NamedSharding(mesh, PartitionSpec(*[None] * (x.ndim - 2), "fsdp", "tensor"))
        for name, x in KERNELS.items()
    }
    kernels = jax.device_put(KERNELS, places)
    split, _ = jax.jit(traced_on(mesh, tx.update))(kernels, tx.init(kernels))
    for name, value in alone.items():
        np.testing.assert_allclose(split[name], value, atol=2e-5, err_msg=name)


def test_devices_divide_the_work():
    layers = {str(index): matrix(32, 64, seed=index) for index in range(4)}
    tx = scale_by_muon(dict.fromkeys(layers, False), momentum=0.9)

    def flops(devices: int) -> float:
        mesh = make_mesh(MeshConfig(), devices=jax.devices()[:devices])
        kernels = jax.device_put(layers, replicated(mesh))
        update = jax.jit(traced_on(mesh, tx.update))
        return update.lower(kernels, tx.init(kernels)).compile().cost_analysis()["flops"]

    assert flops(4) < 0.4 * flops(1)  # per device
