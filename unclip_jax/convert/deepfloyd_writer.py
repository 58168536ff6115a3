"""Writer of Imagen's chain in the layout of diffusers' pipelines for DeepFloyd IF.

    OUT/stage_1    IFPipeline                  tokenizer, text_encoder, unet, scheduler
    OUT/stage_2    IFSuperResolutionPipeline   unet, scheduler, image_noising_scheduler

The configs are written first and read again: except for training options and those that a call of
the pipeline chooses, the result must equal the config of the stage. This finds every option that
the layout cannot express, without a list of them.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from unclip_jax.backbones.unet_plan import UNetConfig
from unclip_jax.convert import (
    abstract,
    deepfloyd,
    language_tensors,
    run_stages,
    unet_tensors,
)
from unclip_jax.convert.model_card import imagen_card
from unclip_jax.convert.run_stages import ExportedStage
from unclip_jax.core import config as typed
from unclip_jax.core import trees
from unclip_jax.core.checks import UserError, listed
from unclip_jax.handoff import load
from unclip_jax.models.language_encoder import LanguageEncoderConfig
from unclip_jax.models.text_condition import TextConditionConfig
from unclip_jax.objectives import gaussian
from unclip_jax.stages.registry import folder_entry
from unclip_jax.tokenization import caption_tokenizer, language_tokenizers
from unclip_jax.weight_files.writing import write_json, write_tensors

FOLDERS = {"imagen_base": "stage_1", "upsampler_256": "stage_2"}
# Options of training and of the compute type, and options of a call of the pipeline.
FREE = {
    *("drop_text", "empty_captions", "crop", "mask_share", "augment.most"),
    *(f"model.{name}" for name in ("remat", "dtype")),
    *(f"model.unet.{name}" for name in ("remat", "dtype", "dropout")),
    *("sampling.steps", "sampling.guidance_scale"),
}
NOTHING = [None, None]


def is_chain(stages: Mapping[str, ExportedStage]) -> bool:
    """True if the stages of a run are Imagen's."""
    return "imagen_base" in stages


def write(
    stages: Mapping[str, ExportedStage], out: pathlib.Path, *, dtype: str = "float32"
) -> list[str]:
    """Writes the stages of a run as pipeline directories; returns the folders written.

    Args:
        stages: stages of the run, by folder.
        out: folder to write.
        dtype: type of the tensors, "float32" or "bfloat16".

    Raises:
        UserError: a stage does not exist in IF, the layout cannot express an option, or `out`
            exists.
    """
    unknown = [name for name in stages if name not in deepfloyd.STAGES]
    if unknown or "text_encoder" not in stages:
        has = f"has {', '.join(unknown)}" if unknown else "has no text_encoder"
        raise UserError(
            f"the run {has}; the pipelines of DeepFloyd IF hold {', '.join(deepfloyd.STAGES)}. "
            "Use --to=safetensors for other stages."
        )
    with run_stages.draft(out) as draft:
        places = {name: draft / folder for name, folder in FOLDERS.items() if name in stages}
        _write_configs(stages, places)
        _check_configs(stages, places)
        _write_tokenizer(stages["text_encoder"], places["imagen_base"] / "tokenizer")
        _write_weights(stages, places, dtype)
        cards = {name: stage.card for name, stage in stages.items()}
        calls = [_call(_config(name, stages[name])) for name in places]
        (draft / "README.md").write_text(imagen_card(cards, calls=calls), "utf-8")
    return [folder.name for folder in places.values()]


def _write_configs(stages: Mapping[str, ExportedStage], places: Mapping[str, pathlib.Path]) -> None:
    """Writes everything except the tensors and the tokenizer."""
    for name, folder in places.items():
        config = _config(name, stages[name])
        first = name == "imagen_base"
        unet = unet_settings(config.model.unet, config.model.text, upsamples=not first)
        write_json(folder / "unet" / "config.json", unet)
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler_settings(config))
        index: dict[str, Any] = {
            "_class_name": deepfloyd.BASE if first else deepfloyd.SUPER_RES,
            "feature_extractor": NOTHING,
            "requires_safety_checker": False,
            "safety_checker": NOTHING,
            "scheduler": ["diffusers", deepfloyd.SCHEDULER],
            "text_encoder": ["transformers", "T5EncoderModel"] if first else NOTHING,
            "tokenizer": ["transformers", "T5Tokenizer"] if first else NOTHING,
            "unet": ["diffusers", unet_tensors.CONDITIONED],
            "watermarker": NOTHING,
        }
        if first:
            encoder = _config("text_encoder", stages["text_encoder"]).model
            settings = language_tensors.settings(encoder)
            write_json(folder / "text_encoder" / language_tensors.CONFIG, settings)
        else:
            index["image_noising_scheduler"] = ["diffusers", deepfloyd.SCHEDULER]
            settings = {"_class_name": deepfloyd.SCHEDULER, **deepfloyd.NOISING_SCHEDULER}
            write_json(folder / "image_noising_scheduler" / "scheduler_config.json", settings)
        write_json(folder / deepfloyd.INDEX, dict(sorted(index.items())))


