"""Option values that are fixed in the classes of diffusers and transformers."""

from collections.abc import Mapping
from typing import Any, get_type_hints

from unclip_jax.core import config as typed
from unclip_jax.core.checks import UserError
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.stages.registry import folder_entry

CHAIN = {"model.num_timesteps": 1000}  # their networks read t itself, in a chain of any length
UNET = {
    **CHAIN,
    "model.unet.patch": 1,
    "model.unet.resample_blocks": True,
    "model.unet.norm_over_space": True,
    "model.unet.emb_channels": None,
    "model.unet.topology": "adm",
    "model.unet.activation": "silu",
    "model.unet.attention": "joint",
    "model.unet.attention_width": 1,
    "model.unet.context_norm": "none",
    "model.unet.residual_scale": 1.0,
}
# Stage -> option -> the only supported value.
REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "clip": {"model.stem": "patches"},
    "prior": {"model.caption": "clip_sequence", "model.null": "empty", **CHAIN},
    "decoder": {
        "model.caption": "clip_sequence",
        "model.null_z": "learned",
        "model.z_map": 0,
        "model.reads_z": True,
        "model.inpaints": False,
        "condition": "z_img",
        "diffusion.learned_variance": True,  # its pipeline removes the variance under guidance
        **UNET,
        "model.unet.scale_shift": True,
        "embedding": "raw",
    },
    "upsampler_256": {
        "model.text": None,
        "model.interpolation": "cubic",
        **UNET,
        "model.unet.scale_shift": False,
        "last_step": True,
        "residual": False,
        "augment.most": 0.0,
        "quantise": False,
    },
}


def check(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that the libraries have a class for every stage.

    Args:
        configs: name of a stage, a key of REQUIRED -> its config in the manifest.

    Raises:
        UserError: options are not supported; lists all options of all stages.
    """
    unsupported = {name: _unsupported(name, config) for name, config in configs.items()}
    complaints = [f"the {name} has {', '.join(x)}" for name, x in unsupported.items() if x]
    if complaints:
        raise UserError(
            f"{'; '.join(complaints)}; diffusers has no class for that, so it cannot be "
            "written in its layout. Use --to=safetensors, or train a size for this layout "
            "(launch/cascade karlo)."
        )


def _unsupported(name: str, config: Mapping[str, Any]) -> list[str]:
    """Returns the unsupported options of one stage."""
    kind = get_type_hints(folder_entry(name).config)["model"]
    model = typed.build(kind, config["model"], where=name)
    full = {**config, "model": typed.as_dict(model)}
    wrong = [
        f"{path} {value!r} (not {expected!r})"
        for path, expected in REQUIRED[name].items()
        if (value := _value(full, path, expected)) != expected
    ]
    if isinstance(model, PriorConfig | DecoderConfig):
        width = model.embed_dim if isinstance(model, PriorConfig) else model.z_dim
        if model.clip_text_width not in (None, width):
            wrong.append(f"model.clip_text_width {model.clip_text_width} (not {width})")
    if name == "prior" and not config.get("z_mean"):
        wrong.append("no z_mean (train with config.model.standardise)")
    return wrong


def _value(config: Mapping[str, Any], path: str, default: Any) -> Any:
    """Returns the value of an export at a dotted path, or the default if it is missing."""
    *groups, last = path.split(".")
    for group in groups:
        config = config.get(group, {})
    return config.get(last, default)
