"""Random-access sources of records: `len(source)` and `source[i]`, and nothing else.

A record is a dict with "image" (encoded bytes), "caption", "key" and "scene"; a joined source adds
"z_img" and "z_txt". To add a kind of data set, write one function here that returns such a source.
"""

import pathlib
import threading
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from unclip_jax.core.checks import UserError
from unclip_jax.data import manifest, records
from unclip_jax.data.embeddings import EmbeddingSource
from unclip_jax.data.records import Record

_PROBES = 32  # keys compared when a join is made; the rest are compared as they are read


@runtime_checkable
class Source(Protocol):
    """What the loader reads: a sequence of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


def open_source(
    path: str, *, split: str, image_key: str = "image", caption_key: str = "caption"
) -> Source:
    """A source from the string an experiment gives.

    Args:
        path: a folder written by `unclip_jax.prepare`, or "tfds:NAME" or "tfds:NAME@DATA_DIR".
        split: of that data set.
        image_key: TFDS feature with the picture.
        caption_key: TFDS feature with the caption.

    Raises:
        UserError: no such data set or split, or one that is not whole.
    """
    if path.startswith("tfds:"):
        name, _, data_dir = path.removeprefix("tfds:").partition("@")
        fields = {"image": image_key, "caption": caption_key}
        return open_tfds(name, split=split, data_dir=data_dir or None, fields=fields)
    return open_prepared(path, split=split)


class ShardSource:
    """Records spread over ArrayRecord files; safe to read from many threads and to pickle."""

    def __init__(self, paths: Sequence[pathlib.Path], counts: Sequence[int]):
        """Open lazily `paths`, which hold `counts` records."""
        self._paths = [str(path) for path in paths]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self):
        counts = np.diff(self._ends, prepend=0).tolist()
        return ShardSource, ([pathlib.Path(p) for p in self._paths], counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[shard - 1]) if shard else 0
        try:
            data = self._reader(shard).read([index - start])[0]
        except RuntimeError as error:
            raise UserError(
                f"record {index - start} of {self._paths[shard]} is damaged; delete the file and "
                "run the same `prepare` command."
            ) from error
        return records.decode(data)

    def check(self) -> None:
        """Open every file and compare its number of records.

        Raises:
            UserError: a file is damaged.
        """
        for shard in range(len(self._paths)):
            self._reader(shard)

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:
            with self._lock:
                if shard not in self._readers:
                    self._readers[shard] = self._open(shard)
        return self._readers[shard]

    def _open(self, shard: int) -> Any:
        options = ",".join(f"{k}:{v}" for k, v in records.READER_OPTIONS.items())
        expected = int(np.diff(self._ends, prepend=0)[shard])
        readable = records.count_records(pathlib.Path(self._paths[shard]))
        if readable != expected:
            raise UserError(
                f"{self._paths[shard]} has {readable} readable records, the manifest says "
                f"{expected}; copy it again, or run the same `prepare` command."
            )
        return array_record_module.ArrayRecordReader(self._paths[shard], options)


def open_prepared(directory: str | pathlib.Path, *, split: str) -> ShardSource:
    """One split of a folder written by `unclip_jax.prepare`.

    Raises:
        UserError: no folder, an unfinished one, no such split, or shards missing or cut short.
    """
    directory = pathlib.Path(directory)
    entry = manifest.read(directory).split(split)
    paths = manifest.shard_paths(directory, entry)
    source = ShardSource(paths, [shard.count for shard in entry.shards if shard.count])
    source.check()  # cheap, and a half-copied data set is found before training starts
    return source


class TfdsSource:
    """A TFDS data source seen as records; pictures stay encoded."""

    def __init__(self, data: Sequence[Any], *, split: str, fields: dict[str, str], names: Any):
        """Wrap `data`; `fields` maps our names to feature paths, `names` turns labels to words."""
        self._data, self._split, self._fields, self._names = data, split, fields, names

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        example = self._data[index]
        found = {name: _follow(example, path) for name, path in self._fields.items()}
        caption = self._text(found["caption"])
        key = self._text(found["key"]) if "key" in found else f"{self._split}-{index:08d}"
        scene = self._text(found["scene"]) if "scene" in found else ""
        return {"image": found["image"], "caption": caption, "key": key, "scene": scene}

    def _text(self, value: Any) -> str:
        if isinstance(value, (list, tuple, np.ndarray)) and not isinstance(value, (bytes, str)):
            value = value[0] if len(value) else ""
        if isinstance(value, (int, np.integer)):
            label = self._names.int2str(int(value)) if self._names else value
            return str(label).replace("_", " ")
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def open_tfds(
    name: str, *, split: str, data_dir: str | None = None, fields: dict[str, str] | None = None
) -> TfdsSource:
    """A TFDS data set that is prepared on this machine, read without TensorFlow.

    Args:
        name: as TFDS names it, with config and version if wanted.
        split: TFDS's split syntax works ("train[:90%]").
        data_dir: where TFDS keeps its data; None = its default.
        fields: our field -> feature path ("captions/text"; of several captions the first is
            taken; a class label becomes its name). Default: image and caption, and key and scene
            where the data set has them.

    Raises:
        UserError: no such data set, split or feature, or one not prepared as ArrayRecord.
    """
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        raise UserError(
            f"no TFDS data set {name!r} in {data_dir or 'the default folder'}: "
            f"{_first_line(error)} Prepare it with file_format='array_record'."
        ) from error
    features: Any = builder.info.features
    wanted = {**{f: f for f in ("key", "scene") if f in features}, **(fields or {})}
    wanted = {"image": "image", "caption": "caption", **wanted}
    for path in wanted.values():
        _check_feature(name, features, path)
    try:
        skip = {wanted["image"]: tfds.decode.SkipDecoding()}
        data = builder.as_data_source(split=split, decoders=skip)
    except (ValueError, AssertionError, NotImplementedError, OSError) as error:
        raise UserError(
            f"TFDS data set {name!r}, split {split!r}: {_first_line(error)} "
            "It must be prepared on this machine with file_format='array_record'."
        ) from error
    label = _follow(features, wanted["caption"])
    names = label if hasattr(label, "int2str") else None
    return TfdsSource(data, split=split, fields=wanted, names=names)


class JoinedSource:
    """Records with their embeddings, matched by position and checked by key."""

    def __init__(self, source: Source, embeddings: EmbeddingSource):
        """Join two sources of the same examples in the same order.

        Raises:
            UserError: the counts differ, or the keys do.
        """
        self._source, self._embeddings = source, embeddings
        if len(source) != len(embeddings):
            raise UserError(
                f"{embeddings.directory} holds {len(embeddings)} embeddings for {len(source)} "
                "records; run `python -m unclip_jax.embed` on this very data set."
            )
        for index in np.linspace(0, len(source) - 1, min(_PROBES, len(source)), dtype=int):
            self[int(index)]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record, found = self._source[index], self._embeddings[index]
        if record["key"] != found["key"]:
            raise UserError(
                f"record {index} is {record['key']!r}, but embedding {index} in "
                f"{self._embeddings.directory} is of {found['key']!r}; run `python -m "
                "unclip_jax.embed` on this very data set."
            )
        vectors = {name: found[name] for name in ("z_img", "z_txt") if name in found}
        return {**record, **vectors}


def _follow(example: Any, path: str) -> Any:
    for part in path.split("/"):
        example = example[part]
    return example


def _check_feature(name: str, features: Any, path: str) -> None:
    try:
        _follow(features, path)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"TFDS data set {name!r} has no feature {path!r}; it has {', '.join(features)}. "
            "Set image_key and caption_key."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
