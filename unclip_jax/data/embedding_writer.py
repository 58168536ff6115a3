"""Writers of embeddings in the layout that `embeddings` reads.

`EmbeddingFolder` takes shards in any order, from any number of processes that share the folder. A
shard is complete when its report exists, because that file is renamed into place last. The report
contains the origin of the shard, its moments and the digests of its files. `complete` adds up the
reports, so no row is read twice. `EmbeddingWriter` takes rows in order instead.
"""

import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from unclip_jax.core import digests, json_text, storage
from unclip_jax.core.checks import UserError, listed, one_of, positive
from unclip_jax.core.files import atomic_path, write_atomically, write_shared
from unclip_jax.core.folder import Folder
from unclip_jax.core.storage import Location, Url
from unclip_jax.data.embedding_stats import PartialMoments, Vectors
from unclip_jax.data.embeddings import (
    DIGEST,
    FILES,
    KINDS,
    OURS,
    SHARDS,
    STATS,
    EmbeddingSource,
    file_name,
    read_stats,
)
from unclip_jax.data.remote_embeddings import open_embeddings

DTYPES = ("float16", "float32")
REPORTS = "reports"
_AT_ONCE = 32  # reports that are read concurrently


class EmbeddingFolder:
    """A folder of embeddings that is written shard by shard; `finished` is True once complete."""

    def __init__(
        self, directory: str | Location, *, info: Mapping[str, Any], dtype: str = "float16"
    ):
        """Opens or creates `directory`, and continues what is there.

        Args:
            directory: folder or URL; at a URL, shards are written to a temporary folder and then
                copied.
            info: origin of the embeddings (CLIP, data set, tokenizer), JSON-ready.
            dtype: "float16" or "float32"; shards of the other type are written again.

        Raises:
            UserError: `directory` contains embeddings of another origin.
        """
        self.directory = storage.location(directory) if isinstance(directory, str) else directory
        self._dtype = np.dtype(one_of("dtype", dtype, DTYPES))
        self._info = json.loads(json.dumps(info))
        self._origin = digests.of_json({**self._info, "dtype": dtype})
        if isinstance(self.directory, pathlib.Path):
            _make_folders(self.directory)
        stored = read_stats(self.directory)
        self.finished = bool(stored.get("finished", "info" in stored))
        if self.finished or self._names(REPORTS):
            _check_info(self.directory, stored.get("info", {}), self._info)
        elif stored.get("info") != self._info:
            self._write_stats({"info": self._info, "finished": False})

    def is_written(self, index: int) -> bool:
        """True if shard `index` is complete and has this folder's origin and type."""
        return self._report(index).get("origin") == self._origin

    def rows(self, index: int) -> int:
        """Returns the number of rows of a complete shard."""
        return int(self._report(index)["rows"])

    def write(
        self,
        index: int,
        *,
        keys: Sequence[str],
        captions: Sequence[str],
        vectors: Mapping[str, Vectors],
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes shard `index`, its report last.

        Args:
            index: number of the shard.
            keys: key of every row.
            captions: caption of every row.
            vectors: rows of z_img, z_txt or both.
            extra: further columns of the metadata.

        Raises:
            UserError: the lengths differ, or a value is not finite.
        """
        _check_rows(keys, captions, vectors)
        Folder(self.directory).remove([file_name(REPORTS, index, "json")])
        if not isinstance(self.directory, Url):
            self._write_files(self.directory, index, keys, captions, vectors, extra or {})
            return
        with tempfile.TemporaryDirectory(prefix="unclip_jax_") as drafts:
            local = pathlib.Path(drafts)
            _make_folders(local)
            for name in self._write_files(local, index, keys, captions, vectors, extra or {}):
                (self.directory / name).upload(local / name)

    def _write_files(
        self,
        folder: pathlib.Path,
        index: int,
        keys: Sequence[str],
        captions: Sequence[str],
        vectors: Mapping[str, Vectors],
        extra: Mapping[str, Any],
    ) -> list[str]:
        """Writes the files of a shard; returns their names, the report's last."""
        names, moments = [], {}
        for field, rows in vectors.items():
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(rows, self._dtype)
            if not np.isfinite(stored).all():
                raise UserError(
                    f"an embedding near {keys[0]!r} is too large for {self._dtype}; store float32."
                )
            names.append(file_name(KINDS[field], index, "npy"))
            with atomic_path(folder / names[-1]) as partial, partial.open("wb") as file:
                np.save(file, stored)
            moments[field] = PartialMoments.of(stored).to_json()
        table = pyarrow.table({"key": list(keys), "caption": list(captions), **extra})
        table = table.replace_schema_metadata({OURS: STATS})
        names.append(file_name("metadata", index, "parquet"))
        with atomic_path(folder / names[-1]) as partial:
            pyarrow.parquet.write_table(table, partial)
        files = digests.of_files(folder, names)
        report = {"origin": self._origin, "rows": len(keys), FILES: files, **moments}
        names.append(file_name(REPORTS, index, "json"))
        write_atomically(folder / names[-1], json.dumps(report))
        return names

    def missing(self, numbers: Sequence[int]) -> list[int]:
        """Returns the shards of `numbers` that are not complete; reads reports concurrently."""
        reports = zip(numbers, self._reports(numbers), strict=True)
        return [index for index, report in reports if report.get("origin") != self._origin]

    def finish(self, count: int) -> EmbeddingSource:
        """Completes and opens the folder of `count` shards; raises as `complete` does."""
        self.complete(count)
        if isinstance(self.directory, Url):
            return open_embeddings(self.directory)
        return EmbeddingSource(self.directory, verify=False)

    def complete(self, count: int, *, partial: bool = False) -> None:
        """Writes the statistics of `count` shards, after which the folder is complete.

        Args:
            count: number of shards.
            partial: True leaves the folder as it is while shards are missing that another job
                writes.

        Raises:
            UserError: a shard is missing, or there are more than `count`.
        """
        if self.finished:
            return
        moments: dict[str, PartialMoments] = {}
        files: dict[str, str] = {}
        rows, missing = [], []
        for index, report in enumerate(self._reports(range(count))):
            if report.get("origin") != self._origin:
                missing.append(str(index))
                continue
            rows.append(report["rows"])
            files |= report[FILES]
            for field in KINDS.keys() & report.keys():
                part = PartialMoments.from_json(report[field])
                moments[field] = moments[field] + part if field in moments else part
        if missing and partial:
            return
        if missing:
            raise UserError(
                f"{self.directory} lacks the shards {listed(missing, most=5, separator=', ')} of "
                f"{count}; run the same command again, with a folder that all processes share."
            )
        if len(self._names("metadata")) > count:
            raise UserError(
                f"{self.directory} holds further shards, of an earlier version; delete it and "
                "embed again."
            )
        if count:
            stats = {name: moments[name].stats().to_json() for name in KINDS if name in moments}
            entries = {**stats, "info": self._info, "finished": True, SHARDS: rows, FILES: files}
            self._write_stats(entries)
        self.finished = True

    def _reports(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yields the reports of some shards in order, reading several concurrently."""
        with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            for start in range(0, len(numbers), _AT_ONCE):
                yield from pool.map(self._report, numbers[start : start + _AT_ONCE])

    def _report(self, index: int) -> dict[str, Any]:
        """Reads the report of a shard; {} if there is none."""
        name = file_name(REPORTS, index, "json")
        text = Folder(self.directory).read(name)
        if text is None:
            return {}
        where = str(self.directory / name)
        return json_text.parse_object(text, where=where, advice="delete it.")

    def _names(self, kind: str) -> list[str]:
        """Returns the names of the files of one kind."""
        folder = self.directory / kind
        if isinstance(folder, Url):
            return folder.names()
        return [path.name for path in folder.iterdir() if path.suffix != ".tmp"]

    def _write_stats(self, content: dict[str, Any]) -> None:
        sealed = {**content, DIGEST: digests.of_json(content)}
        if isinstance(self.directory, Url):
            (self.directory / STATS).write_bytes(json.dumps(sealed).encode())
            return
        write_shared(self.directory / STATS, json.dumps(sealed))


def _make_folders(folder: pathlib.Path) -> None:
    for name in (*KINDS.values(), "metadata", REPORTS):
        (folder / name).mkdir(parents=True, exist_ok=True)


class EmbeddingWriter:
    """Writes embeddings in order; `written` is the number of rows already on disk."""

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        info: dict[str, Any],
        shard_size: int = 65536,
        dtype: str = "float32",
    ):
        """Opens or creates `directory`, and continues what is there.

        Args:
            directory: the folder.
            info: origin of the embeddings, as for `EmbeddingFolder`.
            shard_size: rows per shard.
            dtype: "float16" or "float32".

        Raises:
            UserError: `directory` contains embeddings of another origin.
        """
        self._folder = EmbeddingFolder(directory, info=info, dtype=dtype)
        self._size = positive("shard_size", shard_size)
        self._shards = 0
        self._pending: dict[str, list[Any]] = {"key": [], "caption": [], "z_img": [], "z_txt": []}
        self.written: int = 0
        if self._folder.finished:
            self.written = len(self._folder.finish(0))
        while not self._folder.finished and self._folder.is_written(self._shards):
            self.written += self._folder.rows(self._shards)
            self._shards += 1

    def add(
        self, keys: Sequence[str], captions: Sequence[str], *, z_img: Vectors, z_txt: Vectors
    ) -> None:
        """Adds rows and writes all full shards.

        Raises:
            UserError: the lengths differ, a value is not finite, or the folder is complete.
        """
        if self._folder.finished:
            raise UserError(f"{self._folder.directory} is complete; choose another folder.")
        _check_rows(keys, captions, {"z_img": z_img, "z_txt": z_txt})
        rows = {"key": keys, "caption": captions, "z_img": z_img, "z_txt": z_txt}
        for name, values in rows.items():
            self._pending[name].extend(values)
        while len(self._pending["key"]) >= self._size:
            self._flush()

    def finish(self) -> EmbeddingSource:
        """Writes the last shard and the statistics, and opens the folder."""
        if self._pending["key"]:
            self._flush()
        return self._folder.finish(self._shards)

    def _flush(self) -> None:
        """Writes one shard."""
        rows = {name: values[: self._size] for name, values in self._pending.items()}
        self._pending = {name: values[self._size :] for name, values in self._pending.items()}
        vectors = {field: np.stack(rows[field]) for field in KINDS}
        keys, captions = rows["key"], rows["caption"]
        self._folder.write(self._shards, keys=keys, captions=captions, vectors=vectors)
        self._shards, self.written = self._shards + 1, self.written + len(keys)


def _check_rows(
    keys: Sequence[str], captions: Sequence[str], vectors: Mapping[str, Vectors]
) -> None:
    """Checks that lengths agree and values are finite.

    Raises:
        UserError: they do not agree, or a value is NaN or infinite.
    """
    counts = {"keys": len(keys), "captions": len(captions)}
    counts |= {field: len(rows) for field, rows in vectors.items()}
    if len(set(counts.values())) > 1:
        stated = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UserError(
            f"embeddings have {stated}; pass one key, one caption and one row of each kind per "
            "example."
        )
    if not all(np.isfinite(rows).all() for rows in vectors.values()):
        raise UserError(
            f"an embedding near {keys[0]!r} is NaN or infinite; its model is damaged, or its "
            "training diverged. Use another export."
        )


def _check_info(directory: Location, stored: dict[str, Any], info: dict[str, Any]) -> None:
    """Checks that the embeddings in a folder have the same origin.

    Raises:
        UserError: an entry of `info` differs; the message names the first.
    """
    for name in sorted(stored.keys() | info.keys()):
        before, now = stored.get(name), info.get(name)
        if before == now:
            continue
        if name == "data_digest" and before and now:
            raise UserError(
                f"{directory} holds embeddings of other records: their data_digest is "
                f"{before[:12]}, that of this data {now[:12]}; choose another folder or delete it."
            )
        raise UserError(
            f"{directory} holds embeddings with {name} = {before!r}, now it is {now!r}; choose "
            "another folder or delete it."
        )
