"""Parquet files that contain images, the format of many data sets of Hugging Face."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from unclip_jax.data import captions
from unclip_jax.preparation import tables
from unclip_jax.preparation.items import (
    MAX_IMAGE_BYTES,
    Cell,
    FileReader,
    Item,
    Listing,
    Skip,
    stamp,
    whole_file,
)

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_LABELS = ("label", "labels", "class")
_BATCH = 64  # rows decoded together
_ERRORS = (pyarrow.ArrowException, OSError, ValueError)


class Columns(NamedTuple):
    """Names of the columns with the images and their captions; "" = there is none."""

    image: str
    caption: str


def image_column(path: pathlib.Path) -> str:
    """Returns the name of the column with images; "" if there is none or the file is unreadable."""
    try:
        return _columns(_schema(path), "").image
    except _ERRORS:
        return ""


def list_parquet(path: pathlib.Path, *, caption_field: str = "") -> Listing | None:
    """Lists the rows of a file with a column of images; None if it has none.

    Images are binary or structs of bytes and path. Captions are text, lists of texts, or class
    labels whose names are in the file's metadata. Keys consist of the file's name and the row.
    """
    try:
        _schema(path)
        file = pyarrow.parquet.ParquetFile(path)
    except _ERRORS:
        return None
    with file:
        columns, count = _columns(file.schema_arrow, caption_field), file.metadata.num_rows
        unlisted = _names_files(file.metadata, columns.image)
    if not columns.image:
        return None
    listing, changed = Listing(unlisted=unlisted), stamp(path)
    for row in range(count):
        image = Cell(str(path), columns.image, row, changed)
        caption = Cell(str(path), columns.caption, row, changed) if columns.caption else None
        skip, facts = "" if caption else "no caption", Cell(str(path), "", row, changed)
        key = f"{path.stem}/{row:06d}"
        listing.items.append(Item(key, image, caption, skip=skip, facts=facts))
    return listing


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of a table of file names and captions: its columns of numbers and text.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        named = (*tables.FILE_FIELDS, *captions.FIELDS)
        used = [field.name for field in _schema(path) if field.name in named or _is_plain(field)]
        return pyarrow.parquet.read_table(path, columns=used).to_pylist()
    except _ERRORS as error:
        raise OSError(f"{path} is not a Parquet file") from error


class ParquetReader:
    """Reads cells, fastest in order; keeps the last file and its position in the columns."""

    def __init__(self):
        self._path = ""
        self._columns: dict[str, _Column] = {}
        self._plain: list[str] | None = None  # names of the columns of numbers and texts

    def image(self, cell: Cell) -> bytes:
        """Returns the encoded image of a row.

        Raises:
            Skip: the row has no image, or the image's file cannot be read.
        """
        value = self._value(cell)
        if isinstance(value, dict):
            data, name = value.get("bytes"), value.get("path")
            if data is None and name:
                return _beside(pathlib.Path(cell.path), name)
            value = data
        if not isinstance(value, bytes):
            raise Skip("no image")
        if len(value) > MAX_IMAGE_BYTES:
            raise Skip("too many bytes")
        return value

    def captions(self, cell: Cell) -> tuple[str, ...]:
        """Returns the captions of a row; class labels are replaced by their names."""
        value = self._value(cell)
        if isinstance(value, int):
            names = self._columns[cell.column].names
            if not 0 <= value < len(names):
                raise Skip("class number without a name")
            return (names[value].replace("_", " "),)
        return captions.texts_of(value)

    def facts(self, cell: Cell) -> dict[str, Any]:
        """Returns the numbers and texts of a row.

        Raises:
            Skip: the file cannot be read.
        """
        try:
            if cell.path != self._path:
                self.close()
                self._path = cell.path
            if self._plain is None:
                self._plain = [
                    field.name for field in _schema(pathlib.Path(cell.path)) if _is_plain(field)
                ]
        except _ERRORS as error:
            raise Skip("unreadable file") from error
        return {name: self._value(cell._replace(column=name)) for name in self._plain}

    def close(self) -> None:
        """Closes the last file."""
        for column in self._columns.values():
            column.close()
        self._path, self._columns, self._plain = "", {}, None

    def _value(self, cell: Cell) -> Any:
        if cell.path != self._path:
            self.close()
        try:
            if cell.column not in self._columns:
                self._columns[cell.column] = _Column(cell.path, cell.column)
            self._path = cell.path
            return self._columns[cell.column].value(cell.row)
        except FileNotFoundError as error:
            raise Skip("missing file") from error
        except UnicodeDecodeError as error:
            raise Skip("bad UTF-8") from error
        except _ERRORS as error:
            raise Skip("unreadable file") from error


class _Column:
    """One column of a file, decoded a few rows at a time."""

    def __init__(self, path: str, name: str):
        self._file, self._name = pyarrow.parquet.ParquetFile(path), name
        self.names = _class_names(self._file.schema_arrow, name)
        self._batches: Iterator[Any] = iter(())
        self._rows: Any = ()
        self._first, self._next = 0, 0  # rows of the current batch
        self._damaged = False  # from the row `_next` on

    def value(self, row: int) -> Any:
        """Returns the value in `row` as a Python object."""
        if row < self._first or not self._next:
            self._batches = self._file.iter_batches(_BATCH, columns=[self._name])
            self._first, self._next, self._rows = 0, 0, ()
        while row >= self._next and not self._damaged:
            try:
                self._rows = next(self._batches).column(0)
            except (StopIteration, *_ERRORS):
                self._damaged = True
                break
            self._first, self._next = self._next, self._next + len(self._rows)
        if row >= self._next:
            raise OSError(f"row {row} cannot be read")
        return self._rows[row - self._first].as_py()

    def close(self) -> None:
        self._file.close()


def _schema(path: pathlib.Path) -> pyarrow.Schema:
    """Reads the schema of a regular file; opening a pipe would block."""
    if not path.is_file():
        raise OSError(f"{path} is not a regular file")
    return pyarrow.parquet.read_schema(path)


def _columns(schema: pyarrow.Schema, caption_field: str) -> Columns:
    """Finds the columns of images and captions by their types and names."""
    images = [field.name for field in schema if _is_image(field)]
    texts = (caption_field,) if caption_field else (*captions.FIELDS, *_LABELS)
    caption = next((name for name in texts if name in schema.names), "")
    if caption in _LABELS and not _class_names(schema, caption):
        caption = ""
    return Columns(images[0] if images else "", caption)


def _names_files(metadata: pyarrow.parquet.FileMetaData, column: str) -> bool:
    """True if rows may name image files instead of containing bytes, judging by the statistics."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for index in range(group.num_columns):
            chunk = group.column(index)
            if chunk.path_in_schema != f"{column}.bytes":
                continue
            statistics = chunk.statistics
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                return True
    return False


def _is_image(field: pyarrow.Field) -> bool:
    if pyarrow.types.is_struct(field.type):
        return any(inner.name == "bytes" and _is_binary(inner.type) for inner in field.type)
    return _is_binary(field.type) and field.name.lower() in _IMAGE_NAMES


def _is_plain(field: pyarrow.Field) -> bool:
    """True for columns of numbers and text."""
    kinds = pyarrow.types
    return any(
        test(field.type)
        for test in (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_string)
    )


def _is_binary(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _class_names(schema: pyarrow.Schema, name: str) -> list[str]:
    """Returns the class names of a column, from Hugging Face's metadata."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = described["info"]["features"][name]["names"]
        return [str(each) for each in names]
    except (ValueError, KeyError, TypeError):
        return []


def _beside(parquet: pathlib.Path, name: str) -> bytes:
    """Reads an image that is a file of its own, named by a row."""
    problem = tables.name_problem(name)
    blob = problem or whole_file(parquet.parent / name)
    if isinstance(blob, str):
        raise Skip(blob)
    reader = FileReader()
    try:
        return reader.read(blob, limit=MAX_IMAGE_BYTES)
    finally:
        reader.close()
