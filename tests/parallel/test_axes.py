"""The closed set of axis names, and that every network's parameters keep to it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.stages import tiny
from unclip_jax.core.checks import UserError
from unclip_jax.parallel.axes import NAMES, by_example, sharded
from unclip_jax.parallel.mesh import MeshConfig, make_mesh, traced_on

STAGES = ("clip", "prior", "decoder", "upsampler_256", "upsampler_1024")


def is_box(x):
    return isinstance(x, nn.LogicallyPartitioned)


@pytest.fixture(scope="module", params=STAGES)
def boxed(request):
    """Shapes of a stage's parameters, in the boxes that carry their names."""
    stage = tiny.experiment(request.param).build_stage()
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        jax.eval_shape(stage.init, jax.random.key(0)), is_leaf=is_box
    )
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def test_every_axis_of_every_parameter_is_named(boxed):
    assert [path for path, leaf in boxed.items() if not is_box(leaf)] == []
    for path, leaf in boxed.items():
        assert len(leaf.names) == leaf.value.ndim, path
        space = leaf.names[:-2] if path.endswith("['kernel']") else ()
        # only the sides of a convolution's window go without a name
        assert set(leaf.names) - set(space) <= set(NAMES), path
        assert set(space) <= {None, "layers"}, path


def test_scanned_parameters_have_the_layers_axis(boxed):
    for path, leaf in boxed.items():
        assert (leaf.names[:1] == ("layers",)) == ("['blocks']" in path), path


def test_the_initialiser_is_unchanged_but_for_its_box():
    init = sharded(nn.initializers.normal(2.0), "embed", None)
    box = init(jax.random.key(3), (4, 5), jnp.float32)
    assert box.names == ("embed", None)
    plain = nn.initializers.normal(2.0)(jax.random.key(3), (4, 5), jnp.float32)
    assert (nn.meta.unbox(box) == plain).all()


def test_an_unknown_axis_is_rejected():
    with pytest.raises(UserError, match="unknown logical axis 'embd'. Did you mean 'embed'"):
        sharded(nn.initializers.zeros, "embd")
    with pytest.raises(UserError, match="unknown logical axis 'qqq'. Known: context, conv_in"):
        sharded(nn.initializers.zeros, None, "qqq")


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES)


MESH = make_mesh(MeshConfig(data=2, fsdp=4))


def product(x, w):
    return by_example(x @ w)


def placed_product(rows: int, function=product):
    """The sharding XLA gives a product whose matrix is split over fsdp and whose rows are not."""
    whole, split = NamedSharding(MESH, P()), NamedSharding(MESH, P(None, "fsdp"))
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, 16), (16, 32))]
    traced = jax.jit(traced_on(MESH, function), in_shardings=(whole, split))
    return traced.lower(*shapes).compile().output_shardings.spec


def test_examples_stay_on_their_devices_where_the_mesh_is_known():
    assert placed_product(24)[0] == ("data", "fsdp")
    assert placed_product(24, jnp.matmul) == P(None, "fsdp")  # what XLA does if nobody asks


def test_rows_that_do_not_divide_and_functions_off_a_mesh_are_left_alone():
    assert placed_product(12) == P(None, "fsdp")
    x = jnp.ones((8, 4))
    assert by_example(x) is x


def test_by_example_does_nothing_inside_shard_map():
    """SAM's replicas run under shard_map, where a constraint would be an error."""
    examples = P(("data", "fsdp"))
    rows = jax.shard_map(by_example, mesh=MESH, in_specs=examples, out_specs=examples)
    x = jnp.arange(128.0).reshape(64, 2)
    np.testing.assert_array_equal(jax.jit(traced_on(MESH, rows))(x), x)
    names = frozenset(("data", "fsdp"))
    some = jax.shard_map(
        by_example, mesh=MESH, in_specs=examples, out_specs=examples, axis_names=names
    )
    np.testing.assert_array_equal(jax.jit(traced_on(MESH, some))(x), x)
