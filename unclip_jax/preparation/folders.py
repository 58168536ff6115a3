"""Image folders: captions from tables (metadata.jsonl, CSV, COCO) or from files beside the images.

Every file is accounted for: it is an image, a caption, a table or an archive, or is counted among
the other files.
"""

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from unclip_jax.data import image_codec
from unclip_jax.preparation import parquet_images, tables
from unclip_jax.preparation.items import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    TAR_SUFFIXES,
    Blob,
    Item,
    Listing,
    whole_file,
)
from unclip_jax.preparation.tables import TableRow

CLASSES = "classes.txt"  # one name per line, for captions that are class numbers
_HEADER = 32  # bytes by which an image without a known suffix is recognised
_OTHER_SUFFIXES = (*CAPTION_SUFFIXES, *tables.SUFFIXES, *TAR_SUFFIXES, ".parquet")
_FORMS = {".json": "json", ".cls": "class"}


class ImageFolder(NamedTuple):
    """One folder below a root.

    Attributes:
        path: path of the folder.
        files: sorted names of its files.
        images: names of the files that are images.
        captioned: names beside which a caption file is recognised: images with and without suffix.
    """

    path: pathlib.Path
    files: dict[str, None]
    images: set[str]
    captioned: set[str]


def list_folder(root: pathlib.Path, *, caption_field: str = "") -> Listing:
    """Lists the examples below `root`, folder by folder in the order of names.

    A table captions the files that it names, relative to its folder. An image that no table names
    takes its caption from a file beside it (`CAPTION_SUFFIXES`). The key of an example is the path
    of its image below `root` without suffix. Links are followed, and every folder is read once.
    """
    listing = Listing()
    captioned: dict[pathlib.Path, int] = {}
    images: list[tuple[ImageFolder, str]] = []
    for folder in _walk(root, listing):
        for name in folder.files:
            path = folder.path / name
            kind = _kind(path, folder)
            if kind == "image":
                images.append((folder, name))
            elif kind == "archive":
                listing.archives.append(path)
            elif kind == "table":
                rows = _read_table(path, caption_field)
                if rows is None:
                    listing.set_aside(name)
                else:
                    _add_rows(rows, path, root, listing, captioned)
            elif kind == "other":
                listing.set_aside(name)
    for folder, name in images:
        path, exists = folder.path / name, folder.files.__contains__
        if path not in captioned:
            item = list_image(path, root=root, field=caption_field, exists=exists)
            listing.items.append(item)
    return listing


def list_table(path: pathlib.Path, *, caption_field: str = "") -> Listing | None:
    """Lists the images that a table names; None if the file is not a table of captions."""
    rows = _read_table(path, caption_field)
    if rows is None:
        return None
    listing = Listing()
    _add_rows(rows, path, path.parent, listing, {})
    return listing


def _read_table(path: pathlib.Path, field: str) -> list[TableRow] | None:
    """Reads a table of captions; None if the file is not one."""
    if path.suffix.lower() != ".parquet":
        return tables.read_table(path, field=field)
    try:
        return tables.checked(enumerate(parquet_images.read_rows(path), 1), field, strict=False)
    except OSError:
        return None


def list_image(
    path: pathlib.Path,
    *,
    root: pathlib.Path,
    field: str = "",
    exists: Callable[[str], bool] | None = None,
) -> Item:
    """Returns an image with the caption in the file beside it.

    Args:
        path: path of the image.
        root: folder to which the key is relative.
        field: field of captions in JSON.
        exists: True for names of files beside the image; None = query the file system.
    """
    key = _key(path, root)
    image = whole_file(path)
    if isinstance(image, str):
        return Item(key, None, None, skip=image)
    beside = exists or (lambda name: (path.parent / name).is_file())
    metadata = whole_file(path.with_suffix(".json")) if beside(f"{path.stem}.json") else None
    facts = metadata if isinstance(metadata, Blob) else None
    for suffix in CAPTION_SUFFIXES:
        for stem in (path.stem, path.name):
            for name in (stem + suffix, stem + suffix.upper()):
                if not beside(name):
                    continue
                text = whole_file(path.parent / name)
                if not isinstance(text, str):
                    return _captioned(key, image, text, suffix, field)._replace(facts=facts)
    return Item(key, image, None, skip="no caption")


