"""The U-Net of ADM and GLIDE (arXiv 2105.05233, 2112.10741).

Its topology is data: `plan` lists the blocks, `UNet` runs the list. Without attention it is the
upsamplers' network and accepts any size that its levels can halve.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unclip_jax.core.checks import UserError, divisible, in_range, positive
from unclip_jax.models.layers import GroupNorm, compute_dtype, conv, rematerialised, zeros
from unclip_jax.models.unet_blocks import (
    AttentionBlock,
    ResBlock,
    depth_to_space,
    resample,
    space_to_depth,
)
from unclip_jax.parallel.axes import by_example


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Size and topology of a U-Net.

    Attributes:
        in_channels: channels of the input image.
        out_channels: channels of the output.
        channels: width of the finest level.
        multiples: width of each level over `channels`, finest first.
        depth: residual blocks per level going down (one more going up).
        image_size: side of the image that `attention_at` refers to.
        attention_at: sides of the feature maps that get attention; () = none, not even in the
            middle.
        head_channels: channels per attention head.
        emb_channels: width of the conditioning embedding; None = 4 times `channels` (ADM).
        context_width: width of context tokens; None = any.
        dropout: rate in the residual blocks.
        patch: side of the squares that the stem folds into channels (a miniature-only saving).
        norm_groups: must divide the channels of every level and of every concatenation.
        norm_over_space: group norm as in the paper; False normalises every position by itself.
        scale_shift: adaptive group norm (paper); False adds the embedding instead.
        resample_blocks: residual blocks that resample between levels (ADM); False resamples by
            means and repetition alone, a third less work (a miniature-only option).
        remat: "none", "block" or "dots".
        dtype: compute dtype.
    """

    in_channels: int
    out_channels: int
    channels: int
    multiples: tuple[int, ...]
    depth: int
    image_size: int
    attention_at: tuple[int, ...] = ()
    head_channels: int = 64
    emb_channels: int | None = None
    context_width: int | None = None
    dropout: float = 0.0
    patch: int = 1
    norm_groups: int = 32
    norm_over_space: bool = True
    scale_shift: bool = True
    resample_blocks: bool = True
    remat: str = "none"
    dtype: str = "float32"

    @property
    def emb_width(self) -> int:
        """Width of the conditioning embedding."""
        return self.emb_channels or 4 * self.channels

    @property
    def stride(self) -> int:
        """Pixels per position at the coarsest level; sides must be multiples of it."""
        return self.patch * 2 ** (len(self.multiples) - 1)


class BlockSpec(NamedTuple):
    """One residual block, optionally followed by attention.

    Attributes:
        name: of its parameters; levels count from the finest.
        features: output channels.
        attention: True if attention follows.
        resample: "none", "down" or "up".
        skip: True if a stored feature map is concatenated to its input.
    """

    name: str
    features: int
    attention: bool = False
    resample: str = "none"
    skip: bool = False


class UNetPlan(NamedTuple):
    """The blocks in order; outputs of the stem and of `down` are stored, `up` consumes them."""

    down: tuple[BlockSpec, ...]
    middle: tuple[BlockSpec, ...]
    up: tuple[BlockSpec, ...]


