"""From a run directory to a typed cascade and its parameters, refusing stages that do not fit."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from unclip_jax.core import trees
from unclip_jax.core.checks import UserError, one_of
from unclip_jax.core.config import build
from unclip_jax.core.stage import Stage
from unclip_jax.diffusion.analytic import VarianceTable
from unclip_jax.handoff import load, manifest, sidecar
from unclip_jax.handoff.manifest import Link, Manifest, require
from unclip_jax.inference.text_to_image import Cascade
from unclip_jax.stages import clip, prior, registry


class LoadedCascade(NamedTuple):
    """A cascade ready to sample.

    Attributes:
        cascade: typed configs.
        params: parameter trees as `text_to_image.sample` takes them.
        manifests: the manifest of every stage by name.
        tokenizer_dir: folder of the tokenizer that all text models share.
    """

    cascade: Cascade
    params: dict[str, Any]
    manifests: dict[str, Manifest]
    tokenizer_dir: pathlib.Path


class CascadeFiles(NamedTuple):
    """A cascade whose parameters are still on disk.

    Attributes:
        cascade: typed configs.
        readers: stage ("clip", "prior", "decoder", "upsampler_256", ...) -> reads its parameters,
            in the order in which stages draw.
        manifests: the manifest of every stage by name.
        tokenizer_dir: folder of the tokenizer that all text models share.
    """

    cascade: Cascade
    readers: dict[str, Callable[[], Any]]
    manifests: dict[str, Manifest]
    tokenizer_dir: pathlib.Path


def prior_names() -> tuple[str, ...]:
    """Returns the folders of the priors that a chain can have."""
    return tuple(registry.run_folders("prior"))


def find_stages(run_dir: pathlib.Path, *, required: Sequence[str]) -> dict[str, pathlib.Path]:
    """Returns all exports of a run directory by folder, in the order of a chain.

    Raises:
        UserError: a required one is missing.
    """
    return load.find_stages(run_dir, names=registry.run_folders(), required=required)


def load_cascade(run_dir: pathlib.Path, *, prior_name: str = "prior") -> LoadedCascade:
    """Load every exported stage of a run directory, with one of its priors.

    Args:
        run_dir: one folder per stage.
        prior_name: "prior" or "prior_ar"; the other is not looked at.

    Raises:
        UserError: a stage is missing, damaged, or does not fit the others.
    """
    found = find_cascade(run_dir, prior_name=prior_name)
    params = {name: read() for name, read in found.readers.items()}
    parts = {name: params.pop(name) for name in ("clip", "prior", "decoder")}
    parts["upsamplers"] = list(params.values())
    return LoadedCascade(found.cascade, parts, found.manifests, found.tokenizer_dir)


def find_cascade(run_dir: pathlib.Path, *, prior_name: str = "prior") -> CascadeFiles:
    """What `load_cascade` loads, without the parameters.

    Raises:
        UserError: a stage is missing, or does not fit the others.
    """
    one_of("prior", prior_name, prior_names())
    places = find_stages(run_dir, required=("clip", prior_name, "decoder"))
    others = {name for name in prior_names() if name != prior_name}
    places = {name: path for name, path in places.items() if name not in others}
    manifests = {name: load.read_manifest(path) for name, path in places.items()}
    cfgs = {name: _config(path, manifests[name]) for name, path in places.items()}
    entries = {name: registry.folder_entry(name) for name in places}
    manifest.check_chain(
        [Link(manifests[name], entries[name].shared_fields(cfgs[name])) for name in places]
    )
    cascade = Cascade(
        cfgs["clip"],
        cfgs[prior_name],
        cfgs["decoder"],
        tuple(cfgs[name] for name in registry.run_folders("upsampler") if name in cfgs),
        load_variance_table(places["prior"]) if prior_name == "prior" else None,
    )
    readers = {
        "prior" if name == prior_name else name: functools.partial(
            _params, path, manifests[name], entries[name].make(cfgs[name])
        )
        for name, path in places.items()
    }
    return CascadeFiles(cascade, readers, manifests, load.tokenizer_dir(places["clip"]))


def load_clip(directory: pathlib.Path) -> tuple[clip.ClipStageConfig, Any, Manifest]:
    """Load an exported CLIP alone: (config, parameters, manifest).

    Raises:
        UserError: there is no complete export in `directory`, or it is no CLIP.
    """
    card = load.read_manifest(directory)
    if card.stage != "clip":
        raise UserError(f"{directory} is a {card.stage}; give the export of a CLIP.")
    cfg, params = _stage(directory, card)
    return cfg, params, card


def load_prior(directory: pathlib.Path) -> tuple[prior.PriorStageConfig, Any, Manifest]:
    """Load an exported diffusion prior alone: (config, parameters, manifest).

    Raises:
        UserError: there is no complete export in `directory`, or it is no diffusion prior.
    """
    card = load.read_manifest(directory)
    if card.stage != "prior":
        raise UserError(f"{directory} is a {card.stage}; give the export of a diffusion prior.")
    cfg, params = _stage(directory, card)
    return cfg, params, card


def load_variance_table(directory: pathlib.Path) -> VarianceTable | None:
    """The variance table in the export of a prior; None if it has none.

    Raises:
        UserError: it is damaged.
    """
    stored = sidecar.read(directory, sidecar.VARIANCE)
    where = f"{directory}/{sidecar.VARIANCE}"
    return None if stored is None else build(VarianceTable, stored, where=where)


def abstract_params(stage: Stage) -> Any:
    """Shapes and types of a stage's parameters, unboxed, without allocating them."""
    return nn.meta.unbox(jax.eval_shape(stage.init, jax.random.key(0)))


def _stage(path: pathlib.Path, card: Manifest) -> tuple[Any, Any]:
    """Returns typed config and strictly loaded parameters of one export."""
    cfg = _config(path, card)
    return cfg, _params(path, card, registry.stage_entry(card.stage).make(cfg))


def _config(path: pathlib.Path, card: Manifest) -> Any:
    """Returns the typed config of an export whose manifest holds all that its stage requires."""
    entry = registry.stage_entry(card.stage)
    cfg = build(entry.config, card.config, where=f"{path}/manifest.json config")
    require(card, entry.required_fields(cfg))
    return cfg


def _params(path: pathlib.Path, card: Manifest, stage: Stage) -> Any:
    """Strictly loaded parameters of one export."""
    shapes, model = abstract_params(stage), card.config["model"]
    if model.get("unet", model).get("dtype") == "bfloat16":
        shapes = _as_stored(shapes, load.stored_shapes(path))
    return load.read_params(path, abstract=shapes)


def _as_stored(shapes: Any, stored: Any) -> Any:
    """`shapes` in the types in which they are stored.

    What was written in bfloat16 and computes in it need not take double the memory. A tree that
    does not fit is left for the reader to complain of.
    """
    types = {name: leaf.dtype for name, leaf in trees.flatten_paths(stored).items()}
    if types.keys() != trees.flatten_paths(shapes).keys():
        return shapes
    named = trees.flatten_paths(shapes).items()  # in the order of the leaves
    leaves = [jax.ShapeDtypeStruct(leaf.shape, types[name]) for name, leaf in named]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
