"""Reader of Karlo's own checkpoint files, whose tensors are renamed as in diffusers.

There is one file each for prior, decoder (with its text projection) and super-resolution (both
networks), and one with CLIP's statistics. Attention is fused and interleaved per head: the rows of
one head's queries, keys and values follow each other. Sizes are Karlo's unless an `hparams.json`
beside the files has others.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unclip_jax.backbones.unet import UNetConfig, plan
from unclip_jax.convert import assembly, prior_tensors, schedulers, standalone_clip, unet_tensors
from unclip_jax.convert.converted_stage import ConvertedStage
from unclip_jax.core.checks import UserError
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.weight_files import configs, prefixes, torch_files
from unclip_jax.weight_files.tensor_source import (
    Shape,
    TensorSource,
    joined,
    open_tensors,
    read_json,
)

HPARAMS = "hparams.json"
# Karlo v1 alpha, according to its own configs.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "prior": {"text_ctx": 77, "xf_width": 2048, "xf_layers": 20, "xf_heads": 32, "clip_dim": 768},
    "decoder": {
        "image_size": 64,
        "num_channels": 320,
        "num_res_blocks": 3,
        "channel_mult": "1,2,3,4",
        "attention_resolutions": "32,16,8",
        "num_head_channels": 64,
        "clip_dim": 768,
        "clip_emb_mult": 4,
        "text_ctx": 77,
        "xf_width": 1536,
        "group_norm_groups": 32,
    },
    "sr": {"channels": 320, "depth": 3, "channels_multiple": [1, 2, 3, 4], "group_norm_groups": 32},
}
ENLARGED = 4
# A tensor by which each file is recognised, whatever prefix its trainer added.
PRIOR_ANCHOR, DECODER_ANCHOR = "prd_emb", "cf_param"
SR_ANCHOR = "model_first_steps.time_embed.0.weight"
# Beginnings of the published file names.
FILES = {"prior": "prior", "decoder": "decoder", "sr": "improved_sr", "stats": "ViT-L-14_stats"}
CLIP_FILES = ("ViT-L-14.pt", "ViT-L-14.safetensors")

PRIOR = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "clip_img_proj": "proj_in",
    "text_emb_proj": "embedding_proj",
    "text_enc_proj": "encoder_hidden_states_proj",
    "final_ln": "norm_out",
    "out_proj": "proj_to_clip_embeddings",
}
PRIOR_BLOCK = {
    "attn.c_proj": "attn1.to_out.0",
    "mlp.c_fc": "ff.net.0.proj",
    "mlp.c_proj": "ff.net.2",
    "ln_1": "norm1",
    "ln_2": "norm3",
}
TEXT_PROJ = {
    "text_seq_proj.0": "encoder_hidden_states_proj",
    "text_seq_proj.1": "text_encoder_hidden_states_norm",
    "text_feat_proj": "embedding_proj",
    "clip_tok_proj": "clip_extra_context_tokens_proj",
    "clip_emb": "clip_image_embeddings_project_to_time_embeddings",
}
UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
FUSED = {"qkv": ("to_q", "to_k", "to_v"), "encoder_kv": ("add_k_proj", "add_v_proj")}


class View(NamedTuple):
    """A tensor of the files, or a part of it, as a tensor of this package."""

    old: str
    change: Callable[[np.ndarray], np.ndarray] = np.asarray


def is_original(folder: pathlib.Path) -> bool:
    """True if `folder` holds Karlo's own files."""
    return folder.is_dir() and all(_file(folder, name) for name in ("decoder", "stats"))


def read_stages(
    folder: pathlib.Path, *, stages: Sequence[str], vocab_size: int | None = None
) -> list[ConvertedStage]:
    """Returns the stages in a folder of original files, in the order of the cascade.

    Args:
        folder: folder of the files.
        stages: requested stages; those that the folder does not have are ignored.
        vocab_size: size of the tokenizer; default: that of the CLIP among the files, else of CLIP.

    Raises:
        UserError: a file is missing or does not fit.
    """
    hparams = _hparams(folder)
    vocab_size = vocab_size or _vocab_size(folder)
    readers = {"clip": _clip, "prior": _prior, "decoder": _decoder, "upsampler_256": _upsampler}
    converted = (readers[stage](folder, hparams, vocab_size) for stage in stages)
    return [part for part in converted if part is not None]


