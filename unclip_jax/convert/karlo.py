"""Karlo and its relatives as diffusers keeps them: one folder per component.

    UnCLIPPipeline                 text_encoder, prior, text_proj, decoder, super_res_{first,last}
    UnCLIPImageVariationPipeline   the same without prior, with image_encoder
    Kandinsky(V22)PriorPipeline    text_encoder, image_encoder, prior

Several folders may complete each other. Where Karlo differs from the paper, the stages' configs
say so by their options: CLIP's token features as captions, the empty caption as null, raw and
standardised embeddings, a network of its own for the last step of super-resolution.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.convert import abstract, clip, configs, layout, prior, schedulers, unet
from unclip_jax.convert.layout import Entry, linear, norm
from unclip_jax.convert.parts import Part
from unclip_jax.convert.source import Source, joined, open_source, read_json
from unclip_jax.core.checks import UserError
from unclip_jax.models.clip_config import ClipConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.upsampler import UpsamplerConfig

INDEX = "model_index.json"
PIPELINES = (
    "UnCLIPPipeline",
    "UnCLIPImageVariationPipeline",
    "KandinskyPriorPipeline",
    "KandinskyV22PriorPipeline",
)
STAGES = ("clip", "prior", "decoder", "upsampler_256")
# Stage -> the components that it is made of; the first one's absence means there is no such stage.
NEEDS = {
    "prior": ("prior",),
    "decoder": ("decoder", "text_proj"),
    "upsampler_256": ("super_res_first", "super_res_last", "decoder"),
}
TEXT_PROJ = "UnCLIPTextProjModel"
TEXT_PROJ_SIZES = (
    "clip_extra_context_tokens",
    "clip_embeddings_dim",
    "time_embed_dim",
    "cross_attention_dim",
)
LICENCE = (
    "the weights remain under their authors' terms (Karlo: CreativeML Open RAIL-M, with "
    "use restrictions); read the licence that came with them"
)

Folders = Mapping[str, pathlib.Path]


def is_pipeline(folder: pathlib.Path) -> bool:
    """Whether `folder` is a pipeline directory."""
    return (folder / INDEX).is_file()


def components(folders: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Component -> its folder, in the first of `folders` that has it.

    Raises:
        UserError: a pipeline of another kind, or one that lists a component nobody has.
    """
    found: dict[str, pathlib.Path] = {}
    listed: dict[str, pathlib.Path] = {}
    for folder in folders:
        index = read_json(folder / INDEX)
        name = index.get("_class_name")
        if name not in PIPELINES:
            raise UserError(
                f"{folder} is a {name}; supported pipelines are {', '.join(PIPELINES)}."
            )
        for component, what in index.items():
            if not component.startswith("_") and isinstance(what, list) and what[0] is not None:
                listed.setdefault(component, folder)
                if (folder / component).is_dir():
                    found.setdefault(component, folder / component)
        if (folder / "image_encoder").is_dir():  # which a text-to-image pipeline does not list
            found.setdefault("image_encoder", folder / "image_encoder")
    lost = sorted(listed.keys() - found.keys() - {"safety_checker"})
    return {**found, **{name: listed[name] / name for name in lost}}


def parts(folders: Folders, *, stages: Sequence[str] = STAGES) -> list[Part]:
    """The stages that components make up, in the order of the cascade.

    Args:
        folders: from `components`.
        stages: which are wanted; those that the pipeline does not have are left out.

    Raises:
        UserError: a component is missing, a config is of another architecture.
    """
    made = []
    text = _clip_config(folders)
    for stage in stages:
        if stage == "clip":
            made.append(_clip(folders, text))
        elif NEEDS[stage][0] in folders:
            for name in NEEDS[stage]:
                _config(folders, name)  # missing ones are refused by name
            made.append(MAKERS[stage](folders, text))
    return made


def clip_part(cfg: ClipConfig, source: Source, entries: Sequence[Entry]) -> Part:
    """CLIP as a stage."""
    return Part(
        name="clip",
        stage="clip",
        config={"model": cfg},
        facts={"embed_dim": cfg.embed_dim},
        source=source,
        entries=entries,
        abstract=abstract.clip(cfg),
    )


