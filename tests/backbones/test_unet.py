"""The U-Net: topology, blocks by hand, resampling, what it rejects."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models import probes
from unclip_jax.backbones.unet import UNet, UNetConfig, plan, shuffle
from unclip_jax.backbones.unet_blocks import (
    AttentionBlock,
    ResBlock,
    depth_to_space,
    resample,
    space_to_depth,
)
from unclip_jax.backbones.unet_plan import BlockSpec
from unclip_jax.core.checks import UserError

F32 = jnp.dtype("float32")
TINY = UNetConfig(
    in_channels=3,
    out_channels=2,
    channels=4,
    multiples=(1, 2),
    depth=1,
    image_size=4,
    attention_at=(2,),
    head_channels=4,
    norm_groups=2,
)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 4, 4, 3)), jnp.float32)
EMB = jnp.asarray(RNG.normal(size=(2, 16)), jnp.float32)
CONTEXT = jnp.asarray(RNG.normal(size=(2, 3, 5)), jnp.float32)
TEXT_MASK = jnp.array([[1, 1, 0], [1, 0, 0]], bool)


@pytest.fixture(scope="module")
def variables():
    return probes.random_variables(UNet(TINY), X, EMB, context=CONTEXT)


def run(variables, x=X, emb=EMB, *, context=CONTEXT, mask=None, **changes):
    module = UNet(dataclasses.replace(TINY, **changes))
    return probes.apply(module, variables, x, emb, context=context, context_mask=mask)


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def group_norm(x, p, groups):
    b, h, w, c = x.shape
    y = x.reshape(b, h * w, groups, c // groups)
    y = (y - y.mean((1, 3), keepdims=True)) / np.sqrt(y.var((1, 3), keepdims=True) + 1e-5)
    return y.reshape(x.shape) * p["scale"] + p["bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def conv(x, p):
    """3 x 3, zero padding."""
    b, h, w, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((b, h, w, p["kernel"].shape[-1])) + p["bias"]
    for i, j in np.ndindex(3, 3):
        out += padded[:, i : i + h, j : j + w] @ p["kernel"][i, j]
    return out


def downsample(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def upsample(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def test_resampling_is_2x2_means_and_repetition():
    x = np.asarray(RNG.normal(size=(2, 4, 6, 3)), np.float32)
    np.testing.assert_allclose(resample(jnp.asarray(x), "down"), downsample(x), atol=1e-6)
    np.testing.assert_array_equal(resample(jnp.asarray(x), "up"), upsample(x))
    np.testing.assert_array_equal(resample(jnp.asarray(x), "none"), x)


class Shuffle(nn.Module):
    """One step that halves or doubles a map of features by `unet.shuffle`."""

    mode: str

    @nn.compact
    def __call__(self, x):
        return shuffle(x, BlockSpec("sample", 2, resample=self.mode), dtype=F32)


def test_shuffled_positions_of_a_square_have_features_of_their_own():
    x = jnp.asarray(RNG.normal(size=(2, 4, 6, 3)), jnp.float32)
    down, up = Shuffle("down"), Shuffle("up")
    variables = probes.random_variables(down, x)
    p = wide(variables["params"])["sample"]
    square = np.concatenate([x[1, 2, 4], x[1, 2, 5], x[1, 3, 4], x[1, 3, 5]])
    y = probes.apply(down, variables, x)
    assert y.shape == (2, 2, 3, 2)
    np.testing.assert_allclose(y[1, 1, 2], square @ p["kernel"] + p["bias"], rtol=1e-5)
    variables = probes.random_variables(up, x)
    p = wide(variables["params"])["sample"]
    y = probes.apply(up, variables, x)
    features = np.asarray(x[1, 3, 5]) @ p["kernel"] + p["bias"]
    assert y.shape == (2, 8, 12, 2)
    expected = [features[0:2], features[2:4], features[4:6], features[6:8]]
    np.testing.assert_allclose(
        [y[1, 6, 10], y[1, 6, 11], y[1, 7, 10], y[1, 7, 11]], expected, rtol=1e-5
    )


def test_a_shuffled_network_maps_linearly_between_its_levels():
    cfg = dataclasses.replace(TINY, resample_blocks=False, resampling="shuffle")
    shapes = probes.shapes(UNet(cfg), X, EMB, context=CONTEXT)
    assert shapes["down_0_sample"]["kernel"].shape == (16, 4)
    assert shapes["up_1_sample"]["kernel"].shape == (8, 32)
    plain = dataclasses.replace(TINY, resample_blocks=False)
    assert "down_0_sample" not in probes.shapes(UNet(plain), X, EMB, context=CONTEXT)


def test_space_to_depth_stacks_squares_and_is_undone():
    x = jnp.asarray(RNG.normal(size=(2, 4, 6, 3)), jnp.float32)
    y = space_to_depth(x, 2)
    assert y.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(y[1, 1, 2], np.asarray(x[1, 2:4, 4:6]).reshape(-1))
    np.testing.assert_array_equal(depth_to_space(y, 2), x)
    np.testing.assert_array_equal(space_to_depth(x, 1), x)


@pytest.mark.parametrize("how", ["none", "down", "up"])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_the_residual_block_by_hand(how, scale_shift):
    """ADM (arXiv 2105.05233), section 3: resampling inside, of both branches."""
    module = ResBlock(6, 2, how, scale_shift, 0.0, F32)
    x = jnp.asarray(RNG.normal(size=(2, 4, 4, 4)), jnp.float32)
    variables = probes.random_variables(module, x, EMB, True)
    p, size = (
        wide(variables["params"]),
        {"none": lambda y: y, "down": downsample, "up": upsample}[how],
    )
    h = conv(size(silu(group_norm(wide(x), p["norm_1"], 2))), p["conv_1"])
    condition = (wide(EMB) @ p["emb"]["kernel"] + p["emb"]["bias"])[:, None, None]
    if scale_shift:
        h = group_norm(h, p["norm_2"], 2) * (1 + condition[..., :6]) + condition[..., 6:]
    else:
        h = group_norm(h + condition, p["norm_2"], 2)
    shortcut = size(wide(x)) @ p["shortcut"]["kernel"] + p["shortcut"]["bias"]
    want = shortcut + conv(silu(h), p["conv_2"])
    np.testing.assert_allclose(module.apply(variables, x, EMB, True), want, atol=1e-4, rtol=1e-4)


def test_equal_channels_have_no_shortcut_parameters_and_start_as_the_identity():
    module = ResBlock(4, 2, "none", True, 0.0, F32)
    x = jnp.asarray(RNG.normal(size=(1, 2, 2, 4)), jnp.float32)
    variables = probes.fresh(module, x, EMB[:1], True)
    assert set(variables["params"]) == {"norm_1", "conv_1", "emb", "norm_2", "conv_2"}
    np.testing.assert_array_equal(module.apply(variables, x, EMB[:1], True), x)


def test_dropout_needs_its_key_and_changes_the_output():
    module = ResBlock(4, 2, "none", True, 0.5, F32)
    x = jnp.asarray(RNG.normal(size=(1, 4, 4, 4)), jnp.float32)
    variables = probes.random_variables(module, x, EMB[:1], True)

    def forward(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(module.apply(variables, x, EMB[:1], False, rngs=rngs))

    assert not np.allclose(forward(0), forward(1))
    np.testing.assert_array_equal(forward(0), forward(0))
    assert not np.allclose(forward(0), module.apply(variables, x, EMB[:1], True))


@pytest.mark.parametrize(("with_context", "masked"), [(0, 0), (1, 0), (1, 1)])
def test_image_and_text_share_one_softmax(with_context, masked):
    """GLIDE (arXiv 2112.10741), section 4: text keys and values are concatenated to the image's."""
    module = AttentionBlock(4, 2, F32)
    x = jnp.asarray(RNG.normal(size=(2, 2, 3, 8)), jnp.float32)
    args = (x, CONTEXT) if with_context else (x,)
    variables = probes.random_variables(module, *args)
    got = module.apply(variables, *args, TEXT_MASK) if masked else module.apply(variables, *args)
    p = wide(variables["params"])
    y = group_norm(wide(x), p["norm"], 2).reshape(2, 6, 8)
    maps = {n: y @ p[n]["kernel"] + p[n]["bias"] for n in "qkv"}
    keys, values, visible = maps["k"], maps["v"], np.ones((2, 6), bool)
    if with_context:
        text = wide(CONTEXT)
        extra = {n: text @ p[f"context_{n}"]["kernel"] + p[f"context_{n}"]["bias"] for n in "kv"}
        keys = np.concatenate([keys, extra["k"]], axis=1)
        values = np.concatenate([values, extra["v"]], axis=1)
        text_mask = np.asarray(TEXT_MASK) if masked else np.ones((2, 3), bool)
        visible = np.concatenate([visible, text_mask], axis=1)
    out = np.zeros((2, 6, 8))
    for b, n, i in np.ndindex(2, 2, 6):
        part = slice(4 * n, 4 * n + 4)
        scores = keys[b, :, part] @ maps["q"][b, i, part] / math.sqrt(4)
        weights = np.exp(scores - scores.max()) * visible[b]
        out[b, i, part] = weights / weights.sum() @ values[b, :, part]
    want = wide(x) + (out @ p["out"]["kernel"] + p["out"]["bias"]).reshape(x.shape)
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)