def plan(cfg: UNetConfig) -> UNetPlan:
    """Lists the blocks of `cfg`, as in ADM (arXiv 2105.05233), resampling inside residual blocks.

    Raises:
        UserError: a size that is not positive, or attention at a side of no level.
    """
    for name in ("in_channels", "out_channels", "channels", "depth", "patch"):
        positive(f"unet.{name}", getattr(cfg, name))
    in_range("unet.depth", cfg.depth, 1, 32)  # each block is traced by itself
    in_range("unet.dropout", cfg.dropout, 0.0, 1.0)
    divisible("unet.image_size", cfg.image_size, cfg.stride, "drop a level or change the size.")
    sides = [cfg.image_size // cfg.patch // 2**level for level in range(len(cfg.multiples))]
    for side in cfg.attention_at:
        if side not in sides:
            raise UserError(f"attention_at holds {side}; the feature maps have sides {sides}.")
    last = len(sides) - 1
    down: list[BlockSpec] = []
    up: list[BlockSpec] = []
    for level, side in enumerate(sides):
        features, attention = cfg.channels * cfg.multiples[level], side in cfg.attention_at
        down += [BlockSpec(f"down_{level}_{i}", features, attention) for i in range(cfg.depth)]
        if level < last:
            down.append(BlockSpec(f"down_{level}_sample", features, resample="down"))
        rising = [
            BlockSpec(f"up_{level}_{i}", features, attention, skip=True)
            for i in range(cfg.depth + 1)
        ]
        if level > 0:
            rising.append(BlockSpec(f"up_{level}_sample", features, resample="up"))
        up = rising + up
    features = cfg.channels * cfg.multiples[-1]
    middle = (
        BlockSpec("middle_0", features, bool(cfg.attention_at)),
        BlockSpec("middle_1", features),
    )
    return UNetPlan(tuple(down), middle, tuple(up))


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
            emb: conditioning embedding, before the SiLU that every block gives it.
            context: tokens that attention sees besides the image.
            context_mask: False hides a token.
            deterministic: no dropout; otherwise a "dropout" key is needed.

        Raises:
            UserError: sides that the levels cannot halve, another number of channels, or context
                of another width.
        """
        cfg, dtype = self.cfg, compute_dtype(self.cfg.dtype)
        _check_input(x, context, cfg)
        steps = plan(cfg)
        block = rematerialised(UNetBlock, cfg.remat, scanned=False, static_argnums=(5,))
        emb = by_example(jax.nn.silu(emb).astype(dtype))
        context = None if context is None else by_example(context.astype(dtype))

        def run(step: BlockSpec, h: Array) -> Array:
            if step.resample != "none" and not cfg.resample_blocks:
                return resample(h, step.resample)
            return block(cfg, step, name=step.name)(h, emb, context, context_mask, deterministic)

        h = space_to_depth(x.astype(dtype), cfg.patch)
        h = by_example(conv(cfg.channels * cfg.multiples[0], name="stem", dtype=dtype)(h))
        stored = [h]
        for step in steps.down:
            h = run(step, h)
            stored.append(h)
        for step in steps.middle:
            h = run(step, h)
        for step in steps.up:
            h = run(step, jnp.concatenate([h, stored.pop()], axis=-1) if step.skip else h)
        h = jax.nn.silu(GroupNorm(cfg.norm_groups, cfg.norm_over_space, name="head_norm")(h))
        features = cfg.out_channels * cfg.patch**2
        h = conv(features, name="head", dtype=dtype, init=zeros, out="out")(h)
        return depth_to_space(h, cfg.patch).astype(jnp.float32)


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
            name="residual",
        )
        x = by_example(residual(x, emb, deterministic))
        if not step.attention:
            return x
        attend = AttentionBlock(
            cfg.head_channels, cfg.norm_groups, dtype, cfg.norm_over_space, name="attention"
        )
        return by_example(attend(x, context, context_mask))


def _check_input(x: Array, context: Array | None, cfg: UNetConfig) -> None:
    for side in x.shape[1:3]:
        why = f"pad or resize: {len(cfg.multiples)} levels and patch {cfg.patch} halve it so often."
        divisible("image side", side, cfg.stride, why)
    if x.shape[-1] != cfg.in_channels:
        raise UserError(
            f"the U-Net got {x.shape[-1]} channels; unet.in_channels is {cfg.in_channels}."
        )
    width = cfg.context_width if context is None else context.shape[-1]
    if cfg.context_width not in (None, width):
        raise UserError(
            f"the context tokens have width {width}; unet.context_width is "
            f"{cfg.context_width}. Give tokens of that width or leave it unset."
        )
