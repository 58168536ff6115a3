"""The networks of the discrete VAE: an encoder to a grid of codes, a decoder from it.

    image ─► encoder ─► features ─► (a quantizer of discrete/) ─► codes ─► decoder ─► image

Residual blocks of ReLU and convolution without any norm, whose residual branch is scaled by one
over the square of the number of blocks. Source: OpenAI's published encoder and decoder, to which
DALL-E (arXiv 2102.12092), appendix A.1, refers. VQGAN's networks (`models/vqgan.py`) are an option.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from unclip_jax.backbones.layers import compute_dtype, conv, rematerialised, zeros
from unclip_jax.core.checks import UserError, divisible, one_of
from unclip_jax.core.types import Image
from unclip_jax.models import vqgan
from unclip_jax.models.vqgan import VqganConfig
from unclip_jax.parallel.axes import by_example, sharded

Maps = Float[Array, " b h w o"]
QUANTIZERS = ("gumbel", "vq", "fsq")
init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")  # (n_in k^2)^-1/2, untruncated


@dataclasses.dataclass(frozen=True)
class DvaeConfig:
    """Sizes of a discrete VAE; the defaults are OpenAI's.

    Attributes:
        image_size: side of the images.
        hidden: channels of the first group; every further group has twice as many.
        groups: of blocks, with a pooling between neighbours.
        blocks: per group.
        decoder_in: channels into which the decoder maps codes.
        quantizer: "gumbel" (categorical codes), "vq" (a learned codebook) or "fsq".
        code_count: number of codes.
        levels: "fsq": levels per channel, whose product is the number of codes.
        code_dim: "vq": length of a codebook row.
        out_channels: maps of the decoder, 6 for means and log scales, 3 for images.
        remat: "none", "block" or "dots"; not of VQGAN.
        dtype: compute dtype; the maps to and from codes stay in float32.
        vqgan: VQGAN's networks instead, with `hidden` as first width and `groups` levels.
    """

    image_size: int = 256
    hidden: int = 256
    groups: int = 4
    blocks: int = 2
    decoder_in: int = 128
    quantizer: str = "gumbel"
    code_count: int = 8192
    levels: tuple[int, ...] = ()
    code_dim: int = 256
    out_channels: int = 6
    remat: str = "none"
    dtype: str = "float32"
    vqgan: VqganConfig | None = None

    def __post_init__(self):
        one_of("config.model.model.quantizer", self.quantizer, QUANTIZERS)
        nearest = self.factor * max(1, round(self.image_size / self.factor))
        divisible(
            "config.model.model.image_size",
            self.image_size,
            self.factor,
            f"{self.groups} groups halve the side {self.groups - 1} times; {nearest} is divisible.",
        )
        if self.vqgan is not None and len(self.vqgan.multiples) != self.groups:
            raise UserError(
                f"config.model.model.vqgan.multiples has {len(self.vqgan.multiples)} levels, but "
                f"groups is {self.groups}; make them agree."
            )
        if self.quantizer == "fsq" and math.prod(self.levels) != self.code_count:
            raise UserError(
                f"config.model.model.levels are {list(self.levels)}, whose product is "
                f"{math.prod(self.levels)}, but code_count is {self.code_count}; make them agree."
            )

    @property
    def factor(self) -> int:
        """Pixels per code along a side."""
        return 2 ** (self.groups - 1)

    @property
    def grid(self) -> int:
        """Side of the grid of codes."""
        return self.image_size // self.factor

    @property
    def features(self) -> int:
        """Channels between encoder, quantizer and decoder."""
        return {"gumbel": self.code_count, "vq": self.code_dim, "fsq": len(self.levels)}[
            self.quantizer
        ]


class Dvae(nn.Module):
    """Encoder, decoder and, with "vq", the codebook."""

    cfg: DvaeConfig

    def setup(self):
        """Creates the submodules; their names are the parameter paths of checkpoints."""
        cfg = self.cfg
        if cfg.vqgan is None:
            self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
        else:
            sizes = (cfg.vqgan, cfg.hidden, cfg.blocks)
            self.encoder = vqgan.Encoder(*sizes, cfg.features, cfg.code_dim, cfg.dtype)
            self.decoder = vqgan.Decoder(*sizes, cfg.out_channels, cfg.dtype)
        if cfg.quantizer == "vq" or (cfg.quantizer == "gumbel" and cfg.vqgan is not None):
            shape = (self.cfg.code_count, self.cfg.code_dim)
            rows = sharded(nn.initializers.normal(1.0), "vocab", "conv_in")
            self.codebook = self.param("codebook", rows, shape)

    def __call__(self, pixels: Image) -> Maps:
        """Decodes features that are not quantised; for initialisation only."""
        return self.decode(self.encoder(pixels))

    def encode(self, pixels: Image) -> Float[Array, " b g g n"]:
        """Returns features of the grid: logits of codes ("gumbel"), or what is quantised."""
        return self.encoder(pixels)

    def decode(self, values: Float[Array, " b g g n"] | Int[Array, " b g g"]) -> Maps:
        """Returns the output maps of quantised features, or of "gumbel" codes themselves."""
        if self.cfg.vqgan is not None and self.cfg.quantizer == "gumbel":
            integer = jnp.issubdtype(values.dtype, jnp.integer)
            values = self.codebook[values] if integer else values @ self.codebook
        return self.decoder(values)


class Encoder(nn.Module):
    """7 x 7 convolution, groups of blocks with max-pooling between them, ReLU, 1 x 1."""

    cfg: DvaeConfig

    @nn.compact
    def __call__(self, pixels: Image) -> Float[Array, " b g g n"]:
        """Returns the features of every position of the grid, in float32."""
        cfg, dtype = self.cfg, compute_dtype(self.cfg.dtype)
        block = rematerialised(Block, cfg.remat, scanned=False)
        x = conv(cfg.hidden, name="conv_in", size=7, dtype=dtype, init=init)(pixels.astype(dtype))
        for group in range(cfg.groups):
            if group:
                x = nn.max_pool(x, (2, 2), (2, 2))
            width = cfg.hidden * 2**group
            for number in range(cfg.blocks):
                name = f"group_{group + 1}_block_{number + 1}"
                x = block(cfg, width, (3, 3, 3, 1), name=name)(x)
        x = jax.nn.relu(x).astype(jnp.float32)
        return conv(cfg.features, name="conv_out", size=1, dtype=x.dtype, init=init)(x)


class Decoder(nn.Module):
    """The rows of the codes, groups of blocks with doubling between them, ReLU, 1 x 1."""

    cfg: DvaeConfig

    @nn.compact
    def __call__(self, values: Float[Array, " b g g n"] | Int[Array, " b g g"]) -> Maps:
        """Returns `out_channels` maps at full size in float32; integers are codes."""
        cfg, dtype = self.cfg, compute_dtype(self.cfg.dtype)
        block = rematerialised(Block, cfg.remat, scanned=False)
        x = CodeRows(cfg.features, cfg.decoder_in, name="conv_in")(values).astype(dtype)
        for group in reversed(range(cfg.groups)):
            width = cfg.hidden * 2**group
            for number in range(cfg.blocks):
                name = f"group_{cfg.groups - group}_block_{number + 1}"
                x = block(cfg, width, (1, 3, 3, 3), name=name)(x)
            if group:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = jax.nn.relu(x)
        x = conv(cfg.out_channels, name="conv_out", size=1, dtype=dtype, init=init, out="out")(x)
        return x.astype(jnp.float32)


class CodeRows(nn.Module):
    """A 1 x 1 convolution of relaxed codes whose kernel is the codebook: row i belongs to code i.

    Attributes:
        count: channels that it reads, or number of codes.
        width: length of a row.
    """

    count: int
    width: int

    @nn.compact
    def __call__(
        self, values: Float[Array, " b g g n"] | Int[Array, " b g g"]
    ) -> Float[Array, " b g g d"]:
        """Returns mixtures of rows; of codes their rows, without one-hot vectors."""
        kernel = sharded(init, "conv_in", "conv_out")
        kernel = self.param("kernel", kernel, (self.count, self.width))
        bias = self.param("bias", sharded(zeros, "conv_out"), (self.width,))
        integer = jnp.issubdtype(values.dtype, jnp.integer)
        rows = kernel[values] if integer else values.astype(jnp.float32) @ kernel
        return rows + bias.reshape(1, 1, 1, -1)


class Block(nn.Module):
    """identity(x) + residual(x) / (number of blocks)^2, the residual four times ReLU and conv.

    Attributes:
        cfg: of the network.
        width: channels of the output; the hidden ones are a quarter.
        kernels: sides of the four convolutions.
    """

    cfg: DvaeConfig
    width: int
    kernels: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, " b h w c"]) -> Float[Array, " b h w d"]:
        """Applies the block; the identity path is a 1 x 1 convolution where channels change."""
        y, hidden = by_example(x), self.width // 4
        for i, size in enumerate(self.kernels, start=1):
            width = self.width if i == len(self.kernels) else hidden
            y = jax.nn.relu(y)
            y = conv(width, name=f"conv_{i}", size=size, dtype=x.dtype, init=init)(y)
        if x.shape[-1] != self.width:
            x = conv(self.width, name="identity", size=1, dtype=x.dtype, init=init)(x)
        return by_example(x + y / (self.cfg.groups * self.cfg.blocks) ** 2)
