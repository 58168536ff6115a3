"""Embeddings on disk in the layout of clip-retrieval and img2dataset, memory-mapped.

A folder contains `img_emb/img_emb_0000.npy`, `text_emb/text_emb_0000.npy` and
`metadata/metadata_0000.parquet` (columns key and caption) for shards 0, 1, ...; row i of each
belongs to the same example. `embedding_writer` adds `stats.json` with the origin of the embeddings
and, once all are written, their statistics. Folders written by other tools have none.

Arrays and tables are opened when a row of theirs is read; a limited number stays open.
"""

import functools
import pathlib
import re
import resource
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from jaxtyping import Int64

from unclip_jax.core import digests, json_text
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import check_regular, open_array, read_small
from unclip_jax.core.storage import Location, Url
from unclip_jax.data.embedding_stats import PartialMoments, Stats, Vectors, total

KINDS = {"z_img": "img_emb", "z_txt": "text_emb"}
STATS = "stats.json"
OURS = b"unclip_jax"  # in the metadata of tables in a folder with STATS
# Entries of the statistics: the digest of every other file by its path, and of all entries.
FILES, DIGEST = "files", "digest"
SHARDS = "shards"  # entry of the statistics: the numbers of rows of the shards
REMEDY = "delete it, it will be computed again."
ADVICE = "copy the embeddings again, or compute them again."
_CHUNK = 65536  # rows per step when statistics are computed
_TABLES = 32  # tables in memory at most
_ARRAYS = 16384  # arrays mapped at most; Linux allows a process 65,530 maps


