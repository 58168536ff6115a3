import numpy as np
import pytest
from safetensors.numpy import save_file

from unclip_jax.core import trees
from unclip_jax.core.checks import UserError
from unclip_jax.metrics import inception_weights
from unclip_jax.metrics.inception import InceptionConfig
from unclip_jax.weight_files import tensor_table

TINY = InceptionConfig(divide=16)


@pytest.fixture(scope="module")
def tensors():
    """A state dict of the narrow network."""
    shapes = tensor_table.expected(inception_weights.entries(), inception_weights.abstract(TINY))
    rng = np.random.default_rng(0)
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


def test_names_are_those_of_the_public_file(tensors):
    for name in (
        "Conv2d_1a_3x3.conv.weight",
        "Conv2d_4a_3x3.bn.running_var",
        "Mixed_5b.branch5x5_2.bn.weight",
        "Mixed_6a.branch3x3dbl_3.conv.weight",
        "Mixed_6e.branch7x7dbl_5.bn.running_mean",
        "Mixed_7a.branch7x7x3_4.bn.bias",
        "Mixed_7c.branch3x3dbl_3b.conv.weight",
        "Mixed_7c.branch_pool.conv.weight",
        "fc.weight",
        "fc.bias",
    ):
        assert name in tensors
    assert tensors["fc.weight"].shape == (1008, 128)
    assert len(tensors) == 94 * 5 + 2


def test_tensors_land_where_they_belong_and_counters_are_no_weights(tensors, tmp_path):
    counter = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.array(7, np.int64)}
    save_file(tensors | counter, tmp_path / "weights.safetensors")
    got = trees.flatten_paths(inception_weights.load(tmp_path / "weights.safetensors", cfg=TINY))
    np.testing.assert_array_equal(got["fc_kernel"], tensors["fc.weight"].T)
    kernel = tensors["Mixed_6c.branch7x7_2.conv.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(got["Mixed_6c/branch7x7_2/conv/kernel"], kernel)
    var = tensors["Mixed_7b.branch1x1.bn.running_var"]
    np.testing.assert_array_equal(got["Mixed_7b/branch1x1/bn/var"], var)


def test_another_network_is_rejected_with_every_tensor(tensors, tmp_path):
    other = dict(tensors)
    other["fc.weight"] = np.zeros((1000, 128), np.float32)
    other["AuxLogits.fc.bias"] = np.zeros(1000, np.float32)
    del other["fc.bias"]
    save_file(other, tmp_path / "classifier.safetensors")
    with pytest.raises(UserError, match=r"in 3 tensors: missing fc.bias.*extra AuxLogits.*fc.wei"):
        inception_weights.load(tmp_path / "classifier.safetensors", cfg=TINY)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*inception.safetensors"):
        inception_weights.load(tmp_path / "inception.safetensors")
