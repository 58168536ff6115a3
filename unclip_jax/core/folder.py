"""Folders of files that are local or in an object store, with the same operations on both.

A file is complete or absent: local ones are renamed into place, objects appear when they are whole.
"""

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent import futures

from unclip_jax.core.checks import UserError
from unclip_jax.core.files import check_output, read_small, write_atomically
from unclip_jax.core.storage import Location, Url

_AT_ONCE = 32  # files of a store that are read, copied or removed at the same time
_PROBE = ".probe.tmp"


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of outputs; names of files may have parts between slashes.

    Methods raise a `UserError` of one line where a store fails, and an `OSError` where a disk does.
    """

    place: Location

    def __str__(self) -> str:
        return str(self.place)

    def check(self, *, flag: str = "--out") -> None:
        """Checks that files can be written, by writing one and removing it again.

        Raises:
            UserError: they cannot; the message says why.
        """
        if isinstance(self.place, pathlib.Path):
            check_output(self.place, folder=True, flag=flag)
            return
        (self.place / _PROBE).write_bytes(b"")
        (self.place / _PROBE).unlink()

    def size(self, name: str) -> int | None:
        """Returns the number of bytes of a file; None if there is none."""
        place = self.place / name
        if isinstance(place, Url):
            return place.size() if place.exists() else None
        return place.stat().st_size if place.is_file() else None

    def read(self, name: str) -> bytes | None:
        """Reads a whole file of a kind that is never large; None if there is none.

        Raises:
            UserError: a local one is no regular file, or larger than `read_small` reads.
        """
        place = self.place / name
        if isinstance(place, Url):
            return place.read_if_present()
        try:
            return read_small(place)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_all(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """Reads files in order, a few of them at the same time."""
        names = list(names)
        with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            for start in range(0, len(names), _AT_ONCE):
                yield from pool.map(self.read, names[start : start + _AT_ONCE])

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a whole file, text as UTF-8."""
        place = self.place / name
        if isinstance(place, Url):
            place.write_bytes(content.encode() if isinstance(content, str) else content)
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, content)

    def names(self, below: str) -> list[str]:
        """Returns the last parts of the names directly below `below`, sorted."""
        place = self.place / below
        if isinstance(place, Url):
            return place.names()
        return sorted(path.name for path in place.iterdir()) if place.is_dir() else []

    def remove(self, names: Iterable[str]) -> None:
        """Removes files, where they exist."""
        with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(self._unlink, list(names)):
                pass

    @contextlib.contextmanager
    def output(self, name: str) -> Iterator[pathlib.Path]:
        """Yields a local path to write a file to, which is then copied to a store."""
        place = self.place / name
        if isinstance(place, pathlib.Path):
            place.parent.mkdir(parents=True, exist_ok=True)
            yield place
            return
        with _drafts() as drafts:
            yield drafts / place.name
            place.upload(drafts / place.name)

    @contextlib.contextmanager
    def local(self, names: Iterable[str]) -> Iterator[list[pathlib.Path]]:
        """Yields local paths of files, which are copies that are removed again if of a store.

        Raises:
            UserError: a file is missing in a store, or the copies do not fit on the disk.
        """
        names = list(names)
        if isinstance(self.place, pathlib.Path):
            yield [self.place / name for name in names]
            return
        with _drafts() as drafts, futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            paths = [drafts / name for name in names]
            for _ in pool.map(self._download, names, paths):
                pass
            yield paths

    def _download(self, name: str, path: pathlib.Path) -> None:
        place = self.place / name
        assert isinstance(place, Url)
        place.download(path)

    def _unlink(self, name: str) -> None:
        place = self.place / name
        place.unlink() if isinstance(place, Url) else place.unlink(missing_ok=True)


@contextlib.contextmanager
def _drafts() -> Iterator[pathlib.Path]:
    """Yields a temporary folder.

    Raises:
        UserError: its disk is full or cannot be written.
    """
    try:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="unclip_jax_"))
    except OSError as error:
        raise _no_room(tempfile.gettempdir(), error) from None
    try:
        yield folder
    except OSError as error:
        raise _no_room(str(folder), error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _no_room(folder: str, error: OSError) -> UserError:
    return UserError(
        f"cannot write temporary files to {folder} ({error.strerror or error}); free space, or "
        "name another folder with TMPDIR."
    )
