"""Inputs that consist of archives only, which are prepared file by file without a listing."""

import collections
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from unclip_jax.preparation import import_inputs
from unclip_jax.preparation.items import IMAGE_SUFFIXES, TAR_SUFFIXES, stamp
from unclip_jax.preparation.parquet_images import image_column
from unclip_jax.preparation.tables import is_metadata


class Archive(NamedTuple):
    """A tar or a Parquet file with images; `stamp` is that of a `Blob`."""

    path: str
    size: int
    stamp: int


class Archives(NamedTuple):
    """The archives of a split in order, and the number of other files by suffix."""

    files: list[Archive]
    others: collections.Counter[str]

    def size(self) -> int:
        """Returns the total size of all archives in bytes."""
        return sum(file.size for file in self.files)

    def groups(self, most: float) -> list[tuple[Archive, ...]]:
        """Returns consecutive archives in groups of about `most` bytes; larger archives alone."""
        groups: list[list[Archive]] = []
        total = 0.0
        for file in self.files:
            if not groups or total + file.size > most:
                groups.append([])
                total = 0.0
            groups[-1].append(file)
            total += file.size
        return [tuple(group) for group in groups]


def find_archives(inputs: Sequence[str]) -> Archives | None:
    """Finds the archives among the inputs and in their folders; None if other files have examples.

    Only names and sizes are read. A Parquet file beside a tar of the same name is the metadata of
    that tar.

    Raises:
        UserError: an input matches nothing.
    """
    archives, visited = Archives([], collections.Counter()), set()
    for root, _ in import_inputs.expand(inputs):
        for path in _files(root):
            name = path.name.lower()
            if name.endswith(IMAGE_SUFFIXES) or is_metadata(path):
                return None
            if not _is_archive(path):
                if path == root:  # a table, or a file that will be rejected
                    return None
                archives.others[path.suffix.lower() or "no suffix"] += 1
                continue
            real = os.path.realpath(path)
            if real not in visited:
                visited.add(real)
                archives.files.append(Archive(str(path), path.stat().st_size, stamp(path)))
    return archives if archives.files else None


def _files(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields `root` if it is a file, else the files below it in the order of their names."""
    if not root.is_dir():
        yield root
        return
    for parent, folders, names in os.walk(root, followlinks=False):
        folders.sort()
        yield from (pathlib.Path(parent, name) for name in sorted(names) if name[0] != ".")


def _is_archive(path: pathlib.Path) -> bool:
    name = path.name.lower()
    if name.endswith(TAR_SUFFIXES):
        return True
    if not name.endswith(".parquet") or path.with_suffix(".tar").exists():
        return False
    return bool(image_column(path))
