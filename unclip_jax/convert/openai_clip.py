"""CLIP in the layout of OpenAI and open_clip.

The files contain no config. Widths, depths and patches follow from shapes, but heads and activation
do not: OpenAI's class has heads of 64 and quick_gelu, models of open_clip have them in a config.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unclip_jax.convert import preprocessing
from unclip_jax.convert.clip_tensors import BLOCK
from unclip_jax.core.checks import UserError, divisible, short
from unclip_jax.models.clip_config import ClipConfig
from unclip_jax.weight_files import configs
from unclip_jax.weight_files.tensor_source import Shape, TensorSource

# Integers in OpenAI's archives, and the mask in older files of open_clip.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
HEAD = 64  # width of OpenAI's heads
TEXT_HEADS = 8  # of open_clip's text towers whose config does not state it
OPEN_CLIP = "open_clip_config.json"
TOKENS = "token_embedding.weight"
# Tensors whose shapes determine sizes -> number of axes.
RANKS = {
    TOKENS: 2,
    "text_projection": 2,
    "visual.proj": 2,
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "positional_embedding": 2,
    "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
    "transformer.resblocks.0.mlp.c_fc.weight": 2,
}
# transformers' name -> name here, each with .weight and .bias
RENAMED = {
    "text_model.final_layer_norm": "ln_final",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
}
SINGLE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "logit_scale": "logit_scale",
}
TRANSPOSED = {
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
}
STACKS = {
    "text_model.encoder.layers": "transformer.resblocks",
    "vision_model.encoder.layers": "visual.transformer.resblocks",
}
IN_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
# Settings of a tower in open_clip's configs besides its sizes, and the only supported value.
TOWER = {
    "act_kwargs": None,
    "attentional_pool": False,
    "final_ln_after_pool": False,
    "ls_init_value": None,
    "norm_kwargs": None,
    "output_tokens": False,
}
VISION = {
    **TOWER,
    "global_average_pool": False,
    "input_patchnorm": False,
    "no_ln_pre": False,
    "patch_dropout": 0.0,
    "pool_type": "tok",
    "pos_embed_type": "learnable",
    "timm_model_name": None,
}
TEXT = {
    **TOWER,
    "embed_cls": False,
    "hf_model_name": None,
    "no_causal_mask": False,
    "pad_id": 0,
    "pool_type": "argmax",
    "proj_bias": False,
    "proj_type": "linear",
}
VISION_SIZES = ("width", "layers", "mlp_ratio", "patch_size", "image_size", "head_width")
TEXT_SIZES = ("width", "layers", "mlp_ratio", "context_length", "vocab_size", "heads")
WORDS = ("hf_tokenizer_name", "tokenizer_kwargs")  # settings of the tokenizer, read elsewhere
MODEL = ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "init_logit_scale", "custom_text")


def own_names(source: TensorSource) -> TensorSource:
    """Returns the tensors without the prefix that open_clip's `CustomTextCLIP` adds.

    `CustomTextCLIP` with a plain text tower is the same network, but the names of that tower begin
    with "text.".
    """
    if f"text.{TOKENS}" not in source.shapes:
        return source
    prefix = "text."
    text = {name for name in source.shapes if name.startswith(prefix)}
    places = {name.removeprefix(prefix) if name in text else name: name for name in source.shapes}
    if len(places) < len(source.shapes):
        raise UserError(
            f"{source.where} has two text towers, with and without {prefix}*; save one of them "
            "alone."
        )
    shapes = {new: source.shapes[old] for new, old in places.items()}
    return TensorSource(source.where, shapes, lambda name: source.read(places[name]))


def is_openai(source: TensorSource) -> bool:
    """True if the tensors have OpenAI's names."""
    return "visual.conv1.weight" in source.shapes and "positional_embedding" in source.shapes


def config(
    source: TensorSource, settings: Mapping[str, Any] | None = None, *, where: str = OPEN_CLIP
) -> ClipConfig:
    """Infers sizes from shapes; reads heads and activation from open_clip's `model_cfg` if given.

    Args:
        source: the tensors.
        settings: content of an `open_clip_config.json`; None = OpenAI's heads and activation.
        where: name of that file in messages.

    Raises:
        UserError: tensors that determine sizes are missing, or a tower is of another kind.
    """
    shapes = _shapes(source)
    model = configs.group(settings or {}, "model_cfg", where=where)
    vision, text = _checked(model, where=where)
    image_width, _, patch, _ = shapes["visual.conv1.weight"]
    tokens, _ = shapes["visual.positional_embedding"]
    context, text_width = shapes["positional_embedding"]
    quick = model.get("quick_gelu", settings is None)
    heads = {"image_heads": vision.get("head_width") or HEAD, "text_heads": text.get("heads")}
    if heads["text_heads"] is None:  # open_clip's default, or OpenAI's heads of 64
        divisible("the text tower's width", text_width, HEAD, f"put {OPEN_CLIP} beside.")
        heads["text_heads"] = text_width // HEAD if settings is None else TEXT_HEADS
    head = configs.integer(heads["image_heads"], f"vision_cfg.head_width in {where}")
    divisible("the image tower's width", image_width, head, "its head width does not fit.")
    values = {
        "embed_dim": shapes["visual.proj"][1],
        "image_size": patch * round((tokens - 1) ** 0.5),
        "patch_size": patch,
        "image_width": image_width,
        "image_depth": _depth(shapes, "visual.transformer.resblocks"),
        "image_heads": image_width // head,
        "image_mlp": shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        "text_width": text_width,
        "text_depth": _depth(shapes, "transformer.resblocks"),
        "text_heads": heads["text_heads"],
        "text_mlp": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "context": context,
        "vocab_size": shapes[TOKENS][0],
        "activation": "quick_gelu" if quick else "gelu",
    }
    cfg = configs.sized(ClipConfig, values, where=source.where)
    _agree(cfg, model, where=where)
    preprocessing_cfg = configs.group(settings or {}, "preprocess_cfg", where=where)
    return preprocessing.of_open_clip(cfg, preprocessing_cfg, where=where)


