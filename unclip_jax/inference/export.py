"""Writing the sampler as one file that artefact.py runs: StableHLO, weights, tokenizer."""

import dataclasses
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from unclip_jax.core import trees
from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.core.files import atomic_path
from unclip_jax.core.picture import to_uint8
from unclip_jax.inference import exported, text_to_image
from unclip_jax.inference.exported import Card
from unclip_jax.inference.load import LoadedCascade
from unclip_jax.inference.text_to_image import Captions, Cascade, SampleOptions
from unclip_jax.version import __version__

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
MAX_BATCH = 1024


def write(
    path: pathlib.Path,
    loaded: LoadedCascade,
    *,
    batch_sizes: Sequence[int],
    options: SampleOptions | None = None,
    platforms: Sequence[str] = (),
    name: str = "",
) -> Card:
    """Write an artefact.

    Args:
        path: the file.
        loaded: the cascade.
        batch_sizes: one program each.
        options: overrides of the exported sampling settings; None = as exported.
        platforms: of `PLATFORMS`; () = the one JAX runs on.
        name: what the models are called.

    Raises:
        UserError: batch sizes or platforms without a meaning, or a place that cannot be written.
    """
    sizes, options = _checked(batch_sizes), options or SampleOptions()
    for platform in platforms:
        one_of("platform", platform, PLATFORMS)
    _make_room(path)
    here = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
    cascade, targets = loaded.cascade, tuple(platforms) or (here,)
    weights = trees.flatten_paths(loaded.params)
    entries, blob = _packed(weights)
    programs = {
        size: program(cascade, loaded.params, batch_size=size, options=options, platforms=targets)
        for size in sizes
    }
    card = Card(
        batch_sizes=sizes,
        contexts=contexts(cascade),
        image_size=cascade.image_size,
        platforms=targets,
        weights=entries,
        sha256=hashlib.sha256(blob).hexdigest(),
        models={"name": name, "clip_id": str(loaded.manifests["clip"].clip_id)},
        options=dataclasses.asdict(options),
        code_version=__version__,
        jax_version=jax.__version__,
    )
    _save(path, card, blob, programs, loaded.tokenizer_dir)
    return card


def contexts(cascade: Cascade) -> tuple[int, ...]:
    """Numbers of tokens that CLIP, prior and decoder read."""
    parts = (cascade.clip, cascade.prior, cascade.decoder)
    return tuple(part.model.context for part in parts)


def program(
    cascade: Cascade,
    params: dict[str, Any],
    *,
    batch_size: int,
    options: SampleOptions,
    platforms: Sequence[str],
) -> export.Exported:
    """The sampler for one batch size: (weights by name, tokens, seed, indices) -> uint8 images."""
    structure, names = jax.tree.structure(params), list(trees.flatten_paths(params))

    def run(weights, tokens, seed, indices):
        tree = jax.tree.unflatten(structure, [weights[name] for name in names])
        keys = text_to_image.keys_for(seed, indices)
        output = text_to_image.sample(cascade, tree, Captions(*tokens), keys, options=options)
        return to_uint8(output.images)

    shaped = jax.ShapeDtypeStruct
    weights = {n: shaped(x.shape, x.dtype) for n, x in trees.flatten_paths(params).items()}
    tokens = tuple(
        (shaped((batch_size, n), jnp.int32), shaped((batch_size, n), jnp.bool_))
        for n in contexts(cascade)
    )
    indices = shaped((batch_size,), jnp.int32)
    exporting = export.export(jax.jit(run), platforms=list(platforms))
    return exporting(weights, tokens, shaped((), jnp.int32), indices)


def _checked(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    if not batch_sizes:
        raise UserError("no batch sizes were given; give some such as 1,4.")
    for size in batch_sizes:
        in_range("batch size", size, 1, MAX_BATCH)
    return tuple(sorted(set(batch_sizes)))


def _make_room(path: pathlib.Path) -> None:
    """Find out before the work whether the folder can be there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; give another --out.") from None


def _packed(weights: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """All arrays one after the other, and where each is."""
    entries, blob = {}, bytearray()
    for name, leaf in weights.items():
        array = np.asarray(leaf)
        entries[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "offset": len(blob)}
        blob += array.tobytes()
        blob += bytes(-len(blob) % 64)
    return entries, bytes(blob)


def _save(
    path: pathlib.Path,
    card: Card,
    blob: bytes,
    programs: dict[int, export.Exported],
    tokenizer_dir: pathlib.Path,
) -> None:
    """Write the file at once or not at all.

    Raises:
        UserError: it cannot be written.
    """
    tokenizer = (tokenizer_dir / exported.TOKENIZER).read_bytes()
    try:
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr(exported.CARD, json.dumps(dataclasses.asdict(card), indent=1))
            archive.writestr(exported.WEIGHTS, blob)
            archive.writestr(exported.TOKENIZER, tokenizer)
            for size, exported_program in programs.items():
                archive.writestr(exported.program_name(size), bytes(exported_program.serialize()))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; give another --out.") from None
