"""VQGAN's encoder and decoder (Esser et al. 2021, arXiv 2012.09841), as another discrete VAE.

Residual blocks with group norm and swish, attention at small sides, convolutions that halve and
double. They are for published weights: their training needs a discriminator, which is not built.
Layers are those of taming-transformers.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from unclip_jax.backbones.attention import attention
from unclip_jax.backbones.layers import GroupNorm, compute_dtype, conv, dense
from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.core.types import Image
from unclip_jax.parallel.axes import by_example

GROUPS, EPS = 32, 1e-6  # of the norms
PIXELS = ("signed", "unit")
Map = Float[Array, " b h w c"]


@dataclasses.dataclass(frozen=True)
class VqganConfig:
    """Sizes of a VQGAN beyond those of `DvaeConfig`.

    Attributes:
        multiples: channels of each level over the first width, finest first.
        attention_at: levels with attention, counted from the finest, 0.
        z_channels: between the networks and the maps to and from the codebook.
        pixels: range of its images: "signed" for [-1, 1] (taming-transformers), "unit" for [0, 1]
            (DALL-E mini's).
    """

    multiples: tuple[int, ...]
    attention_at: tuple[int, ...] = ()
    z_channels: int = 256
    pixels: str = "signed"

    def __post_init__(self):
        where = "config.model.model.vqgan"
        one_of(f"{where}.pixels", self.pixels, PIXELS)
        positive(f"{where}.z_channels", self.z_channels)
        for level in self.attention_at:
            if not 0 <= level < len(self.multiples):
                raise UserError(
                    f"{where}.attention_at holds {level}; there are levels 0 to "
                    f"{len(self.multiples) - 1}. Name some of these."
                )


class Encoder(nn.Module):
    """Convolution, levels of blocks with halving between them, a middle, and two maps.

    Attributes:
        cfg: of the VQGAN.
        width: first width.
        blocks: per level.
        features: outputs: length of a codebook row, or the logits of codes.
        code_dim: length of a codebook row.
        dtype: compute dtype, a name.
    """

    cfg: VqganConfig
    width: int
    blocks: int
    features: int
    code_dim: int
    dtype: str

    @nn.compact
    def __call__(self, pixels: Image) -> Float[Array, " b g g n"]:
        """Returns the features of every position of the grid, in float32."""
        cfg, dtype = self.cfg, compute_dtype(self.dtype)
        if cfg.pixels == "unit":
            pixels = (pixels + 1.0) / 2.0
        x = conv(self.width, name="conv_in", dtype=dtype)(pixels.astype(dtype))
        for level, multiple in enumerate(cfg.multiples):
            for i in range(self.blocks):
                x = Block(self.width * multiple, dtype, name=f"down_{level}_{i}")(x)
                if level in cfg.attention_at:
                    x = SelfAttention(dtype, name=f"down_{level}_{i}_attention")(x)
            if level < len(cfg.multiples) - 1:
                x = conv(x.shape[-1], name=f"down_{level}_sample", stride=2, dtype=dtype)(x)
        x = _head(_middle(x, dtype)).astype(jnp.float32)
        x = conv(cfg.z_channels, name="conv_out", dtype=x.dtype)(x)
        axes = ("conv_in", "conv_out")
        x = dense(self.code_dim, name="to_code", axes=axes, dtype=x.dtype)(x)
        if self.features == self.code_dim:
            return x
        return dense(self.features, name="logits", axes=("conv_in", "vocab"), dtype=x.dtype)(x)


class Decoder(nn.Module):
    """The mirror image of `Encoder`, with one more block per level; `features` are RGB maps."""

    cfg: VqganConfig
    width: int
    blocks: int
    features: int
    dtype: str

    @nn.compact
    def __call__(self, rows: Float[Array, " b g g d"]) -> Map:
        """Returns maps of images in [-1, 1] at full size, in float32, not clipped."""
        cfg, dtype = self.cfg, compute_dtype(self.dtype)
        axes = ("conv_in", "conv_out")
        x = dense(cfg.z_channels, name="from_code", axes=axes, dtype=jnp.dtype("float32"))(rows)
        x = conv(self.width * cfg.multiples[-1], name="conv_in", dtype=dtype)(x.astype(dtype))
        x = _middle(x, dtype)
        for level, multiple in reversed(list(enumerate(cfg.multiples))):
            for i in range(self.blocks + 1):
                x = Block(self.width * multiple, dtype, name=f"up_{level}_{i}")(x)
                if level in cfg.attention_at:
                    x = SelfAttention(dtype, name=f"up_{level}_{i}_attention")(x)
            if level:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = conv(x.shape[-1], name=f"up_{level}_sample", dtype=dtype)(x)
        x = conv(self.features, name="conv_out", dtype=dtype, out="out")(_head(x))
        x = x.astype(jnp.float32)
        return 2.0 * x - 1.0 if cfg.pixels == "unit" else x


def _middle(x: Map, dtype: jnp.dtype) -> Map:
    """Applies block, attention and block, as a part of the calling module."""
    x = Block(x.shape[-1], dtype, name="middle_0")(x)
    x = SelfAttention(dtype, name="middle_attention")(x)
    return Block(x.shape[-1], dtype, name="middle_1")(x)


def _head(x: Map) -> Map:
    return jax.nn.silu(GroupNorm(GROUPS, eps=EPS, name="head_norm")(x))


class Block(nn.Module):
    """Twice norm, swish and convolution, plus the shortcut.

    Attributes:
        features: output channels.
        dtype: compute dtype.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, " b h w f"]:
        """Applies the block; the shortcut is a linear map where channels change."""
        y = jax.nn.silu(GroupNorm(GROUPS, eps=EPS, name="norm_1")(x))
        y = conv(self.features, name="conv_1", dtype=self.dtype)(y)
        y = jax.nn.silu(GroupNorm(GROUPS, eps=EPS, name="norm_2")(y))
        y = conv(self.features, name="conv_2", dtype=self.dtype)(y)
        if x.shape[-1] != self.features:
            axes = ("conv_in", "conv_out")
            x = dense(self.features, name="shortcut", axes=axes, dtype=self.dtype)(x)
        return by_example(x + y)


class SelfAttention(nn.Module):
    """x + attention(norm(x)) over all positions, with one head."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """Applies the block."""
        b, h, w, c = x.shape
        y = GroupNorm(GROUPS, eps=EPS, name="norm")(x).reshape(b, h * w, c)
        axes = ("conv_in", "conv_out")
        q, k, v = (dense(c, name=n, axes=axes, dtype=self.dtype)(y)[:, :, None] for n in "qkv")
        y = attention(q, k, v)[:, :, 0]
        y = dense(c, name="out", axes=axes, dtype=self.dtype)(y)
        return by_example(x + y.reshape(x.shape))
