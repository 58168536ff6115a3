"""Checkpoints that one replica reads for all."""

import functools

import jax
import numpy as np
import pytest
from orbax.checkpoint import type_handlers

from tests.training import toy
from unclip_jax.core.checks import UserError
from unclip_jax.core.trees import flatten_paths
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.training import loop, replica_restore
from unclip_jax.training.checkpoint import Checkpoints
from unclip_jax.training.config import TrainConfig
from unclip_jax.training.optimizer import OptimConfig
from unclip_jax.training.train_program import make_train_program


def program(**sizes: int):
    return make_train_program(
        toy.Toy(),
        optim=OptimConfig(name="adamw"),
        mesh=make_mesh(MeshConfig(**sizes), devices=jax.devices()[:8]),
        rules="fsdp",
        steps=100,
        ema_decay=0.9,
    )


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """A workdir, and the state of its checkpoint on the host."""
    workdir, source = tmp_path_factory.mktemp("run"), program(fsdp=8)
    state = source.create(jax.random.key(0))
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(7, state, position={"position": 7})
    return workdir, {path: np.asarray(leaf) for path, leaf in flatten_paths(state).items()}


@pytest.mark.parametrize("single", [True, False])
def test_the_state_is_the_one_that_was_saved(saved_run, single, monkeypatch):
    workdir, expected = saved_run
    meshes, own = [], type_handlers.SingleReplicaArrayHandler._construct_single_replica_sharding

    def construct(self, sharding):
        meshes.append(dict(own(self, sharding).mesh.shape))
        return own(self, sharding)

    monkeypatch.setattr(
        type_handlers.SingleReplicaArrayHandler, "_construct_single_replica_sharding", construct
    )
    abstract = program(data=2, fsdp=4).abstract
    with Checkpoints(workdir, keep=1, single_replica=single) as checkpoints:
        restored = checkpoints.restore(abstract)
    assert restored.position == {"position": 7}
    leaves, targets = flatten_paths(restored.state), flatten_paths(abstract)
    assert leaves.keys() == expected.keys()
    for path, leaf in leaves.items():
        assert np.asarray(leaf).tobytes() == expected[path].tobytes(), path
        assert leaf.sharding.is_equivalent_to(targets[path].sharding, leaf.ndim), path
        for shard in leaf.addressable_shards:  # on the devices of both replicas
            np.testing.assert_array_equal(shard.data, expected[path][shard.index])
    one_replica = {"data": 1, "fsdp": 4, "tensor": 1}
    assert meshes == ([one_replica] * len(expected) if single else [])


@pytest.mark.parametrize("data", [1, 2])
def test_a_mesh_of_one_replica_is_rejected_before_a_run_begins(data):
    config = TrainConfig(steps=1, batch_size=8, single_replica_restore=True)
    mesh = make_mesh(MeshConfig(data=data, fsdp=8 // data))
    prepare = functools.partial(loop.prepare, toy.Toy(), mesh=mesh, rules="fsdp")
    if data == 2:
        prepare(config, OptimConfig(name="adamw"))
        return
    with pytest.raises(UserError, match="the mesh has one replica .mesh axis data is 1.*to False"):
        prepare(config, OptimConfig(name="adamw"))


@pytest.mark.parametrize(
    "replicas", [[[0, 0], [0, 0]], [[0, 1], [2, 3]], [[1, 1], [0, 0], [2, 2]], [[0], [1, 2]]]
)
def test_replicas_of_whole_processes_are_accepted(replicas):
    replica_restore.check_processes(replicas)


def test_processes_with_devices_of_two_replicas_are_rejected():
    with pytest.raises(UserError, match=r"process 1 has devices of several of the 2 replicas"):
        replica_restore.check_processes([[0, 1], [1, 2]])
