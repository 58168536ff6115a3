"""Reorders embeddings that another tool computed to match the records of a data set, by key.

clip-retrieval's workers interleave, and it skips unreadable images, so row i of its folder does not
belong to record i. `join_embeddings` finds the row of every record by key and writes a folder as
`embed` does, with the records that have one. It takes 16 bytes of memory per row of embeddings.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from concurrent import futures

import numpy as np
from jaxtyping import Int64, UInt64
from tqdm import tqdm

from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Location
from unclip_jax.data import image_codec, sources
from unclip_jax.data.dataset import FeatureKeys, Source, content_digest, without_image
from unclip_jax.data.embedding_writer import DTYPES, EmbeddingFolder
from unclip_jax.data.embeddings import EmbeddingSource
from unclip_jax.inference import dataset_embedding
from unclip_jax.inference.dataset_embedding import BatchEncoder

PROBES = 64  # records that are embedded to compare
_SIMILAR = 0.9  # cosine that they have on average at least, whatever resized the images
_UNIT = 0.01  # difference from norm 1 that rounding explains

Rows = Int64[np.ndarray, " rows"]


@dataclasses.dataclass(frozen=True)
class JoinReport:
    """Counts of one split.

    Attributes:
        split: its name.
        records: number of records.
        matched: number of records that have an embedding.
        first_unmatched: key of the first that has none; "" if all have one.
    """

    split: str
    records: int
    matched: int
    first_unmatched: str

    def __str__(self) -> str:
        text = f"{self.split}: {self.matched:,} of {self.records:,} records have an embedding"
        return text + (f" (not {self.first_unmatched!r})" if self.first_unmatched else "")


def join_embeddings(
    data: str,
    *,
    embeddings: pathlib.Path,
    clip: pathlib.Path,
    out: Location,
    splits: Sequence[str] = (),
    keys: FeatureKeys | None = None,
    key_parts: int = 1,
    raw: bool = False,
    workers: int = 8,
) -> list[JoinReport]:
    """Writes OUT/SPLIT for every split, with the rows of `embeddings` in the order of its records.

    Args:
        data: path of the data set.
        embeddings: folder in the layout of clip-retrieval.
        clip: export of the CLIP that computed them; a few records are embedded to check this.
        out: folder or URL to write.
        splits: names; () = all.
        keys: names of image and caption in data sets of other formats.
        key_parts: number of last parts of a key, between slashes, that are compared.
        raw: True if the embeddings are as CLIP computes them, not normalised.
        workers: threads that read records.

    Raises:
        UserError: no such data, embeddings or export; keys that are not unique, or match nothing;
            or embeddings of another CLIP.
    """
    dataset = sources.open_dataset(data, keys=keys)
    encoder, info = dataset_embedding.load_encoder(
        clip, tokenizer_hash=dataset.tokenizer_hash, batch_size=PROBES, raw=raw, workers=workers
    )
    rows = EmbeddingSource(embeddings)
    index = _KeyIndex(rows, key_parts)
    reports = []
    for split in splits or dataset.splits:
        source = dataset.open_split(split)
        origin = {"data": split, "data_digest": content_digest(source), "joined": len(rows)}
        dtype = str(rows.dtype) if str(rows.dtype) in DTYPES else "float32"
        folder = EmbeddingFolder(out / split, info={**info, **origin}, dtype=dtype)
        reports.append(_join(source, index, encoder, folder, raw=raw, workers=workers))
    return reports


def _join(
    source: Source,
    index: "_KeyIndex",
    encoder: BatchEncoder,
    folder: EmbeddingFolder,
    *,
    raw: bool,
    workers: int,
) -> JoinReport:
    """Joins one split."""
    rows, name = index.embeddings, folder.directory.name
    if folder.finished:
        return JoinReport(name, len(source), len(folder.finish(0)), "")
    used = np.zeros(len(rows), bool)
    matched, shards, unmatched = 0, 0, ""
    bar = tqdm(total=len(source), desc=f"join {name}", unit="record")
    with futures.ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(source), dataset_embedding.SHARD_SIZE):
            numbers = range(start, min(start + dataset_embedding.SHARD_SIZE, len(source)))
            labels = [*pool.map(lambda i: _label(without_image(source, i)), numbers)]
            bar.update(len(numbers))
            places = index.find([key for key, _ in labels])
            present = np.flatnonzero(places >= 0)
            unmatched = unmatched or next((labels[i][0] for i in np.flatnonzero(places < 0)), "")
            if not len(present):
                continue
            _check_unused(used, places[present], [labels[i][0] for i in present])
            if not matched:
                _check_clip(source, start + present[:PROBES], places[present], encoder, rows, raw)
            if not folder.is_written(shards):
                folder.write(
                    shards,
                    keys=[labels[i][0] for i in present],
                    captions=[labels[i][1] for i in present],
                    vectors={field: rows.take(field, places[present]) for field in rows.fields},
                    extra={"record": start + present},
                )
            matched, shards = matched + len(present), shards + 1
    bar.close()
    if not matched:
        raise UserError(
            f"no record of {name} has an embedding in {rows.directory}: records have keys such as "
            f"{unmatched!r}, embeddings such as {rows[0]['key']!r}; compare fewer or more parts "
            "with --key-parts, or give the embeddings of this data set."
        )
    folder.complete(shards)
    return JoinReport(name, len(source), matched, unmatched)


def _label(record: sources.Record) -> tuple[str, str]:
    return str(record["key"]), str(record["caption"])


class _KeyIndex:
    """The rows of embeddings by key: sorted 64-bit digests, and the row of each."""

    def __init__(self, embeddings: EmbeddingSource, parts: int):
        self.embeddings, self._parts = embeddings, parts
        digests = [self._digests(keys) for keys in embeddings.shard_keys()]
        unsorted = np.concatenate(digests)
        self._rows = np.argsort(unsorted, kind="stable")
        self._sorted = unsorted[self._rows]

    def find(self, keys: Sequence[str]) -> Rows:
        """Returns the row of every key; -1 where there is none.

        Raises:
            UserError: two rows have the same key.
        """
        digests = self._digests(keys)
        first = np.searchsorted(self._sorted, digests)
        end = np.searchsorted(self._sorted, digests, side="right")
        repeated = np.flatnonzero(end - first > 1)
        if len(repeated):
            raise UserError(
                f"{self.embeddings.directory} has several embeddings of "
                f"{keys[int(repeated[0])]!r}; compare more parts of the keys with --key-parts, or "
                "remove the copies."
            )
        rows = np.where(end > first, self._rows[np.minimum(first, len(self._rows) - 1)], -1)
        present = np.flatnonzero(rows >= 0)
        stored = self.embeddings.take_keys(rows[present])
        for place, key in zip(present, stored, strict=True):  # digests may collide
            if self._name(key) != self._name(keys[int(place)]):
                rows[place] = -1
        return rows

    def _digests(self, keys: Sequence[str]) -> UInt64[np.ndarray, " keys"]:
        names = (self._name(key).encode() for key in keys)
        content = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names)
        return np.frombuffer(content, np.uint64)

    def _name(self, key: str) -> str:
        """Returns the part of a key that is compared: without folders and suffix of the image."""
        name = "/".join(key.split("/")[-self._parts :])
        stem, _, suffix = name.rpartition(".")
        return stem if f".{suffix.lower()}" in image_codec.SUFFIXES else name


def _check_unused(used: np.ndarray, rows: Rows, keys: Sequence[str]) -> None:
    """Marks rows as used, each at most once.

    Raises:
        UserError: two records have the same key.
    """
    numbers, first = np.unique(rows, return_index=True)
    again = np.flatnonzero(used[rows])
    if len(numbers) < len(rows) or len(again):
        place = again[0] if len(again) else next(i for i in range(len(rows)) if i not in first)
        raise UserError(
            f"several records have the key {keys[place]!r}, as far as it is compared; compare more "
            "parts with --key-parts."
        )
    used[rows] = True


def _check_clip(
    source: Source,
    numbers: Rows,
    rows: Rows,
    encoder: BatchEncoder,
    embeddings: EmbeddingSource,
    raw: bool,
) -> None:
    """Compares stored embeddings of some records with those that the CLIP computes.

    Raises:
        UserError: they are of another dimension, norm or CLIP.
    """
    field = embeddings.fields[0]
    stored = embeddings.take(field, rows[: len(numbers)])
    z_img, z_txt = dataset_embedding.embed_records(source, numbers, encoder)
    computed = {"z_img": z_img, "z_txt": z_txt}[field]
    if stored.shape != computed.shape:
        raise UserError(
            f"{embeddings.directory} has embeddings of {stored.shape[1]} dimensions, this CLIP of "
            f"{computed.shape[1]}; give the CLIP that computed them."
        )
    lengths = np.linalg.norm(stored, axis=1)
    unit = abs(float(lengths.mean()) - 1) < _UNIT
    if unit == raw:
        raise UserError(
            f"{embeddings.directory} has embeddings of norm {lengths.mean():.4g}; "
            + ("leave out --raw." if raw else "add --raw, if they are as CLIP computes them.")
        )
    products = (stored * computed).sum(axis=1)
    cosine = float(np.mean(products / (lengths * np.linalg.norm(computed, axis=1))))
    if cosine < _SIMILAR:
        raise UserError(
            f"{embeddings.directory} is not of this CLIP or not of these images: {len(numbers)} "
            f"records have a cosine of {cosine:.2f} on average with what it computes; give the "
            "CLIP that computed them."
        )
