"""The topology of U-Nets as data: ADM's (arXiv 2105.05233) and Imagen's Efficient U-Net."""

import dataclasses
from typing import NamedTuple

from unclip_jax.core.checks import UserError, divisible, in_range, one_of, positive

TOPOLOGIES = ("adm", "efficient")
ATTENTION = ("joint", "cross")
CONTEXT_NORMS = ("none", "layer", "group")
RESAMPLING = ("mean", "shuffle")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Size and topology of a U-Net.

    Attributes:
        in_channels: channels of the input image.
        out_channels: channels of the output.
        channels: width of the finest level.
        multiples: width of each level over `channels`, finest first.
        depth: residual blocks per level going down (in ADM one more going up), or one number per
            level, finest first.
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
        resample_blocks: residual blocks that resample between levels (ADM); False resamples
            without them, by `resampling`, a third less work (a miniature-only option).
        resampling: without `resample_blocks`, "mean": 2x2 means and repetition; or "shuffle": each
            square of 2x2 positions is stacked into the channels and back, with a linear map, so
            that the positions in a square can have features of their own.
        remat: "none", "block" or "dots".
        dtype: compute dtype.
        topology: "adm", or "efficient" (Imagen, arXiv 2205.11487, appendix B.1): levels are halved
            before their blocks and doubled after them, feature maps are added, not concatenated,
            and there is no middle.
        activation: "silu" or "gelu" (DeepFloyd IF).
        attention: "joint": to the image and the context under one softmax (GLIDE); "cross": to the
            context alone, which leaves the network free to run at any size.
        context_norm: of the context in every attention block: "none", "layer" (Imagen, section
            2.5), or "group" over 32 groups and all tokens (DeepFloyd IF).
        residual_scale: factor on the sum of a residual block and its shortcut; 2^-1/2 keeps its
            variance (Song et al., arXiv 2011.13456).
        attention_width: width of queries, keys and values over that of the feature map.
    """

    in_channels: int
    out_channels: int
    channels: int
    multiples: tuple[int, ...]
    depth: int | tuple[int, ...]
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
    resampling: str = "mean"
    remat: str = "none"
    dtype: str = "float32"
    topology: str = "adm"
    activation: str = "silu"
    attention: str = "joint"
    context_norm: str = "none"
    residual_scale: float = 1.0
    attention_width: int = 1

    @property
    def emb_width(self) -> int:
        """Width of the conditioning embedding."""
        return self.emb_channels or 4 * self.channels

    @property
    def depths(self) -> tuple[int, ...]:
        """Residual blocks of each level, finest first."""
        return self.depth if isinstance(self.depth, tuple) else (self.depth,) * len(self.multiples)

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the feature maps of the levels, for an image of `image_size`."""
        finest = self.image_size // self.patch // (2 if self.topology == "efficient" else 1)
        return tuple(finest // 2**level for level in range(len(self.multiples)))

    @property
    def stride(self) -> int:
        """Pixels per position at the coarsest level; sides must be multiples of it."""
        halvings = len(self.multiples) - (self.topology == "adm")
        return self.patch * 2**halvings


class BlockSpec(NamedTuple):
    """One residual block, optionally followed by attention, or one convolution that resamples.

    Attributes:
        name: of its parameters; levels count from the finest.
        features: output channels.
        attention: True if attention follows.
        resample: "none", "down" or "up" inside a residual block; "conv_down" (a convolution of
            stride 2) or "conv_up" (repetition and a convolution) without one.
        skip: True if a stored feature map is joined to its input.
        keep: True if its output is stored for the way up.
    """

    name: str
    features: int
    attention: bool = False
    resample: str = "none"
    skip: bool = False
    keep: bool = False


class UNetPlan(NamedTuple):
    """The blocks in order; stored outputs of `down` (ADM: and of the stem) are read by `up`."""

    down: tuple[BlockSpec, ...]
    middle: tuple[BlockSpec, ...]
    up: tuple[BlockSpec, ...]


def plan(cfg: UNetConfig) -> UNetPlan:
    """Lists the blocks of `cfg`.

    Raises:
        UserError: a size that is not positive, attention at a side of no level, or an option that
            the topology does not have.
    """
    topology = one_of("unet.topology", cfg.topology, TOPOLOGIES)
    for name in ("in_channels", "out_channels", "channels", "patch", "attention_width"):
        positive(f"unet.{name}", getattr(cfg, name))
    for depth in cfg.depths:
        in_range("unet.depth", positive("unet.depth", depth), 1, 32)  # each is traced by itself
    if len(cfg.depths) != len(cfg.multiples):
        raise UserError(
            f"unet.depth is {list(cfg.depths)}; expected a number for each of the "
            f"{len(cfg.multiples)} levels."
        )
    in_range("unet.dropout", cfg.dropout, 0.0, 1.0)
    positive("unet.residual_scale", cfg.residual_scale)
    one_of("unet.attention", cfg.attention, ATTENTION)
    one_of("unet.context_norm", cfg.context_norm, CONTEXT_NORMS)
    if one_of("unet.resampling", cfg.resampling, RESAMPLING) != "mean" and cfg.resample_blocks:
        raise UserError(
            f"unet.resampling is {cfg.resampling!r}, but residual blocks resample by means; set "
            "unet.resample_blocks to False."
        )
    divisible("unet.image_size", cfg.image_size, cfg.stride, "drop a level or change the size.")
    for side in cfg.attention_at:
        if side not in cfg.sides:
            sides = list(cfg.sides)
            raise UserError(
                f"attention_at holds {side}; the feature maps have sides {sides}. Name some of "
                "these."
            )
    if topology == "adm":
        return _adm(cfg)
    if cfg.patch > 1 or not cfg.resample_blocks:
        raise UserError(
            "the efficient U-Net halves and doubles by convolutions; set unet.patch to 1 and leave "
            "unet.resample_blocks on."
        )
    return _efficient(cfg)


def _adm(cfg: UNetConfig) -> UNetPlan:
    """Lists the blocks of ADM, resampling inside residual blocks."""
    down: list[BlockSpec] = []
    up: list[BlockSpec] = []
    for level, (side, depth) in enumerate(zip(cfg.sides, cfg.depths, strict=True)):
        features, attention = cfg.channels * cfg.multiples[level], side in cfg.attention_at
        down += [
            BlockSpec(f"down_{level}_{i}", features, attention, keep=True) for i in range(depth)
        ]
        if level < len(cfg.sides) - 1:
            name = f"down_{level}_sample"
            down.append(BlockSpec(name, features, resample="down", keep=True))
        rising = [
            BlockSpec(f"up_{level}_{i}", features, attention, skip=True) for i in range(depth + 1)
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


def _efficient(cfg: UNetConfig) -> UNetPlan:
    """Lists the blocks of the Efficient U-Net; attention follows the last block of a level."""
    down: list[BlockSpec] = []
    up: list[BlockSpec] = []
    coarsest = len(cfg.sides) - 1
    for level, (side, depth) in enumerate(zip(cfg.sides, cfg.depths, strict=True)):
        features, attends = cfg.channels * cfg.multiples[level], side in cfg.attention_at
        above = cfg.channels * (cfg.multiples[level - 1] if level else 1)
        down.append(BlockSpec(f"down_{level}_sample", features, resample="conv_down"))
        rising = []
        for i in range(depth):
            last, joined = i == depth - 1, level < coarsest  # the coarsest level reads its own
            spec = BlockSpec(f"down_{level}_{i}", features, attends and last, keep=last and joined)
            down.append(spec)
            spec = BlockSpec(f"up_{level}_{i}", features, attends and last, skip=not i and joined)
            rising.append(spec)
        rising.append(BlockSpec(f"up_{level}_sample", above, resample="conv_up"))
        up = rising + up
    return UNetPlan(tuple(down), (), tuple(up))
