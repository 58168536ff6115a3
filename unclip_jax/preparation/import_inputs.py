"""Inputs of an import as written on the command line, and their content.

An input is a folder, a tar, a Parquet file, a table of captions, an image, or a glob of these;
{a,b} and {000..123} are expanded as by a shell.
"""

import collections
import glob
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from unclip_jax.core.checks import UserError
from unclip_jax.core.files import check_local
from unclip_jax.preparation.folders import list_folder, list_image, list_table
from unclip_jax.preparation.items import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    TAR_SUFFIXES,
    Item,
    Listing,
    check_exists,
)
from unclip_jax.preparation.parquet_images import list_parquet
from unclip_jax.preparation.tables import SUFFIXES as TABLE_SUFFIXES
from unclip_jax.preparation.tables import is_metadata
from unclip_jax.preparation.tars import list_tar

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000  # names per pair of braces at most


def listings(
    inputs: Sequence[str], *, caption_field: str = "", part: bool = False
) -> Iterator[tuple[pathlib.Path, Listing]]:
    """Yields every input and its content; tars and Parquet files in folders are inputs too.

    Raises:
        UserError: an input matches nothing or has an unknown format. If there are several inputs or
            `part` is True, an input that cannot be read is a skipped item instead.
    """
    paths = collections.deque(expand(inputs))
    several = part or len(paths) > 1
    visited = {os.path.realpath(path) for path, _ in paths}
    while paths:
        path, from_glob = paths.popleft()
        try:
            listing = _list(path, caption_field, from_glob=from_glob)
        except UserError:
            if not several:
                raise
            listing = Listing([Item(str(path), None, None, skip="input that cannot be read")])
        for archive in reversed(listing.archives):
            if os.path.realpath(archive) not in visited:
                visited.add(os.path.realpath(archive))
                paths.appendleft((archive, True))
                several = True
        yield path, listing


def expand_braces(text: str) -> Iterator[str]:
    """Yields the names to which {a,b} and {000..123} in `text` expand, in order.

    The numbers of a range are padded like its first; braces without a comma or a range remain.
    """
    parts = []
    for literal, inner in itertools.zip_longest(*[iter(_BRACES.split(text))] * 2):
        choices = None if inner is None else _choices(inner)
        parts.append([literal])
        parts.append([""] if inner is None else choices or [f"{{{inner}}}"])
    return ("".join(words) for words in itertools.product(*parts))


def _choices(inner: str) -> list[str] | None:
    match = _RANGE.fullmatch(inner)
    if match is None:
        return inner.split(",") if "," in inner else None
    first, last = int(match[1]), int(match[2])
    if abs(last - first) >= _MOST:
        raise UserError(f"{{{inner}}} expands to more than {_MOST:,} names; give a shorter range.")
    step = 1 if last >= first else -1
    return [str(number).zfill(len(match[1])) for number in range(first, last + step, step)]


def expand(inputs: Sequence[str]) -> Iterator[tuple[pathlib.Path, bool]]:
    """Yields the matching paths, each real file once, and True if they match a pattern."""
    visited = set()
    for text in inputs:
        check_local("an input", text)
        names = [text] if os.path.lexists(text) else list(expand_braces(text))
        for name in names:
            magic = glob.has_magic(name) and not os.path.lexists(name)
            matches = sorted(glob.glob(name, recursive=True)) if magic else [name]
            if not matches:
                raise UserError(f"input {name} matches no file; check the pattern and quote it.")
            for match in matches:
                path = pathlib.Path(match)
                check_exists(path)
                if os.path.realpath(path) not in visited:
                    visited.add(os.path.realpath(path))
                    yield path, magic


def _list(path: pathlib.Path, caption_field: str, *, from_glob: bool) -> Listing:
    """Lists one input.

    Raises:
        UserError: it has an unknown format or cannot be read.
    """
    name = path.name.lower()
    if path.is_dir():
        return list_folder(path, caption_field=caption_field)
    if is_metadata(path):
        return list_folder(path.parent, caption_field=caption_field)
    if name.endswith(TAR_SUFFIXES):
        return list_tar(str(path), caption_field=caption_field)
    if name.endswith(IMAGE_SUFFIXES):
        return Listing([list_image(path, root=path.parent, field=caption_field)])
    listing = None
    if name.endswith(".parquet"):
        listing = list_parquet(path, caption_field=caption_field)
    if listing is None and name.endswith((*TABLE_SUFFIXES, ".parquet")):
        listing = list_table(path, caption_field=caption_field)
    if listing is None and from_glob:  # folder/* also matches captions and other files
        listing = Listing()
        if not name.endswith(CAPTION_SUFFIXES):
            listing.set_aside(path.name)
    if listing is not None:
        return listing
    kinds = ", ".join((*TAR_SUFFIXES, ".parquet"))
    raise UserError(
        f"input {path} is neither a folder nor a tar or Parquet file with images ({kinds}), nor "
        "an image, nor a table that names images and captions (.csv, .tsv, .jsonl, .json)."
    )
