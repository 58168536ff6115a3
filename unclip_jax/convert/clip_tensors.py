"""CLIP in the layout of transformers: conversion of its config and tensors in both directions.

Sizes, activation and head counts are read only from the config (the head width is 64, 80 or 104 in
public models and never assumed). Files may also contain integer position tables of old versions,
and the other tower when one is requested.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unclip_jax.core.checks import UserError, one_of
from unclip_jax.models.clip_config import TOWERS, ClipConfig
from unclip_jax.weight_files import configs
from unclip_jax.weight_files.tensor_source import TensorSource
from unclip_jax.weight_files.tensor_table import Entry, norm, transformer

BLOCK = {
    "attention/q": "self_attn.q_proj",
    "attention/k": "self_attn.k_proj",
    "attention/v": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "norm_1": "layer_norm1",
    "norm_2": "layer_norm2",
    "mlp/fc_1": "mlp.fc1",
    "mlp/fc_2": "mlp.fc2",
}
ACTIVATIONS = ("quick_gelu", "gelu")
# transformers writes a tower's settings only where they differ from these (OpenAI's B/32).
TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
PROJECTION = 512
KINDS = {"clip": TOWERS, "clip_text_model": ("text",), "clip_vision_model": ("image",)}
CLASSES = {
    "CLIPModel": "clip",
    "CLIPTextModel": "clip_text_model",
    "CLIPTextModelWithProjection": "clip_text_model",
    "CLIPVisionModelWithProjection": "clip_vision_model",
}
POSITIONS = [f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision")]


def config(settings: Mapping[str, Any], *, where: str) -> ClipConfig:
    """Returns our config for a config.json of transformers.

    Args:
        settings: content of the file, for a CLIPModel or one of its towers.
        where: name of the file in messages.

    Raises:
        UserError: the model is of another kind, or a setting is not supported.
    """
    towers = KINDS[_kind(settings, where)]
    text = _section(settings, "text", TEXT_DEFAULTS, where) if "text" in towers else None
    image = _section(settings, "vision", VISION_DEFAULTS, where) if "image" in towers else None
    for section in (text, image):
        if section is not None:
            _reject(section, where)
    bare = _architecture(settings) == "CLIPTextModel"
    acts = {section["hidden_act"] for section in (text, image) if section is not None}
    if len(acts) > 1:
        raise UserError(f"{where} gives the towers different activations; expected one for both.")
    width = text["hidden_size"] if text is not None and bare else None
    values = {
        "embed_dim": width or settings.get("projection_dim", PROJECTION),
        "activation": acts.pop(),
        "towers": towers,
        "temperature": towers == TOWERS,
        "projection": not bare,
        **_image_size(image),
        **_text_size(text),
    }
    return configs.sized(ClipConfig, values, where=where)


def _kind(settings: Mapping[str, Any], where: str) -> str:
    """Returns the model_type, which old files state only through their class."""
    kind = settings.get("model_type") or CLASSES.get(_architecture(settings))
    return one_of(f"model_type in {where}", kind, KINDS)


def _architecture(settings: Mapping[str, Any]) -> str:
    names = settings.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def merged(text: ClipConfig, image: ClipConfig) -> ClipConfig:
    """Joins two towers, as in pipelines, to one CLIP without temperature.

    Raises:
        UserError: their embeddings have different lengths, or their activations differ.
    """
    for name in ("embed_dim", "activation"):
        if getattr(text, name) != getattr(image, name):
            raise UserError(
                f"the text encoder has {name} {getattr(text, name)!r}, the image encoder "
                f"{getattr(image, name)!r}; they are not towers of one CLIP. Copy both from one "
                "pipeline."
            )
    names = ("image_size", "patch_size", "image_width", "image_depth", "image_heads", "image_mlp")
    names += ("image_mean", "image_std")
    taken = {name: getattr(image, name) for name in names}
    return dataclasses.replace(text, towers=TOWERS, temperature=False, **taken)


def tower(cfg: ClipConfig, name: str) -> ClipConfig:
    """Returns the config of one tower."""
    return dataclasses.replace(cfg, towers=(name,), temperature=False)


def entries(cfg: ClipConfig) -> list[Entry]:
    """Returns the table of `CLIPModel`, or of the tower with projection that `cfg` describes."""
    table = []
    if "text" in cfg.towers:
        table += _text(cfg)
    if "image" in cfg.towers:
        table += _image(cfg)
    if cfg.temperature:
        table.append(Entry("log_scale", "logit_scale"))
    return table


def tidy(source: TensorSource, cfg: ClipConfig) -> TensorSource:
    """Removes additional tensors, and updates names of older files.

    Additional tensors are integer position tables (transformers before 4.31), and the other tower
    and the temperature of a complete CLIP of which one tower is read. The names of a bare text
    tower (transformers 5.6 and later) lack a prefix.
    """
    source = source.without(POSITIONS)
    if cfg.towers == ("text",) and "embeddings.token_embedding.weight" in source.shapes:
        prefix = "text_model."
        shapes = {prefix + name: shape for name, shape in source.shapes.items()}
        read = source.read
        return TensorSource(source.where, shapes, lambda name: read(name.removeprefix(prefix)))
    return source.without(n for n in source.shapes if _of_other_tower(n, cfg))


def settings(cfg: ClipConfig, *, eos: int, bos: int) -> dict[str, Any]:
    """Inverts `config`: returns a config.json for transformers.

    Args:
        cfg: our config.
        eos: id of the end token, at which transformers pools.
        bos: id of the start token.
    """
    text = {
        "model_type": "clip_text_model",
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.context,
        "bos_token_id": bos,
        "eos_token_id": eos,
        **_sizes(cfg.text_width, cfg.text_depth, cfg.text_heads, cfg.text_mlp, cfg),
    }
    image = {
        "model_type": "clip_vision_model",
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "num_channels": 3,
        **_sizes(cfg.image_width, cfg.image_depth, cfg.image_heads, cfg.image_mlp, cfg),
    }
    if cfg.towers == ("text",):
        name = "CLIPTextModelWithProjection" if cfg.projection else "CLIPTextModel"
        return {"architectures": [name], **text}
    if cfg.towers == ("image",):
        return {"architectures": ["CLIPVisionModelWithProjection"], **image}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": cfg.embed_dim,
        "text_config": text,
        "vision_config": image,
    }


def _sizes(width: int, depth: int, heads: int, mlp: int | None, cfg: ClipConfig) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": mlp or 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "hidden_act": cfg.activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": cfg.embed_dim,
    }


def _section(
    settings: Mapping[str, Any], tower: str, defaults: dict[str, Any], where: str
) -> dict[str, Any]:
    """Returns the settings of one tower: a section of a CLIPModel's config, or a tower's config.

    Files from before transformers 4.27 have them under `text_config_dict`, which takes precedence
    if it exists, with defaults for missing values, as in transformers.
    """
    section = settings
    if tuple(KINDS[_kind(settings, where)]) == TOWERS:
        section = configs.group(settings, f"{tower}_config", where=where)
        if older := configs.group(settings, f"{tower}_config_dict", where=where):
            section = {**section, **defaults, **older}
    values = {key: section.get(key) for key in defaults}
    return {key: defaults[key] if value is None else value for key, value in values.items()}


def _reject(section: Mapping[str, Any], where: str) -> None:
    one_of(f"hidden_act in {where}", section["hidden_act"], ACTIVATIONS)
    for name, only in (("layer_norm_eps", 1e-5), ("num_channels", 3)):
        if section.get(name, only) != only:
            raise UserError(
                f"{where} has {name} {section[name]}; only {only} is supported. Use another CLIP."
            )


def _text_size(section: Mapping[str, Any] | None) -> dict[str, Any]:
    if section is None:
        none = dict.fromkeys(("text_width", "text_depth", "text_heads"), 0)
        return {**none, "context": 0, "vocab_size": 0}
    return {
        "text_width": section["hidden_size"],
        "text_depth": section["num_hidden_layers"],
        "text_heads": section["num_attention_heads"],
        "text_mlp": section["intermediate_size"],
        "context": section["max_position_embeddings"],
        "vocab_size": section["vocab_size"],
    }


def _image_size(section: Mapping[str, Any] | None) -> dict[str, Any]:
    if section is None:
        none = dict.fromkeys(("image_size", "image_width", "image_depth", "image_heads"), 0)
        return {**none, "patch_size": 1}
    return {
        "image_size": section["image_size"],
        "patch_size": section["patch_size"],
        "image_width": section["hidden_size"],
        "image_depth": section["num_hidden_layers"],
        "image_heads": section["num_attention_heads"],
        "image_mlp": section["intermediate_size"],
    }


def _text(cfg: ClipConfig) -> list[Entry]:
    name = "text_model"
    table = [
        Entry("text/tokens", f"{name}.embeddings.token_embedding.weight"),
        Entry("text/positions", f"{name}.embeddings.position_embedding.weight"),
        *transformer(
            "text/transformer", f"{name}.encoder.layers", depth=cfg.text_depth, parts=BLOCK
        ),
        *norm("text/final_norm", f"{name}.final_layer_norm"),
    ]
    if cfg.projection:
        table.append(Entry("text/projection/kernel", "text_projection.weight", "linear"))
    return table


def _image(cfg: ClipConfig) -> list[Entry]:
    name = "vision_model"
    return [
        Entry("image/class_token", f"{name}.embeddings.class_embedding"),
        Entry("image/patches/kernel", f"{name}.embeddings.patch_embedding.weight", "conv"),
        Entry("image/positions", f"{name}.embeddings.position_embedding.weight"),
        *norm("image/pre_norm", f"{name}.pre_layrnorm"),
        *transformer(
            "image/transformer", f"{name}.encoder.layers", depth=cfg.image_depth, parts=BLOCK
        ),
        *norm("image/post_norm", f"{name}.post_layernorm"),
        Entry("image/projection/kernel", "visual_projection.weight", "linear"),
    ]


def _of_other_tower(name: str, cfg: ClipConfig) -> bool:
    beside = {"text": ("vision_model.", "visual_"), "image": ("text_model.", "text_projection")}
    if cfg.temperature or len(cfg.towers) == len(TOWERS):
        return False
    return name.startswith((*beside[cfg.towers[0]], "logit_scale"))
