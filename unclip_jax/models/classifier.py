"""A classifier of noised images: the first half of ADM's U-Net and an attention pool.

Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), section 4.3, and its code.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from unclip_jax.backbones.attention import attention
from unclip_jax.backbones.layers import (
    GroupNorm,
    TimeEmbedding,
    activation,
    compute_dtype,
    dense,
    normal,
)
from unclip_jax.backbones.unet import block_runner, stem
from unclip_jax.backbones.unet_plan import UNetConfig, plan
from unclip_jax.core.checks import UserError, divisible, in_range
from unclip_jax.core.types import Image, Steps
from unclip_jax.parallel.axes import by_example, sharded


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Size of a classifier.

    Attributes:
        unet: its blocks down to the middle are used; `out_channels` is the number of classes.
        num_timesteps: length of the trained chain.
    """

    unet: UNetConfig
    num_timesteps: int = 1000

    def __post_init__(self):
        in_range("config.model.model.unet.out_channels", self.unet.out_channels, 2, 10**6)
        if self.unet.topology != "adm":
            raise UserError(
                f"config.model.model.unet.topology is {self.unet.topology!r}; a classifier has the "
                "first half of 'adm'."
            )


class Classifier(nn.Module):
    """Maps noised images and their timesteps to logits of classes."""

    cfg: ClassifierConfig

    @nn.compact
    def __call__(self, x_t: Image, t: Steps) -> Float[Array, " b n"]:
        """Returns the logits in float32."""
        cfg, unet = self.cfg, self.cfg.unet
        dtype, act, steps = compute_dtype(unet.dtype), activation(unet.activation), plan(unet)
        emb = TimeEmbedding(
            unet.channels, unet.emb_width, cfg.num_timesteps, dtype, unet.activation, name="time"
        )(t)
        run = block_runner(unet, emb)
        h = stem(unet, x_t)
        for step in (*steps.down, *steps.middle):
            h = run(step, h)
        h = act(GroupNorm(unet.norm_groups, unet.norm_over_space, name="head_norm")(h))
        return AttentionPool(unet.head_channels, unet.out_channels, dtype, name="pool")(h)


class AttentionPool(nn.Module):
    """Attention of the mean position to itself and all positions, then a linear map.

    Attributes:
        head_channels: must divide the channels.
        features: outputs.
        dtype: compute dtype.
    """

    head_channels: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, " b h w c"]) -> Float[Array, " b n"]:
        """Pools a feature map of the size that the module was initialised with; float32 out."""
        b, h, w, c = x.shape
        divisible("channels", c, self.head_channels, "choose head_channels that divides all.")
        x = x.reshape(b, h * w, c).astype(jnp.float32)
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
        table = sharded(normal(c**-0.5), "position", "embed")
        x = (x + self.param("positions", table, (h * w + 1, c))[None]).astype(self.dtype)
        q = self._heads(x[:, :1], "q")
        k, v = (self._heads(x, name) for name in "kv")
        y = attention(q, k, v).reshape(b, c)
        axes = ("conv_in", "out")
        out = dense(self.features, name="out", axes=axes, dtype=jnp.dtype("float32"))
        return by_example(out(y.astype(jnp.float32)))

    def _heads(self, x: Array, name: str) -> Float[Array, " b l n k"]:
        y = dense(x.shape[-1], name=name, axes=("conv_in", "conv_out"), dtype=self.dtype)(x)
        return y.reshape(*x.shape[:2], -1, self.head_channels)
