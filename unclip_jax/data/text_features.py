"""Features of captions on disk, in bfloat16, found by the token ids of a caption.

A folder holds numbered shards of three files: `features_0000.npy` [tokens, width] with the features
of real tokens alone, bfloat16 as uint16; `lengths_0000.npy` [captions]; and `digests_0000.npy`
[captions, 16], BLAKE2b of the token ids, which is written last. `info.json` states the text encoder
and, at the end, that all are there. Being found by their tokens, the features serve any data set
with these captions, shuffled, mixed or with several captions per image.
"""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from unclip_jax.core import json_text
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import atomic_path, read_small, write_atomically

INFO, FINISHED = "info.json", "finished"
DIGEST_BYTES = 16
BFLOAT16 = jnp.dtype("bfloat16")
ADVICE = "make them again with `python -m unclip_jax.embed text`."


def digest(tokens: Int[np.ndarray, " l"]) -> bytes:
    """Returns the digest of the real tokens of a caption."""
    return hashlib.blake2b(tokens.astype("<i4").tobytes(), digest_size=DIGEST_BYTES).digest()


class TextFeatureWriter:
    """Writes features; an interrupted run continues behind its last complete shard."""

    def __init__(self, directory: pathlib.Path, *, info: dict[str, Any]):
        """Continues in `directory`, or starts there.

        Raises:
            UserError: the folder holds features of another encoder.
        """
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        stored = read_info(directory) if (directory / INFO).is_file() else info
        for name in sorted(info):
            if stored.get(name) != info[name]:
                raise UserError(
                    f"{directory} holds features with {name} = {stored.get(name)!r}, now it is "
                    f"{info[name]!r}; choose another folder or delete it."
                )
        self._info = info
        write_atomically(directory / INFO, json.dumps({**info, FINISHED: False}))
        self.digests = {bytes(row) for shard in _shards(directory) for row in np.load(shard)}
        self._count = len(_shards(directory))

    def add(
        self,
        tokens: Sequence[Int[np.ndarray, "..."]],
        features: Sequence[Float[np.ndarray, "... d"]],
    ) -> None:
        """Writes one shard of captions: their real tokens, and as many features each."""
        digests = np.stack([np.frombuffer(digest(row), np.uint8) for row in tokens])
        flat = np.concatenate(features).astype(BFLOAT16).view(np.uint16)
        lengths = np.array([len(row) for row in tokens], np.int32)
        parts = {"features": flat, "lengths": lengths, "digests": digests}
        for name, array in parts.items():
            path = self.directory / f"{name}_{self._count:04d}.npy"
            with atomic_path(path) as partial, partial.open("wb") as file:
                np.save(file, array)
        self._count += 1
        self.digests |= {row.tobytes() for row in digests}

    def finish(self) -> None:
        """States that all captions are there."""
        content = {**self._info, FINISHED: True, "captions": len(self.digests)}
        write_atomically(self.directory / INFO, json.dumps(content))


class TextFeatureStore:
    """Features of captions, memory-mapped."""

    def __init__(self, directory: pathlib.Path):
        """Opens a folder.

        Raises:
            UserError: there are no features, or not all.
        """
        self.directory, self.info = directory, read_info(directory)
        if not self.info.get(FINISHED):
            raise UserError(
                f"{directory} is half-written; run the same `embed text` command again."
            )
        self._arrays, self._places = [], {}
        for number, path in enumerate(_shards(directory)):
            suffix = path.name.removeprefix("digests")
            lengths = np.load(directory / f"lengths{suffix}")
            self._arrays.append(np.load(directory / f"features{suffix}", mmap_mode="r"))
            ends = np.cumsum(lengths)
            if not len(self._arrays[-1]) == ends[-1] or len(lengths) != len(np.load(path)):
                raise UserError(f"{directory} has shards that do not fit each other; {ADVICE}")
            for row, end, length in zip(np.load(path), ends, lengths, strict=True):
                self._places[row.tobytes()] = (number, int(end - length), int(end))

    def __len__(self) -> int:
        return len(self._places)

    def batch(
        self, tokens: Int[np.ndarray, " b l"], mask: Bool[np.ndarray, " b l"]
    ) -> Float[np.ndarray, " b l d"]:
        """Returns the features of a batch of captions, zeros behind them.

        Raises:
            UserError: a caption whose features are not stored.
        """
        out = np.zeros((*tokens.shape, int(self.info["width"])), BFLOAT16)
        for row, (ids, real) in enumerate(zip(tokens, mask, strict=True)):
            place = self._places.get(digest(ids[real]))
            if place is None:
                raise UserError(
                    f"{self.directory} lacks the features of a caption of {int(real.sum())} "
                    f"tokens; they are of other captions or token ids. Compute those of this data "
                    "set too, in another folder, with `python -m unclip_jax.embed text`."
                )
            shard, start, end = place
            out[row, : end - start] = self._arrays[shard][start:end].view(BFLOAT16)
        return out


def read_info(directory: pathlib.Path) -> dict[str, Any]:
    """Returns what a folder states about its features.

    Raises:
        UserError: it holds none.
    """
    path = directory / INFO
    if not path.is_file():
        raise UserError(f"no features of captions in {directory}; {ADVICE}")
    return json_text.parse_object(read_small(path), where=str(path), advice=ADVICE)


def _shards(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(directory.glob("digests_*.npy"))
