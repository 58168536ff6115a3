"""Writer of embeddings in the layout that `embeddings` reads, one atomic shard after another.

A shard counts as written when its metadata is there, because that file is renamed into place last;
after an interruption the writer goes on behind the last such shard.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from unclip_jax.core import digests
from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.core.files import atomic_path, write_atomically
from unclip_jax.data.embeddings import (
    DIGEST,
    FILES,
    KINDS,
    OURS,
    STATS,
    EmbeddingSource,
    Stats,
    Vectors,
    measure,
    read_stats,
    read_table,
)


class EmbeddingWriter:
    """Writes embeddings in order; `written` is the number of examples already on disk."""

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        info: dict[str, Any],
        shard_size: int = 65536,
        dtype: str = "float32",
    ):
        """Continues in `directory`, or starts there.

        Args:
            directory: made if missing.
            info: JSON-ready; where the embeddings come from (CLIP, data set, tokenizer). A folder
                is continued only with equal info.
            shard_size: rows per shard.
            dtype: "float32", or "float16" for half the space.

        Raises:
            UserError: `directory` holds embeddings of another origin.
        """
        self.directory = pathlib.Path(directory)
        self._size = positive("shard_size", shard_size)
        self._dtype = np.dtype(one_of("dtype", dtype, ("float32", "float16")))
        self._info = json.loads(json.dumps(info))
        self._shards = 0
        self._pending: dict[str, list[Any]] = {"key": [], "caption": [], "z_img": [], "z_txt": []}
        self.written: int = 0
        self._start()

    def add(
        self, keys: Sequence[str], captions: Sequence[str], *, z_img: Vectors, z_txt: Vectors
    ) -> None:
        """Adds rows and writes every shard that is full.

        Raises:
            UserError: the lengths differ, or a value is not finite.
        """
        if not len(keys) == len(captions) == len(z_img) == len(z_txt):
            raise UserError(
                f"embeddings do not match: {len(keys)} keys, {len(captions)} captions, "
                f"{len(z_img)} z_img, {len(z_txt)} z_txt."
            )
        if not (np.isfinite(z_img).all() and np.isfinite(z_txt).all()):
            raise UserError(
                f"an embedding near {keys[0]!r} is not finite; the CLIP export is damaged or its "
                "training diverged."
            )
        rows = {"key": keys, "caption": captions, "z_img": z_img, "z_txt": z_txt}
        for name, values in rows.items():
            self._pending[name].extend(values)
        while len(self._pending["key"]) >= self._size:
            self._flush()

    def finish(self) -> EmbeddingSource:
        """Writes the last shard and the statistics, and opens the result."""
        if self._pending["key"]:
            self._flush()
        self._write_stats({"info": self._info})
        source = EmbeddingSource(self.directory)
        stats = {field: _to_json(measure(source, field)) for field in source.fields}
        files = digests.of_files(self.directory, self._files())
        self._write_stats({**stats, "info": self._info, "finished": True, FILES: files})
        return source

    def _files(self) -> list[str]:
        """Returns the paths of all shards, relative to the folder."""
        kinds = [(kind, "npy") for kind in KINDS.values()] + [("metadata", "parquet")]
        paths = [self._path(k, i, suffix) for k, suffix in kinds for i in range(self._shards)]
        return [path.relative_to(self.directory).as_posix() for path in paths]

    def _start(self) -> None:
        """Finds the complete shards and marks the folder as unfinished."""
        for name in (*KINDS.values(), "metadata"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        while self._path("metadata", self._shards, "parquet").is_file():
            table = read_table(self._path("metadata", self._shards, "parquet"))
            self._shards, self.written = self._shards + 1, self.written + table.num_rows
        before = read_stats(self.directory).get("info", {}) if self._shards else self._info
        for name in sorted(before.keys() | self._info.keys()):
            digests = before.get(name), self._info.get(name)
            if name == "data_digest" and all(digests) and digests[0] != digests[1]:
                raise UserError(
                    f"{self.directory} holds embeddings of other records: their data_digest is "
                    f"{digests[0][:12]}, that of this data {digests[1][:12]}; choose another "
                    "folder or delete it."
                )
            if before.get(name) != self._info.get(name):
                raise UserError(
                    f"{self.directory} holds embeddings with {name} = {before.get(name)!r}, now it "
                    f"is {self._info.get(name)!r}; choose another folder or delete it."
                )
        self._write_stats({"info": self._info, "finished": False})

    def _path(self, kind: str, index: int, suffix: str) -> pathlib.Path:
        return self.directory / kind / f"{kind}_{index:04d}.{suffix}"

    def _flush(self) -> None:
        """Writes one shard, metadata last, because its presence makes the shard complete."""
        rows = {name: values[: self._size] for name, values in self._pending.items()}
        self._pending = {name: values[self._size :] for name, values in self._pending.items()}
        for field, kind in KINDS.items():
            path = self._path(kind, self._shards, "npy")
            with atomic_path(path) as partial, partial.open("wb") as file:
                np.save(file, np.stack(rows[field]).astype(self._dtype))
        table = pyarrow.table({"key": rows["key"], "caption": rows["caption"]})
        table = table.replace_schema_metadata({OURS: STATS})
        with atomic_path(self._path("metadata", self._shards, "parquet")) as partial:
            pyarrow.parquet.write_table(table, partial)
        self._shards, self.written = self._shards + 1, self.written + len(rows["key"])

    def _write_stats(self, content: dict[str, Any]) -> None:
        sealed = {**content, DIGEST: digests.of_json(content)}
        write_atomically(self.directory / STATS, json.dumps(sealed))


def _to_json(stats: Stats) -> dict[str, Any]:
    record = dataclasses.asdict(stats)
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in record.items()}
