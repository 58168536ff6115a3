"""CLIP: pooling, normalisation and the clipping of its temperature."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.backbones.transformer import Transformer
from unclip_jax.core.checks import UserError
from unclip_jax.models.clip import TIME_FEATURES, Clip, ClipConfig, Stem, TimeToken

TINY = ClipConfig(
    embed_dim=6,
    image_size=8,
    patch_size=4,
    image_width=8,
    image_depth=1,
    image_heads=2,
    text_width=4,
    text_depth=2,
    text_heads=1,
    context=5,
    vocab_size=11,
)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)
TOKENS = jnp.array([[9, 3, 10, 0, 0], [9, 1, 2, 4, 10]])
MASK = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)


@pytest.fixture(scope="module")
def variables():
    return probes.random_variables(Clip(TINY), IMAGES, TOKENS, MASK)


def text(variables, tokens=TOKENS, mask=MASK, **changes):
    module = Clip(dataclasses.replace(TINY, **changes))
    return probes.apply(module, variables, tokens, mask, method="encode_text")


def image(variables, images=IMAGES, **changes):
    module = Clip(dataclasses.replace(TINY, **changes))
    return probes.apply(module, variables, images, method="encode_image")


def logit_scale(log_scale):
    return Clip(TINY).apply({"params": {"log_scale": log_scale}}, method="logit_scale")


def test_pixels_are_standardised_as_openai_s_clip_does():
    """Mean and deviation of its training images per channel, of values in [0, 1]."""
    assert TINY.image_mean == (0.48145466, 0.4578275, 0.40821073)
    assert TINY.image_std == (0.26862954, 0.26130258, 0.27577711)


def test_the_token_of_the_timestep_by_hand():
    """Timestep features, Linear, SiLU, Linear; added to the class token, 0 when fresh."""
    module, t = TimeToken(8, jnp.dtype("float32")), jnp.array([0, 7, 900])
    fresh = probes.fresh(module, t)
    assert not np.any(probes.apply(module, fresh, t))
    variables = probes.random_variables(module, t)
    p = jax.tree.map(np.asarray, variables["params"])
    rates = 10000.0 ** (-np.arange(TIME_FEATURES // 2) / (TIME_FEATURES // 2))
    angles = np.asarray(t)[:, None] * rates
    x = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    x = x @ p["linear_1"]["kernel"] + p["linear_1"]["bias"]
    x = x / (1 + np.exp(-x)) @ p["linear_2"]["kernel"] + p["linear_2"]["bias"]
    np.testing.assert_allclose(probes.apply(module, variables, t), x, atol=1e-4)


def test_a_noise_aware_clip_adds_the_timestep_to_its_class_token():
    cfg = dataclasses.replace(TINY, reads_time=True)
    variables = probes.random_variables(Clip(cfg), IMAGES, TOKENS, MASK)
    params = dict(variables["params"])
    token = TimeToken(8, jnp.dtype("float32"))
    steps = jnp.array([3, 800])
    shift = token.apply({"params": params["image"]["time"]}, steps)
    noised = probes.apply(Clip(cfg), variables, IMAGES, steps, method="encode_image")
    for row in range(2):
        image_params = dict(
            params["image"], class_token=params["image"]["class_token"] + shift[row]
        )
        image_params.pop("time")
        clean = image({"params": {**params, "image": image_params}})
        np.testing.assert_allclose(noised[row], clean[row], atol=1e-4)
    silent = probes.apply(Clip(cfg), variables, IMAGES, method="encode_image")
    zero = probes.apply(
        Clip(cfg), variables, IMAGES, jnp.zeros(2, jnp.int32), method="encode_image"
    )
    np.testing.assert_array_equal(silent, zero)  # without timesteps images are clean


def test_captions_are_pooled_at_their_end_token(variables):
    out = text(variables)
    kernel = np.asarray(variables["params"]["text"]["projection"]["kernel"])
    for row, end in enumerate((2, 4)):
        want = np.asarray(out.sequence)[row, end] @ kernel
        np.testing.assert_allclose(out.pooled[row], want, rtol=1e-5, atol=1e-6)


def test_tokens_after_the_end_token_do_not_affect_earlier_ones(variables):
    out, other = text(variables), text(variables, jnp.where(MASK, TOKENS, 7))
    np.testing.assert_array_equal(other.pooled, out.pooled)
    np.testing.assert_array_equal(
        np.asarray(other.sequence)[np.asarray(MASK)], np.asarray(out.sequence)[np.asarray(MASK)]
    )


def test_the_text_tower_is_causal(variables):
    other = text(variables, TOKENS.at[1, 2].set(7))
    same = np.isclose(other.sequence[1], text(variables).sequence[1], atol=1e-7).all(-1)
    np.testing.assert_array_equal(same, [True, True, False, False, False])


def test_embeddings_of_pairs_have_norm_1(variables):
    out = probes.apply(Clip(TINY), variables, IMAGES, TOKENS, MASK)
    for unit, raw in ((out.z_img, image(variables)), (out.z_txt, text(variables).pooled)):
        raw = np.asarray(raw, np.float64)
        want = raw / np.linalg.norm(raw, axis=-1, keepdims=True)
        np.testing.assert_allclose(unit, want, atol=1e-6)
        assert np.abs(np.linalg.norm(raw, axis=-1) - 1).min() > 0.01  # the towers do not
    want = min(math.exp(variables["params"]["log_scale"]), 100.0)
    assert float(out.logit_scale) == pytest.approx(want, rel=1e-6)


def test_the_image_tower_is_the_vision_transformer_of_clip(variables):
    """Patches row by row, class token first, norms before the blocks and of the class token."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"]["image"])

    def norm(x, q):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * q[
            "scale"
        ] + q["bias"]

    pixels = (np.asarray(IMAGES, np.float64) + 1) / 2
    pixels = (pixels - TINY.image_mean) / TINY.image_std
    rows = [p["class_token"][None].repeat(2, 0)]
    for top, left in ((0, 0), (0, 4), (4, 0), (4, 4)):
        patch = pixels[:, top : top + 4, left : left + 4]
        rows.append(np.einsum("bhwc,hwcd->bd", patch, p["patches"]["kernel"]))
    x = norm(np.stack(rows, 1) + p["positions"], p["pre_norm"])
    stack = TINY.tower(width=8, depth=1, heads=2, causal=False)
    blocks = {"params": variables["params"]["image"]["transformer"]}
    x = np.asarray(Transformer(stack).apply(blocks, jnp.asarray(x, jnp.float32)), np.float64)
    want = norm(x[:, 0], p["post_norm"]) @ p["projection"]["kernel"]
    np.testing.assert_allclose(image(variables), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 2.6593, math.log(99.0), math.log(101.0), 9.0])
