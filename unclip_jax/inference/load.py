"""From a run directory to a typed cascade and its parameters, refusing stages that do not fit."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax

from unclip_jax.core import trees
from unclip_jax.core.checks import UserError, one_of
from unclip_jax.core.config import build
from unclip_jax.diffusion.analytic import VarianceTable
from unclip_jax.handoff import load, manifest, sidecar
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.inference.text_to_image import Cascade
from unclip_jax.stages import clip, decoder, prior, prior_ar, upsampler
from unclip_jax.stages.base import Stage

T = TypeVar("T")
UPSAMPLERS = ("upsampler_256", "upsampler_1024")
PRIORS: dict[str, tuple[type, Any]] = {
    "prior": (prior.PriorStageConfig, prior),
    "prior_ar": (prior_ar.PriorArStageConfig, prior_ar),
}


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
    one_of("prior", prior_name, PRIORS)
    places = load.find_stages(run_dir, required=("clip", prior_name, "decoder"))
    places = {name: at for name, at in places.items() if name == prior_name or name not in PRIORS}
    manifests = {name: load.read_manifest(path) for name, path in places.items()}
    manifest.check_chain(list(manifests.values()))
    kinds: dict[str, tuple[type, Any]] = {
        "clip": (clip.ClipStageConfig, clip),
        prior_name: PRIORS[prior_name],
        "decoder": (decoder.DecoderStageConfig, decoder),
        **dict.fromkeys(UPSAMPLERS, (upsampler.UpsamplerStageConfig, upsampler)),
    }
    cfgs = {name: _config(path, manifests[name], kinds[name][0]) for name, path in places.items()}
    cascade = Cascade(
        cfgs["clip"],
        cfgs[prior_name],
        cfgs["decoder"],
        tuple(cfgs[name] for name in UPSAMPLERS if name in cfgs),
        load_variance_table(places["prior"]) if prior_name == "prior" else None,
    )
    readers = {
        "prior" if name == prior_name else name: functools.partial(
            _params, path, manifests[name], kinds[name][1].make(cfgs[name])
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
    cfg, params = _stage(directory, card, clip.ClipStageConfig, clip)
    return cfg, params, card


def load_prior(directory: pathlib.Path) -> tuple[prior.PriorStageConfig, Any, Manifest]:
    """Load an exported diffusion prior alone: (config, parameters, manifest).

    Raises:
        UserError: there is no complete export in `directory`, or it is no diffusion prior.
    """
    card = load.read_manifest(directory)
    if card.stage != "prior":
        raise UserError(f"{directory} is a {card.stage}; give the export of a diffusion prior.")
    cfg, params = _stage(directory, card, prior.PriorStageConfig, prior)
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


def _stage(path: pathlib.Path, card: Manifest, config_type: type[T], module: Any) -> tuple[T, Any]:
    """Typed config and strictly loaded parameters of one export."""
    cfg = _config(path, card, config_type)
    return cfg, _params(path, card, module.make(cfg))


def _config(path: pathlib.Path, card: Manifest, config_type: type[T]) -> T:
    return build(config_type, card.config, where=f"{path}/manifest.json config")


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
