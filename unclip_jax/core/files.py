"""Files: atomic writes, after which a file is complete or absent, and checks of paths."""

import contextlib
import errno
import os
import pathlib
import re
import stat
import uuid
from collections.abc import Iterator

import numpy as np

from unclip_jax.core.checks import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_URL_AS_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+-]+:/")  # pathlib keeps one of the slashes


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a whole file, text as UTF-8.

    Raises:
        OSError: the file cannot be written; an earlier one of this name is untouched.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_shared(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a whole file that other processes may write at the same time; the last one stays.

    Raises:
        OSError: the file cannot be written; an earlier one of this name is untouched.
    """
    with _replacing(path, path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def check_output(path: pathlib.Path, *, folder: bool = False, flag: str = "--out") -> None:
    """Checks that an output can be written, by writing a file there and removing it again.

    Args:
        path: a file that may exist, or with `folder` a folder that may exist; folders above it that
            are missing are created for the check and removed again.
        folder: True if `path` is a folder of outputs.
        flag: that the message advises to change.

    Raises:
        UserError: it cannot be written; the message says why.
    """
    parent = path if folder else path.parent
    probe = parent / (".probe.tmp" if folder else f"{path.name}.tmp")
    missing = [each for each in (parent, *parent.parents) if not os.path.exists(each)]
    existing = next(each for each in (parent, *parent.parents) if each not in missing)
    try:
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        parent.mkdir(parents=True, exist_ok=True)
        if not folder and os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        probe.touch()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another {flag}.") from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
        for each in missing:
            with contextlib.suppress(OSError):
                each.rmdir()


def check_local(what: str, path: str | os.PathLike[str]) -> None:
    """Rejects a URL where a local path is expected; as a path it would name a local folder `gs:`.

    Raises:
        UserError: it is one.
    """
    text = os.fspath(path)
    if _URL.match(text) or (isinstance(path, pathlib.PurePath) and _URL_AS_PATH.match(text)):
        raise UserError(
            f"{what} is {text!r}; expected a local path. Mount the bucket, or copy the files, and "
            "give the folder."
        )


def printable(text: str) -> str:
    """Returns `text` with escapes in the place of bytes of a file name that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; renames it on success, removes it on failure."""
    with _replacing(path, path.with_name(f"{path.name}.tmp")) as temporary:
        yield temporary


def check_regular(path: pathlib.Path) -> None:
    """Rejects a path that is no regular file nor a link to one.

    Opening a named pipe waits for a writer, and reading a device may never end.

    Raises:
        UserError: it is a folder, a pipe, a socket or a device.
        OSError: it does not exist or cannot be reached.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {_kind(mode)}; expected a regular file. Replace or remove it.")


def content_state(facts: os.stat_result) -> tuple[int, ...]:
    """Returns what the file system states of a file that changes with its content."""
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def read_small(path: pathlib.Path, *, most: int = 256 * 2**20) -> bytes:
    """Reads a whole file of a kind that is never large, such as JSON.

    Raises:
        UserError: it is no regular file, or longer than `most` bytes.
        OSError: it cannot be read.
    """
    check_regular(path)
    size = path.stat().st_size
    if size > most:
        raise UserError(
            f"{path} has {size} bytes; a file of its kind has at most {most}. Give another."
        )
    return path.read_bytes()


def open_array(path: pathlib.Path, *, advice: str) -> np.ndarray:
    """Maps the array in a file of NumPy into memory.

    Args:
        path: of the .npy file.
        advice: what to do about a damaged file; the end of the message.

    Raises:
        UserError: the file is missing, cut short, or no such file.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy's parser of headers raises anything
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        reason = reason.partition(". If you trust")[0]  # pickles are not
        raise UserError(f"{path} cannot be read: {reason}; {advice}") from error


def regular_files(folder: pathlib.Path) -> list[str]:
    """Returns the paths of all files below `folder`, relative to it and sorted; [] without it.

    Raises:
        UserError: it holds something that is neither a regular file nor a folder.
        OSError: a folder cannot be read.
    """
    paths = []
    if not folder.exists():
        return paths
    for parent, _, names in os.walk(folder, onerror=_reraise):
        for name in names:
            path = pathlib.Path(parent, name)
            check_regular(path)
            paths.append(path.relative_to(folder).as_posix())
    return sorted(paths)


@contextlib.contextmanager
def _replacing(path: pathlib.Path, draft: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields `draft`; renames it to `path` on success, removes it on failure."""
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "no file")


def _reraise(error: OSError) -> None:
    raise error
