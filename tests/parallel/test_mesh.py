import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from unclip_jax.core.checks import UserError
from unclip_jax.parallel.mesh import (
    MeshConfig,
    across_slices,
    batch_sharding,
    batch_shards,
    check_batch,
    describe,
    make_mesh,
    replicated,
    sampling_mesh,
    within_slice,
)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1)),
        (MeshConfig(data=2, fsdp=-1, tensor=2), (2, 2, 2)),
        (MeshConfig(data=1, fsdp=8), (1, 8, 1)),
    ],
)
def test_sizes_are_filled_in(config: MeshConfig, shape: tuple[int, ...]):
    mesh = make_mesh(config)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert sorted(d.id for d in mesh.devices.flat) == [d.id for d in jax.devices()]


def test_a_mesh_can_use_some_devices():
    mesh = make_mesh(MeshConfig(fsdp=2), devices=jax.devices()[:4])
    assert mesh.devices.shape == (2, 2, 1)
    assert describe(mesh) == "4 x cpu (data 2, fsdp 2, tensor 1)"


def test_a_batch_is_split_over_data_and_fsdp_and_repeated_over_tensor():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert batch_shards(mesh) == 4
    x = jax.device_put(np.arange(8), batch_sharding(mesh))
    parts = {tuple(shard.data.tolist()) for shard in x.addressable_shards}
    assert parts == {(0, 1), (2, 3), (4, 5), (6, 7)}
    assert jax.device_put(np.arange(3), replicated(mesh)).sharding.is_fully_replicated


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(fsdp=3), MeshConfig(4, 4, 1)])
def test_a_mesh_that_does_not_divide_the_devices_is_rejected(config: MeshConfig):
    with pytest.raises(UserError, match=r"but there are 8 devices; the sizes must multiply to 8"):
        make_mesh(config)


def test_invalid_axis_sizes_are_rejected():
    with pytest.raises(UserError, match=r"config.mesh.fsdp is 0; give a count, or -1"):
        MeshConfig(fsdp=0)
    with pytest.raises(UserError, match=r"config.mesh.tensor is -2"):
        MeshConfig(tensor=-2)
    with pytest.raises(UserError, match=r"more than one -1 .*fix all axes but one"):
        MeshConfig(data=-1, fsdp=-1)


def test_a_batch_that_the_mesh_does_not_divide_is_rejected():
    mesh = make_mesh(MeshConfig(fsdp=2))
    check_batch(mesh, batch_size=48, accumulate=3)
    with pytest.raises(UserError, match=r"batch_size is 44; .* multiple of 24 .* Try 48\."):
        check_batch(mesh, batch_size=44, accumulate=3)
    with pytest.raises(UserError, match=r"batch_size is 3; .* multiple of 8 .* Try 8\."):
        check_batch(mesh, batch_size=3)


class Chip(types.SimpleNamespace):
    """As much of a device as a grid of several slices needs."""

    def __hash__(self):
        return hash(self.id)


def test_only_the_data_axis_crosses_slices():
    chips = [
        Chip(id=i, slice_index=i // 8, process_index=i // 4, platform="gpu", device_kind="any")
        for i in range(16)
    ]
    grid = across_slices((4, 4, 1), devices=chips, slices=2)
    assert grid.shape == (4, 4, 1)
    homes = np.vectorize(lambda chip: chip.slice_index)(grid)
    assert (homes == np.array([0, 0, 1, 1])[:, None, None]).all()
    with pytest.raises(UserError, match=r"config.mesh.data is 3, but the devices form 2 slices"):
        across_slices((3, 4, 1), devices=chips[:12], slices=2)


def test_an_axis_may_lie_along_a_part_of_a_side_of_the_slice():
    chips = [
        Chip(
            id=8 * y + x,
            coords=(x, y, 0),
            core_on_chip=0,
            slice_index=0,
            process_index=0,
            platform="tpu",
            device_kind="TPU v6 lite",
        )
        for y in range(8)
        for x in range(8)
    ]
    grid = within_slice((4, 16, 1), devices=chips)  # 16 is no product of sides of 8 x 8
    assert sorted(chip.id for chip in grid.flat) == list(range(64))
    for row in grid[:, :, 0]:
        places = np.array([chip.coords for chip in row])
        assert np.ptp(places, axis=0).max() < 8  # neighbours, not chips from all over the slice


def test_sampling_on_a_cpu_uses_one_device():
    mesh, size = sampling_mesh(13)
    assert (mesh.size, size) == (1, 13)


def test_every_process_has_examples_of_its_own(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    with pytest.raises(UserError, match=r"into 2 parts, but there are 4 processes.*mesh.tensor"):
        check_batch(mesh, batch_size=16)
