"""Features of captions on disk, in bfloat16, looked up by the token ids of a caption.

A folder contains numbered shards, each with the captions of some records in three files:
`features_0000.npy` [tokens, width], features of the real tokens only, bfloat16 stored as uint16;
`lengths_0000.npy` [captions]; and `digests_0000.npy` [captions, 16], BLAKE2b of the token ids,
which is written last. `info.json` contains the text encoder, the data set and whether all shards
are written. Because captions are looked up by their tokens, the features serve any data set with
these captions: shuffled, mixed or with several captions per image.
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
from unclip_jax.core.checks import UserError, listed
from unclip_jax.core.files import atomic_path, open_array, read_small, write_shared

INFO, FINISHED = "info.json", "finished"
DIGEST_BYTES = 16
_PLACE = np.dtype([("shard", np.uint32), ("start", np.uint32), ("length", np.uint32)])
BFLOAT16 = jnp.dtype("bfloat16")
ADVICE = "compute them again with `python -m unclip_jax.embed text`."


def digest(tokens: Int[np.ndarray, " l"]) -> bytes:
    """Returns the digest of the real tokens of a caption."""
    return hashlib.blake2b(tokens.astype("<i4").tobytes(), digest_size=DIGEST_BYTES).digest()


class TextFeatureFolder:
    """A folder of features that any number of processes write, shard by shard in any order."""

    def __init__(self, directory: pathlib.Path, *, info: dict[str, Any]):
        """Opens or creates `directory`, and continues what is there.

        Args:
            directory: folder of the features, shared by all processes.
            info: origin of the features (the encoder and the data set), JSON-ready.

        Raises:
            UserError: the folder contains features of another encoder or data set.
        """
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        stored = read_info(directory) if (directory / INFO).is_file() else {}
        self._info = json.loads(json.dumps(info))
        for name in sorted(self._info) if stored else ():
            if stored.get(name) != self._info[name]:
                raise UserError(
                    f"{directory} holds features with {name} = {stored.get(name)!r}, now it is "
                    f"{self._info[name]!r}; choose another folder or delete it."
                )
        self.finished = bool(stored.get(FINISHED))
        if not stored:
            self._write_info({FINISHED: False})

    def is_written(self, index: int) -> bool:
        """True if shard `index` is complete."""
        return self._path("digests", index).is_file()

    def write(
        self,
        index: int,
        tokens: Sequence[Int[np.ndarray, "..."]],
        features: Sequence[Float[np.ndarray, "... d"]],
    ) -> None:
        """Writes a shard of captions: the real tokens of each, and one feature vector per token."""
        digests = [np.frombuffer(digest(row), np.uint8) for row in tokens]
        empty = np.zeros((0, int(self._info["width"])), BFLOAT16)
        flat = np.concatenate([empty, *features]).astype(BFLOAT16).view(np.uint16)
        lengths = np.array([len(row) for row in tokens], np.int32)
        stacked = np.array(digests, np.uint8).reshape(-1, DIGEST_BYTES)
        parts = {"features": flat, "lengths": lengths, "digests": stacked}
        for name, array in parts.items():
            with atomic_path(self._path(name, index)) as partial, partial.open("wb") as file:
                np.save(file, array)

    def complete(self, count: int, *, partial: bool = False) -> None:
        """Marks the folder of `count` shards as complete.

        Args:
            count: number of shards.
            partial: True leaves the folder as it is while shards are missing that another job
                writes.

        Raises:
            UserError: a shard is missing.
        """
        missing = [str(index) for index in range(count) if not self.is_written(index)]
        if missing and not partial:
            raise UserError(
                f"{self.directory} lacks the shards {listed(missing, most=5, separator=', ')} of "
                f"{count}; run the same command again, with a folder that all processes share."
            )
        if not missing and not self.finished:
            self._write_info({FINISHED: True, "captions": self.captions()})
            self.finished = True

    def captions(self) -> int:
        """Returns the number of captions in complete shards."""
        return sum(len(open_array(path, advice=ADVICE)) for path in _shards(self.directory))

    def _path(self, name: str, index: int) -> pathlib.Path:
        return self.directory / f"{name}_{index:04d}.npy"

    def _write_info(self, facts: dict[str, Any]) -> None:
        write_shared(self.directory / INFO, json.dumps({**self._info, **facts}))


class TextFeatureStore:
    """Features of captions, memory-mapped; a caption takes 36 bytes of memory."""

    def __init__(self, directory: pathlib.Path):
        """Opens a folder.

        Raises:
            UserError: the folder has no features, or is incomplete.
        """
        self.directory, self.info = directory, read_info(directory)
        if not self.info.get(FINISHED):
            raise UserError(
                f"{directory} is half-written; run the same `embed text` command again."
            )
        self._arrays, digests, places = [], [], []
        for number, path in enumerate(_shards(directory)):
            suffix = path.name.removeprefix("digests")
            names = (directory / f"{name}{suffix}" for name in ("lengths", "features", "digests"))
            lengths, features, rows = (open_array(name, advice=ADVICE) for name in names)
            self._arrays.append(features)
            digests.append(rows.reshape(-1, DIGEST_BYTES))
            ends = np.cumsum(lengths)
            if len(self._arrays[-1]) != lengths.sum() or len(lengths) != len(digests[-1]):
                raise UserError(
                    f"the files of a shard in {directory} have different lengths; {ADVICE}"
                )
            rows = np.zeros(len(lengths), _PLACE)
            rows["shard"], rows["start"], rows["length"] = number, ends - lengths, lengths
            places.append(rows)
        joined = np.concatenate(digests).view(f"V{DIGEST_BYTES}").reshape(-1)
        beginnings = np.concatenate(digests)[:, :8].copy().view(np.uint64).reshape(-1)
        order = np.argsort(beginnings, kind="stable")
        self._beginnings, self._digests = beginnings[order], joined[order]
        self._places = np.concatenate(places)[order]

    def __len__(self) -> int:
        return len(self._places)

    def batch(
        self, tokens: Int[np.ndarray, " b l"], mask: Bool[np.ndarray, " b l"]
    ) -> Float[np.ndarray, " b l d"]:
        """Returns the features of a batch of captions; zeros at padding.

        Raises:
            UserError: the features of a caption are not stored.
        """
        out = np.zeros((*tokens.shape, int(self.info["width"])), BFLOAT16)
        for row, (ids, real) in enumerate(zip(tokens, mask, strict=True)):
            place = self._find(digest(ids[real]))
            if place is None:
                raise UserError(
                    f"{self.directory} lacks the features of a caption of {int(real.sum())} "
                    "tokens; it was written for other captions or token ids. Compute those of this "
                    "data set in another folder, with `python -m unclip_jax.embed text`."
                )
            shard, start, length = (int(value) for value in place)
            out[row, :length] = self._arrays[shard][start : start + length].view(BFLOAT16)
        return out

    def _find(self, name: bytes) -> Any:
        """Returns the location of a caption's features; None if they are not stored."""
        beginning = np.frombuffer(name, np.uint64)[0]
        first = int(np.searchsorted(self._beginnings, beginning))
        for index in range(first, len(self)):
            if self._beginnings[index] != beginning:
                break
            if self._digests[index].tobytes() == name:
                return self._places[index]
        return None


def read_info(directory: pathlib.Path) -> dict[str, Any]:
    """Returns the origin of the features in a folder, and whether they are complete.

    Raises:
        UserError: the folder has no features.
    """
    path = directory / INFO
    if not path.is_file():
        raise UserError(
            f"no features of captions in {directory}; compute them with `python -m "
            "unclip_jax.embed text`."
        )
    return json_text.parse_object(read_small(path), where=str(path), advice=ADVICE)


def _shards(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(directory.glob("digests_*.npy"))
