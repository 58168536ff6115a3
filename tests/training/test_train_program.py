import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.training import toy
from unclip_jax.core import batch as batches
from unclip_jax.core.checks import UserError
from unclip_jax.core.trees import flatten_paths, num_bytes
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.parallel.place import bytes_per_device, describe
from unclip_jax.training.optimizer import OptimConfig
from unclip_jax.training.train_program import make_train_program


def program(*, rules: str = "fsdp_tp", stage=None, accumulate: int = 1, devices: int = 8):
    mesh = MeshConfig(fsdp=4, tensor=2) if rules == "fsdp_tp" else MeshConfig()
    return make_train_program(
        stage or toy.Toy(),
        optim=OptimConfig(),
        mesh=make_mesh(mesh, devices=jax.devices()[:devices]),
        rules=rules,
        steps=10,
        ema_decay=0.9,
        accumulate=accumulate,
    )


def test_optimiser_and_average_are_sharded_as_the_parameters():
    placed = {path: text for path, text in describe(program().shardings).items() if text}
    kernels = {path for path in describe(program().shardings) if path.endswith("kernel")}
    assert set(placed) == kernels and len(kernels) == 4  # parameters, average, two moments
    assert set(placed.values()) == {"fsdp, tensor"}


def test_a_state_is_created_sharded():
    ready = program()
    state = ready.create(jax.random.key(0))
    for (path, leaf), where in zip(
        flatten_paths(state).items(), jax.tree.leaves(ready.shardings), strict=True
    ):
        assert leaf.sharding == where, path
    kernel = state.params["map"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 4)}
    alone = program(rules="dp", devices=1).create(jax.random.key(0))
    np.testing.assert_array_equal(kernel, alone.params["map"]["kernel"])
    np.testing.assert_array_equal(state.ema_params["map"]["kernel"], kernel)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_step_compiles_ahead_of_time_and_reuses_the_state_s_memory(accumulate: int):
    ready = program(accumulate=accumulate)
    batch = batches.abstract(toy.SPEC, 16)
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = ready.step.lower(ready.abstract, batch, key).compile()
    reused = compiled.memory_analysis().alias_size_in_bytes
    assert 0.9 * bytes_per_device(ready.abstract) <= reused <= num_bytes(ready.abstract)


def test_given_parameters_are_used_and_must_fit():
    params = {"map": {"kernel": jnp.ones((16, 8)), "bias": np.arange(8.0, dtype=np.float32)}}
    state = program().create_from(params)
    np.testing.assert_array_equal(state.params["map"]["bias"], np.arange(8.0))
    assert state.ema_params["map"]["kernel"].sharding.spec == P("fsdp", "tensor")
    with pytest.raises(UserError, match=r"do not fit the stage: missing map/bias"):
        program().create_from({"map": {"kernel": jnp.ones((16, 8))}})


def with_teacher(params, batch, key, *teacher):
    value = sum(jnp.sum(x) for x in jax.tree.leaves((params, teacher)))
    return value, {"teachers": jnp.float32(len(teacher))}


def test_a_teacher_is_placed_must_fit_and_reaches_every_step_unchanged():
    stage = dataclasses.replace(toy.Toy(), loss=with_teacher, teacher=toy.init)
    ready = program(stage=stage)
    arrays = {"map": {"kernel": jnp.ones((16, 8)), "bias": jnp.full(8, 2.0)}}
    teacher = ready.place_teacher(arrays)
    assert teacher["map"]["kernel"].sharding.spec == P("fsdp", "tensor")
    batch = batches.zeros(toy.SPEC, 16)
    state = ready.create(jax.random.key(0))
    own = sum(float(jnp.sum(x)) for x in jax.tree.leaves(state.params))
    for _ in range(2):
        state, metrics = ready.step(state, batch, jax.random.key(0), teacher)
        np.testing.assert_allclose(metrics["loss"] - own, 16 * 8 + 2 * 8, rtol=1e-4)
        own = sum(float(jnp.sum(x)) for x in jax.tree.leaves(state.params))
    with pytest.raises(UserError, match=r"teacher's parameters do not fit the stage: missing map"):
        ready.place_teacher({"map": {"kernel": jnp.ones((16, 8))}})


def test_a_loss_of_the_whole_batch_is_not_split():
    stage = dataclasses.replace(toy.Toy(), splittable=False)
    program(stage=stage)
    with pytest.raises(UserError, match=r"accumulate is 2, but the loss of stage 'toy' is"):
        program(stage=stage, accumulate=2)
