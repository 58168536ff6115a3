"""What an importer lists and reads before anything is checked: items, byte ranges, raw records."""

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
    """A record that is left out; the reason is one of a few fixed phrases, for counting."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Blob(NamedTuple):
    """A stretch of bytes in a file; a whole file has offset 0 and its size."""

    path: str
    offset: int
    size: int


class Item(NamedTuple):
    """One listed example.

    Attributes:
        key: unique name.
        image: where the picture is, or None.
        caption: the text itself, where it is, or None.
        field: if the caption is JSON, the field with the text; "" = plain text.
        skip: why it is known already that this item cannot be used; "" = it may be good.
    """

    key: str
    image: Blob | None
    caption: Blob | str | None
    field: str = ""
    skip: str = ""


class Raw(NamedTuple):
    """An example as found: nothing is decoded yet."""

    image: bytes
    caption: bytes | str
    field: str = ""
    scene: str = ""


@runtime_checkable
class Plan(Protocol):
    """Everything that will be read for one split, in order, countable and addressable."""

    sources: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Name of example `index`."""
        ...

    def read(self, index: int) -> Raw:
        """Bytes of example `index`; raises Skip. Cheapest in order."""
        ...

    def close(self) -> None:
        """Let go of open files; reading opens them again."""
        ...


class FileReader:
    """Reads blobs; the file of the last one stays open, because the next is in it most times."""

    def __init__(self):
        self._path, self._file = "", None

    def read(self, blob: Blob, *, limit: int) -> bytes:
        """The bytes of `blob`.

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
        """Close the open file, if any."""
        if self._file is not None:
            self._file.close()
        self._path, self._file = "", None

    def _open(self, path: str) -> io.BufferedIOBase:
        if self._file is None or path != self._path:
            self.close()
            self._file, self._path = open_maybe_compressed(path), path
        return self._file


def open_maybe_compressed(path: str) -> io.BufferedIOBase:
    """Open for reading; gzip, bzip2 and xz are recognised by their first bytes."""
    with pathlib.Path(path).open("rb") as file:
        start = file.read(6)
    for magic, opener in _OPENERS.items():
        if start.startswith(magic):
            return opener(path, "rb")
    return pathlib.Path(path).open("rb")


def check_exists(path: pathlib.Path) -> None:
    """Complain about an input that is not there.

    Raises:
        UserError: neither file nor folder.
    """
    if not path.exists():
        raise UserError(f"input {path} does not exist; give a folder, a tar or a glob of them.")