def test_the_logit_scale_never_exceeds_100(value):
    want = min(math.exp(value), 100.0)
    assert float(logit_scale(jnp.float32(value))) == pytest.approx(want, rel=1e-5)


def test_the_temperature_starts_at_0_07():
    """Radford et al. (arXiv 2103.00020), section 2.5."""
    variables = probes.fresh(Clip(TINY), IMAGES, TOKENS, MASK)
    assert float(logit_scale(variables["params"]["log_scale"])) == pytest.approx(1 / 0.07, rel=1e-6)


@pytest.mark.parametrize("start", [math.log(100.0), 5.0])
def test_a_clamped_scale_can_fall_but_not_rise(start):
    """Descent moves against the gradient: a negative one would raise the scale further."""
    start = jnp.float32(start)
    falls = jax.grad(logit_scale)(start)  # minimise the scale
    rises = jax.grad(lambda s: -logit_scale(s))(start)
    gently = jax.grad(lambda s: 1e-3 * logit_scale(s))(start)
    assert float(falls) == pytest.approx(100.0, rel=1e-5)
    assert float(gently) == pytest.approx(0.1, rel=1e-5)
    assert float(rises) == 0.0


def test_below_the_clamp_the_gradient_is_the_exponential():
    for sign in (1.0, -1.0):
        slope = jax.grad(lambda s, sign=sign: sign * logit_scale(s))(jnp.float32(3.0))
        assert float(slope) == pytest.approx(sign * math.exp(3.0), rel=1e-5)


