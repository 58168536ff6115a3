"""The registry of data sets and the functions that open them.

A data set is named by the path of a folder that `unclip_jax.prepare` wrote, by the URL of one in an
object store, or by SCHEME:LOCATION. To add a kind, write a function from the location to a
`Dataset` (see dataset.py) and register it in `SOURCES`: training, embedding, evaluation and
`prepare` then read it.
"""

import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from unclip_jax.core import storage
from unclip_jax.core.checks import UserError, suggest
from unclip_jax.data import prepared, tar_source, tfds_source
from unclip_jax.data.dataset import (
    Dataset,
    FeatureKeys,
    Opener,
    Source,
    content_digest,
    without_image,
)
from unclip_jax.data.dataset_manifest import FILE as MANIFEST
from unclip_jax.data.embeddings import EmbeddingSource
from unclip_jax.data.records import Record

SOURCES: dict[str, Opener] = {
    "tars": tar_source.open_dataset,
    "tfds": tfds_source.open_dataset,
}

_PROBES = 32  # keys compared when a join is opened; the others are compared when read
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9_]*):(.*)", re.DOTALL)


def open_dataset(path: str | os.PathLike[str], *, keys: FeatureKeys | None = None) -> Dataset:
    """Opens a data set by its path.

    Args:
        path: a folder written by `unclip_jax.prepare`, or SCHEME:LOCATION with a scheme of
            `SOURCES`, such as "tfds:NAME" or "tfds:NAME@DATA_DIR".
        keys: names of the image and caption features in data sets of other formats; None = the
            defaults.

    Raises:
        UserError: the scheme is unknown, or there is no complete data set at that location.
    """
    scheme, location = parse_path(path)
    if not scheme:
        return prepared.open_dataset(location)
    if scheme not in SOURCES:
        raise UserError(
            f"data set {os.fspath(path)!r} has an unknown scheme {scheme!r}."
            f"{suggest(scheme, SOURCES)} Give one of these or a folder written by "
            "`python -m unclip_jax.prepare`."
        )
    return SOURCES[scheme](location, keys or FeatureKeys())


def open_source(
    path: str | os.PathLike[str], *, split: str, keys: FeatureKeys | None = None
) -> Source:
    """Opens one split of the data set at `path`; see `open_dataset`.

    Raises:
        UserError: there is no such data set or split, or it is incomplete.
    """
    return open_dataset(path, keys=keys).open_split(split)


def is_dataset(path: str | os.PathLike[str]) -> bool:
    """True if `path` names a data set rather than a file or a folder of images."""
    scheme, location = parse_path(path)
    place = storage.location(location)
    if scheme or isinstance(place, storage.Url):
        return True
    return (place / MANIFEST).is_file()


def parse_path(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Splits a path into scheme and location.

    The scheme of an existing path and of the URL of an object store is "".

    Raises:
        UserError: the URL is not that of a supported store.
    """
    text = os.fspath(path)
    if storage.is_url(text):
        return "", str(storage.location(text))
    match = _SCHEME.fullmatch(text)
    if match is None or pathlib.Path(text).exists():
        return "", text
    return match[1], match[2]


class JoinedSource:
    """Records with their embeddings, matched by position.

    If embeddings were joined by key, only records that have one are included. Embeddings with a
    digest of their records are checked by it; for others the key of every record is compared. If
    all captions of every image are embedded, z_txt is [captions z].
    """

    def __init__(
        self, source: Source, embeddings: EmbeddingSource, *, fields: Sequence[str] | None = None
    ):
        """Joins two sources of the same examples in the same order.

        Args:
            source: the records.
            embeddings: embeddings of these records.
            fields: batch fields, of which those that are embeddings are read; None = all.

        Raises:
            UserError: digest, number or keys show that the embeddings are of other records.
        """
        self._source, self._embeddings = source, embeddings
        self._fields = [name for name in fields or embeddings.fields if name in embeddings.fields]
        self._groups = embeddings.groups() if embeddings.info().get("captions") == "all" else None
        self._records = embeddings.records()
        count = len(embeddings) if self._groups is None else len(self._groups) - 1
        self._count = count
        stated = embeddings.info().get("data_digest")
        self._checks_keys = True
        if stated and stated != content_digest(source):
            raise UserError(
                f"the embeddings in {embeddings.directory} were computed on other records: they "
                f"state data_digest {stated[:12]}, this data set has "
                f"{content_digest(source)[:12]}; run `python -m unclip_jax.embed` on it."
            )
        if self._records is None and len(source) != count:
            raise UserError(
                f"{embeddings.directory} holds {count} embeddings for {len(source)} "
                "records; run `python -m unclip_jax.embed` on this data set."
            )
        for index in np.linspace(0, count - 1, min(_PROBES, count), dtype=int):
            self[int(index)]
        self._checks_keys = not stated

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        return self._joined(index, self._source[self._number(index)])

    def without_image(self, index: int) -> Record:
        """Reads a record whose image is not needed."""
        return self._joined(index, without_image(self._source, self._number(index)))

    def _number(self, index: int) -> int:
        return index if self._records is None else int(self._records[index])

    def _joined(self, index: int, record: Record) -> Record:
        first = index if self._groups is None else int(self._groups[index])
        if self._checks_keys:
            row = self._embeddings[first]
        else:
            row = self._embeddings.row(first, self._fields)
        if self._checks_keys and record["key"] != row["key"]:
            raise UserError(
                f"record {index} is {record['key']!r}, but embedding {index} in "
                f"{self._embeddings.directory} is of {row['key']!r}; run `python -m "
                "unclip_jax.embed` on this data set."
            )
        vectors = {name: row[name] for name in ("z_img", "z_txt") if name in row}
        if self._groups is not None and "z_txt" in vectors:
            last = int(self._groups[index + 1])
            vectors["z_txt"] = self._embeddings.vectors("z_txt", first, last)
        return {**record, **vectors}