def test_the_order_of_context_tokens_does_not_matter(variables):
    got = run(variables, context=CONTEXT[:, ::-1])
    np.testing.assert_allclose(got, run(variables), atol=1e-5, rtol=1e-4)


def test_a_hidden_context_token_changes_nothing(variables):
    other = jnp.where(TEXT_MASK[..., None], CONTEXT, 9.0)
    got = run(variables, context=other, mask=TEXT_MASK)
    np.testing.assert_array_equal(got, run(variables, mask=TEXT_MASK))
    assert not np.allclose(run(variables, context=other), run(variables))


def test_the_whole_network_by_its_blocks(variables):
    """Stem, blocks, skips and head in the order of ADM, written out for two levels."""
    p = variables["params"]
    emb = jax.nn.silu(EMB)

    def block(name, x, features, how="none", attend=False):
        module = ResBlock(features, 2, how, True, 0.0, F32)
        x = jax.jit(module.apply, static_argnums=3)({"params": p[name]["residual"]}, x, emb, True)
        if not attend:
            assert "attention" not in p[name]
            return x
        attention = jax.jit(AttentionBlock(4, 2, F32).apply)
        return attention({"params": p[name]["attention"]}, x, CONTEXT)

    def join(x, skip):
        return jnp.concatenate([x, skip], axis=-1)

    stem = jnp.asarray(conv(wide(X), wide(p["stem"])), jnp.float32)
    one = block("down_0_0", stem, 4)
    two = block("down_0_sample", one, 4, "down")
    three = block("down_1_0", two, 8, attend=True)
    h = block("middle_1", block("middle_0", three, 8, attend=True), 8)
    h = block("up_1_0", join(h, three), 8, attend=True)
    h = block("up_1_1", join(h, two), 8, attend=True)
    h = block("up_1_sample", h, 8, "up")
    h = block("up_0_0", join(h, one), 4)
    h = block("up_0_1", join(h, stem), 4)
    want = conv(silu(group_norm(wide(h), wide(p["head_norm"]), 2)), wide(p["head"]))
    np.testing.assert_allclose(run(variables), want, atol=2e-3, rtol=1e-3)


