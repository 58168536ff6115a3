"""Norms and timestep features against brute force in float64."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.backbones import layers
from unclip_jax.core.checks import UserError


def draw(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def run(module, *args, params=None):
    """The module's output with parameters drawn at random, or with `params`."""
    params = nn.meta.unbox(module.init(jax.random.key(0), *args)) if params is None else params
    return module.apply(params, *args)


def layer_norm(x, gain, bias):
    x = x.astype(np.float64)
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * gain + bias


def group_norm(x, groups):
    """One group after another; contiguous channels."""
    out, size = np.zeros(x.shape, np.float64), x.shape[-1] // groups
    for example in range(x.shape[0]):
        for group in range(groups):
            part = x[example, :, :, group * size : (group + 1) * size].astype(np.float64)
            normed = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
            out[example, :, :, group * size : (group + 1) * size] = normed
    return out


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_layer_norm_is_the_formula(offset):
    x = draw(2, 3, 8, scale=2.0) + np.float32(offset)
    gain, bias = draw(8, seed=1), draw(8, seed=2)
    params = {"params": {"scale": jnp.asarray(gain), "bias": jnp.asarray(bias)}}
    got = run(layers.LayerNorm(), jnp.asarray(x), params=params)
    np.testing.assert_allclose(got, layer_norm(x, gain, bias), atol=2e-6 * (1 + offset))


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("modulated", [False, True])
def test_group_norm_is_the_formula(offset, modulated):
    x = draw(2, 4, 3, 12, scale=2.0) + np.float32(offset)
    gain, bias, mod = draw(12, seed=1), draw(12, seed=2), draw(2, 24, seed=3)
    want = group_norm(x, 3) * gain + bias
    if modulated:
        scale, shift = mod[:, None, None, :12], mod[:, None, None, 12:]
        want = want * (1.0 + scale) + shift
    params = {"params": {"scale": jnp.asarray(gain), "bias": jnp.asarray(bias)}}
    args = (jnp.asarray(x), jnp.asarray(mod)) if modulated else (jnp.asarray(x),)
    got = run(layers.GroupNorm(3), *args, params=params)
    np.testing.assert_allclose(got, want, atol=1e-5 + 2e-6 * offset, rtol=1e-5)


def test_norms_compute_in_float32_and_return_their_input_dtype():
    x = draw(2, 4, 4, 8) + np.float32(20)
    half = jnp.asarray(x, jnp.bfloat16)
    for module, exact in (
        (layers.GroupNorm(2), group_norm(np.asarray(half, np.float32), 2)),
        (layers.LayerNorm(), layer_norm(np.asarray(half, np.float32), 1.0, 0.0)),
    ):
        got = run(module, half)
        assert got.dtype == jnp.bfloat16
        # nothing but the rounding of the result to 8 bits
        np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=2**-8, atol=1e-4)


def test_groups_must_divide_the_channels():
    with pytest.raises(UserError, match="channels is 10, which 4 does not divide; choose norm_gr"):
        run(layers.GroupNorm(4), jnp.zeros((1, 2, 2, 10)))


def test_activations_are_the_exact_ones():
    x = np.linspace(-6, 6, 101)
    gelu = [0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x]
    wide = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(layers.activation("gelu")(wide), gelu, atol=1e-6)
    quick = x / (1 + np.exp(-1.702 * x))
    np.testing.assert_allclose(layers.activation("quick_gelu")(wide), quick, atol=1e-6)


@pytest.mark.parametrize("num_timesteps", [1000, 250])
def test_timestep_features_are_the_closed_form(num_timesteps):
    t = np.array([0, 1, 7, num_timesteps - 1])
    want = np.zeros((4, 12))
    for row, column in np.ndindex(4, 6):
        angle = t[row] * (1000 / num_timesteps) * 10000 ** (-column / 6)
        want[row, column], want[row, column + 6] = math.cos(angle), math.sin(angle)
    got = layers.timestep_features(jnp.asarray(t), width=12, num_timesteps=num_timesteps)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-4)  # float32 angles of up to 1,000


def test_time_embedding_is_two_linear_maps_with_a_silu_between():
    module = layers.TimeEmbedding(8, 16, 1000, jnp.dtype("float32"))
    t = jnp.array([3, 500])
    params = nn.meta.unbox(module.init(jax.random.key(0), t))["params"]
    x = np.asarray(layers.timestep_features(t, width=8), np.float64)
    one, two = (jax.tree.map(np.asarray, params[f"linear_{i}"]) for i in (1, 2))
    hidden = x @ one["kernel"] + one["bias"]
    want = (hidden / (1 + np.exp(-hidden))) @ two["kernel"] + two["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, t), want, atol=1e-5)


def test_odd_timestep_features_are_rejected():
    with pytest.raises(UserError, match="width of the timestep features is 7, which 2 does not"):
        layers.timestep_features(jnp.array([1]), width=7)


def test_unknown_names_are_rejected():
    with pytest.raises(UserError, match="unknown dtype 'float16'. Did you mean 'bfloat16'"):
        layers.compute_dtype("float16")
    with pytest.raises(UserError, match="unknown remat policy 'blocks'. Did you mean 'block'"):
        layers.rematerialised(layers.LayerNorm, "blocks", scanned=False)
    with pytest.raises(UserError, match="unknown activation 'gelo'. Did you mean 'gelu'"):
        layers.activation("gelo")


def test_captions_of_another_length_are_rejected():
    layers.check_tokens(jnp.zeros((2, 8), jnp.int32), context=8)
    with pytest.raises(UserError, match="captions have 7 tokens; this model takes 8"):
        layers.check_tokens(jnp.zeros((2, 7), jnp.int32), context=8)


def test_no_remat_is_the_class_itself():
    assert layers.rematerialised(layers.LayerNorm, "none", scanned=True) is layers.LayerNorm


def test_dense_is_a_matrix_product_with_named_axes():
    make = functools.partial(layers.dense, 5, name="map", dtype=jnp.dtype("float32"))
    module, x = make(axes=("embed", "mlp")), jnp.asarray(draw(2, 3))
    boxed = module.init(jax.random.key(0), x)["params"]
    assert boxed["kernel"].names == ("embed", "mlp")
    assert boxed["bias"].names == ("mlp",)
    kernel = np.asarray(boxed["kernel"].value, np.float64)
    got = module.apply({"params": nn.meta.unbox(boxed)}, x)
    np.testing.assert_allclose(got, np.asarray(x) @ kernel, atol=1e-6)


def test_conv_keeps_the_sides_and_pads_with_zeros():
    module = layers.conv(2, name="conv", dtype=jnp.dtype("float32"))
    x = draw(1, 4, 5, 3)
    boxed = module.init(jax.random.key(0), jnp.asarray(x))["params"]
    assert boxed["kernel"].names == (None, None, "conv_in", "conv_out")
    kernel = np.asarray(boxed["kernel"].value, np.float64)
    padded = np.pad(x[0].astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    want = np.zeros((4, 5, 2))
    for row, column in np.ndindex(4, 5):
        window = padded[row : row + 3, column : column + 3]
        want[row, column] = np.einsum("ijc,ijco->o", window, kernel)
    got = module.apply({"params": nn.meta.unbox(boxed)}, jnp.asarray(x))
    np.testing.assert_allclose(got[0], want, atol=1e-5)


def test_fractional_timesteps_have_the_same_features_at_whole_ones():
    t = jnp.arange(0, 1000, 7)
    whole, fractional = (layers.timestep_features(x, width=16) for x in (t, t.astype(jnp.float32)))
    np.testing.assert_array_equal(fractional, whole)
