"""Files of arrays, opened as columns: one vector, token sequence or label per row.

A column is named FILE or FILE:NAME.

    a.npy                    [n d] or [n l d], memory-mapped; keys in a.keys.npy or a.keys.txt
    a.npz:NAME               likewise, if the member is stored uncompressed
    a.safetensors:NAME       likewise
    a.h5:NAME                a dataset; needs h5py
    a.parquet:NAME           a column of lists, or of lists of lists; also .arrow and .feather
    shards-*.tar:NAME.npy    WebDataset members; the key is the name before the first dot
    FOLDER:img_emb           a folder of clip-retrieval or img2dataset; also text_emb

Keys are read from an array, column or dataset "key" or "keys" beside NAME. With NAME "*" (in HDF5
"GROUP/*") every array is one row whose key is its name, for sequences of different lengths.
"""

import dataclasses
import glob
import json
import pathlib
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow
import pyarrow.parquet

from unclip_jax.core.checks import UserError, suggest
from unclip_jax.core.files import content_state
from unclip_jax.data.embeddings import KINDS, EmbeddingSource
from unclip_jax.pairs.columns import Column, checked, unpack

KEY_NAMES = ("key", "keys", "__key__")
ARROW = (".arrow", ".feather")
HDF5 = (".h5", ".hdf5")
FORMATS = ".npy, .npz, .safetensors, .h5, .parquet, .arrow, .tar or a folder of clip-retrieval"
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SAFETENSORS_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
}
_DAMAGED = (
    OSError,
    tarfile.TarError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    pyarrow.ArrowException,
)


def open_column(location: str) -> Column:
    """Opens a column; the module docstring lists the forms of `location`.

    Raises:
        UserError: the file or array does not exist, cannot be read, or has an unknown format.
    """
    path, name = _split(location)
    suffix = _suffix(path)
    try:
        if pathlib.Path(path).is_dir():
            return _of_folder(location, pathlib.Path(path), name)
        if suffix in TARS:
            return unpack(location, _tar_rows(path, name or "npy"))
        if suffix in (".parquet", *ARROW):
            return _of_table(location, path, name)
        readers = {".npy": _of_npy, ".npz": _of_npz, ".safetensors": _of_safetensors}
        readers |= dict.fromkeys(HDF5, _of_hdf5)
        if suffix in readers:
            return readers[suffix](location, pathlib.Path(path), name)
    except UserError:
        raise
    except _DAMAGED as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        reason = "it holds no array of numbers" if "allow_pickle" in reason else reason
        raise UserError(f"{location} cannot be read: {reason}; write the file again.") from error
    raise UserError(f"{location} has an unknown format; give {FORMATS}.")


def labels(location: str) -> np.ndarray:
    """Returns a column of labels as text without surrounding spaces.

    Raises:
        UserError: the column cannot be opened (see `open_column`), or its rows are arrays.
    """
    return np.array([label.strip() for label in _labels(location)], np.str_)


def _labels(location: str) -> Sequence[str]:
    path, name = _split(location)
    suffix = _suffix(path)
    if suffix in (".parquet", *ARROW):
        tables = [_read_columns(file, [name or "group"]) for file in _files(location, path)]
        return [str(value) for table in tables for value in table.column(0).to_pylist()]
    if suffix == ".txt":
        return _lines(_files(location, path)[0])
    if not suffix and not pathlib.Path(path).is_dir():
        raise UserError(
            f"{location} is not a file of labels; give a .txt file with one label per line, or "
            f"{FORMATS}."
        )
    values = open_column(location).values
    if len(values.shape) != 1:
        raise UserError(
            f"{location} has rows of shape {list(values.shape[1:])}; give one label per row."
        )
    return _as_text(values[:]).tolist()


def column_state(location: str) -> tuple[tuple[int, ...], ...]:
    """Returns `core.files.content_state` of every file of a column, including its keys.

    Raises:
        UserError: there is no such file.
    """
    path, _ = _split(location)
    if pathlib.Path(path).is_dir():
        paths = sorted(file for file in pathlib.Path(path).rglob("*") if file.is_file())
    else:
        paths = _files(location, path)
        beside = [_keys_beside(file) for file in paths if file.suffix == ".npy"]
        paths += [file for pair in beside for file in pair if file.is_file()]
    return tuple(content_state(file.stat()) for file in paths)


