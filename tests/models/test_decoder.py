"""The decoder: zero when fresh, two pathways of z_img, drops that leave no trace."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.backbones.unet import UNet, UNetConfig
from unclip_jax.core.checks import UserError
from unclip_jax.models.decoder import MAP_SIDE, Decoder, DecoderConfig
from unclip_jax.models.text import TextEncoder

UNET = UNetConfig(
    in_channels=3,
    out_channels=6,
    channels=4,
    multiples=(1,),
    depth=1,
    image_size=4,
    attention_at=(4,),
    head_channels=4,
    norm_groups=2,
)
TINY = DecoderConfig(
    unet=UNET, z_dim=6, text_width=8, text_depth=1, text_heads=2, context=4, vocab_size=11
)
RNG = np.random.default_rng(0)
X_T = jnp.asarray(RNG.normal(size=(2, 4, 4, 3)), jnp.float32)
T = jnp.array([3, 700])
INPUTS = {
    "z_img": jnp.asarray(RNG.normal(size=(2, 6)), jnp.float32),
    "tokens": jnp.array([[9, 3, 10, 0], [9, 1, 2, 10]]),
    "token_mask": jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool),
}
NOBODY = jnp.zeros(2, bool)


@pytest.fixture(scope="module")
def variables():
    return probes.random_variables(Decoder(TINY), X_T, T, **INPUTS)


def run(variables, x_t=X_T, *, apply=probes.apply, **inputs):
    changes = inputs.pop("changes", {})
    module = Decoder(dataclasses.replace(TINY, **changes))
    return apply(module, variables, x_t, T, **{**INPUTS, **inputs})


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.fixture(scope="module")
def unet_inputs(variables):
    """The U-Net's inputs (x, emb, context, mask), for a set of the decoder's inputs."""

    def record(**inputs):
        calls = []

        def intercept(next_call, args, kwargs, context):
            if isinstance(context.module, UNet) and context.method_name == "__call__":
                calls.append((*args, kwargs["context"], kwargs["context_mask"]))
                return args[0]
            return next_call(*args, **kwargs)

        params = inputs.pop("params", variables)
        with nn.intercept_methods(intercept):
            run(params, apply=Decoder.apply, **inputs)
        assert len(calls) == 1
        return calls[0]

    return record


def test_a_fresh_decoder_is_zero_for_any_input():
    fresh = probes.fresh(Decoder(TINY), X_T, T, **INPUTS)
    out = run(fresh, 50 * X_T, z_img=-9 * INPUTS["z_img"], keep_z=jnp.array([True, False]))
    assert out.shape == (2, 4, 4, 6)
    np.testing.assert_array_equal(out, 0.0)


def test_the_embedding_is_time_plus_last_text_slot_plus_z_img(variables, unet_inputs):
    p = wide(variables["params"])
    _, emb, context, mask = unet_inputs()
    features = np.asarray(
        TextEncoder(TINY.text).apply(
            {"params": variables["params"]["text_encoder"]}, INPUTS["tokens"], INPUTS["token_mask"]
        ),
        np.float64,
    )
    angles = np.asarray(T)[:, None] * 10000.0 ** (-np.arange(2) / 2)
    time = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    time = time @ p["time"]["linear_1"]["kernel"] + p["time"]["linear_1"]["bias"]
    time = time / (1 + np.exp(-time))
    want = time @ p["time"]["linear_2"]["kernel"] + p["time"]["linear_2"]["bias"]
    want += features[:, -1] @ p["text_to_emb"]["kernel"] + p["text_to_emb"]["bias"]
    want += wide(INPUTS["z_img"]) @ p["z_to_emb"]["kernel"] + p["z_to_emb"]["bias"]
    np.testing.assert_allclose(emb, want, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(context[:, 4:], features, atol=1e-5)
    assert mask is None  # learned padding is attended to


def test_z_tokens_are_channel_major(variables, unet_inputs):
    """Feature d of token n is output d * 4 + n of the projection, as in public checkpoints."""
    p = wide(variables["params"]["z_to_tokens"])
    flat = wide(INPUTS["z_img"]) @ p["kernel"] + p["bias"]
    context = unet_inputs()[2]
    assert context.shape == (2, 4 + 4, 8)
    for n, d in np.ndindex(4, 8):
        np.testing.assert_allclose(context[:, n, d], flat[:, d * 4 + n], atol=1e-5)


def test_both_pathways_see_the_same_null(variables, unet_inputs):
    null = jnp.stack([variables["params"]["null_z"]] * 2)
    for got, want in zip(unet_inputs(keep_z=NOBODY)[:3], unet_inputs(z_img=null)[:3], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_zero_null_has_no_parameters(unet_inputs):
    zero = dataclasses.replace(TINY, null_z="zero")
    params = probes.random_variables(Decoder(zero), X_T, T, **INPUTS)
    assert "null_z" not in params["params"]
    inputs = {"params": params, "changes": {"null_z": "zero"}}
    nulls = jnp.zeros_like(INPUTS["z_img"])
    for got, want in zip(
        unet_inputs(keep_z=NOBODY, **inputs)[:3],
        unet_inputs(z_img=nulls, **inputs)[:3],
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


def test_dropped_conditions_are_gone_and_their_nulls_learn(variables):
    other = {"tokens": jnp.array([[1, 2, 3, 4]] * 2), "token_mask": ~INPUTS["token_mask"]}
    drops = {"keep_z": NOBODY, "keep_text": NOBODY}
    np.testing.assert_array_equal(run(variables, **drops, **other), run(variables, **drops))

    @jax.jit
    def slopes(variables, x_t, z_img):
        def loss(variables, x_t, z_img):
            return (run(variables, x_t, z_img=z_img, **drops) ** 2).sum()

        return jax.grad(loss, (0, 1, 2))(variables, x_t, z_img)

    params, image, z_img = slopes(variables, X_T, INPUTS["z_img"])
    np.testing.assert_array_equal(z_img, 0.0)
    assert (np.abs(np.asarray(image)).max((1, 2, 3)) > 0).all()  # x_t is never dropped
    assert np.abs(params["params"]["null_z"]).min() > 0
    captions = params["params"]["text_encoder"]["captions"]
    assert (np.abs(captions["padding"]).max(-1) > 0).all()
    np.testing.assert_array_equal(captions["tokens"], 0.0)


def test_the_two_drops_are_independent_and_per_row(variables):
    """Rows (conditional, unconditional): each equals its row in a batch of one kind."""
    keep = jnp.array([True, False])
    full = run(variables)
    np.testing.assert_array_equal(run(variables, keep_z=~NOBODY, keep_text=~NOBODY), full)
    for name in ("keep_z", "keep_text"):
        mixed, unconditional = run(variables, **{name: keep}), run(variables, **{name: NOBODY})
        np.testing.assert_allclose(mixed[0], full[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(mixed[1], unconditional[1], rtol=1e-5, atol=1e-5)
        assert np.abs(np.asarray(full - unconditional)).max((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("padding", ["learned", "mask"])
def test_ids_at_padding_change_nothing(variables, padding):
    changes = {"padding": padding}
    other = jnp.where(INPUTS["token_mask"], INPUTS["tokens"], 7)
    got, want = run(variables, changes=changes, tokens=other), run(variables, changes=changes)
    np.testing.assert_array_equal(got, want)


def test_hidden_padding_is_hidden_from_the_image_and_z_tokens_are_not(unet_inputs):
    mask = unet_inputs(changes={"padding": "mask"})[3]
    np.testing.assert_array_equal(mask[:, :4], True)
    np.testing.assert_array_equal(mask[:, 4:], INPUTS["token_mask"])


def test_captions_encoded_once_serve_every_step(variables):
    module, text = Decoder(TINY), {k: INPUTS[k] for k in ("tokens", "token_mask")}
    keep = jnp.array([False, True])
    features = probes.apply(module, variables, **text, keep_text=keep, method="encode_text")
    z_img = INPUTS["z_img"]
    got = probes.apply(module, variables, X_T, T, z_img=z_img, text=features, method="denoise")
    np.testing.assert_allclose(got, run(variables, keep_text=keep), rtol=1e-6)
    np.testing.assert_array_equal(features.last, features.sequence[:, -1])


@pytest.mark.parametrize("width", [0, 5])
def test_a_z_map_is_a_coarse_image_beside_x_t(unet_inputs, width):
    """A linear map of z_img, or one of a hidden layer of `width`."""
    unet = dataclasses.replace(UNET, image_size=16, attention_at=())
    changes = {"z_map": 4, "z_map_width": width, "unet": unet}
    x_t = jnp.asarray(RNG.normal(size=(2, 16, 16, 3)), jnp.float32)
    params = probes.random_variables(
        Decoder(dataclasses.replace(TINY, **changes)), x_t, T, **INPUTS
    )
    x = unet_inputs(params=params, x_t=x_t, changes=changes)[0]
    p, z = wide(params["params"]), wide(INPUTS["z_img"])
    assert ("z_to_hidden" in p) == (width > 0)
    if width:
        hidden = z @ p["z_to_hidden"]["kernel"] + p["z_to_hidden"]["bias"]
        z = hidden / (1 + np.exp(-hidden))
    grid = z @ p["z_to_map"]["kernel"] + p["z_to_map"]["bias"]
    grid = grid.reshape(2, MAP_SIDE, MAP_SIDE, 4)
    np.testing.assert_array_equal(x[..., :3], x_t)
    np.testing.assert_allclose(x[..., 3:], grid.repeat(2, axis=1).repeat(2, axis=2), atol=1e-5)


def test_half_precision_keeps_float32_parameters_and_output(variables):
    changes = {"unet": dataclasses.replace(UNET, dtype="bfloat16")}
    case = probes.shapes(Decoder(dataclasses.replace(TINY, **changes)), X_T, T, **INPUTS)
    assert {leaf.dtype for leaf in jax.tree.leaves(case)} == {jnp.dtype("float32")}
    got = run(variables, changes=changes)
    assert got.dtype == jnp.float32
    want = run(variables)
    assert 0 < np.abs(np.asarray(got - want)).max() < 0.05 * np.abs(np.asarray(want)).max()


def test_the_decoder_of_the_paper_has_3_5_billion_parameters():
    """U-Net 2.24B, text transformer 1.21B, pathways of z_img; Table 3 rounds to 3.5B."""
    cfg = probes.paper("decoder")
    slots = jnp.zeros((1, 256), jnp.int32)
    case = probes.shapes(
        Decoder(cfg),
        jnp.zeros((1, 64, 64, 3)),
        slots[:, 0],
        z_img=jnp.zeros((1, 1024)),
        tokens=slots,
        token_mask=slots.astype(bool),
    )
    assert case["text_encoder"]["captions"].pop("tokens").shape == (cfg.vocab_size, 2048)
    assert probes.count(case["unet"]) == pytest.approx(2.24e9, rel=0.01)
    assert probes.count(case["text_encoder"]) == pytest.approx(1.21e9, rel=0.01)
    assert round(probes.count(case) / 1e9, 1) == 3.5


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"null_z": "zeros"}, "unknown null_z 'zeros'. Did you mean 'zero'"),
        ({"padding": "learnt"}, "unknown padding 'learnt'. Did you mean 'learned'"),
    ],
)
def test_mistaken_configs_are_rejected(changes, match):
    with pytest.raises(UserError, match=match):
        dataclasses.replace(TINY, **changes)


def test_captions_of_another_length_are_rejected(variables):
    with pytest.raises(UserError, match="captions have 3 tokens; this model takes 4"):
        run(variables, tokens=INPUTS["tokens"][:, :3], token_mask=INPUTS["token_mask"][:, :3])
