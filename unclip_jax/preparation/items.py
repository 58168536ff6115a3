"""Unchecked inputs of an import: items, byte ranges and raw examples."""

import bz2
import collections
import dataclasses
import errno
import gzip
import io
import lzma
import os
import pathlib
import stat
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from unclip_jax.core.checks import UserError
from unclip_jax.data import image_codec

# Suffixes of images, also of formats that cannot be read; formats are recognised by content.
IMAGE_SUFFIXES = (
    *image_codec.SUFFIXES,
    *(".heic", ".heif", ".hif", ".jxl", ".svg", ".psd", ".exr", ".dng", ".cr2", ".nef", ".arw"),
    *(".ico", ".tga", ".qoi", ".eps"),
)
TEXT_SUFFIXES = (".txt", ".caption", ".text")
CAPTION_SUFFIXES = (*TEXT_SUFFIXES, ".json", ".cls")  # in the order of preference
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_IMAGE_BYTES = 256 * 2**20
MAX_TEXT_BYTES = 2**20
_NOWHERE = (errno.ELOOP, errno.ENAMETOOLONG)
_OPENERS = {b"\x1f\x8b": gzip.GzipFile, b"BZh": bz2.BZ2File, b"\xfd7zXZ": lzma.LZMAFile}


class Skip(Exception):
    """An example that cannot be used; `reason` is one of a few fixed phrases, for counting."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Blob(NamedTuple):
    """A range of bytes in a file; a whole file has offset 0 and its size.

    `stamp` is the time of the file's last change in nanoseconds; while it is the same, the content
    is taken to be unchanged.
    """

    path: str
    offset: int
    size: int
    stamp: int = 0


class Cell(NamedTuple):
    """A value in a Parquet file; `column` may be a struct with the fields bytes and path.

    An empty `column` stands for the whole row.
    """

    path: str
    column: str
    row: int
    stamp: int = 0


class Item(NamedTuple):
    """One listed example.

    Attributes:
        key: unique name.
        image: location of the image, or None.
        caption: the captions, their location, or None.
        form: form of a caption with a location: "text", "json" or "class".
        field: field with the text of JSON captions; "" = one of the usual names.
        classes: file with one name per line, for captions that are class numbers; "" = none.
        skip: reason why this item cannot be used; "" = none so far.
        facts: its metadata, or their location; None = there are none.
        span: range of a tar with exactly the members of this item; None = there is none.
    """

    key: str
    image: Blob | Cell | None
    caption: Blob | Cell | tuple[str, ...] | None
    form: str = "text"
    field: str = ""
    classes: str = ""
    skip: str = ""
    facts: Blob | Cell | Mapping[str, Any] | None = None
    span: Blob | None = None


@dataclasses.dataclass
class Listing:
    """The content of one input.

    Attributes:
        items: the examples, in order.
        others: suffix -> number of files that belong to no example.
        examples: suffix -> name of the first such file.
        archives: tars and Parquet files in a folder.
        unlisted: True if rows name images in other places that are not among the items.
    """

    items: list[Item] = dataclasses.field(default_factory=list)
    others: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)
    archives: list[pathlib.Path] = dataclasses.field(default_factory=list)
    unlisted: bool = False

    def set_aside(self, name: str) -> None:
        """Counts a file that belongs to no example."""
        kind = pathlib.PurePath(name).suffix.lower() or "no suffix"
        self.others[kind] += 1
        self.examples.setdefault(kind, name)


class RawExample(NamedTuple):
    """An example before decoding.

    `form` and `field` are as in `Item`, `classes` are the class names, and `facts` is the metadata
    by which the example was selected.
    """

    image: bytes
    caption: bytes | str | tuple[str, ...]
    form: str = "text"
    field: str = ""
    scene: str = ""
    classes: tuple[str, ...] = ()
    facts: Mapping[str, Any] | None = None


@runtime_checkable
class Plan(Protocol):
    """The examples of one split in order, with random access.

    Attributes:
        sources: the inputs, as on the command line.
        fingerprint: hash of the list of examples and of how they are read, without paths.
        signature: hash of paths, sizes and times of the input files, which are taken to be
            unchanged while it is the same. "" if the fingerprint suffices; None if unknown.
        others: kind -> number of files that belong to no example.
        note: description of these files for messages; "" = none.
    """

    sources: tuple[str, ...]
    fingerprint: str
    signature: str | None
    others: Mapping[str, int]
    note: str

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Returns the key of example `index`."""
        ...

    def read(self, index: int) -> RawExample:
        """Reads the bytes of example `index`, fastest in order; raises `Skip`."""
        ...

    def close(self) -> None:
        """Closes open files; reading reopens them."""
        ...


class FileReader:
    """Reads blobs; keeps the last file open, which usually contains the next blob."""

    def __init__(self):
        self._path, self._file = "", None

    def read(self, blob: Blob, *, limit: int) -> bytes:
        """Reads the bytes of `blob`.

        Raises:
            Skip: the blob exceeds `limit` bytes, or its file is missing or too short.
        """
        if blob.size > limit:
            raise Skip("too many bytes")
        try:
            file = self._open(blob.path)
            file.seek(blob.offset)
            data = file.read(blob.size)
        except FileNotFoundError as error:
            raise Skip("missing file") from error
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise Skip("unreadable file") from error
        if len(data) != blob.size:
            raise Skip("truncated file")
        return data

    def close(self) -> None:
        """Closes the open file, if any."""
        if self._file is not None:
            self._file.close()
        self._path, self._file = "", None

    def _open(self, path: str) -> io.BufferedIOBase:
        if self._file is None or path != self._path:
            self.close()
            packed = path.lower().endswith(TAR_SUFFIXES)
            self._file, self._path = (open_packed if packed else _open_regular)(path), path
        return self._file


def open_packed(path: str) -> io.BufferedIOBase:
    """Opens a tar for reading; gzip, bzip2 and xz are recognised by their first bytes."""
    with _open_regular(path) as file:
        start = file.read(6)
    for magic, opener in _OPENERS.items():
        if start.startswith(magic):
            return opener(path, "rb")
    return _open_regular(path)


def _open_regular(path: str) -> io.BufferedIOBase:
    """Opens a regular file for reading; opening a pipe would block."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{path} is not a regular file")
    return pathlib.Path(path).open("rb")


def whole_file(path: pathlib.Path) -> Blob | str:
    """Returns a regular file as a blob, or the reason why it cannot be read."""
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "missing file"
    except OSError as error:
        return "missing file" if error.errno in _NOWHERE else "unreadable file"
    except ValueError:  # a NUL byte
        return "missing file"
    if not stat.S_ISREG(facts.st_mode):
        return "not a regular file"
    return Blob(str(path), 0, facts.st_size, facts.st_ctime_ns)


def stamp(path: pathlib.Path | str) -> int:
    """Returns the time of a file's last change in nanoseconds; 0 if it cannot be read."""
    try:
        return os.stat(path).st_ctime_ns
    except OSError:
        return 0


def check_exists(path: pathlib.Path) -> None:
    """Checks that an input exists.

    Raises:
        UserError: there is neither a file nor a folder at `path`.
    """
    if not os.path.lexists(path):
        raise UserError(f"input {path} does not exist; give a folder, a tar or a glob of them.")