def _keys_beside(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the files that may contain the keys of an .npy file: an array, or lines of text."""
    return path.with_suffix(".keys.npy"), path.with_suffix(".keys.txt")


def _split(location: str) -> tuple[str, str]:
    """Splits FILE:NAME; the name may be empty."""
    if pathlib.Path(location).exists() or ":" not in location:
        return location, ""
    path, _, name = location.rpartition(":")
    return path, name


def _suffix(path: str) -> str:
    name = pathlib.Path(path).name.lower()
    ends = [suffix for suffix in TARS if name.endswith(suffix)]
    return max(ends, key=len) if ends else pathlib.Path(name).suffix


def _files(location: str, path: str) -> list[pathlib.Path]:
    """Returns the files that match a path or pattern, sorted.

    Raises:
        UserError: no file matches.
    """
    paths = [path] if pathlib.Path(path).is_file() else sorted(glob.glob(path))
    if not paths:
        of = "" if path == location else f" (of {location})"
        raise UserError(f"there is no file {path}{of}; give the path of a file of arrays.")
    return [pathlib.Path(one) for one in paths]


def _lines(path: pathlib.Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def _as_text(values: Any) -> np.ndarray:
    """Returns keys or labels as an array of text."""
    items = np.asarray(values).tolist()
    return np.array([item.decode() if isinstance(item, bytes) else str(item) for item in items])


def _pick(location: str, name: str, names: Sequence[str]) -> str:
    """Returns the name of the array to read: `name`, or that of the only array.

    Raises:
        UserError: there is no such array, or `name` is empty and there are several.
    """
    arrays = [item for item in names if item not in KEY_NAMES]
    if name and name not in names:
        raise UserError(f"{location} has no array {name!r}.{suggest(name, arrays)}")
    if not name and len(arrays) != 1:
        some = ", ".join(sorted(arrays)[:8])
        raise UserError(
            f"{location} has {len(arrays)} arrays; name one: {location}:NAME. Known: {some}."
        )
    return name or arrays[0]


def _of_npy(location: str, path: pathlib.Path, name: str) -> Column:
    _files(location, str(path))
    values, keys = np.load(path, mmap_mode="r", allow_pickle=False), None
    beside = _keys_beside(path)
    if beside[0].is_file():
        keys = _as_text(np.load(beside[0], allow_pickle=False))
    elif beside[1].is_file():
        keys = np.array(_lines(beside[1]))
    return checked(Column(location, values, keys=keys))


def _of_npz(location: str, path: pathlib.Path, name: str) -> Column:
    _files(location, str(path))
    with np.load(path, allow_pickle=False) as archive:
        if name == "*":
            return unpack(location, ((key, archive[key]) for key in archive.files))
        name = _pick(location, name, archive.files)
        keys = [archive[item] for item in KEY_NAMES if item in archive.files]
        values = _mapped_member(path, f"{name}.npy")
        values = archive[name] if values is None else values
    return checked(Column(location, values, keys=_as_text(keys[0]) if keys else None))


def _mapped_member(path: pathlib.Path, member: str) -> np.ndarray | None:
    """Maps an uncompressed member into memory; returns None if it is compressed."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        file.seek(info.header_offset + 26)  # lengths of name and extra field in the local header
        lengths = np.frombuffer(file.read(4), "<u2")
        file.seek(info.header_offset + 30 + int(lengths.sum()))
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        read = read if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", offset=file.tell(), shape=shape, order=order)


def _of_safetensors(location: str, path: pathlib.Path, name: str) -> Column:
    _files(location, str(path))
    with path.open("rb") as file:
        length = int(np.frombuffer(file.read(8), "<u8")[0])
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)

    def mapped(key: str) -> np.ndarray:
        entry = header[key]
        if entry["dtype"] not in SAFETENSORS_TYPES:
            raise UserError(f"{location} holds {entry['dtype']}; store it as F32.")
        start = 8 + length + entry["data_offsets"][0]
        dtype = np.dtype(SAFETENSORS_TYPES[entry["dtype"]])
        return np.memmap(path, dtype, "r", offset=start, shape=tuple(entry["shape"]))

    if name == "*":
        return unpack(location, ((key, mapped(key)) for key in header))
    name = _pick(location, name, list(header))
    keys = [mapped(item) for item in KEY_NAMES if item in header]
    return checked(Column(location, mapped(name), keys=_as_text(keys[0]) if keys else None))


