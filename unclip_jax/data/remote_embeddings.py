"""Embeddings that `embed` wrote to an object store: one ranged read per row and field."""

import io

import numpy as np

from unclip_jax.core import storage
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Location, Url
from unclip_jax.data.embeddings import (
    KINDS,
    SHARDS,
    STATS,
    EmbeddingSource,
    file_name,
    read_stats,
)

_HEADER = 128  # bytes before the rows, to which NumPy pads the header


def open_embeddings(place: str | Location) -> EmbeddingSource:
    """Opens a folder of embeddings, local or in an object store.

    Raises:
        UserError: there are no embeddings, or they are incomplete.
    """
    place = storage.location(place) if isinstance(place, str) else place
    return RemoteEmbeddings(place) if isinstance(place, Url) else EmbeddingSource(place)


class RemoteEmbeddings(EmbeddingSource):
    """Random access to embeddings in a store; the digests of their files are not checked."""

    def __init__(self, url: Url):
        """Reads the statistics, which contain the number and sizes of the shards.

        Raises:
            UserError: there are no statistics, or they do not contain the sizes.
        """
        self.directory = url
        self._stored = read_stats(url)
        self._check_finished(self._stored)
        counts = self._stored.get(SHARDS)
        if not counts:
            raise UserError(
                f"{url} holds no embeddings with a {STATS} of this version; write them with "
                "`python -m unclip_jax.embed`, or copy them to a local folder."
            )
        numbers = range(len(counts))
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._metadata = [url / file_name("metadata", i, "parquet") for i in numbers]
        fields = {field: kind for field, kind in KINDS.items() if field in self._stored}
        self._paths = {
            f: [url / file_name(k, i, "npy") for i in numbers] for f, k in fields.items()
        }
        self._dims = {field: len(self._stored[field]["mean"]) for field in fields}
        self._open_caches()

    def _open_array(self, field: str, shard: int) -> "_RangedArray":
        return _RangedArray(self._paths[field][shard])

    def _read_stats(self):
        return self._stored


class _RangedArray:
    """Rows of a NumPy file in a store, by number, slice or list."""

    def __init__(self, file: Location):
        """Reads the header.

        Raises:
            UserError: the file was not written by `embed`.
        """
        assert isinstance(file, Url)
        self._file, head = file, io.BytesIO(file.read_range(0, _HEADER))
        try:
            version = np.lib.format.read_magic(head)
            shape, fortran, self.dtype = np.lib.format.read_array_header_1_0(head)
            if version != (1, 0) or fortran or len(shape) != 2:
                raise ValueError("unexpected layout")
        except Exception as error:  # NumPy's parser of headers raises anything
            raise UserError(
                f"{file} cannot be read as an array; write it again with `python -m "
                "unclip_jax.embed`."
            ) from error
        self._count, self._dim = shape
        self._start = head.tell()

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(index, slice):
            start, stop, _ = index.indices(self._count)
            return self._rows(start, max(start, stop))
        if isinstance(index, np.ndarray):
            return np.concatenate([self._rows(int(i), int(i) + 1) for i in index])
        return self._rows(index, index + 1)[0]

    def _rows(self, start: int, stop: int) -> np.ndarray:
        size = self._dim * self.dtype.itemsize
        data = self._file.read_range(self._start + start * size, self._start + stop * size)
        return np.frombuffer(data, self.dtype).reshape(-1, self._dim)
