"""Loads a cascade from a run directory, and rejects stages that do not fit together."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from unclip_jax.core import trees
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import build, check_limits
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Params
from unclip_jax.diffusion.analytic import VarianceTable
from unclip_jax.handoff import load, manifest, sidecar
from unclip_jax.handoff.export import TOKENIZER
from unclip_jax.handoff.manifest import Link, Manifest, require
from unclip_jax.inference import chain_selection
from unclip_jax.inference.cascade import Cascade, CascadeStage, check_slots
from unclip_jax.stages import clip, prior, registry, text_encoder
from unclip_jax.stages.classifier import ClassifierStageConfig
from unclip_jax.stages.dvae import DvaeStageConfig
from unclip_jax.stages.embedding_prior_config import EmbeddingPriorStageConfig
from unclip_jax.stages.entry import StageEntry
from unclip_jax.tokenization import caption_tokenizer
from unclip_jax.tokenization.caption_tokenizer import Tokenizer


class LoadedCascade(NamedTuple):
    """A cascade ready to sample.

    Attributes:
        cascade: its stages.
        params: parameters by name of the stage.
        manifests: by name of the stage.
        tokenizer_dirs: folder of a tokenizer for every stage that reads token ids, by its name.
        guide: a noise-aware CLIP or a classifier beside them (`guided_sampling.GuideModel`), if one
            was loaded.
    """

    cascade: Cascade
    params: dict[str, Params]
    manifests: dict[str, Manifest]
    tokenizer_dirs: dict[str, pathlib.Path]
    guide: Any = None

    @property
    def clip_id(self) -> str | None:
        """Identity of the CLIP that the stages share; None if no stage uses one."""
        ids = (manifest.clip_id for manifest in self.manifests.values())
        return next((clip_id for clip_id in ids if clip_id), None)


class CascadeFiles(NamedTuple):
    """A cascade whose parameters are still on disk.

    Attributes:
        cascade: its stages.
        readers: name of the stage -> reads its parameters, in sampling order.
        manifests: by name of the stage.
        tokenizer_dirs: folder of a tokenizer for every stage that reads token ids, by its name.
    """

    cascade: Cascade
    readers: dict[str, Callable[[], Params]]
    manifests: dict[str, Manifest]
    tokenizer_dirs: dict[str, pathlib.Path]


def load_cascade(
    run_dir: pathlib.Path, *, prior_name: str = "prior", enlarges: bool = False
) -> LoadedCascade:
    """Loads the exported stages of a run directory that form a chain.

    Args:
        run_dir: one folder per stage.
        prior_name: the prior to use of those that the run has, or the chain ("dalle"); a run need
            have no prior if no stage reads z_img.
        enlarges: True if upsamplers are enough, and the encoders that they read.

    Raises:
        UserError: a stage is missing, damaged, or does not fit the others.
    """
    files = find_cascade(run_dir, prior_name=prior_name, enlarges=enlarges)
    params = {name: read() for name, read in files.readers.items()}
    return LoadedCascade(files.cascade, params, files.manifests, files.tokenizer_dirs)


def find_cascade(
    run_dir: pathlib.Path, *, prior_name: str = "prior", enlarges: bool = False
) -> CascadeFiles:
    """Reads everything that `load_cascade` reads except the parameters.

    Raises:
        UserError: a stage is missing, or does not fit the others.
    """
    every = chain_selection.find_stages(run_dir, required=())
    selection = chain_selection.select(every, prior_name)
    exports = chain_selection.upsampler_exports(every) if enlarges else {}
    exports = exports or chain_selection.chain_exports(run_dir, every, selection, name=prior_name)
    manifests = {name: load.read_manifest(path) for name, path in exports.items()}
    decoders = [entry for name, entry in registry.run_folders("decoder").items() if name in every]
    if len({entry.chain for entry in decoders}) > 1:
        exports = chain_selection.own_upsamplers(exports, manifests)
    configs = {name: _config(path, manifests[name], name) for name, path in exports.items()}
    entries = {name: registry.folder_entry(name) for name in exports}
    chain_selection.check_complete(run_dir, exports, configs, selection)
    if getattr(configs.get("clip"), "diffusion", None) is not None:
        raise UserError(
            f"the clip of {run_dir} was trained on noised images, for guidance alone; give the "
            "run the CLIP that its embeddings come from."
        )
    manifest.check_chain(
        [Link(manifests[name], entries[name].shared_fields(configs[name])) for name in exports]
    )
    stages = tuple(
        CascadeStage(name, configs[name], _measurements(path, entries[name].sidecars))
        for name, path in exports.items()
    )
    readers = {
        name: functools.partial(_params, path, manifests[name], entries[name], configs[name])
        for name, path in exports.items()
    }
    check_slots(Cascade(stages))
    tokenizers = _tokenizer_dirs(Cascade(stages), exports, manifests)
    cascade = Cascade(tuple(_with_start(stage, tokenizers) for stage in stages))
    return CascadeFiles(cascade, readers, manifests, tokenizers)


def load_tokenizers(folders: Mapping[str, pathlib.Path]) -> dict[str, Tokenizer]:
    """Returns the tokenizer of each stage."""
    return {name: caption_tokenizer.load(folder) for name, folder in folders.items()}


def _with_start(stage: CascadeStage, tokenizers: Mapping[str, pathlib.Path]) -> CascadeStage:
    """Returns a stage that knows, if it encodes the empty caption, how its tokenizer begins one."""
    if "text_features" not in stage.entry.yields:
        return stage
    start = caption_tokenizer.load(tokenizers[stage.name]).start is not None
    facts = (*stage.measurements, (text_encoder.START, start))
    return dataclasses.replace(stage, measurements=facts)


def _measurements(
    path: pathlib.Path, sidecars: Mapping[str, tuple[str, type]]
) -> tuple[tuple[str, Any], ...]:
    """Returns the conditions in files beside the parameters of an export, where they exist."""
    records = {name: read_sidecar(path, file, kind=kind) for name, (file, kind) in sidecars.items()}
    return tuple((name, record) for name, record in records.items() if record is not None)


def _tokenizer_dirs(
    cascade: Cascade, exports: Mapping[str, pathlib.Path], manifests: Mapping[str, Manifest]
) -> dict[str, pathlib.Path]:
    """Returns the tokenizer of every stage that reads token ids: its own, or an equal one.

    Raises:
        UserError: a stage whose tokenizer no export of the run holds.
    """
    stored = {
        manifests[name].tokenizer_hash: load.tokenizer_dir(path)
        for name, path in reversed(list(exports.items()))
        if (load.locate(path) / TOKENIZER).is_dir()
    }
    return {
        stage.name: stored.get(manifests[stage.name].tokenizer_hash)
        or load.tokenizer_dir(exports[stage.name])
        for stage in cascade.stages
        if stage.entry.context(stage.config) is not None
    }


def load_clip(directory: pathlib.Path) -> tuple[clip.ClipStageConfig, Any, Manifest]:
    """Loads an exported CLIP alone: (config, parameters, manifest).

    Raises:
        UserError: there is no complete export in `directory`, or it is no CLIP.
    """
    return _load_stage(directory, "clip", article="a CLIP")


def clip_cascade(directory: pathlib.Path) -> LoadedCascade:
    """Loads an exported CLIP as a cascade of one stage, which embeds images and captions.

    Raises:
        UserError: there is no complete export in `directory`, or it is no CLIP.
    """
    cfg, params, card = load_clip(directory)
    cascade = Cascade((CascadeStage("clip", cfg, ()),))
    tokenizers = {"clip": load.tokenizer_dir(directory)}
    return LoadedCascade(cascade, {"clip": params}, {"clip": card}, tokenizers)


def load_text_encoder(
    directory: pathlib.Path,
) -> tuple[text_encoder.TextEncoderStageConfig, Any, Manifest]:
    """Loads an exported text encoder alone: (config, parameters, manifest).

    Raises:
        UserError: there is no complete export in `directory`, or it is of another stage.
    """
    return _load_stage(directory, "text_encoder", article="a text_encoder")


def load_prior(directory: pathlib.Path) -> tuple[prior.PriorStageConfig, Any, Manifest]:
    """Loads an exported diffusion prior alone: (config, parameters, manifest).

    Raises:
        UserError: there is no complete export in `directory`, or it is no diffusion prior.
    """
    return _load_stage(directory, "prior", article="a diffusion prior")


def load_dvae(directory: pathlib.Path) -> tuple[DvaeStageConfig, Any, Manifest]:
    """Loads an exported discrete VAE alone: (config, parameters, manifest).

    Raises:
        UserError: there is no complete export in `directory`, or it is of another stage.
    """
    return _load_stage(directory, "dvae", article="a dvae")


def load_classifier(directory: pathlib.Path) -> tuple[ClassifierStageConfig, Any, Manifest]:
    """Loads an exported classifier alone: (config, parameters, manifest).

    Raises:
        UserError: there is no complete export in `directory`, or it is of another stage.
    """
    return _load_stage(directory, "classifier", article="a classifier")


def load_embedding_prior(
    directory: pathlib.Path,
) -> tuple[EmbeddingPriorStageConfig, Any, Manifest]:
    """Loads an exported prior between two embedding spaces: (config, parameters, manifest).

    Raises:
        UserError: there is no complete export in `directory`, or it is of another stage.
    """
    return _load_stage(directory, "embedding_prior", article="an embedding_prior")


def _load_stage(directory: pathlib.Path, stage: str, *, article: str) -> tuple[Any, Any, Manifest]:
    """Loads the export of one stage."""
    card = load.read_manifest(directory)
    if card.stage != stage:
        raise UserError(f"{directory} is a {card.stage}; give the export of {article}.")
    cfg = _config(directory, card, stage)
    return cfg, _params(directory, card, registry.stage_entry(stage), cfg), card


def load_variance_table(directory: pathlib.Path) -> VarianceTable | None:
    """Returns the variance table in the export of a prior; None if it has none.

    Raises:
        UserError: it is damaged.
    """
    return read_sidecar(directory, sidecar.VARIANCE, kind=VarianceTable)


def read_sidecar(directory: pathlib.Path, name: str, *, kind: type) -> Any:
    """Returns the content of a file beside the parameters of an export; None without the file.

    Raises:
        UserError: it is damaged.
    """
    stored = sidecar.read(directory, name)
    return None if stored is None else build(kind, stored, where=f"{directory}/{name}")


def abstract_params(stage: Stage) -> Any:
    """Returns shapes and types of a stage's parameters, unboxed, without allocating them."""
    return nn.meta.unbox(jax.eval_shape(stage.init, jax.random.key(0)))