def _of_hdf5(location: str, path: pathlib.Path, name: str) -> Column:
    _files(location, str(path))
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{location} is an HDF5 file, which needs h5py; run `pip install h5py`."
        ) from None
    file = h5py.File(path, "r")
    if name.endswith("*"):
        group = file[name.removesuffix("*").strip("/") or "/"]
        return unpack(location, ((key, np.asarray(group[key])) for key in group))
    name = _pick(location, name, _datasets(file))
    keys = [file[item][:] for item in KEY_NAMES if item in file]
    return checked(Column(location, file[name], keys=_as_text(keys[0]) if keys else None))


def _datasets(file: Any) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
    return names


def _of_folder(location: str, path: pathlib.Path, name: str) -> Column:
    """Opens embeddings in the layout of clip-retrieval; several shards are first unpacked."""
    source = EmbeddingSource(path)
    fields = {KINDS[field]: field for field in source.fields}
    field = fields[_pick(location, name, list(fields))]
    keys = np.array([source[i]["key"] for i in range(len(source))])
    blocks = (source.vectors(field, i, i + 8192) for i in range(0, len(source), 8192))
    column = unpack(location, (("", row) for block in blocks for row in block))
    return dataclasses.replace(column, keys=keys)


def _of_table(location: str, path: str, name: str) -> Column:
    """Opens a column of Parquet or Arrow files."""
    files = _files(location, path)
    names = _schema(files[0])
    name = _pick(location, name, names)
    key = next((item for item in (*KEY_NAMES, "image_path") if item in names), None)

    def rows() -> Iterator[tuple[str, np.ndarray]]:
        for file in files:
            for batch in _batches(file, [name, *([key] if key else [])]):
                keys = batch.column(key).to_pylist() if key else [""] * batch.num_rows
                for item, row in zip(keys, batch.column(name), strict=True):
                    yield str(item), _nested(row)

    column = unpack(location, rows())
    return column if key else dataclasses.replace(column, keys=None)


def _schema(path: pathlib.Path) -> list[str]:
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_schema(path).names
    with pyarrow.memory_map(str(path)) as file:
        return pyarrow.ipc.open_file(file).schema.names


def _batches(path: pathlib.Path, columns: list[str]) -> Iterator[Any]:
    if path.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=4096, columns=columns)
        return
    with pyarrow.memory_map(str(path)) as source:
        file = pyarrow.ipc.open_file(source)
        for index in range(file.num_record_batches):
            yield file.get_batch(index).select(columns)


def _read_columns(path: pathlib.Path, columns: list[str]) -> pyarrow.Table:
    names = _schema(path)
    for column in columns:
        if column not in names:
            raise UserError(f"{path} has no column {column!r}.{suggest(column, names)}")
    return pyarrow.Table.from_batches(list(_batches(path, columns)))


def _nested(row: Any) -> np.ndarray:
    """Returns a list, or list of lists, of Arrow as an array; missing values become NaN."""
    if not row.is_valid:
        return np.full((1,), np.nan, np.float32)
    values = getattr(row, "values", None)
    if values is None:
        return np.asarray(row.as_py())
    if pyarrow.types.is_nested(values.type):
        return np.stack([_nested(item) for item in values])
    return values.to_numpy(zero_copy_only=False)


def _tar_rows(path: str, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields key and array of all members whose name after the first dot is `name`."""
    for file in _files(path, path):
        with tarfile.open(file, mode="r:*") as archive:
            for member in archive:
                key, _, suffix = member.name.rpartition("/")[2].partition(".")
                stream = archive.extractfile(member) if member.isreg() and suffix == name else None
                if stream is not None:
                    folder = member.name.rpartition("/")[0]
                    yield f"{folder}/{key}".lstrip("/"), _read_npy(stream, member.name)


def _read_npy(stream: Any, name: str) -> np.ndarray:
    """Reads an array from a file that cannot be mapped."""
    with tempfile.SpooledTemporaryFile(max_size=2**24) as copy:
        copy.write(stream.read())
        copy.seek(0)
        try:
            return np.load(copy, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UserError(
                f"member {name} is not an array: {error}; write the tar again."
            ) from error
