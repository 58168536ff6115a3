"""ArrayRecord shards in object stores: one ranged read per record.

The ArrayRecord library reads local files. From Google's store it requests the rest of the file for
every record, and it does not support Amazon's. Shards of `prepare` are simple enough to be read
here: every record is a chunk of its own and not compressed. The format is Riegeli's
(github.com/google/riegeli, doc/riegeli_records_file_format.md): blocks of 64 KiB that begin with a
header of 24 bytes, and between these headers chunks, each a header of 40 bytes and its data. The
last block contains the position of the index, a chunk with one entry (a protocol buffer) per chunk
of records.
"""

import itertools
import struct
from collections.abc import Iterator

import numpy as np

from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import RangedFile

BLOCK, BLOCK_HEADER = 65536, 24
ROW_BYTES = 8  # of memory per record of an open shard
_CHUNK = struct.Struct("<8xQ8xQQ")  # size of the data; type and number of records; decoded size
_SIMPLE, _PLAIN = ord("r"), b"\0"  # types: chunk of consecutive records, no compression


class RemoteShard:
    """The records of one shard by index, with the interface of ArrayRecord's reader."""

    def __init__(self, file: RangedFile):
        """Reads the size of the file, its last block and its index.

        Raises:
            UserError: the file cannot be read, or is not a complete shard of `prepare`.
        """
        self._file = file
        size = file.size()
        last = size - BLOCK
        if last < 0 or size % BLOCK:
            raise self._damaged("it was cut short")
        pointer, *_ = self._records(last, file.read_range(last, size))
        end = next((value for field, value in _varints(pointer) if field == 1), size)
        if end > last:
            raise self._damaged("its last block does not point to an index")
        _, *entries = self._records(end, file.read_range(end, last))
        starts, counts = [], []
        for entry in entries:
            fields = dict(_varints(entry))
            starts.append(fields.get(1, 0))
            counts.append(fields.get(3, 0))
        if any(count != 1 for count in counts):
            raise self._damaged("its records are not stored one by one")
        self._bounds = np.array([*starts, end], np.int64)

    def num_records(self) -> int:
        """Returns the number of records."""
        return len(self._bounds) - 1

    def read(self, indices: list[int]) -> list[bytes]:
        """Reads records, one request each.

        Raises:
            UserError: a record cannot be read.
        """
        records = []
        for index in indices:
            start, stop = (int(bound) for bound in self._bounds[index : index + 2])
            (record,) = self._records(start, self._file.read_range(start, stop))
            records.append(record)
        return records

    def beginning(self, index: int, size: int) -> bytes:
        """Reads the header of a record's chunk and `size` bytes of the record, in one request."""
        start, stop = (int(bound) for bound in self._bounds[index : index + 2])
        if stop - start <= size:
            return self.read([index])[0]
        data = _without_headers(start, self._file.read_range(start, start + size))
        position = _CHUNK.size + 1
        for _ in range(2):  # the length of the list of sizes, and its only entry
            _, position = _varint(data, position)
        return data[position:]

    def _records(self, start: int, data: bytes) -> list[bytes]:
        """Returns the records of the chunk at the beginning of the bytes at `start`."""
        data = _without_headers(start, data)
        if len(data) < _CHUNK.size:
            raise self._damaged("a chunk is incomplete")
        size, kind_and_count, decoded = _CHUNK.unpack_from(data)
        content = data[_CHUNK.size : _CHUNK.size + size]
        kind, count = kind_and_count & 0xFF, kind_and_count >> 8
        if kind != _SIMPLE or content[:1] != _PLAIN or len(content) != size:
            raise self._damaged("a chunk is incomplete, compressed or of another kind")
        position, sizes = 1, []
        for number in range(count + 1):  # the first is the length of the list of the others
            value, position = _varint(content, position)
            sizes += [value] if number else []
        if sum(sizes) != decoded or position + decoded != size:
            raise self._damaged("the sizes of its records do not add up")
        bounds = itertools.accumulate(sizes, initial=position)
        return [content[a:b] for a, b in itertools.pairwise(bounds)]

    def _damaged(self, reason: str) -> UserError:
        return UserError(
            f"{self._file} cannot be read: {reason}; copy it again, or run the same `prepare` "
            "command."
        )


def _without_headers(start: int, data: bytes) -> bytes:
    """Returns bytes that begin at `start` of the file without the block headers among them."""
    first = -start % BLOCK
    if first >= len(data):
        return data
    blocks = (data[i + BLOCK_HEADER : i + BLOCK] for i in range(first, len(data), BLOCK))
    return b"".join([data[:first], *blocks])


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Decodes the variable-length integer at `position`; returns it and the next position.

    The end of the data also ends the integer.
    """
    value = shift = 0
    while position < len(data):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            break
    return value, position


def _varints(message: bytes) -> Iterator[tuple[int, int]]:
    """Yields number and value of the integer fields of a protocol buffer, up to another type.

    Entries of the index have only integer fields.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        if key & 7:
            return
        value, position = _varint(message, position)
        yield key >> 3, value
