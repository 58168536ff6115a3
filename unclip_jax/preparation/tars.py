"""WebDataset tars: members that share a name up to its first dot are one example.

Members are listed and then read by offset. Nothing is ever extracted, and links, devices and
folders in the archive are ignored, so an archive cannot touch the disk.
"""

import lzma
import tarfile
import zlib
from collections.abc import Iterator

from unclip_jax.core.checks import UserError
from unclip_jax.preparation.items import IMAGE_SUFFIXES, Blob, Item, open_maybe_compressed

TEXT_SUFFIXES = (".txt", ".caption", ".text")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DAMAGED = (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error)


def list_tar(path: str, *, caption_field: str) -> list[Item]:
    """Lists the items of one tar in the order in which their keys appear.

    The caption is the member .txt (or .caption, .text), else the field `caption_field` of the
    member .json, as img2dataset writes it. A tar that ends early gives what it holds, and one item
    that is skipped as "truncated tar".

    Raises:
        UserError: the file is not a tar at all.
    """
    samples: dict[str, dict[str, Blob]] = {}
    extra: list[Item] = []
    try:
        for name, blob in _members(path):
            key, suffix = _split_name(name)
            sample = samples.setdefault(key, {})
            if suffix in sample:
                extra.append(Item(key, None, None, skip="duplicate key"))
            else:
                sample[suffix] = blob
    except _DAMAGED as error:
        if not samples:
            raise UserError(f"{path} is not a tar that can be read: {error}.") from error
        extra.append(Item(f"end of {path}", None, None, skip="truncated tar"))
    items = [_item(key, sample, caption_field) for key, sample in samples.items()]
    return [item for item in items if item is not None] + extra


def _members(path: str) -> Iterator[tuple[str, Blob]]:
    """Yields the regular files that are neither hidden nor resource forks."""
    with open_maybe_compressed(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            name = member.name.rsplit("/", 1)[-1]
            if member.isreg() and not member.issparse() and "." in name[1:] and name[0] != ".":
                yield member.name, Blob(path, member.offset_data, member.size)
            vars(tar)["members"] = []  # tarfile would keep them all


def _split_name(name: str) -> tuple[str, str]:
    """Splits `a/b.c.png` into key `a/b` and suffix `.c.png`."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, "." + suffix.lower()


def _item(key: str, sample: dict[str, Blob], caption_field: str) -> Item | None:
    """Returns one sample as an item; None if it has no image, caption or JSON."""
    image = next((sample[s] for s in IMAGE_SUFFIXES if s in sample), None)
    text = next((sample[s] for s in TEXT_SUFFIXES if s in sample), None)
    facts = sample.get(".json")
    if image is None:
        described = text is not None or facts is not None
        return Item(key, None, None, skip="no image") if described else None
    if text is not None:
        return Item(key, image, text)
    if facts is not None:
        return Item(key, image, facts, field=caption_field)
    return Item(key, image, None, skip="no caption")
