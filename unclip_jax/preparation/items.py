"""Unchecked inputs of an import: items, byte ranges and raw examples."""

import bz2
import gzip
import io
import lzma
import pathlib
import zlib
from typing import NamedTuple, Protocol, runtime_checkable

from unclip_jax.core.checks import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_IMAGE_BYTES = 256 * 2**20
MAX_TEXT_BYTES = 2**20
_OPENERS = {b"\x1f\x8b": gzip.GzipFile, b"BZh": bz2.BZ2File, b"\xfd7zXZ": lzma.LZMAFile}


class Skip(Exception):
    """A record to skip; the reason is one of a few fixed phrases, for counting."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Blob(NamedTuple):
    """A range of bytes in a file; a whole file has offset 0 and its size."""

    path: str
    offset: int
    size: int


class Item(NamedTuple):
    """One listed example.

    Attributes:
        key: unique name.
        image: location of the image, or None.
        caption: the text, its location, or None.
        field: if the caption is JSON, the field with the text; "" = plain text.
        skip: reason why this item cannot be used; "" = none so far.
    """

    key: str
    image: Blob | None
    caption: Blob | str | None
    field: str = ""
    skip: str = ""


class Raw(NamedTuple):
    """An example before decoding."""

    image: bytes
    caption: bytes | str
    field: str = ""
    scene: str = ""


@runtime_checkable
class Plan(Protocol):
    """The examples of one split in order, with random access."""

    sources: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Returns the name of example `index`."""
        ...

    def read(self, index: int) -> Raw:
        """Reads the bytes of example `index`, fastest in order; raises Skip."""
        ...

    def close(self) -> None:
        """Closes open files; reading opens them again."""
        ...


class FileReader:
    """Reads blobs; keeps the last file open, because the next blob is mostly in it."""

    def __init__(self):
        self._path, self._file = "", None

    def read(self, blob: Blob, *, limit: int) -> bytes:
        """Reads the bytes of `blob`.

        Raises:
            Skip: more than `limit` bytes, a missing file, or fewer bytes than there should be.
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
            self._file, self._path = open_maybe_compressed(path), path
        return self._file


def open_maybe_compressed(path: str) -> io.BufferedIOBase:
    """Opens for reading; gzip, bzip2 and xz are recognised by their first bytes."""
    with pathlib.Path(path).open("rb") as file:
        start = file.read(6)
    for magic, opener in _OPENERS.items():
        if start.startswith(magic):
            return opener(path, "rb")
    return pathlib.Path(path).open("rb")


def check_exists(path: pathlib.Path) -> None:
    """Checks that an input exists.

    Raises:
        UserError: neither file nor folder.
    """
    if not path.exists():
        raise UserError(f"input {path} does not exist; give a folder, a tar or a glob of them.")
