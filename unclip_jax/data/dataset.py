"""The protocol of data sets: random-access sources of records, one per split.

A record is a dict with "image" (encoded bytes), "caption", "key" and "scene" (JSON or ""); a
source that is joined with embeddings adds "z_img" and "z_txt". `key` names a record within its
data set; `records.digest` identifies its content, wherever it is stored.

Shuffling, epochs and resumption in loader.py need only `len(source)` and `source[i]`. A source that
can only be read in order, such as shards in cloud storage, could implement `iter(position)`
instead: an iterator over the records from `position` on, in an order that depends on the source
alone. The state of the loader is already a position (the number of examples read), so such a
`StreamSource` could be resumed like any other. It would need its own branch in the loader, and
`Dataset.open_split` would return it; nothing else would change.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from unclip_jax.core.storage import Location
from unclip_jax.data import records
from unclip_jax.data.records import Record

_SAMPLES = 256  # records hashed of a source that has no digest


@runtime_checkable
class Source(Protocol):
    """A sequence of records, read from many threads and sent to other processes by pickling."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclasses.dataclass(frozen=True)
class FeatureKeys:
    """Names of the features with the images and captions, for data sets of other formats.

    Attributes:
        image: feature with the image.
        caption: feature with the caption; "captions/text" is the feature "text" inside "captions".
    """

    image: str = "image"
    caption: str = "caption"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An open data set.

    Attributes:
        splits: names of its splits.
        open_split: opens a split by name; raises UserError if it does not exist or is damaged.
        tokenizer_dir: folder of the tokenizer that belongs to the data; None without one.
        tokenizer_hash: hash of that tokenizer; "" without one.
        prepared_dir: place of the data if `unclip_jax.prepare` wrote them and can add a tokenizer;
            else None.
    """

    splits: tuple[str, ...]
    open_split: Callable[[str], Source]
    tokenizer_dir: pathlib.Path | None = None
    tokenizer_hash: str = ""
    prepared_dir: Location | None = None


def without_image(source: Source, index: int) -> Record:
    """Reads a record whose image is not needed; sources may return it nevertheless."""
    read = getattr(source, "without_image", source.__getitem__)
    return read(index)


def content_digest(source: Source) -> str:
    """Returns a digest of the records of a source, which does not depend on where they are stored.

    Prepared splits have a `digest` of all their records. For other sources it is the hash of the
    number of records and the content of up to 256 of them, evenly spaced.
    """
    stored = getattr(source, "digest", "")
    if stored:
        return stored
    count = len(source)
    digest = hashlib.sha256(f"{count} records".encode())
    for index in np.linspace(0, count - 1, min(_SAMPLES, count), dtype=int):
        digest.update(records.digest(source[int(index)]).encode())
    return digest.hexdigest()


# Opens the data set at a location, which is the part of the path after the scheme.
Opener = Callable[[str, FeatureKeys], Dataset]
