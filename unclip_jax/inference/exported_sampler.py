"""The sampler as one file, run without the model code.

    artefact = open_artefact(pathlib.Path("shapes.unclip"))
    images = artefact.draw(["a red circle"], seed=0)        # uint8 [1, h, w, 3]

A file holds StableHLO of the whole way from tokens to pixels once per batch size, the weights,
and the tokenizers. This module reads it with JAX, NumPy and the tokenizers alone: Flax and
`unclip_jax.models` are not needed to run it. StableHLO written by one version of JAX
can be read for at least six months of later ones (JAX's promise for `jax.export`).
"""

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
from jaxtyping import Array, UInt8

from unclip_jax.core.checks import UserError, in_range
from unclip_jax.data import text

FORMAT_VERSION = 1
CARD, WEIGHTS, TOKENIZER = "card.json", "weights.bin", "tokenizer.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """The description of an artefact.

    Attributes:
        batch_sizes: of the programs, ascending.
        contexts: context lengths of the stages that read token ids, in the order of the program's
            arguments.
        image_size: side of the images.
        platforms: that the programs were compiled for: cpu, cuda, tpu.
        weights: name, type, shape and offset in the file of every array, by name.
        sha256: of all weights.
        models: name and CLIP of the models.
        options: sampling settings.
        code_version: version of unclip_jax that wrote the file.
        jax_version: of JAX, likewise.
        tokenizers: number of the tokenizer of each of these stages; () = one for all.
        format_version: of this record.
    """

    batch_sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    image_size: int
    platforms: tuple[str, ...]
    weights: dict[str, Any]
    sha256: str
    models: dict[str, Any]
    options: dict[str, Any]
    code_version: str
    jax_version: str
    tokenizers: tuple[int, ...] = ()
    format_version: int = FORMAT_VERSION


class Artefact:
    """An open file, which samples images of captions."""

    def __init__(
        self,
        card: Card,
        *,
        weights: dict[str, Array],
        programs: dict[int, export.Exported],
        tokenizers: Sequence[text.Tokenizer],
    ):
        """Use `open_artefact`; `tokenizers` are those of the stages that read token ids."""
        self.card = card
        self._weights, self._tokenizers = weights, tokenizers
        self._run = {size: jax.jit(program.call) for size, program in programs.items()}

    def draw(self, captions: Sequence[str], *, seed: int = 0) -> UInt8[np.ndarray, " b h w 3"]:
        """Samples one image per caption; image i depends on (seed, i) alone.

        Raises:
            UserError: there are no captions, or the seed is out of range.
        """
        in_range("number of captions", len(captions), 1, 100_000)
        in_range("seed", seed, 0, 2**31 - 1)
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


def open_artefact(path: pathlib.Path) -> Artefact:
    """Opens a file of `python -m unclip_jax.bundle`.

    Raises:
        UserError: it is another file, damaged, of another version, or for other devices.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            card = _card(json.loads(archive.read(CARD)), path)
            blob = archive.read(WEIGHTS)
            programs = {size: archive.read(program_name(size)) for size in card.batch_sizes}
            numbers = card.tokenizers or (0,) * len(card.contexts)
            files = {number: archive.read(tokenizer_name(number)) for number in set(numbers)}
            stored = {number: text.Tokenizer(json.loads(file)) for number, file in files.items()}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is not an artefact ({error}); give a file that `python -m unclip_jax.bundle` "
            "wrote."
        ) from None
    if hashlib.sha256(blob).hexdigest() != card.sha256:
        raise UserError(f"the weights in {path} are damaged; copy the file again.")
    device = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
    if device not in card.platforms:
        raise UserError(
            f"{path} is for {', '.join(card.platforms)}, but JAX runs on {device} here; write it "
            f"again with --platforms={device}."
        )
    weights = {name: _array(blob, entry) for name, entry in card.weights.items()}
    loaded = {size: export.deserialize(bytearray(data)) for size, data in programs.items()}
    tokenizers = [stored[number] for number in numbers]
    return Artefact(card, weights=weights, programs=loaded, tokenizers=tokenizers)


def program_name(batch_size: int) -> str:
    """Returns the name of one program inside the file."""
    return f"batch{batch_size}.stablehlo"


def tokenizer_name(number: int) -> str:
    """Returns the name of one tokenizer inside the file."""
    return f"tokenizer{number}.json" if number else TOKENIZER


def _card(stored: Any, path: pathlib.Path) -> Card:
    version = stored.get("format_version") if isinstance(stored, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {version!r}, but {FORMAT_VERSION} is read here; write it "
            "again with `python -m unclip_jax.bundle`."
        )
    lists = {name: value for name, value in stored.items() if isinstance(value, list)}
    try:
        return Card(**{**stored, **{name: tuple(value) for name, value in lists.items()}})
    except TypeError as error:
        raise UserError(f"{path} has a damaged card ({error}); copy the file again.") from None


def _array(blob: bytes, entry: dict[str, Any]) -> Array:
    dtype = jnp.dtype(entry["dtype"])
    count = int(np.prod(entry["shape"], dtype=np.int64))
    flat = np.frombuffer(blob, dtype, count=count, offset=entry["offset"])
    return jnp.asarray(flat.reshape(entry["shape"]))
