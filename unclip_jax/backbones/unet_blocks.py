"""The two blocks of an ADM / GLIDE U-Net, and resampling of feature maps.

Residual block with adaptive group norm and resampling inside (BigGAN style); attention in which
text keys and values join the image's own under one softmax (GLIDE, arXiv 2112.10741, section 4).
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones.attention import attention
from unclip_jax.backbones.layers import (
    GroupNorm,
    LayerNorm,
    activation,
    conv,
    dense,
    zeros,
)
from unclip_jax.core.checks import divisible, one_of
from unclip_jax.parallel.axes import by_example

RESAMPLE = ("none", "down", "up")
CONTEXT_GROUPS = 32  # whatever the U-Net's own number is


class ResBlock(nn.Module):
    """norm, act, [resample], conv, adaptive norm, act, dropout, zero conv; plus the shortcut.

    Attributes:
        features: output channels.
        groups: of the norms.
        resample: "none", "down" (2x2 mean) or "up" (nearest), of both branches.
        scale_shift: the embedding scales and shifts the second norm; else it is added before it.
        dropout: rate before the last convolution.
        dtype: compute dtype.
        over_space: the norms average over space (`layers.GroupNorm`).
        act: activation, "silu" or "gelu".
        scale: factor on the sum.
        project: True maps the shortcut linearly even where the channels agree.
    """

    features: int
    groups: int
    resample: str
    scale_shift: bool
    dropout: float
    dtype: jnp.dtype
    over_space: bool = True
    act: str = "silu"
    scale: float = 1.0
    project: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, " b h w c"], emb: Float[Array, " b e"], deterministic: bool
    ) -> Float[Array, " b h2 w2 f"]:
        """Applies the block; `emb` is the conditioning embedding after its activation."""
        act = activation(self.act)
        h = act(GroupNorm(self.groups, self.over_space, name="norm_1")(x))
        h, x = resample(h, self.resample), resample(x, self.resample)
        h = by_example(conv(self.features, name="conv_1", dtype=self.dtype)(h))
        h = act(self._modulated(h, emb))
        h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
        h = conv(self.features, name="conv_2", dtype=self.dtype, init=zeros)(h)
        if x.shape[-1] != self.features or self.project:
            axes = ("conv_in", "conv_out")
            x = dense(self.features, name="shortcut", axes=axes, dtype=self.dtype)(x)
        return x + h if self.scale == 1.0 else (x + h) * self.scale

    def _modulated(self, h: Array, emb: Array) -> Array:
        width = self.features * (2 if self.scale_shift else 1)
        condition = dense(width, name="emb", axes=("time", "conv_out"), dtype=self.dtype)(emb)
        norm = GroupNorm(self.groups, self.over_space, name="norm_2")
        if self.scale_shift:
            return norm(h, condition)
        return norm(h + condition[:, None, None, :])


class AttentionBlock(nn.Module):
    """Self-attention over positions and context tokens, or attention to the context alone.

    Keys and values are [context; image] along the sequence, under one softmax. Positions carry no
    encoding here, so the order does not matter.

    Attributes:
        head_channels: must divide the channels.
        groups: of the norm.
        dtype: compute dtype.
        over_space: the norm averages over space.
        cross: True attends to the context alone.
        context_norm: "none", "layer" or "group", of the context.
        width: of queries, keys and values, over the channels.
    """

    head_channels: int
    groups: int
    dtype: jnp.dtype
    over_space: bool = True
    cross: bool = False
    context_norm: str = "none"
    width: int = 1

    @nn.compact
    def __call__(
        self,
        x: Float[Array, " b h w c"],
        context: Float[Array, " b m d"] | None = None,
        context_mask: Bool[Array, " b m"] | None = None,
    ) -> Float[Array, " b h w c"]:
        """Returns x + attention(norm(x), context); False in `context_mask` hides a token."""
        b, h, w, c = x.shape
        inner = self.width * c
        divisible("channels", inner, self.head_channels, "choose head_channels that divides all.")
        y = GroupNorm(self.groups, self.over_space, name="norm")(x).reshape(b, h * w, c)
        q = self._heads(y, "q", "conv_in", inner)
        pairs = []
        if context is not None:
            context = self._normalised(context)
            pairs += [
                [self._heads(context, n, "context", inner) for n in ("context_k", "context_v")]
            ]
        if not self.cross:
            pairs += [[self._heads(y, name, "conv_in", inner) for name in ("k", "v")]]
        k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*pairs, strict=True))
        y = attention(q, k, v, mask=_key_mask(context_mask, k.shape[1])).reshape(b, h * w, inner)
        axes = ("conv_in", "conv_out")
        y = dense(c, name="out", axes=axes, dtype=self.dtype, init=zeros)(y)
        return x + y.reshape(x.shape)

    def _normalised(self, context: Float[Array, " b m d"]) -> Float[Array, " b m d"]:
        if self.context_norm == "layer":
            return LayerNorm(name="context_norm")(context)
        if self.context_norm == "group":
            norm = GroupNorm(CONTEXT_GROUPS, name="context_norm")
            return norm(context[:, :, None])[:, :, 0]
        return context

    def _heads(self, x: Array, name: str, axis: str, features: int) -> Array:
        y = dense(features, name=name, axes=(axis, "conv_out"), dtype=self.dtype)(x)
        return y.reshape(*x.shape[:2], -1, self.head_channels)


def _key_mask(context_mask: Array | None, keys: int) -> Array | None:
    """Extends a mask over context tokens by True over the image positions."""
    if context_mask is None:
        return None
    image = keys - context_mask.shape[1]
    return jnp.pad(context_mask, ((0, 0), (0, image)), constant_values=True)[:, None, None, :]


def resample(x: Float[Array, " b h w c"], mode: str) -> Float[Array, " b h2 w2 c"]:
    """Returns `x`, halved by 2x2 means, or doubled by repeating every pixel.

    Raises:
        UserError: `mode` is not among RESAMPLE.
    """
    b, h, w, c = x.shape
    if one_of("resample", mode, RESAMPLE) == "down":
        return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
    if mode == "up":
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
        return x.reshape(b, 2 * h, 2 * w, c)
    return x


def space_to_depth(x: Float[Array, " b h w c"], patch: int) -> Float[Array, " b h2 w2 c2"]:
    """Stacks every `patch` x `patch` square of pixels into the channels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: Float[Array, " b h w c"], patch: int) -> Float[Array, " b h2 w2 c2"]:
    """Inverts `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * patch, w * patch, c // patch**2)
