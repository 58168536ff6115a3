"""Writes the sampler as one file that exported_sampler.py runs: StableHLO, weights, tokenizers."""

import dataclasses
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from unclip_jax.backbones import attention
from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.core import digests, trees
from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.core.files import atomic_path
from unclip_jax.core.picture import to_uint8
from unclip_jax.inference import exported_sampler, text_to_image
from unclip_jax.inference.cascade import Cascade
from unclip_jax.inference.exported_sampler import BundleCard
from unclip_jax.inference.load import LoadedCascade, load_tokenizers
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.tokenization.caption_tokenizer import Tokenizer
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
) -> BundleCard:
    """Writes a bundle.

    Args:
        path: the file.
        loaded: the cascade.
        batch_sizes: one program each.
        options: overrides of the exported sampling settings; None = as exported.
        platforms: names from `PLATFORMS`; () = the one that JAX runs on.
        name: name of the models.

    Raises:
        UserError: batch sizes or platforms that do not exist, or a place that cannot be written.
    """
    sizes, options = _checked(batch_sizes), options or SampleOptions()
    for platform in platforms:
        one_of("platform", platform, PLATFORMS)
    _make_folder(path)
    here = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
    cascade, targets = loaded.cascade, tuple(platforms) or (here,)
    readers = contexts(cascade)
    tokenizers = _distinct(load_tokenizers(loaded.tokenizer_dirs))
    weights = trees.flatten_paths(loaded.params)
    entries, blob = _packed(weights)
    members = {exported_sampler.WEIGHTS: blob}
    for number, reader in enumerate(tokenizers.first):
        tokenizer = loaded.tokenizer_dirs[reader] / exported_sampler.TOKENIZER
        members[exported_sampler.tokenizer_name(number)] = tokenizer.read_bytes()
    for size in sizes:
        compiled = program(
            cascade, loaded.params, batch_size=size, options=options, platforms=targets
        )
        members[exported_sampler.program_name(size)] = bytes(compiled.serialize())
    card = BundleCard(
        batch_sizes=sizes,
        contexts=tuple(readers.values()),
        tokenizers=tuple(tokenizers.numbers[reader] for reader in readers),
        image_size=cascade.image_size,
        platforms=targets,
        weights=entries,
        digests={member: digests.of_bytes(content) for member, content in members.items()},
        models={"name": name, "clip_id": str(loaded.clip_id)},
        options=dataclasses.asdict(options),
        code_version=__version__,
        jax_version=jax.__version__,
    )
    _save(path, card, members)
    return card


def contexts(cascade: Cascade) -> dict[str, int]:
    """Returns the context length of every stage that reads token ids, in sampling order."""
    lengths = {stage.name: stage.entry.context(stage.config) for stage in cascade.stages}
    return {name: length for name, length in lengths.items() if length is not None}


class _Tokenizers(NamedTuple):
    """The distinct tokenizers of a cascade.

    Attributes:
        first: for each of them, the first stage that uses it.
        numbers: stage -> number of its tokenizer.
    """

    first: list[str]
    numbers: dict[str, int]


def _distinct(tokenizers: Mapping[str, Tokenizer]) -> _Tokenizers:
    hashes = list(dict.fromkeys(tokenizer.hash for tokenizer in tokenizers.values()))
    numbers = {name: hashes.index(tokenizer.hash) for name, tokenizer in tokenizers.items()}
    first = [next(n for n, i in numbers.items() if i == number) for number in range(len(hashes))]
    return _Tokenizers(first, numbers)


def program(
    cascade: Cascade,
    params: dict[str, Any],
    *,
    batch_size: int,
    options: SampleOptions,
    platforms: Sequence[str],
) -> export.Exported:
    """Exports the sampler of one batch size: (weights, tokens, seed, indices) -> uint8 images."""
    structure, names = jax.tree.structure(params), list(trees.flatten_paths(params))
    lengths = contexts(cascade)

    def run(weights, tokens, seed, indices):
        tree = jax.tree.unflatten(structure, [weights[name] for name in names])
        keys = text_to_image.keys_for(seed, indices)
        captions = {name: TokenIds(*pair) for name, pair in zip(lengths, tokens, strict=True)}
        output = text_to_image.sample(cascade, tree, captions, keys, options=options)
        return to_uint8(output.images)

    shaped = jax.ShapeDtypeStruct
    weights = {n: shaped(x.shape, x.dtype) for n, x in trees.flatten_paths(params).items()}
    tokens = tuple(
        (shaped((batch_size, n), jnp.int32), shaped((batch_size, n), jnp.bool_))
        for n in lengths.values()
    )
    indices = shaped((batch_size,), jnp.int32)
    exporting = export.export(jax.jit(run), platforms=list(platforms))
    with attention.plain():  # the programs of all platforms share one trace
        return exporting(weights, tokens, shaped((), jnp.int32), indices)


def _checked(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    if not batch_sizes:
        raise UserError("there are no batch sizes; give some such as 1,4.")
    for size in batch_sizes:
        in_range("batch size", size, 1, MAX_BATCH)
    return tuple(sorted(set(batch_sizes)))


def _make_folder(path: pathlib.Path) -> None:
    """Creates the folder of the file before the work begins."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; give another --out.") from None


def _packed(weights: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Returns the place of every array, and all arrays one after the other."""
    entries, blob = {}, bytearray()
    for name, leaf in weights.items():
        array = np.asarray(leaf)
        entries[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "offset": len(blob)}
        blob += array.tobytes()
        blob += bytes(-len(blob) % 64)
    return entries, bytes(blob)


def _save(path: pathlib.Path, card: BundleCard, members: Mapping[str, bytes]) -> None:
    """Writes the file atomically.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr(exported_sampler.CARD, exported_sampler.sealed(card))
            for name, content in members.items():
                archive.writestr(name, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; give another --out.") from None