def test_the_plan_of_the_paper():
    """16 stored maps, each consumed once; 22 attention layers: 9 down, 1 middle, 12 up."""
    steps = plan(probes.paper("decoder").unet)
    assert 1 + len(steps.down) == sum(step.skip for step in steps.up) == 16
    counts = [sum(s.attention for s in part) for part in (steps.down, steps.middle, steps.up)]
    assert counts == [9, 1, 12]
    assert [s.features for s in steps.down if s.resample == "none"] == [
        width for width in (512, 1024, 1536, 2048) for _ in range(3)
    ]
    assert [s.features for s in steps.middle] == [2048, 2048]
    assert sum(s.resample == "down" for s in steps.down) == 3
    assert sum(s.resample == "up" for s in steps.up) == 3


def test_the_u_net_of_the_paper_has_2_24_billion_parameters():
    """GLIDE (arXiv 2112.10741, section 4) says about 2.3 billion."""
    cfg = probes.paper("decoder")
    x, emb = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, cfg.unet.emb_width))
    context = jnp.zeros((1, cfg.num_z_tokens + cfg.context, cfg.text_width))
    case = probes.shapes(UNet(cfg.unet), x, emb, context=context)
    assert probes.count(case) == pytest.approx(2.24e9, rel=0.01)


def test_remat_changes_no_gradient():
    flat = {"multiples": (1,), "attention_at": (4,)}
    variables = probes.random_variables(
        UNet(dataclasses.replace(TINY, **flat)), X, EMB, context=CONTEXT
    )

    def loss(variables, policy):
        return (run(variables, remat=policy, **flat) ** 2).mean()

    slope = jax.jit(jax.grad(loss), static_argnums=1)
    want = jax.device_get(slope(variables, "none"))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    for policy in ("block", "dots"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6 * largest),
            slope(variables, policy),
            want,
        )


