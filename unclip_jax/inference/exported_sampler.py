"""The sampler as one file, run without the model code.

    bundle = open_bundle(pathlib.Path("shapes.unclip"))
    images = bundle.draw(["a red circle"], seed=0)        # uint8 [1, h, w, 3]

A file contains the sampler from tokens to pixels as StableHLO, one program per batch size, with the
weights and the tokenizers. This module reads it with JAX, NumPy and the tokenizers alone: Flax and
`unclip_jax.models` are not needed to run it. StableHLO written by one version of JAX
can be read for at least six months of later ones (JAX's promise for `jax.export`).
"""

import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, UInt8

from unclip_jax.core import config as typed
from unclip_jax.core import digests, json_text
from unclip_jax.core.checks import UserError, check_seed, in_range, listed
from unclip_jax.core.files import check_regular
from unclip_jax.tokenization import caption_tokenizer

FORMAT_VERSION = 2
READABLE = (1, 2)  # version 1 had the digest of the weights alone
CARD, WEIGHTS, TOKENIZER = "card.json", "weights.bin", "tokenizer.json"
ADVICE = "copy the file again, or write it with `python -m unclip_jax.bundle`."
MAX_SIZE = 2**20  # of a batch or a context
DIGEST = "digest"  # of all entries of the card but itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class BundleCard:
    """The description of a bundle.

    Attributes:
        batch_sizes: batch sizes of the programs, ascending.
        contexts: context lengths of the stages that read token ids, in the order of the program's
            arguments.
        image_size: side of the images.
        platforms: targets of the programs: cpu, cuda, tpu.
        weights: name, type, shape and offset in the file of every array, by name.
        digests: SHA-256 of every other member of the file, by name.
        models: name and CLIP of the models.
        options: sampling settings.
        code_version: version of unclip_jax that wrote the file.
        jax_version: version of JAX that wrote the file.
        tokenizers: number of the tokenizer of each of these stages; () = one for all.
        format_version: version of this description.
    """

    batch_sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    image_size: int
    platforms: tuple[str, ...]
    weights: dict[str, Any]
    digests: dict[str, str]
    models: dict[str, Any]
    options: dict[str, Any]
    code_version: str
    jax_version: str
    tokenizers: tuple[int, ...] = ()
    format_version: int = FORMAT_VERSION


class Bundle:
    """An open bundle, which samples images for captions."""

    def __init__(
        self,
        card: BundleCard,
        *,
        weights: dict[str, Array],
        programs: dict[int, export.Exported],
        tokenizers: Sequence[caption_tokenizer.Tokenizer],
    ):
        """Wraps what `open_bundle` reads; `tokenizers`: one per stage that reads token ids."""
        self.card = card
        self._weights, self._tokenizers = weights, tokenizers
        self._run = {size: jax.jit(program.call) for size, program in programs.items()}

    def draw(self, captions: Sequence[str], *, seed: int = 0) -> UInt8[np.ndarray, " b h w 3"]:
        """Samples one image per caption; image i depends on (seed, i) alone.

        Raises:
            UserError: there are no captions, or the seed is out of range.
        """
        in_range("number of captions", len(captions), 1, 100_000)
        check_seed("seed", seed)
        parts, start = [], 0
        while start < len(captions):
            size = self._size_for(len(captions) - start)
            parts.append(self._batch(captions, start, size, seed))
            start += size
        return np.concatenate(parts)[: len(captions)]

    def _size_for(self, left: int) -> int:
        """Returns the batch size of the largest program that is filled, or the smallest."""
        fitting = [size for size in self.card.batch_sizes if size <= left]
        return fitting[-1] if fitting else self.card.batch_sizes[0]

    def _batch(self, captions: Sequence[str], start: int, size: int, seed: int) -> np.ndarray:
        indices = np.arange(start, start + size, dtype=np.int32)
        batch = [captions[min(i, len(captions) - 1)] for i in indices.tolist()]
        readers = zip(self._tokenizers, self.card.contexts, strict=True)
        tokens = tuple(tokenizer.encode(batch, length=length) for tokenizer, length in readers)
        return np.asarray(self._run[size](self._weights, tokens, np.int32(seed), indices))


