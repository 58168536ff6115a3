"""WebDataset tars: members that share a name up to its first dot are one example.

Members are listed and then read by offset. Nothing is extracted, and links, devices and folders in
the archive are ignored, so an archive cannot write to the disk.
"""

import contextlib
import itertools
import lzma
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

from unclip_jax.core.checks import UserError
from unclip_jax.preparation.folders import CLASSES
from unclip_jax.preparation.items import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    TEXT_SUFFIXES,
    Blob,
    Cell,
    Item,
    Listing,
    open_packed,
    stamp,
)

_UNREADABLE = (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error, ValueError)
_FIELDS = (*IMAGE_SUFFIXES, *CAPTION_SUFFIXES)

Sample = dict[str, Blob]  # member's name after the key -> its bytes


def list_tar(path: str, *, caption_field: str = "") -> Listing:
    """Lists the examples of one tar in the order in which their keys appear.

    The caption is the member .txt (or .caption, .text), else a field of the member .json, as
    written by img2dataset, else the class .cls. If the name of an image has further dots
    (photo_2021.05.01.jpg), the key ends before the last one. For a truncated or damaged tar the
    readable examples are listed, and one skipped item represents the rest.

    Raises:
        UserError: the file is not a tar.
    """
    samples: dict[str, Sample] = {}
    extents: dict[str, list[tuple[int, int]]] = {}
    listing, extra = Listing(), []
    try:
        for name, content, extent in _members(path):
            key, suffix = _split_name(name)
            extents.setdefault(key, []).append(extent)
            if isinstance(content, str):
                if name.lower().endswith(_FIELDS):
                    extra.append(Item(name, None, None, skip=content))
                continue
            if not suffix or name.rpartition("/")[2].startswith("."):
                listing.set_aside(name)
                continue
            sample = samples.setdefault(key, {})
            if suffix in sample:
                extra.append(Item(key, None, None, skip="duplicate key"))
            else:
                sample[suffix] = content
    except _UNREADABLE as error:
        if not samples:
            raise UserError(
                f"{path} is not a tar that can be read: {error}; copy or pack it again."
            ) from error
        reason = "damaged tar" if isinstance(error, _DamagedTar) else "truncated tar"
        extra.append(Item(f"end of {path}", None, None, skip=reason))
    for key, sample in samples.items():
        items = list(_examples(key, sample, listing, field=caption_field, path=path))
        if len(items) == 1 and items[0].image is not None:
            items = [items[0]._replace(span=_span(items[0].image, extents[key]))]
        listing.items += items
    listing.items += extra
    return listing


class _DamagedTar(tarfile.ReadError):
    """Reports that some headers of a tar cannot be read."""


class _Members(tarfile.TarFile):
    """A tar whose unreadable headers are counted and skipped."""

    damaged = 0


class _Header(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except _INVALID:
            tarfile.damaged += 1
            raise


_INVALID = (
    tarfile.InvalidHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
    tarfile.TruncatedHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
)


def _span(image: Blob | Cell, extents: list[tuple[int, int]]) -> Blob | None:
    """Returns the range of a sample's members if they are adjacent."""
    start, end = extents[0][0], extents[-1][1]
    joined = all(a[1] == b[0] for a, b in itertools.pairwise(extents))
    if not joined or not isinstance(image, Blob):
        return None
    return image._replace(offset=start, size=end - start)


def _members(path: str) -> Iterator[tuple[str, Blob | str, tuple[int, int]]]:
    """Yields name, content (or why there is none) and extent of every member except folders."""
    changed = stamp(path)
    with open_packed(path) as file, contextlib.closing(_opened(file)) as tar:
        for member in tar:
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            extent = member.offset, end
            if member.isreg() and not member.issparse():
                blob = Blob(path, member.offset_data, member.size, changed)
                yield member.name, blob, extent
            elif member.issparse():
                yield member.name, "sparse member", extent
            elif not member.isdir():
                yield member.name, "no file but a link or device", extent
            vars(tar)["members"] = []  # tarfile would keep all of them in memory
        if tar.damaged:
            raise _DamagedTar("its headers are damaged")


def _opened(file: Any) -> _Members:
    """Opens a tar whose first header is intact; concatenated tars are read one after another."""
    tar = _Members.open(fileobj=file, mode="r:", tarinfo=_Header)
    tar.ignore_zeros = True
    return tar


def _split_name(name: str) -> tuple[str, str]:
    """Splits `a/b.C.PNG` into key `a/b` and suffix `.C.png`; `a/b` has the suffix ""."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    inner, last_dot, last = (dot + suffix).rpartition(".")
    return folder + slash + stem, inner + last_dot + last.lower()


def _examples(
    key: str, sample: Sample, listing: Listing, *, field: str, path: str
) -> Iterator[Item]:
    """Yields the examples among the members that share a name up to its first dot.

    A suffix that is a field (`.jpg`, `.txt`) belongs to the example `key`. Longer suffixes, such as
    `.05.01.jpg`, form examples of their own if they have an image and a caption, or if `key` has no
    image. Otherwise they are additional fields of `key`, such as `.mask.png`, and not read.
    """
    plain = {suffix: blob for suffix, blob in sample.items() if suffix in _FIELDS}
    parts: dict[str, Sample] = {}
    for suffix, blob in sample.items():
        if suffix in plain:
            continue
        stem, _, last = suffix.rpartition(".")
        if f".{last}" in _FIELDS:
            parts.setdefault(stem, {})[f".{last}"] = blob
        else:
            listing.set_aside(key + suffix)
    has_image = _first(plain, IMAGE_SUFFIXES) is not None
    caption = {s: blob for s, blob in plain.items() if s in CAPTION_SUFFIXES}
    shared, complete = not has_image and bool(caption), False
    if has_image or (plain and not any(_first(p, IMAGE_SUFFIXES) for p in parts.values())):
        yield _item(key, plain, field, path)
        complete = True
    for stem, part in parts.items():
        image, own = _first(part, IMAGE_SUFFIXES), _first(part, CAPTION_SUFFIXES)
        if image and (own or not complete):
            both = part if own or not shared else {**part, **caption}
            yield _item(key + stem, both, field, path)
        elif complete:
            for suffix in part:
                listing.set_aside(key + stem + suffix)
        else:
            yield _item(key + stem, part, field, path)


def _first(sample: Sample, suffixes: tuple[str, ...]) -> Blob | None:
    return next((sample[suffix] for suffix in suffixes if suffix in sample), None)


def _item(key: str, sample: Sample, field: str, path: str) -> Item:
    """Returns one example; without an image or a caption it is skipped for that reason."""
    image = _first(sample, IMAGE_SUFFIXES)
    if image is None:
        return Item(key, None, None, skip="no image")
    text, facts = _first(sample, TEXT_SUFFIXES), sample.get(".json")
    if text is not None:
        return Item(key, image, text, facts=facts)
    if facts is not None:
        return Item(key, image, facts, form="json", field=field, facts=facts)
    if ".cls" in sample:
        classes = str(pathlib.Path(path).with_name(CLASSES))
        return Item(key, image, sample[".cls"], form="class", classes=classes)
    return Item(key, image, None, skip="no caption")
