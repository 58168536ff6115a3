"""VQGANs in PyTorch, by the public description of taming-transformers, converted and compared."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.convert import importing
from unclip_jax.convert.importing import ImportOptions
from unclip_jax.core.checks import UserError
from unclip_jax.inference.load import load_dvae
from unclip_jax.models.dvae import Dvae
from unclip_jax.stages import dvae

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional
WIDTH, BLOCKS, CODES, CODE_DIM, Z = 32, 1, 24, 6, 10


def group_norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.norm1, self.norm2 = group_norm(before), group_norm(after)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x):
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = group_norm(channels)
        for name in ("q", "k", "v", "proj_out"):
            setattr(self, name, nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (getattr(self, name)(y).flatten(2).transpose(1, 2) for name in "qkv")
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(y.transpose(1, 2).reshape(x.shape))


class Resample(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=2 - stride)


def level(widths, attends):
    part = nn.Module()
    pairs = list(itertools.pairwise(widths))
    part.block = nn.ModuleList([Residual(*pair) for pair in pairs])
    part.attn = nn.ModuleList([Attention(after) for _, after in pairs] if attends else [])
    return part


def middle(channels):
    part = nn.Module()
    part.block_1, part.block_2 = Residual(channels, channels), Residual(channels, channels)
    part.attn_1 = Attention(channels)
    return part


def through(part, x):
    for i, block in enumerate(part.block):
        x = block(x)
        x = part.attn[i](x) if len(part.attn) else x
    return x


def through_middle(part, x):
    return part.block_2(part.attn_1(part.block_1(x)))


class Network(nn.Module):
    """One of the two halves; both have conv_in, mid, norm_out and conv_out."""

    def __init__(self, first, inside, out, last):
        super().__init__()
        self.conv_in = nn.Conv2d(first, inside, 3, padding=1)
        self.norm_out, self.conv_out = group_norm(out), nn.Conv2d(out, last, 3, padding=1)

    def end(self, x):
        return self.conv_out(functional.silu(self.norm_out(x)))


class Vqgan(nn.Module):
    def __init__(self, multiples, attention_at, gumbel):
        super().__init__()
        widths = [WIDTH * m for m in multiples]
        last, attends = len(widths) - 1, [i in attention_at for i in range(len(widths))]
        self.encoder = Network(3, WIDTH, widths[-1], Z)
        self.encoder.down = nn.ModuleList()
        before = WIDTH
        for i, width in enumerate(widths):
            part = level([before, *[width] * BLOCKS], attends[i])
            if i < last:
                part.downsample = Resample(width, 2)
            self.encoder.down.append(part)
            before = width
        self.encoder.mid = middle(before)
        self.decoder = Network(Z, widths[-1], widths[0], 3)
        self.decoder.mid = middle(widths[-1])
        ups = []
        for i, width in reversed(list(enumerate(widths))):
            part = level([before, *[width] * (BLOCKS + 1)], attends[i])
            if i:
                part.upsample = Resample(width, 1)
            ups.insert(0, part)
            before = width
        self.decoder.up = nn.ModuleList(ups)
        self.quant_conv = nn.Conv2d(Z, CODE_DIM, 1)
        self.post_quant_conv = nn.Conv2d(CODE_DIM, Z, 1)
        self.quantize = nn.Module()
        if gumbel:
            self.quantize.proj = nn.Conv2d(CODE_DIM, CODES, 1)
            self.quantize.embed = nn.Embedding(CODES, CODE_DIM)
        else:
            self.quantize.embedding = nn.Embedding(CODES, CODE_DIM)
        self.loss = nn.Module()
        self.loss.discriminator = nn.Conv2d(3, 1, 1)  # which is left out

    def encode(self, x):
        x = self.encoder.conv_in(x)
        for part in self.encoder.down:
            x = through(part, x)
            if hasattr(part, "downsample"):
                x = part.downsample.conv(functional.pad(x, (0, 1, 0, 1)))
        x = self.quant_conv(self.encoder.end(through_middle(self.encoder.mid, x)))
        if hasattr(self.quantize, "proj"):
            x = self.quantize.proj(x)
            return x, x.argmax(1)
        rows = self.quantize.embedding.weight
        return x, torch.cdist(x.flatten(2).transpose(1, 2), rows[None]).argmin(-1)

    def decode(self, codes):
        table = getattr(self.quantize, "embed", None) or self.quantize.embedding
        x = self.decoder.conv_in(self.post_quant_conv(table(codes).permute(0, 3, 1, 2)))
        x = through_middle(self.decoder.mid, x)
        for part in reversed(self.decoder.up):
            x = through(part, x)
            if hasattr(part, "upsample"):
                x = part.upsample.conv(functional.interpolate(x, scale_factor=2.0))
        return self.decoder.end(x)


KINDS = {"f8": ((1, 1, 2, 2), (3,), True), "f16": ((1, 1, 2, 2, 2), (4,), False)}


@pytest.fixture(scope="module", params=KINDS)
def original(request, tmp_path_factory):
    """A network with random weights, its checkpoint as its trainer writes it, and its kind."""
    torch.manual_seed(0)
    network = Vqgan(*KINDS[request.param]).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    path = tmp_path_factory.mktemp(request.param) / "last.ckpt"
    torch.save({"epoch": 1, "global_step": 7, "state_dict": network.state_dict()}, path)
    return network, path, request.param


@pytest.fixture(scope="module")
def converted(original, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    options = ImportOptions(pixels="signed")
    assert importing.convert([original[1]], out, options=options) == ["dvae"]
    return load_dvae(out / "dvae" / "export")


def test_sizes_are_read_from_names_and_shapes(original, converted):
    cfg, _, card = converted
    multiples, attention_at, gumbel = KINDS[original[2]]
    assert cfg.model.vqgan.multiples == multiples
    assert cfg.model.vqgan.attention_at == attention_at
    assert cfg.model.quantizer == ("gumbel" if gumbel else "vq")
    assert card.grid == 256 // 2 ** (len(multiples) - 1) and card.code_count == CODES
    assert card.dvae_id and card.licence.startswith("MIT")


def test_features_codes_and_pixels_are_those_of_the_original(original, converted):
    network, cfg, params = original[0], converted[0], converted[1]
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    codes = np.random.default_rng(1).integers(0, CODES, (2, 4, 4))
    with torch.no_grad():
        features, their_codes = network.encode(torch.tensor(images).permute(0, 3, 1, 2))
        theirs = network.decode(torch.tensor(codes)).permute(0, 2, 3, 1).numpy()
    model = Dvae(cfg.model)
    ours = jax.jit(lambda p, x: model.apply({"params": p}, x, method=Dvae.encode))(params, images)
    features = features.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, features, atol=1e-4 * np.abs(features).max())
    own = jax.jit(lambda p, x: dvae.encode(cfg, p, x))(params, images)
    assert np.array_equal(np.asarray(own).ravel(), their_codes.numpy().ravel())
    maps = jax.jit(lambda p, c: dvae.decode(cfg, p, c))(params, jnp.asarray(codes))
    np.testing.assert_allclose(maps, theirs.clip(-1, 1), atol=1e-4 * np.abs(theirs).max())


def test_images_of_unit_range_are_mapped(original, converted, tmp_path):
    network, path, _ = original
    importing.convert([path], tmp_path, options=ImportOptions(pixels="unit"))
    cfg, params, _ = load_dvae(tmp_path / "dvae" / "export")
    images = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        _, codes = network.encode(torch.tensor((images + 1) / 2).permute(0, 3, 1, 2))
        side = 64 // cfg.model.factor
        codes = codes.reshape(1, side, side)
        pixels = network.decode(codes).permute(0, 2, 3, 1).numpy()
    own = jax.jit(lambda p, x: dvae.encode(cfg, p, x))(params, images)
    assert np.array_equal(own, codes.numpy())
    maps = jax.jit(lambda p, c: dvae.decode(cfg, p, c))(params, own)
    np.testing.assert_allclose(maps, (2 * pixels - 1).clip(-1, 1), atol=1e-3)


def test_the_range_of_pixels_is_asked_for(original, tmp_path):
    with pytest.raises(UserError, match="is a VQGAN, of which there are two kinds: images in"):
        importing.convert([original[1]], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_tensors_are_rejected_by_name(original, tmp_path):
    state = {k: v for k, v in original[0].state_dict().items() if "mid.attn_1.k" not in k}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="missing decoder.mid.attn_1.k.bias"):
        importing.convert([tmp_path / "x.ckpt"], tmp_path, options=ImportOptions(pixels="unit"))
