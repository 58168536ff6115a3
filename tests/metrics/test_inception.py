import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core import trees
from unclip_jax.metrics import inception_weights as weights
from unclip_jax.metrics.inception import _POOLINGS, BLOCKS, Inception, InceptionConfig, conv_paths
from unclip_jax.weight_files.tensor_table import nested

TINY = InceptionConfig(divide=16)


@pytest.fixture(scope="module")
def tiny():
    """Parameters of the narrow network and the compiled function."""
    params = trees.flatten_paths(weights.abstract(TINY))
    rng = np.random.default_rng(0)
    values = {p: rng.uniform(0.5, 1.5, s.shape).astype(np.float32) for p, s in params.items()}
    for path, leaf in values.items():
        if path.endswith("kernel"):
            values[path] = (rng.standard_normal(leaf.shape) / np.sqrt(leaf[..., 0].size)).astype(
                np.float32
            )
    run = jax.jit(lambda p, x: Inception(TINY).apply({"params": p}, x))
    return nested(values), run


def test_parameters_are_those_of_the_published_network():
    # 23,834,568 are torchvision's inception_v3 without its auxiliary head (3,326,696 of
    # 27,161,264); 8 more classes are 8 x 2049. Running means and variances are parameters here.
    shapes = trees.flatten_paths(weights.abstract(InceptionConfig()))
    statistics = sum(s.size for p, s in shapes.items() if p.endswith(("bn/mean", "bn/var")))
    assert sum(s.size for s in shapes.values()) - statistics == 23_834_568 + 8 * 2049
    assert len(list(conv_paths())) == 94


def test_sizes_are_those_of_the_figure():
    image = jax.ShapeDtypeStruct((2, 299, 299, 3), "float32")

    def run(key, x):
        out, _ = Inception().init_with_output(key, x)
        return out.pool, out.spatial, out.logits, out.unbiased

    shapes = [x.shape for x in jax.eval_shape(run, jax.random.key(0), image)]
    assert shapes == [(2, 2048), (2, 17 * 17 * 7), (2, 1008), (2, 1008)]


def test_only_the_last_block_takes_a_maximum():
    kinds = {n: [s for b in branches for s in b if isinstance(s, str)] for n, branches in BLOCKS}
    assert [name for name, kind in kinds.items() if kind == ["maximum"]] == ["Mixed_7c"]
    assert [name for name, kind in kinds.items() if kind == ["halve"]] == ["Mixed_6a", "Mixed_7a"]


def test_averages_at_the_border_do_not_count_padding():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    got = _POOLINGS["average"](x)[0, :, :, 0]
    corner, edge = np.mean([0, 1, 3, 4]), np.mean([0, 1, 2, 3, 4, 5])
    np.testing.assert_allclose([got[0, 0], got[0, 1], got[1, 1]], [corner, edge, 4.0])


def test_images_of_a_batch_are_independent(tiny):
    params, run = tiny
    images = np.random.default_rng(1).uniform(-1, 1, (2, 75, 75, 3)).astype(np.float32)
    both, reverse = run(params, images), run(params, images[::-1].copy())
    np.testing.assert_allclose(both.pool, reverse.pool[::-1], rtol=1e-4, atol=1e-5)


def test_logits_differ_from_the_unbiased_by_the_bias(tiny):
    params, run = tiny
    out = run(params, np.zeros((2, 75, 75, 3), np.float32))
    expected = np.broadcast_to(params["fc_bias"], (2, 1008))
    np.testing.assert_allclose(out.logits - out.unbiased, expected, rtol=1e-3, atol=1e-4)
