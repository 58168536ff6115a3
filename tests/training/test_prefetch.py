import jax
import numpy as np
import pytest

from tests.training import toy
from unclip_jax.core.checks import UserError
from unclip_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from unclip_jax.training.prefetch import DevicePrefetcher

MESH = make_mesh(MeshConfig())


def prefetcher(data, *, batch_size: int = 16) -> DevicePrefetcher:
    return DevicePrefetcher(data, spec=toy.SPEC, batch_size=batch_size, mesh=MESH)


def test_each_batch_travels_with_the_position_after_it():
    source = prefetcher(toy.Stream())
    for index in range(3):
        batch = source.next()
        assert batch.position == {"position": index + 1}
        np.testing.assert_array_equal(batch.device["x"], toy.batch_at(index)["x"])
        assert batch.device["x"].sharding == batch_sharding(MESH)
        assert isinstance(batch.device["x"], jax.Array) and batch.wait_seconds > 0


def test_fields_outside_the_batch_spec_stay_on_the_host():
    class Rich(toy.Stream):
        def __next__(self):
            return {**super().__next__(), "caption": np.array(["a"] * 16)}

    assert set(prefetcher(Rich()).next().device) == {"x", "y"}


def test_data_that_end_are_reported():
    source = prefetcher(toy.Stream(limit=2))
    source.next()
    source.next()
    with pytest.raises(UserError, match=r"ended after 2 batches of this run; repeat them"):
        source.next()


def test_a_batch_of_another_size_is_rejected():
    with pytest.raises(UserError, match=r"has \{'x': 8, 'y': 8\} examples; expected 16"):
        prefetcher(toy.Stream(size=8)).next()


def test_a_batch_that_is_not_what_the_stage_expects_is_rejected():
    class Wrong(toy.Stream):
        def __next__(self):
            return {"x": super().__next__()["x"].astype(np.float64)}

    with pytest.raises(UserError, match=r"batch lacks \['y'\]"):
        prefetcher(Wrong()).next()
