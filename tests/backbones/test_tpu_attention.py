"""The TPU kernel, in interpret mode, against softmax attention in float32; and where it is used."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.backbones import attention, tpu_attention
from unclip_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh, traced_on

# batch, queries, keys, heads, head size, mask, causal; what a program has: heads, queries
CASES = {
    "prior": (2, 260, 260, 4, 64, None, True, 4, 260),
    "masked captions": (2, 20, 20, 4, 64, "full", False, 4, 20),
    "masked captions, causal": (2, 20, 20, 4, 64, "full", True, 4, 20),
    "image and caption": (2, 256, 300, 2, 128, "keys", False, 2, 256),
    "head size 80": (1, 77, 77, 8, 80, None, False, 8, 77),
    "blocks of queries": (1, 1024, 1100, 2, 64, "keys", False, 2, 256),
    "blocks of queries, causal": (1, 1024, 1024, 2, 64, None, True, 2, 512),
    "the same mask for all": (2, 1024, 1024, 2, 64, "shared", True, 2, 512),
    "many heads": (1, 64, 64, 16, 64, None, False, 8, 64),
}


def reference(q, k, v, visible):
    """Softmax attention in float32, one product after the other."""
    scores = jnp.einsum("blnk,bmnk->bnlm", q, k, precision="highest") / q.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnlm,bmnk->blnk", weights, v, precision="highest")


def inputs(batch, queries, keys, heads, size):
    seeds = jax.random.split(jax.random.key(0), 4)
    lengths = (queries, keys, keys, queries)
    return [
        jax.random.normal(seed, (batch, length, heads, size), jnp.bfloat16)
        for seed, length in zip(seeds, lengths, strict=True)
    ]


def masks(kind, batch, queries, keys):
    """A mask under which every query attends to its first key."""
    shape = {"full": (batch, 1, queries, keys), "keys": (batch, 1, 1, keys)}
    shape["shared"] = (1, 1, queries, keys)
    bits = jax.random.bernoulli(jax.random.key(5), 0.6, shape[kind])
    return bits.at[..., 0].set(True)


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_is_softmax_attention_forward_and_backward(case):
    batch, queries, keys, heads, size, kind, causal, *program = CASES[case]
    q, k, v, gradient = inputs(batch, queries, keys, heads, size)
    mask = None if kind is None else masks(kind, batch, queries, keys)
    assert tpu_attention.unsupported(q, k, mask) == ""
    blocks = tpu_attention._blocks(q, k, causal=causal)
    assert [blocks.heads, blocks.queries] == program

    visible = jnp.ones((1, 1, queries, keys), bool) if mask is None else mask
    if causal:
        visible = visible & jnp.tril(jnp.ones((1, 1, queries, keys), bool))
    kernel = functools.partial(
        tpu_attention.fused_attention, mask=mask, causal=causal, interpret=True
    )
    out, pull = jax.vjp(kernel, q, k, v)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    want, pull_wide = jax.vjp(functools.partial(reference, visible=visible), *wide)
    exact = (want, *pull_wide(gradient.astype(jnp.float32)))
    for got, want in zip((out, *pull(gradient)), exact, strict=True):
        assert got.dtype == jnp.bfloat16
        error = jnp.abs(got.astype(jnp.float32) - want).max() / jnp.abs(want).max()
        assert error < 2**-7  # bfloat16 rounds by 2^-9, here two to four times in a row


def test_a_query_without_keys_has_their_mean_like_jax():
    q, k, v, _ = inputs(1, 20, 20, 4, 64)
    mask = jnp.zeros((1, 1, 20, 20), bool)
    got = tpu_attention.fused_attention(q, k, v, mask=mask, interpret=True)
    want = jnp.broadcast_to(v.astype(jnp.float32).mean(axis=1, keepdims=True), got.shape)
    np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=2**-8)


@pytest.mark.parametrize(
    ("shape", "heads", "reason"),
    [
        ((2, 20, 4, 64), 4, "the mask differs between heads"),
        ((2, 1031, 4, 64), 1, "no block of heads and queries of .* fits into on-chip memory"),
        ((2, 4096, 4, 64), 1, "no block of heads and queries of .* fits into on-chip memory"),
    ],
)
def test_what_the_kernel_cannot_compute_is_named_and_left_to_xla(monkeypatch, shape, heads, reason):
    monkeypatch.setattr(attention, "_platform", lambda: "tpu")
    q = jax.ShapeDtypeStruct(shape, "bfloat16")
    mask = jax.ShapeDtypeStruct((1, heads, shape[1], shape[1]), bool)

    def check(q, mask):
        assert attention._implementation(q, q, mask) == "xla"

    with pytest.warns(UserWarning, match=f"attention by plain XLA, which is slower: {reason}"):
        jax.eval_shape(check, q, mask)


def test_float32_is_left_to_xla(monkeypatch):
    monkeypatch.setattr(attention, "_platform", lambda: "tpu")
    q = jnp.zeros((2, 20, 4, 64))
    assert attention._implementation(q, q, None) == "xla"


def test_the_platform_is_that_of_the_mesh():
    assert attention._platform() == jax.default_backend()
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    assert traced_on(mesh, attention._platform)() == "cpu"
    device = SimpleNamespace(platform="tpu")
    abstract = SimpleNamespace(abstract_device=device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.sharding, "get_abstract_mesh", lambda: abstract)
        assert attention._platform() == "tpu"


@pytest.mark.parametrize("kind", [None, "keys", "shared"])
@pytest.mark.parametrize("sizes", [(2, 4, 1), (2, 2, 2)])
def test_on_a_mesh_every_device_computes_its_examples_and_heads(monkeypatch, sizes, kind):
    kernel = functools.partial(tpu_attention.fused_attention, interpret=True)
    shapes = []

    def record(q, k, v, **options):
        shapes.append(q.shape)
        return kernel(q, k, v, **options)

    mesh = make_mesh(MeshConfig(*sizes))
    q, k, v, gradient = inputs(8, 16, 24, 4, 64)
    mask = None if kind is None else masks(kind, 8, 16, 24)

    def both(q, k, v):
        out, pull = jax.vjp(functools.partial(attention.attention, mask=mask), q, k, v)
        return out, *pull(gradient)

    monkeypatch.setattr(tpu_attention, "fused_attention", record)
    monkeypatch.setattr(attention, "_platform", lambda: "tpu")
    got = jax.jit(traced_on(mesh, both), in_shardings=batch_sharding(mesh))(q, k, v)
    assert set(shapes) == {(8 // (sizes[0] * sizes[1]), 16, 4 // sizes[2], 64)}
    want, pull = jax.vjp(functools.partial(kernel, mask=mask), q, k, v)
    for one, other in zip(got, (want, *pull(gradient)), strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))


def test_examples_that_the_mesh_does_not_divide_are_left_to_xla(monkeypatch):
    monkeypatch.setattr(attention, "_platform", lambda: "tpu")
    q, k, *_ = inputs(6, 16, 16, 4, 64)
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    assert attention._implementation(q, k, None) == "pallas"
    with pytest.warns(UserWarning, match="the mesh does not divide 6 examples with 4 heads"):
        assert traced_on(mesh, attention._implementation)(q, k, None) == "xla"
