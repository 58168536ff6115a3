"""Data sets written by `unclip_jax.prepare`: a manifest and ArrayRecord shards.

They are in a local folder or in an object store.
"""

import collections
import os
import pathlib
import resource
import threading
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from jaxtyping import Int64

from unclip_jax.core import storage
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Location, Url
from unclip_jax.data import dataset_manifest, records, remote_shards, tar_index
from unclip_jax.data.dataset import Dataset
from unclip_jax.data.records import Record
from unclip_jax.data.remote_shards import RemoteShard


def open_dataset(directory: str | Location) -> Dataset:
    """Opens a folder written by `unclip_jax.prepare`, or its copy in an object store.

    Raises:
        UserError: there is no such folder, or its preparation did not finish.
    """
    place = storage.location(directory) if isinstance(directory, str) else directory
    content = dataset_manifest.read(place)
    return Dataset(
        splits=tuple(split.name for split in content.splits),
        open_split=lambda split: open_split(place, split=split),
        tokenizer_dir=_tokenizer_dir(place, content.tokenizer),
        tokenizer_hash=content.tokenizer,
        prepared_dir=place,
    )


def _tokenizer_dir(place: Location, digest: str) -> pathlib.Path | None:
    """Returns the folder of the tokenizer beside the data, or of a local copy; None without one."""
    folder = place / dataset_manifest.TOKENIZER
    if not digest:
        return None
    if isinstance(folder, Url):
        names = folder.files()
        return storage.local_copy(folder, names, key=f"tokenizers/{digest}") if names else None
    return folder if folder.is_dir() else None


def open_split(directory: str | Location, *, split: str) -> "ShardSource":
    """Opens one split of a folder written by `unclip_jax.prepare`.

    Local shards are all opened once, so that an incomplete copy is reported before training starts.
    Shards in an object store are opened when they are read, because opening one takes three
    requests.

    Raises:
        UserError: there is no such folder or split, its preparation did not finish, or shards are
            missing or cut short.
    """
    place = storage.location(directory) if isinstance(directory, str) else directory
    entry = dataset_manifest.read(place).split(split)
    paths = dataset_manifest.shard_paths(place, entry)
    counts = [shard.count for shard in entry.shards if shard.count]
    source = ShardSource(paths, counts, digest=entry.hash, min_side=entry.min_side)
    if not isinstance(place, Url):
        source.check()
    return source


_BEGINNING = 4096  # bytes of a record that contain its captions and key, except for very long ones
_OPEN = 4096  # local files at most; the index of 8,192 records takes 66 KB
_INDICES = 2**32  # bytes of memory for the indices of open objects
_OPENING = 16  # files that are opened concurrently, for storage of high latency


class ShardSource:
    """Records in ArrayRecord files or indices of tars; thread-safe and picklable.

    Files are opened when first read. At most `most_open` are open at a time, and the least recently
    read is closed first. The limit is a quarter of the file descriptors of this process and at most
    4,096; for objects in a store, the number whose indices take 4 GiB together.
    """

    def __init__(
        self,
        paths: Sequence[Location],
        counts: Sequence[int],
        digest: str = "",
        min_side: int = 0,
    ):
        """Wraps the files at `paths` with `counts` records each.

        `digest` is the hash of all records and `min_side` the smallest shorter side of their
        images, both from the manifest.
        """
        self.digest, self.min_side = digest, min_side
        self._paths = list(paths)
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._opening: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()
        self.most_open = _most_open(self._paths, self._ends)

    def __reduce__(self):
        counts = np.diff(self._ends, prepend=0).tolist()
        return ShardSource, (self._paths, counts, self.digest, self.min_side)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Record:
        shard, row = self._place(index)
        try:
            data = self._reader(shard).read([row])[0]
        except RuntimeError as error:
            raise UserError(
                f"record {row} of {self._paths[shard]} is damaged; delete the file and "
                "run the same `prepare` command."
            ) from error
        return records.decode(data)

    def without_image(self, index: int) -> Record:
        """Reads a record without its image; from a store only the first bytes if they suffice."""
        shard, row = self._place(index)
        reader = self._reader(shard)
        if isinstance(reader, RemoteShard):
            record = records.decode_strings(reader.beginning(row, _BEGINNING))
            if record is not None:
                return record
        return self[index]

    def check(self) -> None:
        """Opens every file and compares its number of records with the manifest.

        Raises:
            UserError: a file is damaged.
        """
        with futures.ThreadPoolExecutor(_OPENING) as pool:
            for _ in pool.map(self._reader, range(len(self._paths))):
                pass

    def _place(self, index: int) -> tuple[int, int]:
        """Returns the shard of a record and the record's index within it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _reader(self, shard: int) -> Any:
        with self._lock:
            if shard in self._readers:
                self._readers.move_to_end(shard)
                return self._readers[shard]
            opening = self._opening.setdefault(shard, threading.Lock())
        with opening:  # one thread opens the file, others wait for it
            if (reader := self._readers.get(shard)) is not None:
                return reader
            reader = self._open(shard)
            with self._lock:
                self._readers[shard] = reader
                self._opening.pop(shard, None)
                while len(self._readers) > self.most_open:  # closed when no thread reads it
                    self._readers.popitem(last=False)
        return reader

    def _open(self, shard: int) -> Any:
        path, expected = self._paths[shard], self._count(shard)
        if path.name.endswith(tar_index.SUFFIX):
            return _checked(path, tar_index.TarShard(path), expected)
        if isinstance(path, Url):
            return _checked(path, RemoteShard(path), expected)
        options = ",".join(f"{k}:{v}" for k, v in records.READER_OPTIONS.items())
        reader: Any = None
        try:
            reader = array_record_module.ArrayRecordReader(str(path), options)
            readable = reader.num_records()
        except RuntimeError:  # the index at the end of the file is damaged
            readable = 0
        if readable != expected:
            _check_descriptors(str(path))
            raise _wrong_count(path, readable, expected)
        return reader

    def _count(self, shard: int) -> int:
        return int(self._ends[shard]) - (int(self._ends[shard - 1]) if shard else 0)


def _most_open(paths: Sequence[Location], ends: Int64[np.ndarray, " shards"]) -> int:
    if not paths or not isinstance(paths[0], Url):
        return min(max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, 16), _OPEN)
    indexed = paths[0].name.endswith(tar_index.SUFFIX)
    row = tar_index.ROW_BYTES if indexed else remote_shards.ROW_BYTES
    return max(_INDICES * len(paths) // (row * max(int(ends[-1]), 1)), 16)


def _checked(path: Location, reader: Any, expected: int) -> Any:
    """Returns `reader` if it has `expected` records.

    Raises:
        UserError: it has more or fewer.
    """
    if reader.num_records() != expected:
        raise _wrong_count(path, reader.num_records(), expected)
    return reader


def _wrong_count(path: Location, readable: int, expected: int) -> UserError:
    return UserError(
        f"{path} has {readable} readable records, the manifest says {expected}; copy it again, or "
        "run the same `prepare` command."
    )


def _check_descriptors(path: str) -> None:
    """Checks that this process has file descriptors left.

    A reader that cannot open its file reports no records instead of the reason.

    Raises:
        UserError: hardly any are left.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        left = limit - len(os.listdir("/dev/fd"))
    except OSError:
        left = 0
    if left < 3 * _OPENING:
        raise UserError(
            f"cannot open {path}: this process may open {limit} files and has {limit - left} open; "
            "raise the limit, for example with `ulimit -n 65536`."
        )