def clip_statistics(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the mean and deviation of raw embeddings from `ViT-L-14_stats.th`.

    Raises:
        UserError: the file has other contents.
    """
    value = torch_files.read_value(path)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise UserError(
            f"{path} holds a {type(value).__name__}; expected mean and deviation. Copy it again."
        )
    mean, std = value
    return np.asarray(mean), np.asarray(std)


def renamed(source: TensorSource, views: Mapping[str, View]) -> TensorSource:
    """Renames the tensors of `source` by `views`; those without a view keep their names."""
    used = {view.old for view in views.values()}
    shapes: dict[str, Shape] = {n: s for n, s in source.shapes.items() if n not in used}
    for new, view in views.items():
        if view.old in source.shapes:
            shapes[new] = view.change(np.broadcast_to(np.int8(0), source.shapes[view.old])).shape

    def read(name: str) -> np.ndarray:
        view = views.get(name, View(name))
        return view.change(source.read(view.old))

    return TensorSource(source.where, shapes, read)


def prior_views(depth: int, heads: int) -> dict[str, View]:
    """Returns views of the prior's tensors."""
    views = {
        "positional_embedding": View("positional_embedding"),
        "prd_embedding": View("prd_emb"),
        **_pairs(PRIOR),
    }
    for layer in range(depth):
        old, new = f"transformer.resblocks.{layer}", f"transformer_blocks.{layer}"
        views |= _pairs({f"{old}.{o}": f"{new}.{n}" for o, n in PRIOR_BLOCK.items()})
        names = [f"{new}.attn1.{part}" for part in FUSED["qkv"]]
        views |= _unfused(f"{old}.attn.c_qkv", names, heads=heads)
    return views


def unet_views(cfg: UNetConfig) -> dict[str, View]:
    """Returns views of a U-Net's tensors; blocks are numbered in the order in which they run."""
    steps, views = plan(cfg), _pairs(UNET)
    for index, step in enumerate(steps.down, start=1):
        views |= _block(cfg, step.name, f"input_blocks.{index}.0", f"input_blocks.{index}.1")
    last = 2 if steps.middle[0].attention else 1
    views |= _block(cfg, "middle_0", "middle_block.0", "middle_block.1")
    views |= _block(cfg, "middle_1", f"middle_block.{last}", "")
    index, after = -1, 1
    for step in steps.up:
        if step.skip:
            index, after = index + 1, 2 if step.attention else 1
            views |= _block(cfg, step.name, f"output_blocks.{index}.0", f"output_blocks.{index}.1")
        else:
            views |= _block(cfg, step.name, f"output_blocks.{index}.{after}", "")
    return views


def _block(cfg: UNetConfig, step: str, residual: str, attention: str) -> dict[str, View]:
    """Returns views of one residual block, and of its attention if it has one."""
    block, attend = unet_tensors.names(step, len(cfg.multiples))
    views = _pairs({f"{residual}.{old}": f"{block}.{new}" for old, new in RESIDUAL.items()})
    steps = {s.name: s for s in (*plan(cfg).down, *plan(cfg).middle, *plan(cfg).up)}
    if steps[step].attention:
        heads = steps[step].features // cfg.head_channels
        views |= _pairs({f"{attention}.norm": f"{attend}.group_norm"})
        views |= _pairs({f"{attention}.proj_out": f"{attend}.to_out.0"}, _flat)
        for old, new in FUSED.items():
            names = [f"{attend}.{name}" for name in new]
            views |= _unfused(f"{attention}.{old}", names, heads=heads)
    return views


def _pairs(
    names: Mapping[str, str], change: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> dict[str, View]:
    """Returns views of weight and bias of every module in {old: new}."""
    ends = ("weight", "bias")
    return {f"{n}.{end}": View(f"{o}.{end}", change) for o, n in names.items() for end in ends}


def _unfused(old: str, new: Sequence[str], *, heads: int) -> dict[str, View]:
    """Returns views of the projections in one fused projection, interleaved per head."""
    return {
        f"{name}.{end}": View(f"{old}.{end}", _share(index, len(new), heads))
        for index, name in enumerate(new)
        for end in ("weight", "bias")
    }


def _share(index: int, count: int, heads: int) -> Callable[[np.ndarray], np.ndarray]:
    def share(array: np.ndarray) -> np.ndarray:
        array = _flat(array)
        rows = array.reshape(heads, count, -1, *array.shape[1:])[:, index]
        return rows.reshape(-1, *array.shape[1:])

    return share


def _flat(array: np.ndarray) -> np.ndarray:
    """Returns a convolution of length 1 as a linear map; returns biases unchanged."""
    return array.squeeze(2) if array.ndim == 3 else array


def _clip(
    folder: pathlib.Path, hparams: Mapping[str, Any], vocab_size: int
) -> ConvertedStage | None:
    """Reads the CLIP that was published with the files, which is OpenAI's."""
    for name in CLIP_FILES:
        if (folder / name).is_file():
            return standalone_clip.clip_from(folder / name)[0]
    return None


def _vocab_size(folder: pathlib.Path) -> int:
    files = [folder / name for name in CLIP_FILES if (folder / name).is_file()]
    shapes = open_tensors(files[0]).shapes if files else {}
    return shapes.get("token_embedding.weight", (49408,))[0]


def _prior(
    folder: pathlib.Path, hparams: Mapping[str, Any], vocab_size: int
) -> ConvertedStage | None:
    path = _file(folder, "prior")
    if path is None:
        return None
    size = hparams["prior"]
    values = {
        "embed_dim": size["clip_dim"],
        "width": size["xf_width"],
        "depth": size["xf_layers"],
        "heads": size["xf_heads"],
        "context": size["text_ctx"],
        "vocab_size": vocab_size,
        "caption": "clip_sequence",
        "clip_text_width": size["clip_dim"],
        "padding": "mask",
        "null": "empty",
    }
    cfg = configs.sized(PriorConfig, values, where=f"{folder / HPARAMS} prior")
    source = prefixes.stripped(open_tensors(path), (PRIOR_ANCHOR,))
    return assembly.prior_stage(
        cfg,
        renamed(source, prior_views(cfg.depth, cfg.heads)).without(prior_tensors.STATISTICS),
        statistics=clip_statistics(_needed(folder, "stats")),
        scheduler=schedulers.KARLO["prior"],
    )


def _decoder(folder: pathlib.Path, hparams: Mapping[str, Any], vocab_size: int) -> ConvertedStage:
    size = hparams["decoder"]
    unet = {
        "in_channels": 3,
        "out_channels": 6,
        "channels": size["num_channels"],
        "multiples": _numbers(size["channel_mult"]),
        "depth": size["num_res_blocks"],
        "image_size": size["image_size"],
        "attention_at": _numbers(size["attention_resolutions"]),
        "head_channels": size["num_head_channels"],
        "context_width": size["xf_width"],
        "norm_groups": size["group_norm_groups"],
    }
    values = {
        "unet": unet,
        "z_dim": size["clip_dim"],
        "text_width": size["xf_width"],
        "text_depth": 0,
        "text_heads": 0,
        "context": size["text_ctx"],
        "vocab_size": vocab_size,
        "num_z_tokens": size["clip_emb_mult"],
        "padding": "mask",
        "caption": "clip_sequence",
        "clip_text_width": size["clip_dim"],
    }
    cfg = configs.sized(DecoderConfig, values, where=f"{folder / HPARAMS} decoder")
    network = cfg.unet
    views = {f"decoder/{name}": view for name, view in unet_views(network).items()}
    views |= {f"text_proj/{name}": view for name, view in _pairs(TEXT_PROJ).items()}
    null = "text_proj/learned_classifier_free_guidance_embeddings"
    views[null] = View("cf_param")
    source = prefixes.stripped(open_tensors(_needed(folder, "decoder")), (DECODER_ANCHOR,))
    return assembly.decoder_stage(
        cfg, renamed(source, views), scheduler=schedulers.KARLO["decoder"]
    )


def _upsampler(
    folder: pathlib.Path, hparams: Mapping[str, Any], vocab_size: int
) -> ConvertedStage | None:
    path = _file(folder, "sr")
    if path is None:
        return None
    size = hparams["sr"]
    values = {
        "in_channels": 6,
        "out_channels": 3,
        "channels": size["channels"],
        "multiples": _numbers(size["channels_multiple"]),
        "depth": size["depth"],
        "image_size": ENLARGED * hparams["decoder"]["image_size"],
        "norm_groups": size["group_norm_groups"],
        "scale_shift": False,
    }
    network = configs.sized(UNetConfig, values, where=f"{folder / HPARAMS} sr")
    whole, views = prefixes.stripped(open_tensors(path), (SR_ANCHOR,)), unet_views(network)
    halves_at = {"super_res_first": "model_first_steps.", "super_res_last": "model_last_step."}
    halves = {name: renamed(whole.below(prefix), views) for name, prefix in halves_at.items()}
    cfg = UpsamplerConfig(network, factor=ENLARGED, interpolation="cubic")
    source = joined(str(path), halves)
    return assembly.upsampler_stage(cfg, source, scheduler=schedulers.KARLO["super_res"])


def _hparams(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    overrides = read_json(folder / HPARAMS) if (folder / HPARAMS).is_file() else {}
    where = str(folder / HPARAMS)
    return {
        part: {**sizes, **configs.group(overrides, part, where=where)}
        for part, sizes in SIZES.items()
    }


def _numbers(value: str | Sequence[int]) -> tuple[int, ...]:
    return tuple(int(v) for v in (value.split(",") if isinstance(value, str) else value))


def _file(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    suffixes = (".safetensors", *torch_files.SUFFIXES)
    files = sorted(p for p in folder.glob(f"{FILES[name]}*") if p.suffix in suffixes)
    return files[0] if files else None


def _needed(folder: pathlib.Path, name: str) -> pathlib.Path:
    path = _file(folder, name)
    if path is None:
        raise UserError(f"{folder} has no file {FILES[name]}*; copy it from where Karlo came.")
    return path
