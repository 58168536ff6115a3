"""Data sets in folders written by `unclip_jax.prepare`: a manifest beside ArrayRecord shards."""

import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from unclip_jax.core.checks import UserError
from unclip_jax.data import dataset_manifest, records
from unclip_jax.data.dataset import Dataset
from unclip_jax.data.records import Record


def open_dataset(directory: str | pathlib.Path) -> Dataset:
    """Opens a folder written by `unclip_jax.prepare`.

    Raises:
        UserError: no such folder, or an unfinished one.
    """
    directory = pathlib.Path(directory)
    content = dataset_manifest.read(directory)
    tokenizer = directory / dataset_manifest.TOKENIZER
    return Dataset(
        splits=tuple(split.name for split in content.splits),
        open_split=lambda split: open_split(directory, split=split),
        tokenizer_dir=tokenizer if content.tokenizer and tokenizer.is_dir() else None,
        tokenizer_hash=content.tokenizer,
        prepared_dir=directory,
    )


def open_split(directory: str | pathlib.Path, *, split: str) -> "ShardSource":
    """Opens one split of a folder written by `unclip_jax.prepare`.

    Raises:
        UserError: no folder, an unfinished one, no such split, or shards missing or cut short.
    """
    directory = pathlib.Path(directory)
    entry = dataset_manifest.read(directory).split(split)
    paths = dataset_manifest.shard_paths(directory, entry)
    counts = [shard.count for shard in entry.shards if shard.count]
    source = ShardSource(paths, counts, digest=entry.hash, min_side=entry.min_side)
    source.check()  # cheap, and reports a half-copied data set before training starts
    return source


class ShardSource:
    """Records spread over ArrayRecord files; safe to read from many threads and to pickle."""

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        counts: Sequence[int],
        digest: str = "",
        min_side: int = 0,
    ):
        """Wraps `paths`, which hold `counts` records and are opened when first read.

        `digest` is the hash of all records, `min_side` the smallest shorter side of their images,
        as the manifest states them.
        """
        self.digest, self.min_side = digest, min_side
        self._paths = [str(path) for path in paths]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self):
        counts = np.diff(self._ends, prepend=0).tolist()
        paths = [pathlib.Path(path) for path in self._paths]
        return ShardSource, (paths, counts, self.digest, self.min_side)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[shard - 1]) if shard else 0
        try:
            data = self._reader(shard).read([index - start])[0]
        except RuntimeError as error:
            raise UserError(
                f"record {index - start} of {self._paths[shard]} is damaged; delete the file and "
                "run the same `prepare` command."
            ) from error
        return records.decode(data)

    def check(self) -> None:
        """Opens every file and compares its number of records.

        Raises:
            UserError: a file is damaged.
        """
        for shard in range(len(self._paths)):
            self._reader(shard)

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:
            with self._lock:
                if shard not in self._readers:
                    self._readers[shard] = self._open(shard)
        return self._readers[shard]

    def _open(self, shard: int) -> Any:
        options = ",".join(f"{k}:{v}" for k, v in records.READER_OPTIONS.items())
        expected = int(np.diff(self._ends, prepend=0)[shard])
        readable = records.count_records(pathlib.Path(self._paths[shard]))
        if readable != expected:
            raise UserError(
                f"{self._paths[shard]} has {readable} readable records, the manifest says "
                f"{expected}; copy it again, or run the same `prepare` command."
            )
        return array_record_module.ArrayRecordReader(self._paths[shard], options)
