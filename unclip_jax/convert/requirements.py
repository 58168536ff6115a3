"""What the classes of diffusers and transformers have built in, and so demand of our options."""

from collections.abc import Mapping
from typing import Any, get_type_hints

from unclip_jax.core import config as typed
from unclip_jax.core.checks import UserError
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.stages.registry import folder_entry

CHAIN = {"model.num_timesteps": 1000, "diffusion.num_timesteps": 1000}
UNET = {
    **CHAIN,
    "model.unet.patch": 1,
    "model.unet.resample_blocks": True,
    "model.unet.norm_over_space": True,
    "model.unet.emb_channels": None,
}
# Stage -> our option -> the only value that they know.
NEEDS: Mapping[str, Mapping[str, Any]] = {
    "clip": {"model.stem": "patches"},
    "prior": {"model.caption": "clip_sequence", "model.null": "empty", **CHAIN},
    "decoder": {
        "model.caption": "clip_sequence",
        "model.null_z": "learned",
        "model.z_map": 0,
        "model.reads_z": True,
        "model.inpaints": False,
        "condition": "z_img",
        "diffusion.learned_variance": True,  # which its pipeline cuts off when it guides
        **UNET,
        "model.unet.scale_shift": True,
        "embedding": "raw",
    },
    "upsampler_256": {
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
    """Refuses stages that they have no class for.

    Args:
        configs: name of a stage, a key of NEEDS -> its config as the manifest has it.

    Raises:
        UserError: naming every option of every stage that is in the way.
    """
    found = {name: _in_the_way(name, config) for name, config in configs.items()}
    told = [f"the {name} has {', '.join(wrong)}" for name, wrong in found.items() if wrong]
    if told:
        raise UserError(
            f"{'; '.join(told)}; diffusers has no class for that, so it cannot be "
            "written in its layout. Use --to=safetensors, or train a size that is made for it "
            "(launch/cascade karlo)."
        )


def _in_the_way(name: str, config: Mapping[str, Any]) -> list[str]:
    """The options of one stage that they have no class for."""
    kind = get_type_hints(folder_entry(name).config)["model"]
    model = typed.build(kind, config["model"], where=name)
    full = {**config, "model": typed.as_dict(model)}
    wrong = [
        f"{path} {value!r} (not {expected!r})"
        for path, expected in NEEDS[name].items()
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
    """What an export says under a dotted path; one older than the option has its default."""
    *groups, last = path.split(".")
    for group in groups:
        config = config.get(group, {})
    return config.get(last, default)