def test_descent_from_far_above_returns_below_the_clamp():
    log_scale = jnp.float32(5.0)
    for _ in range(50):
        log_scale -= 1e-3 * jax.grad(lambda s: (logit_scale(s) - 50.0) ** 2 / 500)(log_scale)
    assert float(logit_scale(log_scale)) < 100.0


def test_half_precision_keeps_float32_parameters_and_embeddings(variables):
    half = dataclasses.replace(TINY, dtype="bfloat16")
    case = probes.shapes(Clip(half), IMAGES, TOKENS, MASK)
    assert {leaf.dtype for leaf in jax.tree.leaves(case)} == {jnp.dtype("float32")}
    got, want = image(variables, dtype="bfloat16"), image(variables)
    assert got.dtype == jnp.float32
    assert text(variables, dtype="bfloat16").pooled.dtype == jnp.float32
    assert 0 < np.abs(np.asarray(got - want)).max() < 0.05 * np.abs(np.asarray(want)).max()


def test_public_sizes_give_public_parameter_counts():
    """OpenAI's ViT-L/14 has 427,616,513 parameters."""
    cfg = ClipConfig(768, 224, 14, 1024, 24, 16, 768, 12, 12, 77, 49408)
    slots = jnp.zeros((1, 77), jnp.int32)
    case = probes.shapes(Clip(cfg), jnp.zeros((1, 224, 224, 3)), slots, slots.astype(bool))
    assert probes.count(case) == 427_616_513


def test_patches_must_tile_the_image():
    with pytest.raises(UserError, match=r"clip.image_size is 8, which 3 does not divide; patches"):
        dataclasses.replace(TINY, patch_size=3)


def test_images_of_another_size_are_rejected(variables):
    with pytest.raises(UserError, match=r"images are \(8, 12, 3\); this CLIP takes \(8, 8, 3\)"):
        image(variables, jnp.zeros((1, 8, 12, 3)))


def test_captions_of_another_length_are_rejected(variables):
    with pytest.raises(UserError, match="captions have 4 tokens; this model takes 5"):
        text(variables, TOKENS[:, :4], MASK[:, :4])


def test_a_conv_stem_gives_one_token_per_patch_from_its_neighbourhood():
    """Three strides of two: token (i, j) sees patch (i, j) and at most 7 pixels beyond it."""
    cfg = dataclasses.replace(TINY, image_size=32, patch_size=8, stem="conv")
    stem, images = Stem(cfg), jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    params = probes.fresh(stem, images)
    assert stem.apply(params, images).shape == (1, 16, cfg.image_width)
    slopes = jax.jit(jax.grad(lambda x: jnp.sum(stem.apply(params, x)[0, 4 * 1 + 2] ** 2)))(images)
    field = np.argwhere(np.abs(np.asarray(slopes[0])).sum(-1) > 0)
    assert (field.min(0) >= (8 - 7, 16 - 7)).all() and (field.max(0) <= (15 + 7, 23 + 7)).all()
    assert (field.min(0) <= (8, 16)).all() and (field.max(0) >= (15, 23)).all()


def test_position_scale_multiplies_the_initial_positions():
    wide = dataclasses.replace(TINY, position_scale=8.0)
    one, eight = (
        probes.fresh(Clip(cfg), IMAGES, TOKENS, MASK)["params"]["image"] for cfg in (TINY, wide)
    )
    np.testing.assert_allclose(eight["positions"], 8 * one["positions"], rtol=1e-6)
    np.testing.assert_array_equal(eight["class_token"], one["class_token"])


def test_unsupported_stems_are_rejected():
    with pytest.raises(UserError, match="clip.stem"):
        dataclasses.replace(TINY, stem="patch")
    with pytest.raises(UserError, match="patch_size is 12; a conv stem .* power of two"):
        dataclasses.replace(TINY, image_size=24, patch_size=12, stem="conv")
