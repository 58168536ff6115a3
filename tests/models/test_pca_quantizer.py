"""Embeddings to codes and back: what quantisation may lose, and what it may not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.core.checks import UserError
from unclip_jax.models.pca_quantizer import DotQuantizer, DotQuantizerConfig

RNG = np.random.default_rng(0)
CFG = DotQuantizerConfig(components=6, buckets=8, dot_buckets=4)
Z = RNG.normal(size=(50, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def codec():
    """A rotation, uneven edges, and centroids inside their buckets."""
    edges = np.sort(RNG.uniform(-2, 2, (6, 7)), axis=1).astype(np.float32)
    around = np.concatenate([edges[:, :1] - 1, edges, edges[:, -1:] + 1], axis=1)
    shares = RNG.uniform(0.1, 0.9, (6, 8))
    params = {
        "mean": RNG.normal(size=6),
        "basis": np.linalg.qr(RNG.normal(size=(6, 6)))[0],
        "eigenvalues": np.arange(6, 0, -1),
        "edges": edges,
        "centroids": around[:, :-1] * (1 - shares) + around[:, 1:] * shares,
        "dot_edges": np.array([-0.5, 0.0, 0.25]),
    }
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    return DotQuantizer(CFG, 6, 6), params


def run(codec, *inputs, method=None):
    module, params = codec
    inputs = (jnp.asarray(each) for each in inputs)
    return np.asarray(module.apply({"params": params}, *inputs, method=method))


def test_a_code_counts_the_edges_at_or_below_by_brute_force(codec):
    p = {name: np.asarray(value, np.float64) for name, value in codec[1].items()}
    x = (Z - p["mean"]) @ p["basis"].T
    want = [[sum(x[b, j] >= e for e in p["edges"][j]) for j in range(6)] for b in range(50)]
    codes = run(codec, Z)
    np.testing.assert_array_equal(codes, want)
    assert codes.min() == 0 and codes.max() == 7


def test_codes_grow_with_their_coordinate(codec):
    p = codec[1]
    along = np.linspace(-4, 4, 201)[:, None] * np.asarray(p["basis"])[2][None]
    codes = run(codec, (along + np.asarray(p["mean"])).astype(np.float32))
    assert (np.diff(codes[:, 2]) >= 0).all() and set(codes[:, 2]) == set(range(8))


def test_decoded_embeddings_encode_to_the_same_codes(codec):
    codes = jnp.asarray(RNG.integers(0, 8, (100, 6)), jnp.int32)
    z = run(codec, codes, method=DotQuantizer.decode)
    np.testing.assert_array_equal(run(codec, z), codes)


def test_error_with_a_full_basis_is_below_the_bucket_widths(codec):
    p = {name: np.asarray(value, np.float64) for name, value in codec[1].items()}
    codes = run(codec, Z)
    back = run(codec, codes, method=DotQuantizer.decode)
    x = (Z - p["mean"]) @ p["basis"].T
    error = x - np.take_along_axis(p["centroids"].T, codes, axis=0)
    np.testing.assert_allclose(((back - Z) ** 2).sum(1), (error**2).sum(1), rtol=1e-3, atol=1e-5)
    inner = (codes > 0) & (codes < 7)  # the outermost buckets have no outer edge
    low = np.take_along_axis(p["edges"].T, np.maximum(codes - 1, 0), axis=0)
    high = np.take_along_axis(p["edges"].T, np.minimum(codes, 6), axis=0)
    assert inner.sum() > 50
    assert (np.abs(error) < high - low)[inner].all()


def test_dot_products_have_buckets_of_their_own(codec):
    dots = jnp.array([-1.0, -0.5, -0.1, 0.0, 0.2, 0.25, 0.9])
    np.testing.assert_array_equal(
        run(codec, dots, method=DotQuantizer.dot_code), [0, 1, 1, 2, 2, 3, 3]
    )


def test_explained_variance_is_that_of_the_components_kept(codec):
    few = DotQuantizer(CFG, 2, 6)
    leading = {k: v if k == "eigenvalues" or v.ndim < 2 else v[:2] for k, v in codec[1].items()}
    assert run((few, leading), method=DotQuantizer.explained) == pytest.approx(11 / 21)


def test_fresh_buckets_divide_the_range_evenly():
    module = DotQuantizer(CFG, 3, 6)
    params = probes.fresh(module, jnp.zeros((1, 6)))["params"]
    z = jnp.asarray(RNG.uniform(-1, 1, (40, 6)), jnp.float32)
    codes = module.apply({"params": params}, z)
    np.testing.assert_array_equal(codes, np.floor((np.asarray(z[:, :3]) + 1) * 4).astype(int))
    back = module.apply({"params": params}, codes, method=DotQuantizer.decode)
    assert np.abs(back[:, :3] - z[:, :3]).max() <= 1 / 8 + 1e-6
    np.testing.assert_array_equal(back[:, 3:], 0.0)
    np.testing.assert_allclose(params["dot_edges"], [-0.5, 0.0, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"buckets": 1}, r"codec.buckets is 1; it must lie in \[2, 65536\]"),
        ({"dot_buckets": 0}, "codec.dot_buckets is 0"),
        ({"components": -1}, "codec.components is -1"),
        ({"fit_rows": 1}, "codec.fit_rows is 1"),
        ({"components": 0, "explained_variance": 1.5}, "codec.explained_variance is 1.5"),
        ({"components": 0}, r"components 0 and explained_variance 0.0; give one of them"),
        ({"explained_variance": 0.9}, r"components 6 and explained_variance 0.9; give one"),
    ],
)
def test_mistaken_configs_are_rejected(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CFG, **change)


def test_codes_have_no_gradient(codec):
    module, params = codec

    def total(params, z):
        return module.apply({"params": params}, z).astype(jnp.float32).sum()

    slopes = jax.grad(total, (0, 1))(params, jnp.asarray(Z))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes))
