"""The closed set of axis names, and that every network's parameters keep to it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from tests.stages import tiny
from unclip_jax.core.checks import UserError
from unclip_jax.parallel.axes import NAMES, sharded

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


def test_scanned_parameters_say_so(boxed):
    for path, leaf in boxed.items():
        assert (leaf.names[:1] == ("layers",)) == ("['blocks']" in path), path


def test_the_initialiser_is_unchanged_but_for_its_box():
    init = sharded(nn.initializers.normal(2.0), "embed", None)
    box = init(jax.random.key(3), (4, 5), jnp.float32)
    assert box.names == ("embed", None)
    plain = nn.initializers.normal(2.0)(jax.random.key(3), (4, 5), jnp.float32)
    assert (nn.meta.unbox(box) == plain).all()


def test_an_unknown_axis_is_refused():
    with pytest.raises(UserError, match="unknown logical axis 'embd'. Did you mean 'embed'"):
        sharded(nn.initializers.zeros, "embd")
    with pytest.raises(UserError, match="unknown logical axis 'qqq'. Known: context, conv_in"):
        sharded(nn.initializers.zeros, None, "qqq")


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES)
