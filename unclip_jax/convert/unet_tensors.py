"""U-Nets in the layouts of diffusers: Karlo's decoder and its super-resolution networks.

One table describes `UNet2DConditionModel` with SimpleCrossAttn blocks and `UNet2DModel` with Resnet
blocks, because their names agree. Levels are counted from the finest here, and in the order of
running there, so the upward half is reversed.
"""

from collections.abc import Mapping
from typing import Any

from unclip_jax.backbones.unet_plan import BlockSpec, UNetConfig, plan
from unclip_jax.core.checks import UserError, short
from unclip_jax.weight_files import configs
from unclip_jax.weight_files.tensor_table import Entry, linear, norm

CONDITIONED, PLAIN = "UNet2DConditionModel", "UNet2DModel"
ATTENTION = {"down": "SimpleCrossAttnDownBlock2D", "up": "SimpleCrossAttnUpBlock2D"}
RESIDUAL = {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"}
MID = {CONDITIONED: "UNetMidBlock2DSimpleCrossAttn", PLAIN: "UNetMidBlock2D"}
SIZES = ("sample_size", "in_channels", "out_channels", "layers_per_block", "block_out_channels")
MAX_LEVELS = 16
FIXED = {
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "center_input_sample": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
}
FIXED_CONDITIONED = {
    **FIXED,
    "mid_block_type": MID[CONDITIONED],
    "class_embed_type": "identity",
    "resnet_time_scale_shift": "scale_shift",
    "only_cross_attention": False,
    "cross_attention_norm": None,
    "mid_block_only_cross_attention": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "timestep_post_act": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "dual_cross_attention": False,
    "num_attention_heads": None,
    "num_class_embeds": None,
}
FIXED_PLAIN = {
    **FIXED,
    "add_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
}


def config(settings: Mapping[str, Any], *, where: str) -> UNetConfig:
    """Returns our config for the config of a U-Net of diffusers.

    Raises:
        UserError: the class or variant is not supported, or a size is missing.
    """
    name = PLAIN if settings.get("_class_name") == PLAIN else CONDITIONED
    configs.check_class(settings, name, where=where)
    side, inputs, outputs, depth = configs.required_sizes(settings, SIZES[:-1], where=where)
    (widths,) = configs.required_values(settings, SIZES[-1:], where=where)
    if not isinstance(widths, list | tuple) or not 1 <= len(widths) <= MAX_LEVELS:
        raise UserError(
            f"{where} has block_out_channels {short(widths)}; expected a width per level."
        )
    widths = [configs.integer(width, f"block_out_channels in {where}") for width in widths]
    configs.check_fixed(settings, FIXED_PLAIN if name == PLAIN else FIXED_CONDITIONED, where=where)
    for width in widths:
        if width % widths[0]:
            raise UserError(
                f"{where} has block_out_channels {short(widths)}; expected multiples of one."
            )
    sides = [side // 2**level for level in range(len(widths))]
    conditioned = {}
    if name == CONDITIONED:
        heads, context = configs.required_sizes(
            settings, ("attention_head_dim", "cross_attention_dim"), where=where
        )
        conditioned = {
            "attention_at": _attention(settings, sides, where),
            "head_channels": heads,
            "context_width": context,
        }
    else:
        _blocks(settings, [False] * len(sides), where)
    values = {
        "in_channels": inputs,
        "out_channels": outputs,
        "channels": widths[0],
        "multiples": tuple(width // widths[0] for width in widths),
        "depth": depth,
        "image_size": side,
        "norm_groups": settings.get("norm_num_groups", 32),
        "scale_shift": name == CONDITIONED,
        **conditioned,
    }
    cfg = configs.sized(UNetConfig, values, where=where)
    configs.described(lambda: plan(cfg), where=where)  # rejects inconsistent levels
    return cfg


def settings(cfg: UNetConfig) -> dict[str, Any]:
    """Inverts `config`."""
    conditioned = bool(cfg.attention_at)
    sides = [cfg.image_size // 2**level for level in range(len(cfg.multiples))]
    attends = [side in cfg.attention_at for side in sides]
    widths = [cfg.channels * multiple for multiple in cfg.multiples]
    sizes = (cfg.image_size, cfg.in_channels, cfg.out_channels, cfg.depth, widths)
    written = {
        "_class_name": CONDITIONED if conditioned else PLAIN,
        **dict(zip(SIZES, sizes, strict=True)),
        "norm_num_groups": cfg.norm_groups,
        "down_block_types": _types("down", attends),
        "up_block_types": _types("up", attends[::-1]),
        **(FIXED_CONDITIONED if conditioned else {**FIXED_PLAIN, "mid_block_type": MID[PLAIN]}),
    }
    if conditioned:
        written |= {
            "attention_head_dim": cfg.head_channels,
            "cross_attention_dim": cfg.context_width,
        }
    return written


def entries(cfg: UNetConfig, *, unet: str = "unet", time: str = "time") -> list[Entry]:
    """Returns the table of a U-Net with its time embedding; `unet` and `time` are paths."""
    steps = plan(cfg)
    table = [
        *linear(f"{time}/linear_1", "time_embedding.linear_1"),
        *linear(f"{time}/linear_2", "time_embedding.linear_2"),
        *linear(f"{unet}/stem", "conv_in", form="conv"),
        *norm(f"{unet}/head_norm", "conv_norm_out"),
        *linear(f"{unet}/head", "conv_out", form="conv"),
    ]
    features = cfg.channels * cfg.multiples[0]
    skips = [features]
    for step in steps.down:
        table += _step(unet, step, features, cfg)
        features = step.features
        skips.append(features)
    for step in steps.middle:
        table += _step(unet, step, features, cfg)
    for step in steps.up:
        features += skips.pop() if step.skip else 0
        table += _step(unet, step, features, cfg)
        features = step.features
    return table


def _step(unet: str, step: BlockSpec, features: int, cfg: UNetConfig) -> list[Entry]:
    """Returns the rows of one residual block with `features` input channels, and its attention."""
    block, attention = names(step.name, len(cfg.multiples))
    ours = f"{unet}/{step.name}"
    table = [
        *norm(f"{ours}/residual/norm_1", f"{block}.norm1"),
        *linear(f"{ours}/residual/conv_1", f"{block}.conv1", form="conv"),
        *linear(f"{ours}/residual/emb", f"{block}.time_emb_proj"),
        *norm(f"{ours}/residual/norm_2", f"{block}.norm2"),
        *linear(f"{ours}/residual/conv_2", f"{block}.conv2", form="conv"),
    ]
    if features != step.features:
        table += linear(f"{ours}/residual/shortcut", f"{block}.conv_shortcut", form="conv_1x1")
    if step.attention:
        table += norm(f"{ours}/attention/norm", f"{attention}.group_norm")
        if cfg.context_norm == "group":
            table += norm(f"{ours}/attention/context_norm", f"{attention}.norm_cross")
        for part, theirs in PROJECTIONS.items():
            if cfg.attention == "cross" and part in ("k", "v"):
                continue
            table += linear(f"{ours}/attention/{part}", f"{attention}.{theirs}")
    return table


PROJECTIONS = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "context_k": "add_k_proj",
    "context_v": "add_v_proj",
    "out": "to_out.0",
}


def names(step: str, levels: int) -> tuple[str, str]:
    """Returns the diffusers names of a step such as "up_2_0": its residual block and attention."""
    part, first, *rest = step.split("_")
    if part == "middle":
        return f"mid_block.resnets.{first}", f"mid_block.attentions.{first}"
    level = int(first) if part == "down" else levels - 1 - int(first)
    block = f"{part}_blocks.{level}"
    if rest == ["sample"]:
        return f"{block}.{part}samplers.0", ""
    return f"{block}.resnets.{rest[0]}", f"{block}.attentions.{rest[0]}"


def _types(part: str, attends: list[bool]) -> list[str]:
    return [(ATTENTION if attention else RESIDUAL)[part] for attention in attends]


def _attention(settings: Mapping[str, Any], sides: list[int], where: str) -> tuple[int, ...]:
    """Returns the sides of the levels with attention."""
    types = settings.get("down_block_types") or []
    if not isinstance(types, list | tuple):
        raise UserError(f"{where} has down_block_types {short(types)}; expected one per level.")
    attends = [kind == ATTENTION["down"] for kind in types]
    if len(attends) != len(sides) or not any(attends):
        raise UserError(
            f"{where} has down_block_types {short(types)}; expected one per level, some of them "
            f"{ATTENTION['down']}."
        )
    _blocks(settings, attends, where)
    return tuple(side for side, attention in zip(sides, attends, strict=True) if attention)


def _blocks(settings: Mapping[str, Any], attends: list[bool], where: str) -> None:
    expected = {"down_block_types": tuple(_types("down", attends))}
    expected["up_block_types"] = tuple(_types("up", attends[::-1]))
    configs.check_fixed(settings, expected, where=where)
