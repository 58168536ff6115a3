"""OpenAI's discrete VAE: its exact size, its blocks, and codes as rows of the first map."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.core.checks import UserError
from unclip_jax.models.dvae import CodeRows, Dvae, DvaeConfig

TINY = DvaeConfig(
    image_size=16, hidden=8, groups=3, blocks=1, decoder_in=4, code_count=6, out_channels=6
)
RNG = np.random.default_rng(0)
PIXELS = jnp.asarray(RNG.uniform(0.1, 0.9, (1, 16, 16, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    return probes.random_variables(Dvae(TINY), PIXELS)


def test_the_networks_have_openai_s_number_of_parameters():
    shapes = probes.shapes(Dvae(DvaeConfig()), jnp.zeros((1, 256, 256, 3)))
    assert probes.count(shapes["encoder"]) == 53_786_240
    assert probes.count(shapes["decoder"]) == 43_829_766
    assert shapes["decoder"]["conv_in"]["kernel"].shape == (8192, 128)


def test_codes_are_rows_of_the_first_map(variables):
    codes = jnp.asarray(RNG.integers(0, 6, (2, 4, 4)))
    rows = CodeRows(6, 4)
    params = {"params": variables["params"]["decoder"]["conv_in"]}
    one_hot = rows.apply(params, jax.nn.one_hot(codes, 6))
    np.testing.assert_allclose(rows.apply(params, codes), one_hot, atol=1e-6)


def test_a_fresh_codebook_is_standard_normal():
    cfg = dataclasses.replace(TINY, quantizer="vq", code_count=512, code_dim=4, decoder_in=4)
    codes = np.asarray(probes.fresh(Dvae(cfg), PIXELS)["params"]["codebook"])
    assert codes.shape == (512, 4)
    assert abs(codes.mean()) < 5 / np.sqrt(codes.size)
    assert abs(codes.std() - 1) < 5 / np.sqrt(2 * codes.size)


def test_shifting_an_image_by_a_code_shifts_its_features(variables):
    """Away from the edges, whose padding reaches 24 pixels, or 6 codes, into the encoder."""
    module = Dvae(dataclasses.replace(TINY, image_size=64))
    encode = jax.jit(lambda v, x: module.apply(v, x, method=Dvae.encode))
    image = jnp.asarray(RNG.uniform(0.1, 0.9, (1, 68, 64, 3)), jnp.float32)
    whole, shifted = (encode(variables, image[:, first : first + 64]) for first in (0, 4))
    np.testing.assert_allclose(shifted[:, 6:9], whole[:, 7:10], rtol=1e-4, atol=1e-5)
    assert np.any(np.abs(np.asarray(shifted[:, 6:9] - whole[:, 6:9])) > 1e-3)


def convolve(x, kernel, bias):
    """A convolution in float64 by sums over shifts; x [h w c], zero-padded."""
    k = kernel.shape[0] // 2
    padded = np.pad(x, ((k, k), (k, k), (0, 0)))
    h, w = x.shape[:2]
    shifts = np.ndindex(kernel.shape[:2])
    return bias + sum(padded[i : i + h, j : j + w] @ kernel[i, j] for i, j in shifts)


def network(tree, x, *, names, kernels, scale):
    """Blocks between the first and the last map, by the definition."""
    for name in names:
        p, y = tree[name], x
        for i in range(1, 5):
            layer = p[f"conv_{i}"]
            assert layer["kernel"].shape[0] == kernels[i - 1]
            y = convolve(np.maximum(y, 0), layer["kernel"], layer["bias"])
        if "identity" in p:
            x = convolve(x, p["identity"]["kernel"], p["identity"]["bias"])
        x = x + scale * y
        yield x


def test_both_networks_by_their_definition_in_float64(variables):
    encoder, decoder = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"][name])
        for name in ("encoder", "decoder")
    )
    x = convolve(np.float64(PIXELS[0]), encoder["conv_in"]["kernel"], encoder["conv_in"]["bias"])
    for group in (1, 2, 3):
        if group > 1:
            h = x.shape[0] // 2
            x = x.reshape(h, 2, h, 2, -1).max((1, 3))
        (x,) = network(
            encoder, x, names=[f"group_{group}_block_1"], kernels=(3, 3, 3, 1), scale=1 / 9
        )
    last = encoder["conv_out"]
    expected = convolve(np.maximum(x, 0), last["kernel"], last["bias"])
    run = jax.jit(lambda v, x, m: Dvae(TINY).apply(v, x, method=m), static_argnums=2)
    features = run(variables, PIXELS, Dvae.encode)
    np.testing.assert_allclose(features[0], expected, rtol=2e-4, atol=2e-4)

    values = RNG.normal(size=(4, 4, 6))
    x = values @ decoder["conv_in"]["kernel"] + decoder["conv_in"]["bias"]
    for group in (1, 2, 3):
        names = [f"group_{group}_block_1"]
        (x,) = network(decoder, x, names=names, kernels=(1, 3, 3, 3), scale=1 / 9)
        x = x.repeat(2, 0).repeat(2, 1) if group < 3 else x
    last = decoder["conv_out"]
    expected = convolve(np.maximum(x, 0), last["kernel"], last["bias"])
    maps = run(variables, jnp.asarray(values[None], jnp.float32), Dvae.decode)
    np.testing.assert_allclose(maps[0], expected, rtol=2e-4, atol=2e-4)


def test_remat_changes_no_value(variables):
    again = Dvae(dataclasses.replace(TINY, remat="block"))
    expected, values = (jax.jit(m.apply)(variables, PIXELS) for m in (Dvae(TINY), again))
    np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 18}, "image_size is 18, which 4 does not divide; 3 groups .*; 16 is div"),
        ({"quantizer": "fqs"}, "unknown config.model.model.quantizer 'fqs'. Did you mean 'fsq'"),
        ({"quantizer": "fsq", "levels": (3, 3)}, r"levels are \[3, 3\], whose product is 9, but"),
    ],
)
def test_mistaken_configs_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **changes)
