"""Reader of Karlo and related pipelines in the layout of diffusers, one folder per component.

    UnCLIPPipeline                 text_encoder, prior, text_proj, decoder, super_res_{first,last}
    UnCLIPImageVariationPipeline   the same without prior, with image_encoder
    Kandinsky(V22)PriorPipeline    text_encoder, image_encoder, prior

Several folders may complement each other. assembly.py assembles the stages.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.convert import (
    assembly,
    clip_tensors,
    preprocessing,
    prior_tensors,
    schedulers,
    unet_tensors,
)
from unclip_jax.convert.converted_stage import ConvertedStage
from unclip_jax.core.checks import UserError
from unclip_jax.models.clip_config import ClipConfig
from unclip_jax.weight_files import configs, tensor_table
from unclip_jax.weight_files.tensor_source import joined, open_tensors, read_json

INDEX = "model_index.json"
PIPELINES = (
    "UnCLIPPipeline",
    "UnCLIPImageVariationPipeline",
    "KandinskyPriorPipeline",
    "KandinskyV22PriorPipeline",
)
STAGES = ("clip", "prior", "decoder", "upsampler_256")
# Stage -> its components; a stage exists only if its first component does.
COMPONENTS = {
    "prior": ("prior",),
    "decoder": ("decoder", "text_proj"),
    "upsampler_256": ("super_res_first", "super_res_last", "decoder"),
}
PREPROCESSORS = {"feature_extractor", "image_processor"}  # Karlo's name, and Kandinsky's
LICENCE = (
    "the weights remain under their authors' terms (Karlo: CreativeML Open RAIL-M, with "
    "use restrictions); read the licence that came with them"
)

Folders = Mapping[str, pathlib.Path]


def is_pipeline(folder: pathlib.Path) -> bool:
    """True if `folder` is a pipeline directory."""
    return (folder / INDEX).is_file()


def components(folders: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Maps each component to its folder in the first of `folders` that has it.

    Raises:
        UserError: a pipeline is of another kind, or a component is in no folder.
    """
    present: dict[str, pathlib.Path] = {}
    listed: dict[str, pathlib.Path] = {}
    for folder in folders:
        index = read_json(folder / INDEX)
        name = index.get("_class_name")
        if not isinstance(name, str) or name not in PIPELINES:
            raise UserError(
                f"{folder} is a {name}; supported pipelines are {', '.join(PIPELINES)}."
            )
        for component, what in index.items():
            filled = isinstance(what, list) and what[:1] not in ([], [None])
            if filled and not component.startswith("_"):
                listed.setdefault(component, folder)
                if (folder / component).is_dir():
                    present.setdefault(component, folder / component)
        if (folder / "image_encoder").is_dir():  # not listed by text-to-image pipelines
            present.setdefault("image_encoder", folder / "image_encoder")
    lost = sorted(listed.keys() - present.keys() - {"safety_checker"})
    return {**present, **{name: listed[name] / name for name in lost}}


def read_stages(folders: Folders, *, stages: Sequence[str] = STAGES) -> list[ConvertedStage]:
    """Returns the stages that the components form, in the order of the cascade.

    Args:
        folders: result of `components`.
        stages: requested stages; those that the pipeline does not have are ignored.

    Raises:
        UserError: a component is missing, or a config has another architecture.
    """
    converted = []
    text = _clip_config(folders)
    for stage in stages:
        if stage == "clip":
            converted.append(_clip(folders, text))
        elif COMPONENTS[stage][0] in folders:
            for name in COMPONENTS[stage]:
                _config(folders, name)  # rejects missing components by name
            converted.append(MAKERS[stage](folders, text))
    return converted


def _config(folders: Folders, name: str) -> tuple[dict[str, Any], str]:
    """Reads the config of a component; returns it and its path.

    Raises:
        UserError: the component is missing.
    """
    if name not in folders or not folders[name].is_dir():
        raise UserError(
            f"the component {name} is missing; copy its folder, give a second source that has it, "
            "or name the stages that you want with --stages."
        )
    path = folders[name] / "config.json"
    return read_json(path), str(path)


def _scheduler(folders: Folders, name: str, *others: str) -> dict[str, Any]:
    for folder in (name, *others):
        if folder in folders:
            return read_json(folders[folder] / "scheduler_config.json")
    return dict(schedulers.KARLO[name.removesuffix("_scheduler")])


