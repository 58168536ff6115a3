"""The protocol of data sets: random-access sources of records, one per split.

A record is a dict with "image" (encoded bytes), "caption", "key" and "scene" (JSON or ""); a
source that is joined with embeddings adds "z_img" and "z_txt". `key` names a record within its
data set; `records.digest` identifies its content, wherever it is stored.

Shuffling, epochs and resumption in loader.py rest on `len(source)` and `source[i]`. A source that
can only be read in order, such as shards in cloud storage, would have `iter(position)` instead: an
iterator over the records from `position` on, in an order that depends on the source alone. The
loader's state is already a position (examples read so far), so such a `StreamSource` could be
resumed like any other. It would have its own branch in the loader; `Dataset.open_split` would
return it, and nothing else would change.
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

_SAMPLES = 256  # records that stand for a source without a digest of its own


@runtime_checkable
class Source(Protocol):
    """A sequence of records, read from many threads and sent to other processes by pickling."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclasses.dataclass(frozen=True)
class FeatureKeys:
    """Names under which a data set of another format stores images and captions.

    Attributes:
        image: feature with the image.
        caption: feature with the caption; "captions/text" is "text" inside of "captions".
    """

    image: str = "image"
    caption: str = "caption"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set that can be read.

    Attributes:
        splits: names of its splits.
        open_split: opens one split by name; raises UserError if there is none of that name or it
            is damaged.
        tokenizer_dir: folder of the tokenizer that belongs to the data; None without one.
        tokenizer_hash: hash of that tokenizer; "" without one.
        prepared_dir: place of the data if `unclip_jax.prepare` wrote them, and could add a
            tokenizer.
    """

    splits: tuple[str, ...]
    open_split: Callable[[str], Source]
    tokenizer_dir: pathlib.Path | None = None
    tokenizer_hash: str = ""
    prepared_dir: Location | None = None


def without_image(source: Source, index: int) -> Record:
    """Reads a record whose image is not needed; it may be there all the same."""
    read = getattr(source, "without_image", source.__getitem__)
    return read(index)


def content_digest(source: Source) -> str:
    """Returns the identity of the records of a source, wherever they are stored.

    Prepared splits have a `digest` of all their records; of other sources the number of records
    and the content of up to 256 of them, evenly spaced, are hashed.
    """
    stored = getattr(source, "digest", "")
    if stored:
        return stored
    count = len(source)
    digest = hashlib.sha256(f"{count} records".encode())
    for index in np.linspace(0, count - 1, min(_SAMPLES, count), dtype=int):
        digest.update(records.digest(source[int(index)]).encode())
    return digest.hexdigest()


# Opens the data set at a location, the part of its path after the scheme.
Opener = Callable[[str, FeatureKeys], Dataset]