def prior_part(
    cfg: PriorConfig,
    source: Source,
    *,
    statistics: tuple[np.ndarray, np.ndarray],
    scheduler: Mapping[str, Any],
    where: str = "the prior's scheduler",
) -> Part:
    """A prior of Karlo's kind as a stage; `statistics` are clip_mean and clip_std."""
    mean, std = (np.asarray(v, np.float32).reshape(-1) for v in statistics)
    if not mean.shape == std.shape == (cfg.embed_dim,) or not np.all(std > 0):
        raise UserError(
            f"the CLIP statistics have shapes {mean.shape} and {std.shape}; expected "
            f"{(cfg.embed_dim,)} both, with positive deviations."
        )
    diffusion, sampling = schedulers.config(scheduler, role="prior", where=where)
    return Part(
        name="prior",
        stage="prior",
        config={
            "model": cfg,
            "diffusion": diffusion,
            "sampling": sampling,
            "drop_text": 0.0,
            "num_candidates": 1,
            "z_mean": mean.tolist(),
            "z_std": std.tolist(),
        },
        facts={"embed_dim": cfg.embed_dim, "z_scale": 1.0, "embedding": "raw"},
        source=source,
        entries=prior.entries(cfg),
        abstract=abstract.prior(cfg),
    )


def decoder_part(cfg: DecoderConfig, source: Source, *, scheduler: Mapping[str, Any]) -> Part:
    """A decoder of Karlo's kind as a stage; `source` joins "text_proj" and "decoder"."""
    where = "the decoder's scheduler"
    diffusion, sampling = schedulers.config(scheduler, role="decoder", where=where)
    return Part(
        name="decoder",
        stage="decoder",
        config={
            "model": cfg,
            "diffusion": diffusion,
            "sampling": sampling,
            "drop_text": 0.0,
            "embedding": "raw",
        },
        facts={
            "embed_dim": cfg.z_dim,
            "image_size": cfg.unet.image_size,
            "embedding": "raw",
        },
        source=source,
        entries=decoder_entries(cfg),
        abstract=abstract.decoder(cfg),
    )


