"""Imagen's Efficient U-Net, and the options of U-Nets that it shares with DeepFloyd IF's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models import probes
from unclip_jax.backbones.unet import UNet
from unclip_jax.backbones.unet_blocks import AttentionBlock, ResBlock
from unclip_jax.backbones.unet_plan import UNetConfig, plan
from unclip_jax.core import trees
from unclip_jax.core.checks import UserError

F32 = jnp.dtype("float32")
EFFICIENT = UNetConfig(
    in_channels=3,
    out_channels=3,
    channels=4,
    multiples=(1, 2),
    depth=(1, 2),
    image_size=16,
    attention_at=(4,),
    head_channels=4,
    norm_groups=2,
    topology="efficient",
    attention="cross",
    context_norm="layer",
    attention_width=2,
    emb_channels=8,
)
RNG = np.random.default_rng(0)
EMB = jnp.asarray(RNG.normal(size=(2, 8)), jnp.float32)
CONTEXT = jnp.asarray(RNG.normal(size=(2, 3, 5)), jnp.float32)


def image(side, channels=3):
    return jnp.asarray(RNG.normal(size=(2, side, side, channels)), jnp.float32)


def test_levels_are_halved_before_their_blocks_and_doubled_after_them():
    down, middle, up = plan(EFFICIENT)
    assert [(s.name, s.features, s.attention, s.resample, s.keep) for s in down] == [
        ("down_0_sample", 4, False, "conv_down", False),
        ("down_0_0", 4, False, "none", True),
        ("down_1_sample", 8, False, "conv_down", False),
        ("down_1_0", 8, False, "none", False),
        ("down_1_1", 8, True, "none", False),
    ]
    assert middle == ()
    assert [(s.name, s.features, s.attention, s.resample, s.skip) for s in up] == [
        ("up_1_0", 8, False, "none", False),
        ("up_1_1", 8, True, "none", False),
        ("up_1_sample", 4, False, "conv_up", False),
        ("up_0_0", 4, False, "none", True),
        ("up_0_sample", 4, False, "conv_up", False),
    ]
    assert (EFFICIENT.sides, EFFICIENT.stride) == ((8, 4), 4)


@pytest.mark.parametrize("topology", ["adm", "efficient"])
def test_every_stored_map_is_read_once_by_the_level_that_stored_it(topology):
    cfg = dataclasses.replace(EFFICIENT, multiples=(1, 2, 2), depth=2, topology=topology)
    down, _, up = plan(dataclasses.replace(cfg, attention_at=()))
    stored = [step.name.split("_")[1] for step in down if step.keep]
    readers = [step.name.split("_")[1] for step in up if step.skip]
    if topology == "efficient":
        assert readers == stored[::-1] == ["1", "0"]
    else:  # and the stem; a map that was halved belongs to the level below
        assert len(readers) == len(stored) + 1


@pytest.fixture(scope="module")
def variables():
    return probes.random_variables(UNet(EFFICIENT), image(16), EMB, context=CONTEXT)


def test_attention_to_the_text_alone_leaves_the_size_free(variables):
    def run(x, context):
        return probes.apply(UNet(EFFICIENT), variables, x, EMB, context=context)

    x = image(32)
    assert run(x, CONTEXT).shape == (2, 32, 32, 3)
    assert np.abs(run(x, CONTEXT) - run(x, CONTEXT[:, ::-1])).max() < 1e-5  # tokens have no order
    assert np.abs(run(x, CONTEXT) - run(x, CONTEXT + 1.0)).max() < 1e-4  # LayerNorm takes the mean
    assert np.abs(run(x, CONTEXT) - run(x, CONTEXT**2)).max() > 1e-2
    names = trees.flatten_paths(variables["params"])
    assert not [n for n in names if "/attention/k/" in n or "/attention/v/" in n]
    assert names["stem/kernel"].shape == (3, 3, 3, 4)
    assert names["down_1_1/attention/q/kernel"].shape == (8, 16)
    assert "down_0_0/residual/shortcut/kernel" in names  # a map even where the channels agree
    with pytest.raises(UserError, match="attends to context alone .* pass it"):
        UNet(EFFICIENT).apply(variables, x, EMB)


def test_the_scaled_sum_keeps_the_variance():
    """Song et al., appendix B: with 2^-1/2 eight blocks keep it, without they multiply it."""
    x = jnp.asarray(RNG.normal(size=(8, 16, 16, 8)), jnp.float32)
    emb = jnp.zeros((8, 4))
    sizes = {}
    for scale in (1.0, 2**-0.5):
        block, h = ResBlock(8, 2, "none", True, 0.0, F32, True, "silu", scale), x
        init = jax.jit(lambda key, h, block=block: block.init(key, h, emb, True)["params"])
        step = jax.jit(lambda p, h, block=block: block.apply({"params": p}, h, emb, True))
        for seed in range(8):
            params = init(jax.random.key(seed), h)
            kernel = jax.random.normal(jax.random.key(100 + seed), (3, 3, 8, 8))
            params = nn.meta.unbox(params)
            params["conv_2"]["kernel"] = kernel / (72 * 0.35) ** 0.5  # silu halves the size
            h = step(params, h)
        sizes[scale] = float(jnp.var(h))
    assert 0.5 < sizes[2**-0.5] < 2.0 < 4.0 < sizes[1.0]
    ratio = ResBlock(8, 2, "none", True, 0.0, F32, True, "silu", 0.5)
    plain = ResBlock(8, 2, "none", True, 0.0, F32)
    variables = probes.random_variables(plain, x, emb, True)
    half = ratio.apply(variables, x, emb, True)
    np.testing.assert_allclose(2.0 * half, plain.apply(variables, x, emb, True), atol=1e-5)


def test_group_norm_of_the_context_runs_over_tokens_in_32_groups():
    block, x = AttentionBlock(4, 2, F32, True, True, "group"), image(2, 4)
    context = jnp.asarray(RNG.normal(size=(2, 5, 64)), jnp.float32)
    variables = probes.random_variables(block, x, context)
    shape = variables["params"]["context_norm"]["scale"].shape
    assert shape == (64,)
    out = block.apply(variables, x, context)
    scaled = context.reshape(2, 5, 32, 2) * jnp.arange(1, 33)[None, None, :, None]
    np.testing.assert_allclose(block.apply(variables, x, scaled.reshape(2, 5, 64)), out, atol=1e-3)
    one_token = context.at[:, 0].multiply(3.0)  # which changes the norm of all tokens of a group
    assert np.abs(block.apply(variables, x, one_token) - out).max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": (1, 2, 3)}, r"unet.depth is \[1, 2, 3\]; expected a number for each of the 2"),
        ({"attention_at": (16,)}, r"attention_at holds 16; the feature maps have sides \[8, 4\]"),
        ({"patch": 2}, "halves and doubles by convolutions; set unet.patch to 1"),
        ({"resample_blocks": False}, "halves and doubles by convolutions"),
        ({"topology": "fast"}, "unknown unet.topology 'fast'"),
        ({"context_norm": "batch"}, "unknown unet.context_norm 'batch'"),
        ({"image_size": 18}, "unet.image_size is 18"),
    ],
)
def test_other_sizes_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        plan(dataclasses.replace(EFFICIENT, **changes))
