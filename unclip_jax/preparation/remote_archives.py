"""Archives in object stores: found by listing names, and copied while they are read."""

import collections
import fnmatch
import functools
import glob
import hashlib
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unclip_jax.core import storage
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import StoredObject, Url
from unclip_jax.preparation.archives import Archive, Archives
from unclip_jax.preparation.folders import CLASSES
from unclip_jax.preparation.import_inputs import expand_braces
from unclip_jax.preparation.import_plans import FilePlan
from unclip_jax.preparation.items import TAR_SUFFIXES

_SUFFIXES = (*TAR_SUFFIXES, ".parquet")

Objects = Mapping[str, StoredObject]


def find_remote(inputs: Sequence[str]) -> Archives | None:
    """Finds the archives that URLs name; None if no input is a URL.

    A URL names an archive, a prefix of names (like a folder), or a pattern of archives. Only names
    are read.

    Raises:
        UserError: there are local inputs beside URLs, or a URL matches no archive.
    """
    urls = [text for text in inputs if storage.is_url(text)]
    if not urls:
        return None
    if len(urls) < len(inputs):
        raise UserError(
            f"one split has the URL {urls[0]} and local inputs; give each its own split with "
            "--split or SPLIT=."
        )
    archives = Archives([], collections.Counter())
    listing = functools.lru_cache(None)(lambda place: Url(place).objects())
    visited: set[str] = set()
    for text in urls:
        for name in expand_braces(text):
            _add(str(storage.location(name)), listing, archives, visited)
    return archives


def _add(
    name: str, listing: Callable[[str], Objects], archives: Archives, visited: set[str]
) -> None:
    """Adds the archives that match one name without braces."""
    exact = name.lower().endswith(_SUFFIXES)
    folder = _folder(name) if exact else name
    objects = listing(folder)
    paths, count = _matches(objects, name.removeprefix(folder).strip("/")), 0
    for path in paths if exact else objects:
        if not path.lower().endswith(_SUFFIXES) or (not exact and _describes(path, objects)):
            archives.others[pathlib.PurePath(path).suffix.lower() or "no suffix"] += 1
            continue
        count += 1
        url, stored = f"{folder}/{path}", objects[path]
        if url not in visited:
            visited.add(url)
            stamp = int(hashlib.sha256(stored.version.encode()).hexdigest()[:15], 16)
            archives.files.append(Archive(url, stored.size, stamp))
    if not count:
        raise UserError(
            f"input {name} matches no tar or Parquet file; other files in object stores are not "
            "read. Check the name, and quote patterns."
        )


def _matches(objects: Objects, pattern: str) -> list[str]:
    """Returns the names that match a pattern; `*` matches a part between slashes."""
    if not glob.has_magic(pattern):
        return [pattern] if pattern in objects else []
    parts = pattern.split("/")
    return [
        path
        for path in objects
        if path.count("/") == len(parts) - 1
        and all(map(fnmatch.fnmatchcase, path.split("/"), parts))
    ]


def _describes(path: str, objects: Objects) -> bool:
    """True for a table beside a tar of the same name, which is the tar's metadata."""
    stem, _, suffix = path.rpartition(".")
    return suffix.lower() == "parquet" and f"{stem}.tar" in objects


def _folder(name: str) -> str:
    """Returns the longest prefix of a name that ends before a slash and is not a pattern."""
    parts = name.split("/")
    magic = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return "/".join(parts[: min(magic, len(parts) - 1)])


class RemotePlan(FilePlan):
    """Examples in archives of which local copies exist until `remove` is called."""

    def __init__(self, inputs: Sequence[str], **options: Any):
        """Copies the archives at the URLs `inputs`; `options` are those of `FilePlan`.

        Raises:
            UserError: an archive cannot be read.
        """
        self._copies = tempfile.TemporaryDirectory(prefix="unclip_jax_")
        self._origins: dict[str, str] = {}
        try:
            for number, text in enumerate(inputs):
                url, path = Url(text), pathlib.Path(self._copies.name, str(number), Url(text).name)
                url.download(path)
                self._origins[str(path)] = text
                if _has_classes(url.parent):
                    (url.parent / CLASSES).download(path.with_name(CLASSES))
            super().__init__([*self._origins], **options)
        except BaseException:
            self.remove()
            raise
        self.sources = tuple(inputs)
        for path, text in self._origins.items():
            items = (item._replace(key=item.key.replace(path, text)) for item in self._items)
            self._items = [*items]

    def origin(self, path: str) -> str:
        """Returns the URL of which `path` is a copy."""
        return self._origins[path]

    def remove(self) -> None:
        """Removes the copies."""
        self._copies.cleanup()


@functools.lru_cache(maxsize=64)
def _has_classes(folder: Url) -> bool:
    return (folder / CLASSES).exists()
