"""Embeddings on disk in the layout of clip-retrieval and img2dataset, memory-mapped.

A folder holds `img_emb/img_emb_0000.npy`, `text_emb/text_emb_0000.npy` and
`metadata/metadata_0000.parquet` (columns key and caption) for shards 0, 1, ...; row i of each
belongs to the same example. `embedding_writer` adds `stats.json`: where the embeddings come from,
and, once all are written, their statistics. Folders that other tools wrote have none.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from jaxtyping import Float

from unclip_jax.core import digests, json_text
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import check_regular, read_small

KINDS = {"z_img": "img_emb", "z_txt": "text_emb"}
STATS = "stats.json"
OURS = b"unclip_jax"  # in the metadata of tables that belong to a STATS
# Entries of the statistics: the digest of every other file by its path, and of all entries.
FILES, DIGEST = "files", "digest"
REMEDY = "delete it, it will be computed again."
ADVICE = "copy the embeddings again, or make them again."
_CHUNK = 65536  # rows per step when statistics are taken

Vectors = Float[np.ndarray, " b z"]


@dataclasses.dataclass(frozen=True)
class Stats:
    """Statistics of one kind of embedding, over all rows as stored, in float64.

    Attributes:
        count: number of rows.
        mean: per dimension.
        std: per dimension (population).
        norm_mean: mean Euclidean length.
        norm_std: its standard deviation.
    """

    count: int
    mean: np.ndarray
    std: np.ndarray
    norm_mean: float
    norm_std: float


class EmbeddingSource:
    """Random access to embeddings: records with key, caption, and z_img and z_txt (float32)."""

    def __init__(self, directory: str | pathlib.Path, *, verify: bool = True):
        """Opens `directory`.

        Args:
            directory: the embeddings.
            verify: compares all files with their stored digests, where the folder has them.

        Raises:
            UserError: no or not all embeddings in the folder, files that were changed, or shards
                whose counts or dimensions disagree.
        """
        self.directory = pathlib.Path(directory)
        stored = read_stats(self.directory)
        if not stored.get("finished", True):
            raise UserError(
                f"{self.directory} is half-written; run the same `python -m unclip_jax.embed` "
                "command again."
            )
        if verify and FILES in stored:
            digests.check_files(self.directory, stored[FILES], advice=ADVICE)
        self._tables = stored_tables(self.directory)
        if not self._tables:
            raise UserError(
                f"no embeddings in {self.directory}: it has no metadata/metadata_0000.parquet; "
                "compute them with `python -m unclip_jax.embed`."
            )
        if not stored and any(OURS in (table.schema.metadata or {}) for table in self._tables):
            raise UserError(
                f"{self.directory} lacks {STATS}, which says where its embeddings come from; "
                f"{ADVICE}"
            )
        counts = [table.num_rows for table in self._tables]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._arrays: dict[str, list[np.ndarray]] = {}
        for field, kind in KINDS.items():
            paths = _numbered(self.directory / kind, "npy")
            if paths:
                self._arrays[field] = _open_arrays(paths, counts)
        if not self._arrays:
            raise UserError(f"{self.directory} has metadata but no img_emb or text_emb folder.")

    def __reduce__(self):
        return functools.partial(EmbeddingSource, verify=False), (self.directory,)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        table = self._tables[shard]
        record: dict[str, Any] = {
            "key": str(table["key"][row].as_py()),
            "caption": table["caption"][row].as_py() or "",
            "scene": "",
        }
        for field, arrays in self._arrays.items():
            record[field] = np.asarray(arrays[shard][row], np.float32)
        return record

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the embeddings in the folder, out of z_img and z_txt."""
        return tuple(self._arrays)

    def dim(self, field: str) -> int:
        """Returns the embedding size of `field`.

        Raises:
            UserError: the folder has no such embeddings.
        """
        if field not in self._arrays:
            raise UserError(
                f"{self.directory} has no {field} ({KINDS[field]}); embed the data again."
            )
        return int(self._arrays[field][0].shape[1])

    def vectors(self, field: str, start: int, stop: int) -> Vectors:
        """Returns rows start..stop of `field` as one float32 array."""
        self.dim(field)
        rows = []
        for shard, array in enumerate(self._arrays[field]):
            first = int(self._ends[shard]) - len(array)
            low, high = max(start - first, 0), min(stop - first, len(array))
            if low < high:
                rows.append(np.asarray(array[low:high], np.float32))
        return np.concatenate(rows) if rows else np.zeros((0, self.dim(field)), np.float32)

    def blocks(self, most: int, *, size: int = 8192) -> Iterator[dict[str, Vectors]]:
        """Yields all fields of at most `most` rows, `size` rows at a time.

        Where there are more rows, blocks lie evenly over them; the same ones every time.
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
        """Returns the statistics of `field`, from stats.json if its count fits, else computed."""
        entry = read_stats(self.directory).get(field)
        try:
            if not entry or entry["count"] != len(self):
                return measure(self, field)
            mean, std = (np.array(entry[name], np.float64) for name in ("mean", "std"))
            return Stats(len(self), mean, std, float(entry["norm_mean"]), float(entry["norm_std"]))
        except (LookupError, TypeError, ValueError):
            raise _damaged(self.directory / STATS) from None

    def groups(self) -> np.ndarray:
        """Returns the first row of every record, and the end: rows of one record have one key."""
        keys = np.concatenate([table["key"].to_numpy() for table in self._tables])
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        return np.append(starts, len(self))

    def info(self) -> dict[str, Any]:
        """Returns the origin of the embeddings (CLIP, tokenizer, data set); {} if unknown."""
        return read_stats(self.directory).get("info", {})


def read_stats(directory: pathlib.Path) -> dict[str, Any]:
    """Reads stats.json; returns {} if there is none.

    Raises:
        UserError: it is no JSON object, or was changed.
    """
    path = directory / STATS
    if not path.exists():
        return {}
    try:
        text = read_small(path)
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


def _damaged(path: pathlib.Path) -> UserError:
    return UserError(f"{path} is damaged; {REMEDY}")


def measure(source: EmbeddingSource, field: str) -> Stats:
    """Computes statistics in two float64 passes over all rows, means before deviations."""
    count = len(source)
    spans = [(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]
    total, norms = np.zeros(source.dim(field)), np.zeros(count)
    for start, stop in spans:
        rows = source.vectors(field, start, stop).astype(np.float64)
        total += rows.sum(axis=0)
        norms[start:stop] = np.sqrt((rows**2).sum(axis=1))
    mean = total / count
    squares = np.zeros_like(mean)
    for start, stop in spans:
        squares += ((source.vectors(field, start, stop) - mean) ** 2).sum(axis=0)
    return Stats(count, mean, np.sqrt(squares / count), float(norms.mean()), float(norms.std()))


def _numbered(folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """Returns the files `folder/folder_7.suffix` in the order of their numbers, padded or not.

    Raises:
        UserError: a number is missing or occurs twice.
    """
    pattern = re.compile(rf"{re.escape(folder.name)}_(\d+)\.{suffix}")
    numbered = [(int(m[1]), p) for p in folder.glob("*") if (m := pattern.fullmatch(p.name))]
    numbers = sorted(number for number, _ in numbered)
    if numbers != list(range(len(numbers))):
        raise UserError(f"{folder} holds shards {numbers}; they should count up from 0.")
    for _, path in numbered:
        check_regular(path)  # a named pipe would stop its reader
    return [path for _, path in sorted(numbered)]


def stored_tables(directory: pathlib.Path) -> list[pyarrow.Table]:
    """Reads the columns key and caption of every shard in order; see `read_table`."""
    return [read_table(path) for path in _numbered(directory / "metadata", "parquet")]


def read_table(path: pathlib.Path) -> pyarrow.Table:
    """Reads the columns key and caption, named as clip-retrieval or as img2dataset names them.

    Raises:
        UserError: the file cannot be read or has no keys.
    """
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}; make the embeddings again.") from error
    names = table.column_names
    key = next((name for name in ("key", "image_path") if name in names), None)
    if key is None:
        raise UserError(f"{path} has columns {names}; it needs 'key' or 'image_path'.")
    blank = pyarrow.array([""] * table.num_rows)
    caption = table["caption"] if "caption" in names else blank
    columns = pyarrow.table({"key": table[key], "caption": caption})
    return columns.replace_schema_metadata(table.schema.metadata)


def _open_arrays(paths: list[pathlib.Path], counts: list[int]) -> list[np.ndarray]:
    """Memory-maps arrays and compares them with the metadata.

    Raises:
        UserError: a file is missing, cut short, or of other rows or dimensions.
    """
    if len(paths) != len(counts):
        raise UserError(
            f"{paths[0].parent} has {len(paths)} shards, metadata has {len(counts)}; make the "
            "embeddings again."
        )
    arrays = []
    for path, count in zip(paths, counts, strict=True):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy's parser of headers raises anything
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(f"{path} cannot be read: {reason}; make it again.") from error
        if array.ndim != 2 or array.shape[0] != count:
            raise UserError(
                f"{path} has shape {list(array.shape)}, its metadata has {count} rows; make the "
                "embeddings again."
            )
        if arrays and array.shape[1] != arrays[0].shape[1]:
            raise UserError(
                f"{path} has dimension {array.shape[1]}, the first shard {arrays[0].shape[1]}; "
                "they come from different CLIPs."
            )
        arrays.append(array)
    return arrays
