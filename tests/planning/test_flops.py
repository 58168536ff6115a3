"""FLOPs of traced functions equal closed forms, through scans, branches and recomputation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from unclip_jax.backbones import tpu_attention
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.planning import flops


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_a_product_is_two_flops_per_multiplication():
    assert flops.count(jnp.matmul, shape(3, 5), shape(5, 7)) == (2 * 3 * 5 * 7, ())
    batched = functools.partial(jnp.einsum, "b l k, b m k -> b l m")
    assert flops.count(batched, shape(4, 6, 2), shape(4, 9, 2)).flops == 2 * 4 * 6 * 9 * 2


def layers(x, w, *, remat: bool):
    """A chain of square maps, scanned."""

    def layer(x, w):
        return jnp.sin(x @ w), None

    return jnp.sum(jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, w)[0])


@pytest.mark.parametrize(("remat", "passes"), [(False, 3), (True, 4)])
def test_a_scan_counts_every_turn_and_its_recomputation(remat: bool, passes: int):
    one = 2 * 8 * 16 * 16
    forward = functools.partial(layers, remat=remat)
    args = shape(8, 16), shape(11, 16, 16)
    assert flops.count(forward, *args).flops == 11 * one
    both = jax.value_and_grad(forward, argnums=(0, 1))
    assert flops.count(both, *args).flops == passes * 11 * one


def test_scans_in_scans_multiply():
    def outer(x, w):
        return jax.lax.scan(lambda x, _: (layers(x, w, remat=False) * x, None), x, None, 5)[0]

    assert flops.count(jax.jit(outer), shape(8, 16), shape(11, 16, 16)).flops == (
        5 * 11 * 2 * 8 * 16 * 16
    )


def test_of_branches_the_dearest_counts_and_of_endless_loops_one_turn():
    def branches(p, x):
        return jax.lax.cond(p, lambda x: x @ x, lambda x: x @ x @ x, x)

    assert flops.count(branches, True, shape(4, 4)).flops == 2 * 2 * 4**3

    def endless(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9.0, lambda x: x @ x, x)

    assert flops.count(endless, shape(4, 4)) == (2 * 4**3, ("while",))


def test_the_devices_of_a_manual_region_count_together():
    mesh = make_mesh(MeshConfig())
    split = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert flops.count(split, shape(64, 4), shape(4, 4)).flops == 2 * 64 * 4 * 4


def test_nested_manual_regions_count_the_devices_of_each_axis_once():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))

    def inner(x, w):
        product = jax.shard_map(
            jnp.matmul, in_specs=(P("fsdp"), P()), out_specs=P("fsdp"), axis_names={"fsdp"}
        )
        return product(x, w)

    outer = jax.shard_map(
        inner, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"}
    )
    assert flops.count(outer, shape(64, 4), shape(4, 4)).flops == 2 * 64 * 4 * 4


def brute(size, window, outputs, stride, low, base, dilation) -> int:
    """Positions counted on a row of ones with holes and padding around it."""
    row = np.zeros(4000)
    start = 2000
    row[start : start + size * base : base] = 1
    return int(
        sum(
            row[start - low + output * stride + offset * dilation]
            for output in range(outputs)
            for offset in range(window)
        )
    )


@pytest.mark.parametrize(
    "case",
    [(8, 3, 8, 1, 1, 1, 1), (8, 3, 4, 2, 0, 1, 1), (5, 3, 9, 1, 2, 2, 1), (9, 3, 5, 1, 0, 1, 2)],
)
def test_only_window_positions_on_the_image_count(case):
    size, window, outputs, stride, low, base, dilation = case
    assert flops.valid_pairs(
        size=size,
        window=window,
        outputs=outputs,
        stride=stride,
        low=low,
        base_dilation=base,
        window_dilation=dilation,
    ) == brute(*case)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_gradients(stride: int):
    """Forward, to the input and to the kernel: the same products, three times."""

    def loss(x, w):
        out = jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(out**2)

    args = shape(2, 8, 8, 3), shape(3, 3, 3, 5)
    side = 3 * 8 - 2 if stride == 1 else 3 * 4 - 1  # (output, window) pairs on the image, per axis
    forward = 2 * 2 * side**2 * 3 * 5
    assert flops.count(loss, *args).flops == forward
    assert flops.count(jax.value_and_grad(loss, argnums=(0, 1)), *args).flops == 3 * forward


def test_kernels_count_once_per_program_of_their_grid():
    """Attention of 2 examples with 4 heads: two products forward and five more backward."""
    q = jax.ShapeDtypeStruct((2, 32, 4, 64), jnp.bfloat16)

    def loss(q, k, v):
        return jnp.sum(tpu_attention.fused_attention(q, k, v))

    one = 2 * 2 * 4 * 32 * 32 * 64
    assert flops.count(loss, q, q, q) == flops.Count(2 * one, ())
    both = flops.count(jax.grad(loss, argnums=(0, 1, 2)), q, q, q)
    assert both == flops.Count((2 + 5) * one, ())


def test_kernels_with_a_grid_that_is_known_at_run_time_are_named():
    from jax.experimental import pallas as pl

    def kernel(x, y):
        y[...] = x[...]

    def call(x, n):
        return pl.pallas_call(kernel, grid=(n,), out_shape=shape(4, 4), interpret=True)(x)

    number = jax.ShapeDtypeStruct((), jnp.int32)
    assert flops.count(call, shape(4, 4), number).unknown == ("pallas_call",)
