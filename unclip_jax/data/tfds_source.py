"""TensorFlow Datasets as sources of records, read without TensorFlow."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.core.checks import UserError
from unclip_jax.data.dataset import Dataset, FeatureKeys
from unclip_jax.data.records import Record

_PREPARE = "It must be prepared on this machine with file_format='array_record'."


def open_dataset(location: str, keys: FeatureKeys) -> Dataset:
    """Opens a data set that TFDS has prepared on this machine.

    Args:
        location: NAME or NAME@DATA_DIR; NAME as in TFDS, with config and version if needed.
        keys: features with the image and the caption (or several captions); class labels are
            replaced by their names. "key" and "scene" are read if the data set has them.

    Raises:
        UserError: the data set or a feature does not exist, or the data set was not prepared.
    """
    import tensorflow_datasets as tfds

    name, _, data_dir = location.partition("@")
    try:
        builder: Any = tfds.builder(name, data_dir=data_dir or None)
    except Exception as error:
        raise UserError(
            f"no TFDS data set {name!r} in {data_dir or 'the default folder'}: "
            f"{_first_line(error)} Prepare it with file_format='array_record'."
        ) from error
    features: Any = builder.info.features
    paths = {"image": keys.image, "caption": keys.caption}
    paths |= {field: field for field in ("key", "scene") if field in features}
    for path in paths.values():
        _check_feature(name, features, path)
    caption = _follow(features, keys.caption)
    labels = caption if hasattr(caption, "int2str") else None

    def open_split(split: str) -> TfdsSource:
        try:
            skip = {keys.image: tfds.decode.SkipDecoding()}
            data = builder.as_data_source(split=split, decoders=skip)
        except (ValueError, AssertionError, NotImplementedError, OSError) as error:
            reason = _first_line(error)
            raise UserError(
                f"TFDS data set {name!r}, split {split!r}: {reason} {_PREPARE}"
            ) from error
        return TfdsSource(data, split=split, paths=paths, labels=labels)

    return Dataset(splits=tuple(builder.info.splits), open_split=open_split)


class TfdsSource:
    """Records of a TFDS data source; images stay encoded."""

    def __init__(self, data: Sequence[Any], *, split: str, paths: Mapping[str, str], labels: Any):
        """Wraps `data`.

        Args:
            data: examples, as TFDS returns them.
            split: name of the split, for the keys of records without one.
            paths: field of a record -> feature of an example.
            labels: feature of TFDS that maps class labels to names; None without labels.
        """
        self._data, self._split, self._paths, self._labels = data, split, paths, labels

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        example = self._data[index]
        record = {field: _follow(example, path) for field, path in self._paths.items()}
        texts = {
            field: [self._text(each) for each in _several(value)]
            for field, value in record.items()
            if field != "image"
        }
        firsts = {field: (values or [""])[0] for field, values in texts.items()}
        several = {"captions": texts["caption"]} if len(texts["caption"]) > 1 else {}
        return {"key": f"{self._split}-{index:08d}", "scene": "", **record, **firsts, **several}

    def _text(self, value: Any) -> str:
        if isinstance(value, (int, np.integer)):
            label = self._labels.int2str(int(value)) if self._labels else value
            return str(label).replace("_", " ")
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _several(value: Any) -> Sequence[Any]:
    """Returns the values of a feature: those of a sequence, or the only one."""
    return list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]


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
            "Set --image-key and --caption-key, or config.data.image_key and caption_key."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