class EmbeddingSource:
    """Random access to embeddings: records with key, caption, and z_img and z_txt (float32)."""

    def __init__(self, directory: str | pathlib.Path, *, verify: bool = True):
        """Opens `directory`.

        Args:
            directory: folder of the embeddings.
            verify: True compares all files with their stored digests, if the folder has them.

        Raises:
            UserError: the folder has no embeddings or is incomplete, its files were changed, or
                counts or dimensions of shards disagree.
        """
        folder = pathlib.Path(directory)
        self.directory: Location = folder
        stored = read_stats(folder)
        self._check_finished(stored)
        if verify and FILES in stored:
            digests.check_files(folder, stored[FILES], advice=ADVICE)
        self._metadata: Sequence[Location] = numbered(folder / "metadata", "parquet")
        if not self._metadata:
            raise UserError(
                f"no embeddings in {self.directory}: it has no metadata/metadata_0000.parquet; "
                "compute them with `python -m unclip_jax.embed`."
            )
        files = [_footer(path) for path in self._metadata]
        if not stored and any(OURS in (file.schema_arrow.metadata or {}) for file in files):
            raise UserError(
                f"{self.directory} lacks {STATS}, which says where its embeddings come from; "
                f"{ADVICE}"
            )
        counts = [file.metadata.num_rows for file in files]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._paths: dict[str, Sequence[Location]] = {}
        self._dims: dict[str, int] = {}
        for field, kind in KINDS.items():
            paths = numbered(folder / kind, "npy")
            if paths:
                self._paths[field] = paths
                self._dims[field] = _check_arrays(paths, counts)
        if not self._paths:
            raise UserError(
                f"{self.directory} has metadata but no img_emb or text_emb folder; {ADVICE}"
            )
        self._open_caches()

    def _check_finished(self, stored: dict[str, Any]) -> None:
        """Rejects embeddings that are not complete.

        Raises:
            UserError: according to their statistics, rows are missing.
        """
        if not stored.get("finished", True):
            raise UserError(
                f"{self.directory} is half-written; run the same `python -m unclip_jax.embed` "
                "command again."
            )

    def _read_stats(self) -> dict[str, Any]:
        return read_stats(self.directory)

    def _open_caches(self) -> None:
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = min(max(descriptors // 4, 16), _ARRAYS)
        self._array = functools.lru_cache(most)(self._open_array)
        self._table = functools.lru_cache(_TABLES)(self._open_table)

    def _open_array(self, field: str, shard: int) -> Any:
        return open_array(pathlib.Path(str(self._paths[field][shard])), advice="make it again.")

    def _open_table(self, shard: int) -> pyarrow.Table:
        return read_table(self._metadata[shard])

    def __getstate__(self) -> dict[str, Any]:
        caches = ("_array", "_table")
        return {name: value for name, value in vars(self).items() if name not in caches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_caches()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, row = self._place(index)
        table = self._table(shard)
        return {
            "key": str(table["key"][row].as_py()),
            "caption": table["caption"][row].as_py() or "",
            "scene": "",
            **self.row(index),
        }

    def row(self, index: int, fields: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Returns the embeddings of one row without its key and caption; None = all fields."""
        shard, row = self._place(index)
        names = self._paths if fields is None else fields
        return {f: np.asarray(self._array(f, shard)[row], np.float32) for f in names}

    def _place(self, index: int) -> tuple[int, int]:
        """Returns the shard of a row and the row's index within it.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the embeddings in the folder: z_img, z_txt or both."""
        return tuple(self._paths)

    def dim(self, field: str) -> int:
        """Returns the embedding size of `field`.

        Raises:
            UserError: the folder has no such embeddings.
        """
        if field not in self._paths:
            raise UserError(
                f"{self.directory} has no {field} ({KINDS[field]}); embed the data again."
            )
        return self._dims[field]

    def vectors(self, field: str, start: int, stop: int) -> Vectors:
        """Returns rows start..stop of `field` as one float32 array."""
        self.dim(field)
        rows = []
        first = int(np.searchsorted(self._ends, start, side="right"))
        for shard in range(first, len(self._ends)):
            begin = int(self._ends[shard - 1]) if shard else 0
            if begin >= stop:
                break
            array = self._array(field, shard)
            rows.append(np.asarray(array[max(start - begin, 0) : stop - begin], np.float32))
        return np.concatenate(rows) if rows else np.zeros((0, self.dim(field)), np.float32)

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored embeddings (that of the first field)."""
        return self._array(self.fields[0], 0).dtype

    def shard_keys(self) -> Iterator[list[str]]:
        """Yields the keys of every shard."""
        for shard in range(len(self._ends)):
            yield [str(key) for key in self._table(shard)["key"].to_pylist()]

    def take(self, field: str, rows: Int64[np.ndarray, " b"]) -> Vectors:
        """Returns the given rows of `field`, in any order, as one float32 array."""
        values = np.empty((len(rows), self.dim(field)), np.float32)
        for shard, places, numbers in self._by_shard(rows):
            values[places] = self._array(field, shard)[numbers]
        return values

    def take_keys(self, rows: Int64[np.ndarray, " b"]) -> list[str]:
        """Returns the keys of the given rows, in any order."""
        keys = [""] * len(rows)
        for shard, places, numbers in self._by_shard(rows):
            stored = self._table(shard)["key"].take(numbers).to_pylist()
            for place, key in zip(places, stored, strict=True):
                keys[place] = str(key)
        return keys

    def _by_shard(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields each shard, the positions in `rows` that it contains, and their indices in it."""
        shards = np.searchsorted(self._ends, rows, side="right")
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            begin = int(self._ends[shard - 1]) if shard else 0
            yield int(shard), places, rows[places] - begin

    def records(self) -> Int64[np.ndarray, " rows"] | None:
        """Returns the record of every row by number if only some records have a row; else None.

        Raises:
            UserError: a table cannot be read.
        """
        if "joined" not in self.info():
            return None
        return np.concatenate([_column(path, "record") for path in self._metadata])

    def blocks(self, most: int, *, size: int = 8192) -> Iterator[dict[str, Vectors]]:
        """Yields all fields of at most `most` rows, `size` rows at a time.

        If there are more rows, the blocks are evenly spaced, and the same in every call.
        """
        count = len(self)
        size = min(size, most)
        starts = range(0, count, size)
        if count > most:
            number = most // size
            starts = [i * count // number for i in range(number)]
        for start in starts:
            stop = min(start + size, count)
            yield {field: self.vectors(field, start, stop) for field in self.fields}

    def stats(self, field: str) -> Stats:
        """Returns the statistics of `field`, read from stats.json if its count matches."""
        entry = self._read_stats().get(field)
        try:
            if not entry or entry["count"] != len(self):
                return measure(self, field)
            mean, std = (np.array(entry[name], np.float64) for name in ("mean", "std"))
            return Stats(len(self), mean, std, float(entry["norm_mean"]), float(entry["norm_std"]))
        except (LookupError, TypeError, ValueError):
            raise _damaged(self.directory / STATS) from None

    def groups(self) -> np.ndarray:
        """Returns the first row of every record, then the end; rows of one record share a key."""
        starts, before = [], None
        for shard, end in enumerate(self._ends):
            keys = self._table(shard)["key"].to_numpy()
            if len(keys):
                new = np.concatenate([[keys[0] != before], keys[1:] != keys[:-1]])
                starts.append(int(end) - len(keys) + np.flatnonzero(new))
                before = keys[-1]
        return np.append(np.concatenate(starts), len(self))

    def info(self) -> dict[str, Any]:
        """Returns the origin of the embeddings (CLIP, tokenizer, data set); {} if unknown."""
        return self._read_stats().get("info", {})


def file_name(kind: str, index: int, suffix: str) -> str:
    """Returns the path of a file of shard `index` within the folder of embeddings."""
    return f"{kind}/{kind}_{index:04d}.{suffix}"


def read_stats(directory: Location) -> dict[str, Any]:
    """Reads stats.json; returns {} if it does not exist.

    Raises:
        UserError: it is not a JSON object, or was changed.
    """
    path = directory / STATS
    if not path.exists():
        return {}
    try:
        text = path.read_bytes() if isinstance(path, Url) else read_small(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {ADVICE}") from None
    stored = json_text.parse_object(text, where=str(path), advice=REMEDY)
    digest = stored.pop(DIGEST, None)  # none in files of version 0.1.0
    if digest is not None and not digests.skipped() and digest != digests.of_json(stored):
        raise UserError(f"{path} is damaged or was changed: its digest does not fit; {ADVICE}")
    files = stored.get(FILES, {})
    if not isinstance(stored.get("info", {}), dict) or not isinstance(files, dict):
        raise _damaged(path)
    return stored


def _damaged(path: Location) -> UserError:
    return UserError(f"{path} is damaged; {REMEDY}")


def measure(source: EmbeddingSource, field: str) -> Stats:
    """Computes statistics of all rows in one pass."""
    starts = range(0, len(source), _CHUNK)
    parts = (
        PartialMoments.of(source.vectors(field, i, min(i + _CHUNK, len(source)))) for i in starts
    )
    return total(parts).stats()


def numbered(folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """Returns the files `folder/folder_7.suffix` in the order of their numbers, padded or not.

    Raises:
        UserError: a number is missing or occurs twice.
    """
    pattern = re.compile(rf"{re.escape(folder.name)}_(\d+)\.{suffix}")
    numbered = [(int(m[1]), p) for p in folder.glob("*") if (m := pattern.fullmatch(p.name))]
    numbers = sorted(number for number, _ in numbered)
    if numbers != list(range(len(numbers))):
        raise UserError(f"{folder} holds shards {numbers}; they should count up from 0; {ADVICE}")
    for _, path in numbered:
        check_regular(path)  # reading a named pipe would block
    return [path for _, path in sorted(numbered)]


def _footer(path: Location) -> pyarrow.parquet.ParquetFile:
    """Reads the footer of a table, and checks that it has keys.

    Raises:
        UserError: the file cannot be read or has no keys.
    """
    try:
        with pyarrow.parquet.ParquetFile(_readable(path)) as file:
            key_column(path, file.schema_arrow.names)
            return file
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}; {ADVICE}") from error


def _readable(path: Location) -> Any:
    """Returns what PyArrow can read: the path, or the content of an object in a store."""
    return pyarrow.BufferReader(path.read_bytes()) if isinstance(path, Url) else path


def key_column(path: Location, names: Sequence[str]) -> str:
    """Returns the name of the column with the keys, as we, clip-retrieval or img2dataset name it.

    Raises:
        UserError: there is no such column.
    """
    key = next((name for name in ("key", "image_path") if name in names), None)
    if key is None:
        raise UserError(
            f"{path} has columns {[*names]}; it needs 'key' or 'image_path': rename the column "
            "with the keys."
        )
    return key


def read_table(path: Location) -> pyarrow.Table:
    """Reads keys and captions, from columns named as by clip-retrieval or by img2dataset.

    Raises:
        UserError: the file cannot be read or has no keys.
    """
    names = _footer(path).schema_arrow.names
    key = key_column(path, names)
    table = _columns(path, [key, *(["caption"] if "caption" in names else [])])
    blank = pyarrow.array([""] * table.num_rows)
    caption = table["caption"] if "caption" in names else blank
    return pyarrow.table({"key": table[key], "caption": caption})


def _column(path: Location, name: str) -> np.ndarray:
    return _columns(path, [name])[name].to_numpy()


def _columns(path: Location, names: list[str]) -> pyarrow.Table:
    """Reads some columns of a table.

    Raises:
        UserError: the file cannot be read or lacks a column.
    """
    try:
        return pyarrow.parquet.read_table(_readable(path), columns=names)
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}; {ADVICE}") from error


def _check_arrays(paths: list[pathlib.Path], counts: list[int]) -> int:
    """Compares the shapes of arrays with the metadata; returns their dimension.

    Raises:
        UserError: a file is missing or cut short, or its rows or dimension differ.
    """
    if len(paths) != len(counts):
        raise UserError(
            f"{paths[0].parent} has {len(paths)} shards, metadata has {len(counts)}; {ADVICE}"
        )
    dim = 0
    for path, count in zip(paths, counts, strict=True):
        array = open_array(path, advice="make it again.")
        if array.ndim != 2 or array.shape[0] != count:
            raise UserError(
                f"{path} has shape {list(array.shape)}, its metadata has {count} rows; {ADVICE}"
            )
        dim = dim or array.shape[1]
        if array.shape[1] != dim:
            raise UserError(
                f"{path} has dimension {array.shape[1]}, the first shard {dim}; they come from "
                "different CLIPs. Embed the data again with one of them."
            )
    return dim
