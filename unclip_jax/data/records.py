"""The record format: captioned images as bytes, and ArrayRecord shards of them.

A record is a dict of "image" (encoded bytes) and the strings "caption", "key" and "scene" (JSON or
""); if an image has several captions, "captions" is the list of all of them. Its bytes are a magic
word, the length of a JSON header with all but the image, the header and the image, without pickle.
A shard is written under a `.tmp` name and renamed at the end, so every shard that exists is
complete.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from unclip_jax.core.checks import UserError
from unclip_jax.core.files import atomic_path

Record = dict[str, Any]

FIELDS = ("image", "caption", "key", "scene")
_MAGIC = b"UCJ1"
_PREFIX = struct.Struct("<4sI")
# One record per chunk makes random access fast; images are already compressed.
_WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = {"readahead_buffer_size": "0", "max_parallelism": "0"}


def encode(record: Record) -> bytes:
    """Returns the bytes of a record; "image" must be bytes, the other values JSON-ready."""
    strings = {name: value for name, value in record.items() if name != "image"}
    header = json.dumps(strings, ensure_ascii=False, sort_keys=True).encode()
    return _PREFIX.pack(_MAGIC, len(header)) + header + record["image"]


def decode(data: bytes) -> Record:
    """Inverts `encode`.

    Raises:
        UserError: the bytes have another format.
    """
    record, end = _strings(data)
    record["image"] = data[end:]
    return record


def decode_strings(beginning: bytes) -> Record | None:
    """Returns a record without its image from its first bytes; None if they do not suffice.

    Raises:
        UserError: the bytes have another format.
    """
    if len(beginning) < _PREFIX.size:
        return None
    _, size = _PREFIX.unpack_from(beginning)
    return _strings(beginning)[0] if _PREFIX.size + size <= len(beginning) else None


def _strings(data: bytes) -> tuple[Record, int]:
    """Returns everything but the image of an encoded record, and the position of the image."""
    try:
        magic, size = _PREFIX.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError(magic)
        end = _PREFIX.size + size
        return json.loads(data[_PREFIX.size : end]), end
    except (struct.error, ValueError) as error:
        raise UserError(
            "a stored record is not in this project's format; run unclip_jax.prepare on the "
            "original images."
        ) from error


def digest(record: Record) -> str:
    """Returns the sha256 of a record's image and strings, without embeddings joined to it."""
    present = (*FIELDS, "captions") if "captions" in record else FIELDS
    return hashlib.sha256(encode({name: record[name] for name in present})).hexdigest()


def shard_name(split: str, index: int, total: int) -> str:
    """Returns a file name such as `train-00000-of-00004.array_record`."""
    return f"{split}-{index:05d}-of-{total:05d}.array_record"


class ShardSummary(NamedTuple):
    """The number of records written, and the sha256 over their bytes in order."""

    written: int
    sha256: str


def digest_64(data: bytes) -> int:
    """Returns the first 64 bits of the SHA-256 of `data`."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


class RecordDigest:
    """The digest of a shard: sha256 of the lengths and bytes of its records in order."""

    def __init__(self):
        self._digest, self._count = hashlib.sha256(), 0

    def update(self, data: bytes) -> None:
        """Adds an encoded record."""
        self._digest.update(struct.pack("<Q", len(data)))
        self._digest.update(data)
        self._count += 1

    def summary(self) -> ShardSummary:
        """Returns the number of records so far and their digest."""
        return ShardSummary(self._count, self._digest.hexdigest())


def write_shard(path: pathlib.Path, records: Iterable[Record]) -> ShardSummary:
    """Writes all `records` to `path`, which exists only once the last one is on disk.

    Raises:
        UserError: the disk is full or the folder read-only; no partial file remains.
    """
    with atomic_path(path) as partial:
        summary = _write(partial, records)
        _sync(partial)
    return summary


def count_records(path: pathlib.Path) -> int:
    """Counts the records that can be read from the shard at `path`; 0 if it is damaged."""
    reader = None
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        return reader.num_records()
    except RuntimeError:  # the index at the end of the file is damaged
        return 0
    finally:
        if reader is not None:
            _close(reader)


def _write(path: pathlib.Path, records: Iterable[Record]) -> ShardSummary:
    digest = RecordDigest()
    with _writer_errors(path):
        writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    try:
        for record in records:
            data = encode(record)
            with _writer_errors(path):
                writer.write(data)
            digest.update(data)
    finally:
        with _writer_errors(path):
            writer.close()
    summary = digest.summary()
    readable = count_records(path)
    if readable != summary.written:
        raise UserError(
            f"{path} holds {readable} of the {summary.written} records written; check the disk and "
            "run the same command again."
        )
    return summary


def _close(reader: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the damage has been reported already
        reader.close()


class _writer_errors:
    """Turns a RuntimeError of the writer (disk full, not writable) into a UserError."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, RuntimeError):
            reason = str(error).split(";")[0]
            raise UserError(
                f"cannot write {self._path}: {reason}; free space or choose another folder, then "
                "run the same command again: finished shards are kept."
            ) from error


def _sync(path: pathlib.Path) -> None:
    """Flushes the file to disk, so that a rename never precedes its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