@functools.lru_cache(maxsize=64)
def _shapes(make: Callable[[Any], Stage], cfg: Any) -> Any:
    """Returns `abstract_params` of the stage of a config; tracing a large network takes seconds."""
    return abstract_params(make(cfg))


def stage_config(path: pathlib.Path, card: Manifest, entry: StageEntry) -> Any:
    """Returns the typed config of an exported stage, from which a network can be built.

    Raises:
        UserError: an unknown, missing or mistyped key, or sizes of which no network can be built.
    """
    where = f"{path}/manifest.json config"
    cfg = check_limits(build(entry.config, card.config, where=where), where=where)
    try:
        _shapes(entry.make, cfg)
    except UserError:
        raise
    except Exception as error:  # from any layer: sizes that do not divide, shapes that do not fit
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"{where} describes no network ({reason}); export the stage again."
        ) from None
    return cfg


def _config(path: pathlib.Path, card: Manifest, folder: str) -> Any:
    """Returns the typed config of the stage that a folder must hold, with a complete manifest.

    Raises:
        UserError: it holds another stage, or its manifest lacks a field.
    """
    entry = registry.folder_entry(folder)
    if card.stage != entry.name:
        raise UserError(
            f"{path} is a {card.stage}; the folder {folder} of a run must hold a {entry.name}."
        )
    cfg = stage_config(path, card, entry)
    require(card, entry.required_fields(cfg))
    return cfg


def _params(path: pathlib.Path, card: Manifest, entry: StageEntry, cfg: Any) -> Any:
    """Loads the parameters of one export strictly."""
    shapes, model = _shapes(entry.make, cfg), card.config["model"]
    if model.get("unet", model).get("dtype") == "bfloat16":
        shapes = _as_stored(shapes, load.stored_shapes(path))
    return load.read_params(path, abstract=shapes)


def _as_stored(shapes: Any, stored: Any) -> Any:
    """Returns `shapes` in the types in which they are stored.

    Parameters that were written in bfloat16 and compute in it need not take double the memory. A
    tree that does not fit is returned as it is, and rejected when it is read.
    """
    types = {name: leaf.dtype for name, leaf in trees.flatten_paths(stored).items()}
    if types.keys() != trees.flatten_paths(shapes).keys():
        return shapes
    named = trees.flatten_paths(shapes).items()  # in the order of the leaves
    leaves = [jax.ShapeDtypeStruct(leaf.shape, types[name]) for name, leaf in named]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