def _captioned(key: str, image: Blob, text: Blob, suffix: str, field: str) -> Item:
    classes = pathlib.Path(text.path).with_name(CLASSES) if suffix == ".cls" else None
    return Item(
        key,
        image,
        text,
        form=_FORMS.get(suffix, "text"),
        field=field,
        classes=str(classes) if classes else "",
    )


def _walk(root: pathlib.Path, listing: Listing) -> Iterator[ImageFolder]:
    """Yields folders top down, those behind links last, and each real folder once.

    Folders that cannot be read become skipped items; hidden files are counted as other files.
    """
    visited: set[tuple[int, int]] = set()
    pending, linked = [root], []
    while pending or linked:
        here = pending.pop() if pending else linked.pop(0)
        folders: list[pathlib.Path] = []
        files: list[str] = []
        try:
            facts = here.stat()
            if (facts.st_dev, facts.st_ino) in visited:
                continue
            visited.add((facts.st_dev, facts.st_ino))
            with os.scandir(here) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(here / entry.name)
                    elif entry.is_symlink() and os.path.isdir(entry.path):
                        linked.append(here / entry.name)
                    elif entry.name.startswith("."):
                        listing.set_aside(entry.name)
                    else:
                        files.append(entry.name)
        except OSError:
            listing.items.append(Item(_key(here, root), None, None, skip="unreadable folder"))
        pending.extend(reversed(folders))
        images = {name for name in files if _is_image(here / name)}
        stems = {os.path.splitext(name)[0] for name in images}
        yield ImageFolder(here, dict.fromkeys(files), images, images | stems)


def _kind(path: pathlib.Path, folder: ImageFolder) -> str:
    """Returns the kind of a file: "image", "caption", "table", "archive" or "other"."""
    name = path.name.lower()
    if path.name in folder.images:
        return "image"
    if name.endswith(TAR_SUFFIXES):
        return "archive"
    if name.endswith(".parquet"):
        return "archive" if parquet_images.image_column(path) else "table"
    if name == CLASSES or (name.endswith(CAPTION_SUFFIXES) and path.stem in folder.captioned):
        return "caption"
    if name.endswith(tables.SUFFIXES):
        return "table"
    return "other"


def _is_image(path: pathlib.Path) -> bool:
    """True if a file has the suffix of an image, or no known suffix and the header of one."""
    name = path.name.lower()
    if name.endswith(IMAGE_SUFFIXES):
        return True
    try:
        if name.endswith(_OTHER_SUFFIXES) or not path.is_file():
            return False
        with path.open("rb") as file:
            return image_codec.is_image(file.read(_HEADER))
    except OSError:
        return False


def _add_rows(
    rows: list[TableRow],
    table: pathlib.Path,
    root: pathlib.Path,
    listing: Listing,
    captioned: dict[pathlib.Path, int],
) -> None:
    """Adds the images of a table; further rows of one image add captions to it."""
    where, metadata = table.relative_to(root).as_posix(), tables.is_metadata(table)
    for row in rows:
        if row.problem:
            item = Item(f"{where}:{row.line}", None, None, skip=row.problem)
            listing.items.append(item)
            continue
        path = tables.resolve(table, row.name)
        index = captioned.get(path)
        if not metadata and index is None and list_image(path, root=root).caption is not None:
            continue  # the image has a caption file
        if index is None:
            captioned[path] = len(listing.items)
            listing.items.append(_row_item(path, root, row))
            continue
        item = listing.items[index]
        texts = item.caption if isinstance(item.caption, tuple) else ()
        skip = "" if item.image is not None and (texts or row.texts) else item.skip
        both = tuple(dict.fromkeys((*texts, *row.texts)))
        listing.items[index] = item._replace(caption=both or None, skip=skip)


def _row_item(path: pathlib.Path, root: pathlib.Path, row: TableRow) -> Item:
    image = whole_file(path)
    key = _key(path, root)
    if isinstance(image, str):
        return Item(key, None, None, skip=image)
    skip = "" if row.texts else "no caption"
    return Item(key, image, row.texts or None, skip=skip, facts=row.facts)


def _key(path: pathlib.Path, root: pathlib.Path) -> str:
    """Returns the path below `root`, without the suffix of an image."""
    below = pathlib.PurePath(os.path.relpath(path, root))
    return (below.with_suffix("") if below.suffix.lower() in IMAGE_SUFFIXES else below).as_posix()
