"""A whole cascade of random `tiny` stages, exported into a folder as training would do it."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import pytest

from tests.stages import tiny
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.handoff import export
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.stages import clip, registry
from unclip_jax.stages.clip import ClipStageConfig
from unclip_jax.tokenization import caption_tokenizer

CAPTIONS = ["a red circle", "a blue square above a green star", "three pink rings"]
NAMES = ("clip", "prior", "decoder", "upsampler_256")


def tokenizer():
    return caption_tokenizer.train(CAPTIONS, vocab_size=600)


def tokenizers(cascade):
    """One tokenizer for all stages of a cascade."""
    words = tokenizer()
    return {stage.name: words for stage in cascade.stages}


def write(
    folder: pathlib.Path,
    *,
    names: tuple[str, ...] = NAMES,
    files: Mapping[str, str] | None = None,
    reads_clip: bool = False,
) -> pathlib.Path:
    """Export one untrained cascade of the stages `names`; returns the run directory.

    The networks are those of `tiny`, of one block and one level each (`small`).

    `files` names the experiment of a stage whose file is not called like its folder. With
    `reads_clip` prior and decoder read CLIP's features and raw embeddings, as Karlo's do.
    """
    words = tokenizer()
    words.save(folder / "tokenizer")
    facts = {"tokenizer_hash": words.hash}
    for name in names:
        experiment = tiny.experiment((files or {}).get(name, name))
        if name not in ("dvae", "dalle", "classifier"):  # small as they are
            experiment = dataclasses.replace(experiment, model=small(experiment.model))
        entry = registry.folder_entry(name)
        if reads_clip and name in ("prior", "decoder"):
            experiment = dataclasses.replace(experiment, model=karlo_kind(experiment.model))
        stage = experiment.build_stage()
        fields = entry.required_fields(experiment.model)
        mine = {field: value for field, value in facts.items() if field in fields}
        card = Manifest(stage=stage.name, size="tiny", step=0, **stage.describe, **mine)
        manifest = export.write_export(
            folder / name / "export",
            params=tiny.random_params(stage),
            manifest=card,
            tokenizer_dir=folder / "tokenizer" if "tokenizer_hash" in fields else None,
            identity=entry.identity,
        )
        if entry.identity:
            facts[entry.identity] = getattr(manifest, entry.identity)
    return folder


def write_guide(folder: pathlib.Path) -> None:
    """Exports a noise-aware CLIP of the decoder's chain and size beside a cascade, as "guide"."""
    model = dataclasses.replace(tiny.experiment("clip").model.model, image_size=16, reads_time=True)
    stage = clip.make(ClipStageConfig(model, tiny.experiment("decoder").model.diffusion))
    words = caption_tokenizer.load(folder / "tokenizer")
    card = Manifest(stage="clip", size="tiny", step=0, tokenizer_hash=words.hash, **stage.describe)
    export.write_export(
        folder / "guide" / "export",
        params=tiny.random_params(stage),
        manifest=card,
        tokenizer_dir=folder / "tokenizer",
        identity="clip_id",
    )


def karlo_kind(cfg: Any) -> Any:
    """The config of a prior or a decoder, changed to read CLIP's features and raw embeddings."""
    width = tiny.experiment("clip").model.model.text_width
    reads = {"caption": "clip_sequence", "clip_text_width": width, "padding": "mask"}
    if hasattr(cfg, "embedding"):
        model = dataclasses.replace(cfg.model, **reads)
        return dataclasses.replace(cfg, model=model, drop_text=0.0, embedding="raw")
    model = dataclasses.replace(cfg.model, **reads, null="empty")
    z_mean, z_std = (0.5,) * model.embed_dim, (2.0,) * model.embed_dim
    return dataclasses.replace(cfg, model=model, drop_text=0.0, z_mean=z_mean, z_std=z_std)


def small(cfg: Any) -> Any:
    """The config of a stage with transformers of one block and a U-Net of one level.

    Tracing and compiling such a chain takes two thirds of the time that the `tiny` one takes.
    """
    depths = ("depth", "text_depth", "image_depth")
    changes: dict[str, Any] = {name: 1 for name in depths if getattr(cfg.model, name, 0)}
    if hasattr(cfg.model, "unet"):
        unet = cfg.model.unet
        unet = dataclasses.replace(unet, topology="efficient", multiples=(1,), depth=1)
        attention_at = unet.sides if unet.attention_at else ()
        changes["unet"] = dataclasses.replace(unet, attention_at=attention_at)
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **changes))


def share_engines(patch: pytest.MonkeyPatch, *, most: int = 4096) -> None:
    """Opens the same models once, so that commands of one process share compiled programs.

    Batches have at most `most` images.
    """
    open_engine = functools.cache(InferenceEngine.open)

    def open_once(
        path: str | pathlib.Path, *, prior: str = "prior", batch: int = 16, enlarges: bool = False
    ):
        return open_engine(path, prior=prior, batch=min(batch, most), enlarges=enlarges)

    patch.setattr(InferenceEngine, "open", open_once)