def open_bundle(path: pathlib.Path) -> Bundle:
    """Opens a file that `python -m unclip_jax.bundle` wrote.

    Raises:
        UserError: it is another file, damaged, of another version, or for other devices.
    """
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            _check_stored(archive, path)
            card = _card(archive.read(CARD), path)
            numbers = card.tokenizers or (0,) * len(card.contexts)
            names = _member_names(card, numbers)
            members = {name: archive.read(name) for name in names}
    except (OSError, KeyError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is not a bundle ({error}); give a file that `python -m unclip_jax.bundle` "
            "wrote."
        ) from None
    _verify(members, card, path)
    device = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
    if device not in card.platforms:
        raise UserError(
            f"{path} is for {', '.join(card.platforms)}, but JAX runs on {device} here; write it "
            f"again with --platforms={device}."
        )
    try:
        blob = members[WEIGHTS]
        weights = {name: _array(blob, entry) for name, entry in card.weights.items()}
        programs = {
            size: export.deserialize(bytearray(members[program_name(size)]))
            for size in card.batch_sizes
        }
        stored = {
            n: caption_tokenizer.Tokenizer(json.loads(members[tokenizer_name(n)]))
            for n in set(numbers)
        }
    except Exception as error:  # of NumPy, of JAX's reader and of the tokenizers' library
        raise UserError(f"{path} is damaged ({_first_line(error)}); copy the file again.") from None
    tokenizers = [stored[number] for number in numbers]
    return Bundle(card, weights=weights, programs=programs, tokenizers=tokenizers)


open_artefact = open_bundle  # the name of version 0.1.0


def program_name(batch_size: int) -> str:
    """Returns the name of one program inside the file."""
    return f"batch{batch_size}.stablehlo"


def tokenizer_name(number: int) -> str:
    """Returns the name of one tokenizer inside the file."""
    return f"tokenizer{number}.json" if number else TOKENIZER


def sealed(card: BundleCard) -> str:
    """Returns a card as JSON with its digest."""
    fields = typed.as_dict(card)
    return json.dumps({**fields, DIGEST: digests.of_json(fields)}, indent=1)


def _member_names(card: BundleCard, numbers: Sequence[int]) -> list[str]:
    names = [WEIGHTS, *(program_name(size) for size in card.batch_sizes)]
    return [*names, *(tokenizer_name(number) for number in sorted(set(numbers)))]


def _check_stored(archive: zipfile.ZipFile, path: pathlib.Path) -> None:
    """Rejects members that claim more bytes than the file has; bundles are not compressed."""
    total = sum(member.file_size for member in archive.infolist())
    if total > path.stat().st_size:
        raise UserError(f"{path} is not a bundle: its members are larger than the file; {ADVICE}")


def _card(text: bytes, path: pathlib.Path) -> BundleCard:
    """Parses and checks a card; one of version 1 had `sha256`, of the weights."""
    stored = json_text.parse_object(text, where=f"the card of {path}", advice=ADVICE)
    version = stored.get("format_version")
    if type(version) is not int or version not in READABLE:
        raise UserError(
            f"{path} has format_version {version!r}, but {' and '.join(map(str, READABLE))} are "
            "read here; write it again with `python -m unclip_jax.bundle`."
        )
    digest = stored.pop(DIGEST, None)
    if version > 1 or digest is not None:
        if not digests.skipped() and digest != digests.of_json(stored):
            raise UserError(f"{path} is damaged or was changed: the digest of its card; {ADVICE}")
    else:
        stored["digests"] = {WEIGHTS: stored.pop("sha256", "")}
    card = typed.build(BundleCard, stored, where=f"the card of {path}")
    sizes = all(0 < size <= MAX_SIZE for size in (*card.batch_sizes, *card.contexts))
    if not card.batch_sizes or not sizes or len(card.tokenizers) not in (0, len(card.contexts)):
        raise UserError(f"{path} has a damaged card; {ADVICE}")
    return card


def _verify(members: dict[str, bytes], card: BundleCard, path: pathlib.Path) -> None:
    """Compares the members with the digests in the card.

    Raises:
        UserError: naming those that differ.
    """
    if digests.skipped():
        return
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        actual = dict(zip(members, pool.map(digests.of_bytes, members.values()), strict=True))
    stored = card.digests if card.format_version > 1 else {**actual, **card.digests}
    changed = [name for name in members if stored.get(name) != actual[name]]
    if changed:
        names = listed(changed, separator=", ")
        raise UserError(f"{path} is damaged or was changed: the digest of {names}; {ADVICE}")


def _array(blob: bytes, entry: Any) -> Array:
    dtype, shape, offset = jnp.dtype(entry["dtype"]), entry["shape"], entry["offset"]
    if not all(type(n) is int and n >= 0 for n in (*shape, offset)):
        raise ValueError(f"an array has shape {shape} at {offset}")
    flat = np.frombuffer(blob, dtype, count=math.prod(shape), offset=offset)
    return jnp.asarray(flat.reshape(shape))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