def _check_configs(stages: Mapping[str, ExportedStage], places: Mapping[str, pathlib.Path]) -> None:
    """Checks that the config of every stage is unchanged when it is read from the folders.

    Raises:
        UserError: options differ; lists all of them.
    """
    base = _config("imagen_base", stages["imagen_base"])
    read: dict[str, Any] = {"imagen_base": deepfloyd.base_config(places["imagen_base"])}
    if "upsampler_256" in places:
        size = base.model.unet.image_size
        read["upsampler_256"] = deepfloyd.upsampler_config(places["upsampler_256"], base_size=size)
    path = places["imagen_base"] / "text_encoder" / language_tensors.CONFIG
    settings, where = json.loads(path.read_text("utf-8")), str(path)
    encoder = language_tensors.config(settings, context=deepfloyd.CONTEXT, where=where)
    read["text_encoder"] = {"model": encoder}
    complaints = []
    for name, plain in read.items():
        ours = typed.as_dict(_config(name, stages[name]))
        kind = folder_entry(name).config
        theirs = typed.as_dict(typed.build(kind, typed.as_dict(plain), where=name))
        wrong = [
            f"{option} {mine} (not {other})"
            for option, mine, other in trees.json_differences(ours, theirs)
            if option not in FREE and not option.startswith("diffusion.weighting.")
        ]
        complaints += [f"the {name} has {listed(wrong, separator=', ')}"] if wrong else []
    if complaints:
        raise UserError(
            f"{'; '.join(complaints)}; the pipelines of DeepFloyd IF have no setting for that. Use "
            "--to=safetensors."
        )


def unet_settings(
    network: UNetConfig, condition: TextConditionConfig | None, *, upsamples: bool
) -> dict[str, Any]:
    """Returns the config.json of a U-Net with its text condition; inverts `deepfloyd.unet_config`.

    Args:
        network: the U-Net.
        condition: its text condition.
        upsamples: True for stage II, which reads the noise level of its low-res image.

    Raises:
        UserError: the U-Net has no text condition.
    """
    if condition is None or not network.attention_at:
        raise UserError(
            "a U-Net without text has no class in the pipelines of DeepFloyd IF; use "
            "--to=safetensors."
        )
    cross = network.attention == "cross"
    factor = round(1.0 / network.residual_scale, 5)
    if 1.0 / factor != network.residual_scale:
        factor = 1.0 / network.residual_scale
    depth = network.depth
    return {
        **unet_tensors.settings(dataclasses.replace(network, context_width=condition.project)),
        **deepfloyd.STATED,
        "layers_per_block": depth if isinstance(depth, int) else list(depth),
        "encoder_hid_dim": condition.width,
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type_num_heads": condition.pool_heads,
        "class_embed_type": "timestep" if upsamples else None,
        "only_cross_attention": cross,
        "mid_block_only_cross_attention": cross or None,
        "resnet_out_scale_factor": factor,
        "mid_block_scale_factor": factor,
        "resnet_skip_time_act": upsamples,
        "time_embedding_act_fn": "gelu" if upsamples else None,
        "time_embedding_dim": network.emb_channels,
    }


def scheduler_settings(config: Any) -> dict[str, Any]:
    """Returns the scheduler_config.json of a stage; inverts `deepfloyd.scheduler`."""
    diffusion, sampling = config.diffusion, config.sampling
    return {
        "_class_name": deepfloyd.SCHEDULER,
        **deepfloyd.FIXED_SCHEDULER,
        "num_train_timesteps": diffusion.num_timesteps,
        "dynamic_thresholding_ratio": sampling.percentile / 100.0,
        "sample_max_value": 1.0 if sampling.cap is None else sampling.cap,
    }


def _call(config: Any) -> tuple[int, float]:
    """Returns the number of steps and the guidance scale of a stage's sampling."""
    rows = gaussian.solver_and_plan(config.diffusion, config.sampling)[1]
    return len(rows.t), config.sampling.guidance_scale


def _write_tokenizer(stage: ExportedStage, out: pathlib.Path) -> None:
    """Writes T5's tokenizer for transformers.

    Raises:
        UserError: the tokenizer is of another kind, or is not read back unchanged.
    """
    folder = load.tokenizer_dir(stage.path)
    description = language_tokenizers.published(
        caption_tokenizer.load(folder).description, where=str(folder)
    )
    write_json(out / "tokenizer.json", description)
    write_json(out / language_tokenizers.SETTINGS, language_tokenizers.T5_SETTINGS)
    if caption_tokenizer.load(out, lower=True).hash != stage.card.tokenizer_hash:
        raise UserError(
            f"the tokenizer in {folder} does not lower-case captions as DeepFloyd IF's pipelines "
            "do, or is not T5's; use --to=safetensors."
        )


def _write_weights(
    stages: Mapping[str, ExportedStage], places: Mapping[str, pathlib.Path], dtype: str
) -> None:
    """Writes the tensors, with one stage in memory at a time."""
    encoder: LanguageEncoderConfig = _config("text_encoder", stages["text_encoder"]).model
    params = stages["text_encoder"].params(abstract.language_encoder(encoder))
    path = places["imagen_base"] / "text_encoder" / "model.safetensors"
    write_tensors(path, params, language_tensors.entries(encoder), dtype=dtype)
    del params
    for name, folder in places.items():
        cfg = _config(name, stages[name]).model
        upsamples = name != "imagen_base"
        shapes = abstract.upsampler(cfg, noised=True) if upsamples else abstract.text_base(cfg)
        table = deepfloyd.entries(cfg.unet, low_res=upsamples)
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        write_tensors(path, stages[name].params(shapes), table, dtype=dtype)


def _config(name: str, stage: ExportedStage) -> Any:
    return typed.build(folder_entry(name).config, stage.card.config, where=name)
