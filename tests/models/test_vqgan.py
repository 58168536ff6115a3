"""VQGAN's encoder and decoder in NumPy; tests/convert compares them with taming-transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.core.checks import UserError
from unclip_jax.models.vqgan import Decoder, Encoder, VqganConfig

GROUPS = 32
CFG = VqganConfig(multiples=(1, 2), attention_at=(1,), z_channels=4)
UNIT = VqganConfig(multiples=(1, 2), attention_at=(0,), z_channels=4, pixels="unit")
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (1, 4, 4, 3)).astype(np.float32)
ROWS = RNG.normal(size=(1, 2, 2, 5)).astype(np.float32)


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x, p):
    h, w, c = x.shape
    y = x.reshape(h * w, GROUPS, c // GROUPS)
    y = (y - y.mean((0, 2), keepdims=True)) / np.sqrt(y.var((0, 2), keepdims=True) + 1e-6)
    return y.reshape(x.shape) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def conv(x, p, stride=1):
    """3 x 3 with zeros around; halving convolutions have them below and to the right alone."""
    h, w, _ = x.shape
    padded = np.pad(x, (((1, 1), (1, 1), (0, 0)) if stride == 1 else ((0, 1), (0, 1), (0, 0))))
    out = np.zeros((h // stride, w // stride, p["kernel"].shape[-1])) + p["bias"]
    for i, j in np.ndindex(*out.shape[:2]):
        window = padded[stride * i : stride * i + 3, stride * j : stride * j + 3]
        out[i, j] += np.einsum("ijc,ijcf->f", window, p["kernel"])
    return out


def block(x, p):
    y = conv(silu(norm(x, p["norm_1"])), p["conv_1"])
    y = conv(silu(norm(y, p["norm_2"])), p["conv_2"])
    return y + (linear(x, p["shortcut"]) if "shortcut" in p else x)


def attend(x, p):
    y = norm(x, p["norm"]).reshape(-1, x.shape[-1])
    q, k, v = (linear(y, p[name]) for name in "qkv")
    scores = q @ k.T / np.sqrt(x.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = weights / weights.sum(-1, keepdims=True) @ v
    return x + linear(y, p["out"]).reshape(x.shape)


def middle(x, p):
    return block(attend(block(x, p["middle_0"]), p["middle_attention"]), p["middle_1"])


def level(x, p, name, count, cfg):
    for i in range(count):
        x = block(x, p[f"{name}_{i}"])
        attends = int(name[-1]) in cfg.attention_at
        assert (f"{name}_{i}_attention" in p) == attends
        x = attend(x, p[f"{name}_{i}_attention"]) if attends else x
    return x


@pytest.mark.parametrize(("cfg", "features"), [(CFG, 5), (UNIT, 7)])
def test_the_encoder_by_hand(cfg, features):
    module = Encoder(cfg, 32, 2, features, 5, "float32")
    variables = probes.random_variables(module, jnp.asarray(IMAGES))
    p = wide(variables["params"])
    x = conv((IMAGES[0] + 1) / 2 if cfg.pixels == "unit" else IMAGES[0], p["conv_in"])
    x = level(x, p, "down_0", 2, cfg)
    assert [name for name in p if name.endswith("sample")] == ["down_0_sample"]
    x = level(conv(x, p["down_0_sample"], stride=2), p, "down_1", 2, cfg)
    x = conv(silu(norm(middle(x, p), p["head_norm"])), p["conv_out"])
    want = linear(x, p["to_code"])
    want = linear(want, p["logits"]) if features == 7 else want
    got = probes.apply(module, variables, jnp.asarray(IMAGES))[0]
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3 * np.abs(want).max())


@pytest.mark.parametrize("cfg", [CFG, UNIT])
def test_the_decoder_by_hand(cfg):
    module = Decoder(cfg, 32, 1, 3, "float32")
    variables = probes.random_variables(module, jnp.asarray(ROWS))
    p = wide(variables["params"])
    x = middle(conv(linear(np.float64(ROWS[0]), p["from_code"]), p["conv_in"]), p)
    x = level(x, p, "up_1", 2, cfg)
    x = conv(x.repeat(2, axis=0).repeat(2, axis=1), p["up_1_sample"])
    x = level(x, p, "up_0", 2, cfg)
    want = conv(silu(norm(x, p["head_norm"])), p["conv_out"])
    want = 2 * want - 1 if cfg.pixels == "unit" else want
    got = probes.apply(module, variables, jnp.asarray(ROWS))[0]
    assert got.shape == (4, 4, 3)
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3 * np.abs(want).max())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": "signd"}, "unknown config.model.model.vqgan.pixels 'signd'. Did you mean"),
        ({"z_channels": 0}, "vqgan.z_channels is 0; it must be greater than 0"),
        ({"attention_at": (2,)}, "attention_at holds 2; there are levels 0 to 1"),
        ({"attention_at": (-1,)}, "attention_at holds -1; there are levels 0 to 1"),
    ],
)
def test_mistaken_configs_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        VqganConfig(**{"multiples": (1, 2), **changes})