def test_half_precision_keeps_float32_parameters_and_output(variables):
    module = UNet(dataclasses.replace(TINY, dtype="bfloat16"))
    case = probes.shapes(module, X, EMB, context=CONTEXT)
    assert {leaf.dtype for leaf in jax.tree.leaves(case)} == {F32}
    got = run(variables, dtype="bfloat16")
    want = run(variables)
    assert got.dtype == jnp.float32
    assert 0 < np.abs(np.asarray(got - want)).max() < 0.05 * np.abs(np.asarray(want)).max()


def test_a_patch_moves_pixels_into_channels():
    cfg = dataclasses.replace(TINY, patch=2, image_size=8)
    x = jnp.asarray(RNG.normal(size=(2, 8, 8, 3)), jnp.float32)
    folded = dataclasses.replace(TINY, in_channels=12, out_channels=8)
    variables = probes.random_variables(UNet(cfg), x, EMB, context=CONTEXT)
    small = probes.apply(UNet(folded), variables, space_to_depth(x, 2), EMB, context=CONTEXT)
    got = probes.apply(UNet(cfg), variables, x, EMB, context=CONTEXT)
    np.testing.assert_allclose(got, depth_to_space(small, 2), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"channels": 0}, r"unet.channels is 0; it must be greater than 0"),
        ({"dropout": 1.5}, r"unet.dropout is 1.5; it must lie in \[0.0, 1.0\]"),
        ({"image_size": 5}, r"unet.image_size is 5, which 2 does not divide; drop a level"),
        ({"attention_at": (3,)}, r"attention_at holds 3; the feature maps have sides \[4, 2\]"),
        ({"norm_groups": 3}, r"channels is 4, which 3 does not divide; choose norm_groups"),
        ({"head_channels": 3}, r"channels is 8, which 3 does not divide; choose head_channels"),
        ({"dtype": "half"}, r"unknown dtype 'half'"),
        ({"in_channels": 4}, r"the U-Net got 3 channels; unet.in_channels is 4"),
        ({"resampling": "shuffle"}, r"is 'shuffle', but residual blocks resample by means; set un"),
        ({"resampling": "max"}, r"unknown unet.resampling 'max'"),
        ({"context_width": 6}, r"context tokens have width 5; unet.context_width is 6"),
    ],
)
def test_mistaken_configs_are_rejected(changes, match):
    with pytest.raises(UserError, match=match):
        probes.shapes(UNet(dataclasses.replace(TINY, **changes)), X, EMB, context=CONTEXT)


@pytest.mark.parametrize("shape", [(5, 4), (4, 7)])
def test_sides_that_the_levels_cannot_halve_are_rejected(variables, shape):
    odd = max(shape, key=lambda side: side % 2)
    with pytest.raises(UserError, match=f"image side is {odd}, which 2 does not divide; pad or"):
        run(variables, jnp.zeros((1, *shape, 3)), EMB[:1], context=CONTEXT[:1])


def test_unknown_resampling_is_rejected():
    with pytest.raises(UserError, match="unknown resample 'dwn'. Did you mean 'down'"):
        resample(X, "dwn")