def _shapes(source: TensorSource) -> Mapping[str, Shape]:
    """Returns the shapes of all tensors, after checking those that determine sizes.

    Raises:
        UserError: such a tensor is missing or has another rank.
    """
    for name, rank in RANKS.items():
        if name not in source.shapes:
            raise UserError(
                f"{source.where} has no {name}; only CLIPs with a vision transformer and a plain "
                "text transformer are supported, so not its ResNets."
            )
        if len(source.shapes[name]) != rank or 0 in source.shapes[name]:
            raise UserError(
                f"{source.where} has {name} {source.shapes[name]}; expected {rank} axes. Copy the "
                "weights again."
            )
    return source.shapes


def _checked(model: Mapping[str, Any], *, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of both towers.

    Raises:
        UserError: a setting is not supported; names the first.
    """
    configs.check_known(model, MODEL, where=where)
    vision, text = (configs.group(model, name, where=where) for name in ("vision_cfg", "text_cfg"))
    for tower, fixed, sizes in ((vision, VISION, VISION_SIZES), (text, TEXT, TEXT_SIZES)):
        configs.check_fixed(tower, fixed, where=where)
        configs.check_known(tower, (*fixed, *sizes, *WORDS), where=where)
    return vision, text


def _agree(cfg: ClipConfig, model: Mapping[str, Any], *, where: str) -> None:
    """Rejects a config whose sizes differ from those of the tensors."""
    vision, text = (configs.group(model, name, where=where) for name in ("vision_cfg", "text_cfg"))
    pairs = (
        ("embed_dim", model.get("embed_dim"), cfg.embed_dim),
        ("vision_cfg.width", vision.get("width"), cfg.image_width),
        ("vision_cfg.layers", vision.get("layers"), cfg.image_depth),
        ("vision_cfg.patch_size", vision.get("patch_size"), cfg.patch_size),
        ("vision_cfg.image_size", vision.get("image_size"), cfg.image_size),
        ("text_cfg.width", text.get("width"), cfg.text_width),
        ("text_cfg.layers", text.get("layers"), cfg.text_depth),
        ("text_cfg.context_length", text.get("context_length"), cfg.context),
        ("text_cfg.vocab_size", text.get("vocab_size"), cfg.vocab_size),
    )
    for name, configured, actual in pairs:
        if configured is not None and configured != actual:
            raise UserError(
                f"{where} has {name} {short(configured)}, the tensors {actual}; copy the config "
                "that came with the weights."
            )


def as_transformers(source: TensorSource) -> TensorSource:
    """Returns the tensors under transformers' names; those without a counterpart keep theirs."""
    source = source.without(NOT_WEIGHTS)
    views = _views(source)
    used = {name for name, _ in views.values()}
    shapes: dict[str, Shape] = {n: s for n, s in source.shapes.items() if n not in used}
    for new, (old, view) in views.items():
        if old in source.shapes:
            shapes[new] = view(np.broadcast_to(np.int8(0), source.shapes[old])).shape

    def read(name: str) -> np.ndarray:
        if name not in views:
            return source.read(name)
        old, view = views[name]
        return view(source.read(old))

    return TensorSource(source.where, shapes, read)


View = tuple[str, Callable[[np.ndarray], np.ndarray]]


def _views(source: TensorSource) -> dict[str, View]:
    """Maps transformers' names to (name here, function of the array)."""
    same = np.asarray
    views: dict[str, View] = {new: (old, same) for new, old in SINGLE.items()}
    views |= {new: (old, np.transpose) for new, old in TRANSPOSED.items()}
    for end in ("weight", "bias"):
        views |= {f"{new}.{end}": (f"{old}.{end}", same) for new, old in RENAMED.items()}
        for stack, old_stack in STACKS.items():
            for layer in range(_depth(source.shapes, old_stack)):
                new, old = f"{stack}.{layer}", f"{old_stack}.{layer}"
                views |= {
                    f"{new}.{part}.{end}": (f"{old}.{theirs}.{end}", same)
                    for part, theirs in IN_BLOCK.items()
                }
                views |= {
                    f"{new}.{part}.{end}": (f"{old}.attn.in_proj_{end}", _third(index))
                    for index, part in enumerate(FUSED)
                }
    assert {*IN_BLOCK, *FUSED} == set(BLOCK.values())
    return views


def _third(index: int) -> Callable[[np.ndarray], np.ndarray]:
    """Slices queries, keys or values from the fused projection (not interleaved per head)."""
    return lambda array: np.split(array, 3)[index]


def _depth(shapes: Mapping[str, Shape], stack: str) -> int:
    layers = {n[len(stack) + 1 :].split(".")[0] for n in shapes if n.startswith(f"{stack}.")}
    return len(layers)