def upsampler_part(cfg: UpsamplerConfig, source: Source, *, scheduler: Mapping[str, Any]) -> Part:
    """Super-resolution as a stage; `source` joins "super_res_first" and "super_res_last"."""
    where = "the super-resolution's scheduler"
    diffusion, sampling = schedulers.config(scheduler, role="super_res", where=where)
    size, table = cfg.unet.image_size, unet.entries(cfg.unet)
    one = abstract.upsampler(cfg)
    return Part(
        name="upsampler_256",
        stage="upsampler",
        config={
            "model": cfg,
            "crop": size,
            "diffusion": diffusion,
            "sampling": sampling,
            "last_step": True,
            "quantise": False,
        },
        facts={"image_size": size, "low_res_size": size // cfg.factor},
        source=source,
        entries=[
            entry
            for name in ("first", "last")
            for entry in layout.under(table, leaf=f"{name}/", name=f"super_res_{name}/")
        ],
        abstract={"first": one, "last": one},
    )


def decoder_entries(cfg: DecoderConfig) -> list[Entry]:
    """Tensors of the text projection and of the U-Net."""
    projection = [
        Entry("null_z", "learned_classifier_free_guidance_embeddings"),
        *linear("text_to_emb", "embedding_proj"),
        *linear("z_to_emb", "clip_image_embeddings_project_to_time_embeddings"),
        *linear("z_to_tokens", "clip_extra_context_tokens_proj"),
        *linear("text_in", "encoder_hidden_states_proj"),
        *norm("text_norm", "text_encoder_hidden_states_norm"),
    ]
    return layout.under(projection, name="text_proj/") + layout.under(
        unet.entries(cfg.unet), name="decoder/"
    )


def _config(folders: Folders, name: str) -> tuple[dict[str, Any], str]:
    """A component's config and where it lies.

    Raises:
        UserError: the component is not there.
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
    text = clip.config(settings, where=where)
    if "image_encoder" not in folders:
        return text
    settings, where = _config(folders, "image_encoder")
    return clip.merged(text, clip.config(settings, where=where))


def _clip(folders: Folders, cfg: ClipConfig) -> Part:
    sources, table = {}, []
    for tower, name in (("text", "text_encoder"), ("image", "image_encoder")):
        if tower in cfg.towers:
            alone = clip.tower(cfg, tower)
            sources[name] = clip.tidy(open_source(folders[name]), alone)
            table += layout.under(clip.entries(alone), name=f"{name}/")
    return clip_part(cfg, joined(str(folders["text_encoder"].parent), sources), table)


def _prior(folders: Folders, text: ClipConfig) -> Part:
    settings, where = _config(folders, "prior")
    cfg = prior.config(settings, vocab_size=text.vocab_size, where=where)
    if (cfg.embed_dim, cfg.clip_text_width) != (text.embed_dim, text.text_width):
        raise UserError(
            f"{where} has embedding_dim {cfg.embed_dim}; the text encoder gives embeddings of "
            f"{text.embed_dim} and features of {text.text_width}. They do not belong together."
        )
    source = open_source(folders["prior"])
    lost = [name for name in prior.STATISTICS if name not in source.shapes]
    if lost:
        raise UserError(f"{source.where} lacks {', '.join(lost)}; copy the prior's files again.")
    mean, std = (source.read(name) for name in prior.STATISTICS)
    return prior_part(
        cfg,
        source.without(prior.STATISTICS),
        statistics=(mean, std),
        scheduler=_scheduler(folders, "prior_scheduler", "scheduler"),
    )


def _decoder(folders: Folders, text: ClipConfig) -> Part:
    settings, where = _config(folders, "text_proj")
    configs.kind(settings, TEXT_PROJ, where=where)
    tokens, z_dim, emb, width = configs.need(settings, TEXT_PROJ_SIZES, where=where)
    network = unet.config(_config(folders, "decoder")[0], where=_config(folders, "decoder")[1])
    pairs = {
        "clip_embeddings_dim": (z_dim, text.embed_dim),
        "time_embed_dim": (emb, network.emb_width),
        "cross_attention_dim": (width, network.context_width),
    }
    for name, (value, expected) in pairs.items():
        if value != expected:
            raise UserError(
                f"{where} has {name} {value}; the text encoder and the decoder beside it need "
                f"{expected}. They do not belong together."
            )
    cfg = DecoderConfig(
        unet=network,
        z_dim=z_dim,
        text_width=width,
        text_depth=0,
        text_heads=0,
        context=text.context,
        vocab_size=text.vocab_size,
        num_z_tokens=tokens,
        padding="mask",
        caption="clip_sequence",
        clip_text_width=text.text_width,
    )
    sources = {name: open_source(folders[name]) for name in ("text_proj", "decoder")}
    source = joined(str(folders["decoder"].parent), sources)
    return decoder_part(cfg, source, scheduler=_scheduler(folders, "decoder_scheduler"))


def _upsampler(folders: Folders, text: ClipConfig) -> Part:
    (first, where), (last, _) = (
        _config(folders, f"super_res_{name}") for name in ("first", "last")
    )
    cfg = unet.config(first, where=where)
    if cfg != unet.config(last, where=where):
        raise UserError(f"{where} and the one of super_res_last differ; expected equal networks.")
    base = unet.config(*_config(folders, "decoder")[:1], where="decoder").image_size
    if cfg.image_size % base:
        raise UserError(
            f"{where} has sample_size {cfg.image_size}, no multiple of the decoder's {base}."
        )
    names = ("super_res_first", "super_res_last")
    source = joined(
        str(folders[names[0]].parent), {name: open_source(folders[name]) for name in names}
    )
    upsampler = UpsamplerConfig(cfg, factor=cfg.image_size // base, interpolation="cubic")
    return upsampler_part(upsampler, source, scheduler=_scheduler(folders, "super_res_scheduler"))


MAKERS = {"prior": _prior, "decoder": _decoder, "upsampler_256": _upsampler}
