import jax
import jax.numpy as jnp

from unclip_jax.core import trees

TREE = {"a": {"kernel": jnp.zeros((2, 3))}, "b": [jnp.zeros(4, jnp.bfloat16)]}


def test_paths_name_dicts_and_lists():
    assert set(trees.flatten_paths(TREE)) == {"a/kernel", "b/0"}


def test_count_and_bytes_by_hand():
    assert trees.count(TREE) == 10
    assert trees.num_bytes(TREE) == 6 * 4 + 4 * 2


def test_abstract_leaves_count_too():
    assert trees.count(jax.eval_shape(lambda: TREE)) == 10


def test_differences_list_missing_extra_and_misshapen_leaves():
    other = {"a": {"kernel": jnp.zeros((3, 2))}, "c": jnp.zeros(1)}
    lines = trees.shape_differences(TREE, other)
    assert lines[0].startswith("missing b/0")
    assert lines[1].startswith("extra c")
    assert "a/kernel: expected (2, 3) float32, found (3, 2) float32" in lines[2]
    assert trees.shape_differences(TREE, TREE) == []
