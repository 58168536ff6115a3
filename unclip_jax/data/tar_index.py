"""Indices of tars: 24 bytes per record locate its members, so that images are not copied.

An index replaces a shard of records. It begins with a line of JSON with the tars and the options
for reading captions; then come the rows. A record is read by one range of bytes with the members of
one sample, which are adjacent in tars of img2dataset and WebDataset. A row also contains the digest
of these bytes, which is checked at every read.
"""

import functools
import io
import json
import os
import pathlib
import tarfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from unclip_jax.core import storage
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import atomic_path
from unclip_jax.core.storage import LocalFile, Location, RangedFile, Url
from unclip_jax.data import captions, image_codec, records
from unclip_jax.data.records import Record, RecordDigest, ShardSummary

SUFFIX = ".tar_index"
_ROW = np.dtype([("tar", "<u4"), ("size", "<u4"), ("offset", "<u8"), ("digest", "<u8")])
_FORMAT = 1
ROW_BYTES = _ROW.itemsize
_LONGEST = 2**24  # bytes of the line of JSON at most
_TEXTS = (".txt", ".caption", ".text")


class Place(NamedTuple):
    """A range of bytes of a tar that contains exactly the members of one sample.

    Attributes:
        path: the tar.
        offset: position of the first byte.
        size: number of bytes.
        digest: first 64 bits of their SHA-256.
    """

    path: str
    offset: int
    size: int
    digest: int


class ReadOptions(NamedTuple):
    """Options for reading a sample as a record.

    Attributes:
        caption_field: name of the captions in JSON; "" = one of the usual names.
        prefix: True if keys begin with the name of the tar.
        facts: fields of the JSON that are stored with the record.
    """

    caption_field: str = ""
    prefix: bool = False
    facts: tuple[str, ...] = ()


def write_index(
    path: pathlib.Path, rows: Iterable[tuple[Record, Place]], *, options: ReadOptions
) -> ShardSummary:
    """Writes the index of records to `path`, which exists only once it is complete.

    Returns:
        Number of records, and the digest of a shard with the same records.

    Raises:
        UserError: the disk is full or the folder read-only.
    """
    tars: dict[str, int] = {}
    table: list[tuple[int, int, int, int]] = []
    digest = RecordDigest()
    for record, place in rows:
        tar = tars.setdefault(place.path, len(tars))
        table.append((tar, place.size, place.offset, place.digest))
        digest.update(records.encode(record))
    header = {
        "format": _FORMAT,
        "tars": [[tar, _file(tar).size()] for tar in tars],
        "options": options._asdict(),
    }
    try:
        with atomic_path(path) as partial, partial.open("wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(np.array(table, _ROW).tobytes())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder.") from error
    return digest.summary()


class TarShard:
    """The records of one index, with the interface of ArrayRecord's reader."""

    def __init__(self, path: Location):
        """Reads the index.

        Raises:
            UserError: it is damaged.
        """
        self._path = path
        try:
            if isinstance(path, Url):
                data = path.read_bytes()
                line, _, rows = data.partition(b"\n")
                self._rows = np.frombuffer(rows, _ROW)
            else:
                with path.open("rb") as file:
                    line = file.readline(_LONGEST)
                self._rows = _mapped(path, len(line))
            header = json.loads(line)
            if header["format"] != _FORMAT:
                raise ValueError(header["format"])
            self._tars = [(str(tar), int(size)) for tar, size in header["tars"]]
            options = header["options"]
            self._options = ReadOptions(**{**options, "facts": tuple(options["facts"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is not a readable index of tars; run the same `prepare` command."
            ) from error

    def num_records(self) -> int:
        """Returns the number of records."""
        return len(self._rows)

    def place(self, index: int) -> Place:
        """Returns where the sample of a record is stored."""
        row = self._rows[index]
        numbers = (int(row[name]) for name in ("offset", "size", "digest"))
        return Place(self._tars[row["tar"]][0], *numbers)

    @property
    def options(self) -> ReadOptions:
        """Options for reading samples as records."""
        return self._options

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Reads records, one request each.

        Raises:
            UserError: a tar is missing or was changed.
        """
        return [self._read(index) for index in indices]

    def _read(self, index: int) -> bytes:
        place, record = self.place(index), None
        try:
            _check_size(*self._tars[self._rows[index]["tar"]])
            data = read_range(place.path, place.offset, place.size)
        except OSError as error:
            raise UserError(
                f"{place.path}, which {self._path} lists, cannot be read: {error.strerror}; copy "
                "it there again, or prepare the index again."
            ) from error
        if records.digest_64(data) == place.digest:
            record = parse_sample(data, self._options, tar=place.path)
        if record is None:
            raise UserError(
                f"{place.path} has changed since {self._path} was written; prepare the index again."
            )
        return records.encode(record)


def read_range(tar: str, offset: int, size: int) -> bytes:
    """Reads bytes of a local or remote tar; fewer if it ends before.

    Raises:
        OSError: the tar cannot be read.
    """
    return _file(tar).read_range(offset, offset + size)


def parse_sample(data: bytes, options: ReadOptions, *, tar: str) -> Record | None:
    """Returns the record in a range of bytes of `tar`; None if it is not one complete sample."""
    members: dict[str, bytes] = {}
    key = ""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                file = archive.extractfile(member)
                folder, slash, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                key = key or folder + slash + stem
                if file is None or folder + slash + stem != key:
                    return None
                members[dot + suffix.lower()] = file.read()
        return _record(key, members, tar, options)
    except (tarfile.TarError, ValueError, EOFError):
        return None


def _record(key: str, members: dict[str, bytes], tar: str, options: ReadOptions) -> Record | None:
    image = next((members[suffix] for suffix in image_codec.SUFFIXES if suffix in members), None)
    text = next((members[suffix] for suffix in _TEXTS if suffix in members), None)
    needs_facts = text is None or bool(options.facts)
    if image is None or (needs_facts and ".json" not in members):
        return None
    facts = json.loads(members[".json"]) if needs_facts else {}
    if text is not None:
        texts = (captions.decode(text),)
    elif isinstance(facts, dict):
        texts = captions.field_of(facts, options.caption_field)
    else:
        texts = captions.texts_of(facts)
    texts = captions.cleaned(texts)
    if not texts:
        return None
    key = f"{pathlib.PurePosixPath(tar).name}/{key}" if options.prefix else key
    record: Record = {"image": image, "caption": texts[0], "key": key, "scene": ""}
    if len(texts) > 1:
        record["captions"] = list(texts)
    columns: dict[str, Any] = {name: facts[name] for name in options.facts if name in facts}
    return {**record, "facts": columns} if columns else record


@functools.lru_cache(maxsize=2**16)
def _check_size(tar: str, expected: int) -> None:
    """Compares the size of a tar with that in the index, once per process.

    Raises:
        UserError: it differs.
    """
    size = _file(tar).size()
    if size != expected:
        raise UserError(
            f"{tar} has {size} bytes, {expected} when it was indexed; prepare the index again."
        )


def _file(path: str) -> RangedFile:
    place = storage.location(path)
    return place if isinstance(place, Url) else LocalFile(place)


def _mapped(path: pathlib.Path, start: int) -> np.ndarray:
    """Maps the rows of an index into memory."""
    count, partial = divmod(path.stat().st_size - start, _ROW.itemsize)
    if partial:
        raise ValueError("the last row is incomplete")
    return (
        np.memmap(path, _ROW, mode="r", offset=start, shape=(count,))
        if count
        else np.array([], _ROW)
    )
