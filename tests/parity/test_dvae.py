"""OpenAI's discrete VAE in PyTorch, pickled as its authors did, converted and compared."""

import os
import sys
import types
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.convert import importing
from unclip_jax.core.checks import UserError
from unclip_jax.inference.load import load_dvae
from unclip_jax.models.dvae import Dvae

torch = pytest.importorskip("torch")
nn = torch.nn
HIDDEN, GROUPS, BLOCKS, CODES, DECODER_IN = 8, 4, 2, 16, 6


def module(name):
    """A module `dall_e.*` for the duration of a test, in which classes can be defined."""
    return sys.modules.setdefault(name, types.ModuleType(name))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Both networks, their pickles, and no package `dall_e` any more."""
    names = [f"dall_e{part}" for part in ("", ".utils", ".encoder", ".decoder")]
    modules = {name: module(name) for name in names}

    def public(name, cls):
        where, label = name.rsplit(".", 1)
        cls.__module__, cls.__qualname__, cls.__name__ = where, label, label
        setattr(modules[where], label, cls)
        return cls

    class Conv(nn.Module):
        def __init__(self, n_in, n_out, size):
            super().__init__()
            self.w = nn.Parameter(torch.randn(n_out, n_in, size, size) / (n_in * size**2) ** 0.5)
            self.b = nn.Parameter(torch.randn(n_out) * 0.1)

        def forward(self, x):
            return nn.functional.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)

    class Block(nn.Module):
        kernels = ()

        def __init__(self, n_in, n_out):
            super().__init__()
            self.gain = 1 / (GROUPS * BLOCKS) ** 2
            self.id_path = Conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
            widths = [n_in, *[n_out // 4] * 3, n_out]
            steps = OrderedDict()
            for i, size in enumerate(self.kernels):
                steps[f"relu_{i + 1}"] = nn.ReLU()
                steps[f"conv_{i + 1}"] = Conv(widths[i], widths[i + 1], size)
            self.res_path = nn.Sequential(steps)

        def forward(self, x):
            return self.id_path(x) + self.gain * self.res_path(x)

    class Network(nn.Module):
        def forward(self, x):
            return self.blocks(x)

    public("dall_e.utils.Conv2d", Conv)
    encoder_block = public(
        "dall_e.encoder.EncoderBlock", type("EncoderBlock", (Block,), {"kernels": (3, 3, 3, 1)})
    )
    decoder_block = public(
        "dall_e.decoder.DecoderBlock", type("DecoderBlock", (Block,), {"kernels": (1, 3, 3, 3)})
    )
    encoder = public("dall_e.encoder.Encoder", type("Encoder", (Network,), {}))()
    decoder = public("dall_e.decoder.Decoder", type("Decoder", (Network,), {}))()
    torch.manual_seed(0)

    def stack(first, block, widths, between, out):
        parts = OrderedDict(input=first)
        before = first.w.shape[0]
        for g, width in enumerate(widths):
            inner = OrderedDict()
            for b in range(BLOCKS):
                inner[f"block_{b + 1}"] = block(before, width)
                before = width
            if g < len(widths) - 1:
                inner[between[0]] = between[1]()
            parts[f"group_{g + 1}"] = nn.Sequential(inner)
        last = OrderedDict(relu=nn.ReLU(), conv=Conv(before, out, 1))
        return nn.Sequential(OrderedDict(parts, output=nn.Sequential(last)))

    widths = [HIDDEN * 2**g for g in range(GROUPS)]
    pool = ("pool", lambda: nn.MaxPool2d(2))
    double = ("upsample", lambda: nn.Upsample(scale_factor=2, mode="nearest"))
    encoder.blocks = stack(Conv(3, HIDDEN, 7), encoder_block, widths, pool, CODES)
    decoder.blocks = stack(Conv(CODES, DECODER_IN, 1), decoder_block, widths[::-1], double, 6)
    folder = tmp_path_factory.mktemp("published")
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        torch.save(network, folder / f"{name}.pkl")
    for name in names:
        del sys.modules[name]
    return folder, encoder, decoder


@pytest.fixture(scope="module")
def converted(original, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    assert importing.convert([original[0]], out) == ["dvae"]
    with pytest.raises(UserError, match="has dvae already, .* give another --out"):
        importing.convert([original[0]], out)
    return load_dvae(out / "dvae" / "export")


def test_sizes_are_read_off_the_tensors(converted):
    cfg, _, card = converted
    sizes = (cfg.model.hidden, cfg.model.groups, cfg.model.blocks, cfg.model.decoder_in)
    assert sizes == (HIDDEN, GROUPS, BLOCKS, DECODER_IN)
    assert (card.grid, card.code_count, card.image_size) == (32, CODES, 256)
    assert card.dvae_id and card.licence.startswith("modified MIT")


def test_logits_and_maps_are_those_of_the_original(original, converted):
    _, encoder, decoder = original
    cfg, params, _ = converted
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0.1, 0.9, (2, 32, 32, 3)).astype(np.float32)
    codes = rng.integers(0, CODES, (2, 4, 4))
    apply = jax.jit(
        lambda p, x, m: Dvae(cfg.model).apply({"params": p}, x, method=m), static_argnums=2
    )
    with torch.no_grad():
        logits = encoder(torch.tensor(pixels).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
        one_hot = nn.functional.one_hot(torch.tensor(codes), CODES).permute(0, 3, 1, 2).float()
        maps = decoder(one_hot).permute(0, 2, 3, 1).numpy()
    ours = apply(params, jnp.asarray(pixels), Dvae.encode)
    np.testing.assert_allclose(ours, logits, atol=1e-5, rtol=1e-5)
    ours = apply(params, jnp.asarray(codes), Dvae.decode)
    np.testing.assert_allclose(ours, maps, atol=1e-5, rtol=1e-5)


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_other_names_in_a_pickle_are_rejected_and_not_run(original, tmp_path):
    harm = tmp_path / "executed"
    for name in ("encoder", "decoder"):
        torch.save({"blocks": Payload(harm)}, tmp_path / f"{name}.pkl")
    rejected = (
        r"holds more than dall_e.encoder.Encoder, .* tensors \(it names 'posix.mkdir'\). Convert"
    )
    with pytest.raises(UserError, match=rejected):
        importing.convert([tmp_path], tmp_path / "out")
    assert not harm.exists()


def test_other_tensors_are_rejected(tmp_path):
    from safetensors.numpy import save_file

    for name in ("encoder", "decoder"):
        save_file(
            {"blocks.input.v": np.zeros((1, 2), np.float32)}, tmp_path / f"{name}.safetensors"
        )
    with pytest.raises(UserError, match="does not hold the tensors of OpenAI's discrete VAE"):
        importing.convert([tmp_path], tmp_path / "out")
