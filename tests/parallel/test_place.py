import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from tests.compiler import THOROUGH
from unclip_jax.core.checks import UserError
from unclip_jax.parallel import place
from unclip_jax.parallel.axes import sharded
from unclip_jax.parallel.mesh import MeshConfig, make_mesh


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        init = sharded(nn.initializers.normal(), "embed", "mlp")
        x = nn.Dense(16, use_bias=False, kernel_init=init, name="up")(x)
        return x[:, :8], None


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=4,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = layers(name="blocks")(x, None)
        scale = self.param("scale", sharded(nn.initializers.ones, "norm"), (8,))
        return x * scale[None, :]


def init(key):
    return Net().init(key, jnp.zeros((1, 8)))["params"]


BOXED = jax.eval_shape(init, jax.random.key(0))


def test_names_survive_the_scan_and_boxes_come_off():
    assert place.axis_names(BOXED) == {
        "blocks/up/kernel": ("layers", "embed", "mlp"),
        "scale": ("norm",),
    }
    plain = place.unbox(BOXED)
    assert plain["blocks"]["up"]["kernel"].shape == (4, 8, 16)
    assert jax.tree.structure(place.unbox(plain)) == jax.tree.structure(plain)


@pytest.mark.parametrize(
    ("rules", "text"), [("fsdp", "-, fsdp, -"), ("fsdp_tp", "-, fsdp, tensor")]
)
def test_shardings_follow_the_table(rules: str, text: str):
    tensor = 2 if rules == "fsdp_tp" else 1
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=tensor))
    result = place.shardings(BOXED, mesh, rules=rules)
    assert place.describe(result) == {"blocks/up/kernel": text, "scale": ""}


def test_parameters_are_created_sharded_and_do_not_depend_on_the_mesh():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    where = place.shardings(BOXED, mesh, rules="fsdp_tp")

    def create(key):
        return place.unbox(init(key))

    born = jax.jit(create, out_shardings=where, compiler_options=THOROUGH)
    params = born(jax.random.key(3))
    kernel = params["blocks"]["up"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 2, 8)}
    plain = jax.jit(create, compiler_options=THOROUGH)(jax.random.key(3))
    np.testing.assert_array_equal(kernel, plain["blocks"]["up"]["kernel"])


def test_abstract_leaves_carry_shardings():
    mesh = make_mesh(MeshConfig(fsdp=8))
    where = place.shardings(BOXED, mesh, rules="fsdp")
    result = place.abstract(BOXED, where)["blocks"]["up"]["kernel"]
    assert result.shape == (4, 8, 16) and result.sharding.spec == P(None, "fsdp", None)


def test_a_mesh_axis_without_work_is_rejected():
    with pytest.raises(UserError, match=r"config.mesh.tensor is 2, but rules 'fsdp' split no"):
        place.shardings(BOXED, make_mesh(MeshConfig(fsdp=4, tensor=2)), rules="fsdp")
    with pytest.raises(UserError, match=r"config.mesh.fsdp is 8, but rules 'dp' split no"):
        place.shardings(BOXED, make_mesh(MeshConfig(fsdp=8)), rules="dp")


def test_global_batch_splits_examples_and_keeps_values():
    mesh = make_mesh(MeshConfig(fsdp=4))
    host = {"x": np.arange(48.0, dtype=np.float32).reshape(16, 3), "i": np.arange(16)}
    batch = place.global_batch(host, mesh)
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 3)}
    for name, value in host.items():
        np.testing.assert_array_equal(batch[name], value)


def test_replicated_bytes_are_counted_by_hand():
    mesh = make_mesh(MeshConfig(fsdp=8))
    tree = place.abstract(BOXED, place.shardings(BOXED, mesh, rules="fsdp"))
    report = place.measure_replication(tree)
    kernel, scale = 4 * 8 * 16 * 4, 8 * 4
    assert report == (kernel + scale, scale, (("scale", scale),))
    assert place.bytes_per_device(tree) == kernel // 8 + scale
    assert report.line() == "1.5% of 2.031 KiB is replicated on every device"


def test_the_report_names_the_worst_offenders():
    mesh = make_mesh(MeshConfig(fsdp=8))
    boxed = {"w": nn.LogicallyPartitioned(jnp.zeros((7, 4)), ("embed", "mlp")), **BOXED}
    tree = place.abstract(boxed, place.shardings(boxed, mesh, rules="fsdp"))
    assert place.measure_replication(tree).worst[0] == ("w", 112)
    assert "w (112 B), scale (32 B)" in place.measure_replication(tree).line()


@pytest.mark.parametrize(
    ("count", "text"),
    [(512, "512 B"), (2048, "2 KiB"), (3 * 2**20, "3 MiB"), (26.5 * 2**30, "26.5 GiB")],
)
def test_byte_counts_are_formatted(count: float, text: str):
    assert place.size_text(count) == text


def test_results_come_in_order_and_few_are_in_flight():
    values, most = [], 0

    class Result:  # what device_get asks an array for
        def __init__(self, value):
            self.value = value

        def __array__(self, dtype=None, copy=None):
            values.append(self.value)
            return np.asarray(self.value)

    def dispatch():
        nonlocal most
        for value in range(50):
            most = max(most, value + 1 - len(values))
            yield Result(value)

    assert [int(x) for x in place.fetch_all(dispatch())] == list(range(50))
    assert most == place.IN_FLIGHT
    assert place.fetch_all([]) == []