def _clip_config(folders: Folders) -> ClipConfig:
    settings, where = _config(folders, "text_encoder")
    text = clip_tensors.config(settings, where=where)
    if "image_encoder" not in folders:
        return text
    settings, where = _config(folders, "image_encoder")
    image = clip_tensors.config(settings, where=where)
    for name in PREPROCESSORS & folders.keys():
        path = folders[name] / "preprocessor_config.json"
        if path.is_file():
            image = preprocessing.of_transformers(image, read_json(path), where=str(path))
    return clip_tensors.merged(text, image)


def _clip(folders: Folders, cfg: ClipConfig) -> ConvertedStage:
    sources, table = {}, []
    for tower, name in (("text", "text_encoder"), ("image", "image_encoder")):
        if tower in cfg.towers:
            alone = clip_tensors.tower(cfg, tower)
            sources[name] = clip_tensors.tidy(open_tensors(folders[name]), alone)
            table += tensor_table.under(clip_tensors.entries(alone), name=f"{name}/")
    return assembly.clip_stage(cfg, joined(str(folders["text_encoder"].parent), sources), table)


def _prior(folders: Folders, text: ClipConfig) -> ConvertedStage:
    settings, where = _config(folders, "prior")
    cfg = prior_tensors.config(settings, vocab_size=text.vocab_size, where=where)
    if (cfg.embed_dim, cfg.clip_text_width) != (text.embed_dim, text.text_width):
        raise UserError(
            f"{where} has embedding_dim {cfg.embed_dim}; the text encoder gives embeddings of "
            f"{text.embed_dim} and features of {text.text_width}. They do not belong together: "
            "copy both from one pipeline."
        )
    source = open_tensors(folders["prior"])
    lost = [name for name in prior_tensors.STATISTICS if name not in source.shapes]
    if lost:
        raise UserError(f"{source.where} lacks {', '.join(lost)}; copy the prior's files again.")
    mean, std = (source.read(name) for name in prior_tensors.STATISTICS)
    return assembly.prior_stage(
        cfg,
        source.without(prior_tensors.STATISTICS),
        statistics=(mean, std),
        scheduler=_scheduler(folders, "prior_scheduler", "scheduler"),
    )


def _decoder(folders: Folders, text: ClipConfig) -> ConvertedStage:
    settings, where = _config(folders, "text_proj")
    configs.check_class(settings, assembly.TEXT_PROJ, where=where)
    _, z_dim, emb, width = configs.required_sizes(settings, assembly.TEXT_PROJ_SIZES, where=where)
    network = unet_tensors.config(
        _config(folders, "decoder")[0], where=_config(folders, "decoder")[1]
    )
    pairs = {
        "clip_embeddings_dim": (z_dim, text.embed_dim),
        "time_embed_dim": (emb, network.emb_width),
        "cross_attention_dim": (width, network.context_width),
    }
    for name, (value, expected) in pairs.items():
        if value != expected:
            raise UserError(
                f"{where} has {name} {value}; the text encoder and the decoder beside it need "
                f"{expected}. They do not belong together: copy all from one pipeline."
            )
    cfg = assembly.decoder_config(network, settings, text)
    sources = {name: open_tensors(folders[name]) for name in ("text_proj", "decoder")}
    source = joined(str(folders["decoder"].parent), sources)
    return assembly.decoder_stage(cfg, source, scheduler=_scheduler(folders, "decoder_scheduler"))


def _upsampler(folders: Folders, text: ClipConfig) -> ConvertedStage:
    (first, where), (last, _) = (
        _config(folders, f"super_res_{name}") for name in ("first", "last")
    )
    cfg = unet_tensors.config(first, where=where)
    if cfg != unet_tensors.config(last, where=where):
        raise UserError(
            f"{where} and the one of super_res_last differ; expected equal networks. Copy both "
            "from one pipeline."
        )
    network = unet_tensors.config(*_config(folders, "decoder")[:1], where="decoder")
    base = network.image_size
    if cfg.image_size % base:
        raise UserError(
            f"{where} has sample_size {cfg.image_size}, no multiple of the decoder's {base}; copy "
            "both from one pipeline."
        )
    names = ("super_res_first", "super_res_last")
    source = joined(
        str(folders[names[0]].parent), {name: open_tensors(folders[name]) for name in names}
    )
    return assembly.upsampler_stage(
        assembly.upsampler_config(cfg, network),
        source,
        scheduler=_scheduler(folders, "super_res_scheduler"),
    )


MAKERS = {"prior": _prior, "decoder": _decoder, "upsampler_256": _upsampler}
