"""Variants of CLIP that are not supported, recognised by their tensors or configs."""

from collections.abc import Mapping
from typing import Any

from unclip_jax.core.checks import UserError
from unclip_jax.weight_files.tensor_source import TensorSource

SIGLIP = "SigLIP: it has a bias of logits, another pooling and another tokenizer"
COCA = "CoCa: it has a text decoder beside both towers"
EVA = "EVA-CLIP: its image tower has rotary positions and other blocks"
TIMM = "a CLIP with an image tower of timm"
HUGGING_FACE = "CustomTextCLIP with a text tower of transformers"
# model_type of transformers -> its name.
MODEL_TYPES = {
    "siglip": SIGLIP,
    "siglip2": SIGLIP,
    "siglip_text_model": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "chinese_clip": "Chinese-CLIP: its text tower is a BERT",
    "altclip": "AltCLIP: its text tower is an XLM-RoBERTa",
    "clipseg": "CLIPSeg: it segments images",
    "align": "ALIGN: its towers are an EfficientNet and a BERT",
    "blip": "BLIP: it has cross-attention between its towers",
    "metaclip_2": "MetaCLIP 2: its text tower and tokenizer are multilingual",
}
# Part of a tensor's name -> name of the model; the first match counts.
TENSORS = {
    "logit_bias": SIGLIP,
    "text_decoder.": COCA,
    "visual.rope.": EVA,
    "visual.trunk.rope": EVA,
    "visual.blocks.0.attn.q_bias": EVA,
    "text.transformer.embeddings.": HUGGING_FACE,
    "text.transformer.shared.": HUGGING_FACE,
    "visual.trunk.": TIMM,
}


def reject(source: TensorSource, settings: Mapping[str, Any]) -> None:
    """Rejects an unsupported variant of CLIP, by name.

    Args:
        source: its tensors.
        settings: its `config.json` or the `model_cfg` of its `open_clip_config.json`; {} = none.

    Raises:
        UserError: the model is such a variant.
    """
    name = _by_settings(settings) or _by_tensors(source)
    if name:
        raise UserError(
            f"{source.where} is {name}, which is not supported; give a CLIP with a vision "
            "transformer and a plain text transformer."
        )


def _by_settings(settings: Mapping[str, Any]) -> str | None:
    vision, text = (settings.get(f"{tower}_cfg") for tower in ("vision", "text"))
    timm = str(vision.get("timm_model_name") or "") if isinstance(vision, dict) else ""
    kind = settings.get("model_type")
    if isinstance(kind, str) and kind in MODEL_TYPES:
        return MODEL_TYPES[kind]
    if settings.get("init_logit_bias") is not None or "siglip" in timm:
        return SIGLIP
    if settings.get("multimodal_cfg") is not None:
        return COCA
    if timm:
        return EVA if timm.startswith("eva") else f"{TIMM} ({timm})"
    if isinstance(text, dict) and text.get("hf_model_name"):
        return f"{HUGGING_FACE} ({text['hf_model_name']})"
    return None


def _by_tensors(source: TensorSource) -> str | None:
    for part, name in TENSORS.items():
        if any(part in tensor for tensor in source.shapes):
            return name
    return None
