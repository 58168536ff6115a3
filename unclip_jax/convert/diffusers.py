"""Writer of run directories as pipeline directories of diffusers, or as a CLIP of transformers.

Only stages for which those libraries have a class can be written: those with Karlo's options, and
Imagen's with those of DeepFloyd IF (`deepfloyd_writer`). Others are rejected with the option that
differs; `--to=safetensors` writes any stage as plain tensors.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from unclip_jax.convert import (
    abstract,
    assembly,
    clip_tensors,
    deepfloyd_writer,
    karlo,
    prior_tensors,
    requirements,
    run_stages,
    schedulers,
    unet_tensors,
)
from unclip_jax.convert.model_card import model_card, plain_card
from unclip_jax.convert.run_stages import ExportedStage
from unclip_jax.core import config as typed
from unclip_jax.core import trees
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import load
from unclip_jax.handoff.manifest import to_json
from unclip_jax.models.clip_config import ClipConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.weight_files import clip_tokenizer
from unclip_jax.weight_files.tensor_table import Entry
from unclip_jax.weight_files.writing import cast, write_json, write_tensors

WEIGHTS, OTHERS = "model.safetensors", "diffusion_pytorch_model.safetensors"
NETWORK = ("diffusers", "UNet2DModel")
SCHEDULER = ("diffusers", schedulers.CLASS)


def write(run_dir: pathlib.Path, out: pathlib.Path, *, dtype: str = "float32") -> list[str]:
    """Writes a run directory as a pipeline, or a single CLIP; returns the names of the folders.

    Raises:
        UserError: stages do not fit each other, the layout cannot express one, `out` exists, or the
            disk is full.
    """
    stages = run_stages.find(run_dir)
    if deepfloyd_writer.is_chain(stages):
        return deepfloyd_writer.write(stages, out, dtype=dtype)
    requirements.check(
        {name: stages[name].card.config for name in requirements.REQUIRED if name in stages}
    )
    with run_stages.draft(out) as draft:
        if set(stages) == {"clip"}:
            _clip_alone(stages["clip"], draft, dtype)
            return ["clip"]
        if not {"clip", "decoder", "upsampler_256"} <= stages.keys():
            raise UserError(
                f"{run_dir} has {', '.join(stages)}; a pipeline also needs a CLIP, a decoder and "
                "upsampler_256. Use --to=safetensors for single stages."
            )
        written = _pipeline(stages, draft, dtype)
    return written


def write_plain(run_dir: pathlib.Path, out: pathlib.Path, *, dtype: str = "float32") -> list[str]:
    """Writes every stage as OUT/STAGE.safetensors, under its own names, and OUT/STAGE.json.

    Raises:
        UserError: stages do not fit each other, `out` exists, or the disk is full.
    """
    stages = run_stages.find(run_dir)
    with run_stages.draft(out) as draft:
        for name, stage in stages.items():
            tree = load.read_params(stage.path, abstract=load.stored_shapes(stage.path))
            leaves = {p: cast(leaf, dtype) for p, leaf in trees.flatten_paths(tree).items()}
            save_file(leaves, draft / f"{name}.safetensors")
            (draft / f"{name}.json").write_text(to_json(stage.card), encoding="utf-8")
        cards = {name: stage.card for name, stage in stages.items()}
        (draft / "README.md").write_text(plain_card(cards), "utf-8")
    return list(stages)


def _pipeline(stages: Mapping[str, ExportedStage], out: pathlib.Path, dtype: str) -> list[str]:
    """Writes all components of a pipeline, with one stage in memory at a time."""
    index: dict[str, Any] = {"_class_name": "UnCLIPImageVariationPipeline"}
    cfg = typed.build(ClipConfig, stages["clip"].card.config["model"], where="clip")
    index |= _clip_towers(stages["clip"], cfg, out, dtype)
    if "prior" in stages:
        index["_class_name"] = "UnCLIPPipeline"
        index |= _prior(stages["prior"], out, dtype)
    index |= _decoder(stages["decoder"], out, dtype)
    index |= _upsampler(stages["upsampler_256"], out, dtype)
    clip_tokenizer.write(
        load.tokenizer_dir(stages["clip"].path), out / "tokenizer", context=cfg.context
    )
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    if "prior" in stages:  # this pipeline takes no images; the folder is kept for imports
        index = {k: v for k, v in index.items() if k not in ("image_encoder", "feature_extractor")}
    write_json(out / karlo.INDEX, dict(sorted(index.items())))
    cards = {name: stage.card for name, stage in stages.items()}
    (out / "README.md").write_text(model_card(cards, pipeline=index["_class_name"]), "utf-8")
    return [name for name in index if not name.startswith("_")]


def _clip_alone(stage: ExportedStage, out: pathlib.Path, dtype: str) -> None:
    cfg = typed.build(ClipConfig, stage.card.config["model"], where="clip")
    folder = load.tokenizer_dir(stage.path)
    ids = clip_tokenizer.special_ids(folder)
    write_json(out / "config.json", clip_tensors.settings(cfg, **ids))
    params = stage.params(abstract.clip(cfg))
    write_tensors(out / WEIGHTS, params, clip_tensors.entries(cfg), dtype=dtype)
    clip_tokenizer.write(folder, out, context=cfg.context)
    if "image" in cfg.towers:
        write_json(out / "preprocessor_config.json", _preprocessing(cfg))
    (out / "README.md").write_text(model_card({"clip": stage.card}, pipeline=None), "utf-8")


def _clip_towers(
    stage: ExportedStage, cfg: ClipConfig, out: pathlib.Path, dtype: str
) -> dict[str, list[str]]:
    """Writes text_encoder, and image_encoder with feature_extractor if there is an image tower."""
    ids = clip_tokenizer.special_ids(load.tokenizer_dir(stage.path))
    params, index = stage.params(abstract.clip(cfg)), {}
    for tower, name in (("text", "text_encoder"), ("image", "image_encoder")):
        if tower in cfg.towers:
            alone = clip_tensors.tower(cfg, tower)
            settings = clip_tensors.settings(alone, **ids)
            write_json(out / name / "config.json", settings)
            write_tensors(out / name / WEIGHTS, params, clip_tensors.entries(alone), dtype=dtype)
            index[name] = ["transformers", settings["architectures"][0]]
    if "image" in cfg.towers:
        write_json(out / "feature_extractor" / "preprocessor_config.json", _preprocessing(cfg))
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    return index


def _prior(stage: ExportedStage, out: pathlib.Path, dtype: str) -> dict[str, tuple[str, str]]:
    config = stage.card.config
    cfg = typed.build(PriorConfig, config["model"], where="prior")
    statistics = zip(prior_tensors.STATISTICS, (config["z_mean"], config["z_std"]), strict=True)
    extra = {name: np.array([values], np.float32) for name, values in statistics}
    params = stage.params(abstract.prior(cfg))
    write_json(out / "prior" / "config.json", prior_tensors.settings(cfg))
    write_tensors(
        out / "prior" / OTHERS, params, prior_tensors.entries(cfg), dtype=dtype, extra=extra
    )
    _scheduler(out / "prior_scheduler", config)
    return {"prior": ("diffusers", prior_tensors.CLASS), "prior_scheduler": SCHEDULER}


def _decoder(stage: ExportedStage, out: pathlib.Path, dtype: str) -> dict[str, tuple[str, str]]:
    cfg = typed.build(DecoderConfig, stage.card.config["model"], where="decoder")
    params, table = stage.params(abstract.decoder(cfg)), assembly.decoder_entries(cfg)
    values = (cfg.num_z_tokens, cfg.z_dim, cfg.unet.emb_width, cfg.text_width)
    sizes = dict(zip(assembly.TEXT_PROJ_SIZES, values, strict=True))
    write_json(out / "text_proj" / "config.json", {"_class_name": assembly.TEXT_PROJ, **sizes})
    network = dataclasses.replace(cfg.unet, context_width=cfg.text_width)
    write_json(out / "decoder" / "config.json", unet_tensors.settings(network))
    for name in ("text_proj", "decoder"):
        write_tensors(out / name / OTHERS, params, _below(table, name), dtype=dtype)
    _scheduler(out / "decoder_scheduler", stage.card.config)
    return {
        "decoder": ("diffusers", unet_tensors.CONDITIONED),
        "text_proj": ("unclip", assembly.TEXT_PROJ),
        "decoder_scheduler": SCHEDULER,
    }


def _upsampler(stage: ExportedStage, out: pathlib.Path, dtype: str) -> dict[str, tuple[str, str]]:
    cfg = typed.build(UpsamplerConfig, stage.card.config["model"], where="upsampler")
    one = abstract.upsampler(cfg)
    params = stage.params({"first": one, "last": one})
    for name in ("first", "last"):
        folder = out / f"super_res_{name}"
        write_json(folder / "config.json", unet_tensors.settings(cfg.unet))
        write_tensors(folder / OTHERS, params[name], unet_tensors.entries(cfg.unet), dtype=dtype)
    _scheduler(out / "super_res_scheduler", stage.card.config)
    networks = dict.fromkeys(("super_res_first", "super_res_last"), NETWORK)
    return {**networks, "super_res_scheduler": SCHEDULER}


def _below(table: list[Entry], name: str) -> list[Entry]:
    """Returns the entries of one component of a combined source, under its own names."""
    prefix = f"{name}/"
    return [
        entry._replace(name=entry.name.removeprefix(prefix))
        for entry in table
        if entry.name.startswith(prefix)
    ]


def _preprocessing(cfg: ClipConfig) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": cfg.image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": cfg.image_size, "width": cfg.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(cfg.image_mean),
        "image_std": list(cfg.image_std),
        "do_convert_rgb": True,
    }


def _scheduler(folder: pathlib.Path, config: Mapping[str, Any]) -> None:
    settings = schedulers.settings(config["diffusion"], config["sampling"])
    write_json(folder / "scheduler_config.json", settings)
