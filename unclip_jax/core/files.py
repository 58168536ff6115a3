"""Atomic writes: a file appears complete under its name, or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a whole file, text as UTF-8.

    Raises:
        OSError: the file cannot be written; an earlier one of this name is untouched.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; renames it on success, removes it on failure."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
