"""The U-Net of ADM, GLIDE and Imagen (arXiv 2105.05233, 2112.10741, 2205.11487).

Its topology is data: `unet_plan.plan` lists the blocks, `UNet` runs the list. Without attention, or
with attention to the context alone, it accepts any size that its levels can halve.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones.layers import (
    GroupNorm,
    activation,
    compute_dtype,
    conv,
    dense,
    rematerialised,
    zeros,
)
from unclip_jax.backbones.unet_blocks import (
    AttentionBlock,
    ResBlock,
    depth_to_space,
    resample,
    space_to_depth,
)
from unclip_jax.backbones.unet_plan import BlockSpec, UNetConfig, plan
from unclip_jax.core.checks import UserError, divisible
from unclip_jax.parallel.axes import by_example

CONVOLUTIONS = ("conv_down", "conv_up")


class UNet(nn.Module):
    """Maps image, embedding and text features to an image of the same size; zero when fresh."""

    cfg: UNetConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, " b h w c"],
        emb: Float[Array, " b e"],
        *,
        context: Float[Array, " b m d"] | None = None,
        context_mask: Bool[Array, " b m"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, " b h w o"]:
        """Runs the plan; float32 out.

        Args:
            x: input image.
            emb: conditioning embedding, before the activation that every block gives it.
            context: tokens that attention sees besides the image.
            context_mask: False hides a token.
            deterministic: no dropout; otherwise a "dropout" key is needed.

        Raises:
            UserError: sides that the levels cannot halve, another number of channels, or context
                that is missing or of another width.
        """
        cfg, dtype = self.cfg, compute_dtype(self.cfg.dtype)
        _check_input(x, context, cfg)
        steps, adm, act = plan(cfg), cfg.topology == "adm", activation(cfg.activation)
        context = None if context is None else by_example(context.astype(dtype))
        run = block_runner(cfg, emb, context, context_mask, deterministic)
        h = stem(cfg, x)
        stored = [h] if adm else []
        for step in steps.down:
            h = run(step, h)
            stored += [h] if step.keep else []
        for step in steps.middle:
            h = run(step, h)
        for step in steps.up:
            if step.skip:
                skip = stored.pop()
                h = jnp.concatenate([h, skip], axis=-1) if adm else h + skip
            h = run(step, h)
        h = act(GroupNorm(cfg.norm_groups, cfg.norm_over_space, name="head_norm")(h))
        features = cfg.out_channels * cfg.patch**2
        h = conv(features, name="head", dtype=dtype, init=zeros, out="out")(h)
        return depth_to_space(h, cfg.patch).astype(jnp.float32)


def stem(cfg: UNetConfig, x: Float[Array, " b h w c"]) -> Float[Array, " b h2 w2 d"]:
    """Applies the first convolution, as a part of the calling module."""
    dtype = compute_dtype(cfg.dtype)
    width = cfg.channels * (cfg.multiples[0] if cfg.topology == "adm" else 1)
    x = space_to_depth(x.astype(dtype), cfg.patch)
    return by_example(conv(width, name="stem", dtype=dtype)(x))


def block_runner(
    cfg: UNetConfig,
    emb: Float[Array, " b e"],
    context: Float[Array, " b m d"] | None = None,
    context_mask: Bool[Array, " b m"] | None = None,
    deterministic: bool = True,
) -> Callable[[BlockSpec, Array], Array]:
    """Returns a function that applies one step of the plan, as a part of the calling module.

    Arguments are those of `UNet`.
    """
    dtype = compute_dtype(cfg.dtype)
    block = rematerialised(UNetBlock, cfg.remat, scanned=False, static_argnums=(5,))
    emb = by_example(activation(cfg.activation)(emb).astype(dtype))

    def run(step: BlockSpec, h: Array) -> Array:
        if step.resample in CONVOLUTIONS:
            h = resample(h, "up") if step.resample == "conv_up" else h
            stride = 2 if step.resample == "conv_down" else 1
            return by_example(conv(step.features, name=step.name, stride=stride, dtype=dtype)(h))
        if step.resample != "none" and not cfg.resample_blocks:
            if cfg.resampling == "mean":
                return resample(h, step.resample)
            return by_example(shuffle(h, step, dtype=dtype))
        return block(cfg, step, name=step.name)(h, emb, context, context_mask, deterministic)

    return run


def shuffle(
    x: Float[Array, " b h w c"], step: BlockSpec, *, dtype: jnp.dtype
) -> Float[Array, " b h2 w2 f"]:
    """Halves or doubles a feature map with all its positions, as a part of the calling module.

    Down: squares of 2x2 positions are stacked into the channels and mapped linearly. Up: a linear
    map to four times the channels, which become the positions of a square.
    """
    axes = ("conv_in", "conv_out")
    if step.resample == "down":
        return dense(step.features, name=step.name, axes=axes, dtype=dtype)(space_to_depth(x, 2))
    return depth_to_space(dense(4 * step.features, name=step.name, axes=axes, dtype=dtype)(x), 2)


class UNetBlock(nn.Module):
    """One block of the plan."""

    cfg: UNetConfig
    step: BlockSpec

    @nn.compact
    def __call__(
        self,
        x: Float[Array, " b h w c"],
        emb: Float[Array, " b e"],
        context: Float[Array, " b m d"] | None,
        context_mask: Bool[Array, " b m"] | None,
        deterministic: bool,
    ) -> Float[Array, " b h2 w2 f"]:
        """Applies the residual block, then attention if planned."""
        cfg, step, dtype = self.cfg, self.step, compute_dtype(self.cfg.dtype)
        residual = ResBlock(
            step.features,
            cfg.norm_groups,
            step.resample,
            cfg.scale_shift,
            cfg.dropout,
            dtype,
            cfg.norm_over_space,
            cfg.activation,
            cfg.residual_scale,
            cfg.topology == "efficient",
            name="residual",
        )
        x = by_example(residual(x, emb, deterministic))
        if not step.attention:
            return x
        attend = AttentionBlock(
            cfg.head_channels,
            cfg.norm_groups,
            dtype,
            cfg.norm_over_space,
            cfg.attention == "cross",
            cfg.context_norm,
            cfg.attention_width,
            name="attention",
        )
        return by_example(attend(x, context, context_mask))


def _check_input(x: Array, context: Array | None, cfg: UNetConfig) -> None:
    for side in x.shape[1:3]:
        why = f"pad or resize: {len(cfg.multiples)} levels and patch {cfg.patch} halve it so often."
        divisible("image side", side, cfg.stride, why)
    if x.shape[-1] != cfg.in_channels:
        raise UserError(
            f"the U-Net got {x.shape[-1]} channels; unet.in_channels is {cfg.in_channels}. Pass as "
            "many."
        )
    width = cfg.context_width if context is None else context.shape[-1]
    if cfg.context_width not in (None, width):
        raise UserError(
            f"the context tokens have width {width}; unet.context_width is "
            f"{cfg.context_width}. Give tokens of that width or leave it unset."
        )
    if context is None and cfg.attention == "cross" and cfg.attention_at:
        raise UserError("this U-Net attends to context alone (unet.attention 'cross'); pass it.")
